/*
 * An engine on a Vulkan device that this program has made itself, as a renderer would; then one in a CUDA context that is none.
 * Run with a model; C99, without Vulkan's headers: what is needed of them stands here. Prints the text, or "skipped: ..." where
 * there is no Vulkan.
 */
#define _POSIX_C_SOURCE 200809L
#include <runtime_interop.h>

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

typedef void *handle;
typedef void (*function)(void);
typedef function (*get_instance_proc_addr_fn)(handle, const char *);

/* VkApplicationInfo, VkInstanceCreateInfo, VkDeviceQueueCreateInfo, VkDeviceCreateInfo, VkPhysicalDeviceFeatures2. */
struct application_info {
    int32_t type;
    const void *next;
    const char *application;
    uint32_t application_version;
    const char *engine;
    uint32_t engine_version, api_version;
};
struct instance_info {
    int32_t type;
    const void *next;
    uint32_t flags;
    const struct application_info *application;
    uint32_t layer_count;
    const char *const *layers;
    uint32_t extension_count;
    const char *const *extensions;
};
struct queue_info {
    int32_t type;
    const void *next;
    uint32_t flags, family, count;
    const float *priorities;
};
struct device_info {
    int32_t type;
    const void *next;
    uint32_t flags, queue_info_count;
    const struct queue_info *queue_infos;
    uint32_t layer_count;
    const char *const *layers;
    uint32_t extension_count;
    const char *const *extensions;
    const void *features;
};
struct features_12 {
    int32_t type;
    void *next;
    uint32_t flags[47];
};
struct features_2 {
    int32_t type;
    void *next;
    uint32_t flags[55];
};
struct queue_family {
    uint32_t flags, count, timestamp_bits, granularity[3];
};

enum { APPLICATION_INFO = 0, INSTANCE_INFO = 1, QUEUE_INFO = 2, DEVICE_INFO = 3, FEATURES_2 = 1000059000, FEATURES_12 = 51 };
#define COMPUTE 2u
#define VERSION_1_2 ((1u << 22) | (2u << 12))

typedef int32_t (*create_instance_fn)(const struct instance_info *, const void *, handle *);
typedef int32_t (*enumerate_fn)(handle, uint32_t *, handle *);
typedef void (*families_fn)(handle, uint32_t *, struct queue_family *);
typedef void (*features_fn)(handle, struct features_2 *);
typedef int32_t (*create_device_fn)(handle, const struct device_info *, const void *, handle *);
typedef function (*get_device_proc_addr_fn)(handle, const char *);
typedef int32_t (*wait_fn)(handle);
typedef void (*destroy_fn)(handle, const void *);

#define GET(instance, type, name) type name = (type)get(instance, #name)

static int say(runtime_engine engine, const char *path, runtime_error *error)
{
    runtime_generate_options options = RUNTIME_GENERATE_OPTIONS_INIT;
    runtime_event event = RUNTIME_EVENT_INIT;
    runtime_model model;
    runtime_session session;
    runtime_request request;
    size_t n;
    options.max_tokens = 8;
    options.ignore_eos = 1;
    if (runtime_model_load(engine, path, SIZE_MAX, NULL, &model, error) != RUNTIME_OK ||
        runtime_model_wait(model, UINT32_MAX, error) != RUNTIME_OK ||
        runtime_session_create(model, &session, error) != RUNTIME_OK ||
        runtime_session_append_text(session, "Hello", SIZE_MAX, error) != RUNTIME_OK ||
        runtime_session_generate(session, &options, &request, error) != RUNTIME_OK)
        return 1;
    do {
        runtime_engine_wait(engine, UINT32_MAX, NULL, NULL);
        runtime_engine_poll(engine, &event, 1, &n, NULL);
        if (n && event.type == RUNTIME_EVENT_TEXT) fwrite(event.text, 1, event.text_len, stdout);
    } while (event.type != RUNTIME_EVENT_REQUEST_DONE);
    printf("\n");
    runtime_session_release(session);
    runtime_model_release(model);
    return event.status != RUNTIME_OK;
}

int main(int argc, char **argv)
{
    runtime_error error = RUNTIME_ERROR_INIT;
    runtime_vulkan_device vulkan = RUNTIME_VULKAN_DEVICE_INIT;
    runtime_cuda_context cuda = RUNTIME_CUDA_CONTEXT_INIT;
    runtime_engine engine;
    struct application_info application = { APPLICATION_INFO, NULL, "host", 1, "host", 1, VERSION_1_2 };
    struct instance_info instance_info = { INSTANCE_INFO, NULL, 0, &application, 0, NULL, 0, NULL };
    struct features_12 twelve = { FEATURES_12, NULL, { 0 } };
    struct features_2 features = { FEATURES_2, &twelve, { 0 } };
    struct queue_family families[8];
    float priority = 1;
    struct queue_info queue = { QUEUE_INFO, NULL, 0, 0, 1, &priority };
    struct device_info device_info = { DEVICE_INFO, &features, 0, 1, &queue, 0, NULL, 0, NULL, NULL };
    handle library, instance = NULL, physical = NULL, device = NULL;
    get_instance_proc_addr_fn get;
    uint32_t count = 1, families_count = 8, family;
    int32_t result;
    int failed;

    if (argc < 2) return 2;
    library = dlopen("libvulkan.so.1", RTLD_NOW);
    if (!library) {
        printf("skipped: no Vulkan\n");
        return 0;
    }
    *(void **)&get = dlsym(library, "vkGetInstanceProcAddr");
    {
        GET(NULL, create_instance_fn, vkCreateInstance);
        if (vkCreateInstance(&instance_info, NULL, &instance) != 0) {
            printf("skipped: no Vulkan instance\n");
            return 0;
        }
    }
    {
        GET(instance, enumerate_fn, vkEnumeratePhysicalDevices);
        GET(instance, families_fn, vkGetPhysicalDeviceQueueFamilyProperties);
        GET(instance, features_fn, vkGetPhysicalDeviceFeatures2);
        GET(instance, create_device_fn, vkCreateDevice);
        GET(instance, get_device_proc_addr_fn, vkGetDeviceProcAddr);
        result = vkEnumeratePhysicalDevices(instance, &count, &physical);
        if ((result != 0 && result != 5) || count == 0) {
            printf("skipped: no Vulkan device\n");
            return 0;
        }
        vkGetPhysicalDeviceQueueFamilyProperties(physical, &families_count, families);
        for (family = 0; family < families_count && !(families[family].flags & COMPUTE);) family++;
        queue.family = family;
        vkGetPhysicalDeviceFeatures2(physical, &features);
        if (vkCreateDevice(physical, &device_info, NULL, &device) != 0) {
            printf("skipped: no Vulkan device could be made\n");
            return 0;
        }

        vulkan.api_version = VERSION_1_2;
        vulkan.get_instance_proc_addr = *(void **)&get;
        vulkan.instance = instance;
        vulkan.physical_device = physical;
        vulkan.device = device;
        vulkan.queue_family = family;
        if (runtime_engine_create_on_vulkan(NULL, &vulkan, &engine, &error) != RUNTIME_OK) {
            fprintf(stderr, "error: %s\n", error.message);
            return 1;
        }
        failed = say(engine, argv[1], &error);
        runtime_engine_release(engine);
        if (failed) {
            fprintf(stderr, "error: %s\n", error.message);
            return 1;
        }
        /* The device is still this program's. */
        {
            wait_fn wait = (wait_fn)vkGetDeviceProcAddr(device, "vkDeviceWaitIdle");
            destroy_fn destroy = (destroy_fn)vkGetDeviceProcAddr(device, "vkDestroyDevice");
            GET(instance, destroy_fn, vkDestroyInstance);
            if (wait(device) != 0) return 1;
            destroy(device, NULL);
            vkDestroyInstance(instance, NULL);
        }
    }
    /* What is missing is refused, and so is a context where there is no driver. */
    vulkan.device = NULL;
    if (runtime_engine_create_on_vulkan(NULL, &vulkan, &engine, &error) != RUNTIME_ERROR_DEVICE || engine.id != 0) return 1;
    if (runtime_engine_create_on_cuda(NULL, &cuda, &engine, &error) != RUNTIME_ERROR_DEVICE || engine.id != 0) return 1;
    printf("cuda: %s\n", error.message);
    return 0;
}
