/*
 * runtime_interop.h - EXPERIMENTAL: engines on a device that the host has made already, a renderer's or a simulation's.
 *
 * Generated from src/ffi/interop.rs by cbindgen: edit the comments there, not here.
 *
 * What is declared here may change in any version; runtime.h's rules hold otherwise. No header of Vulkan or CUDA is needed:
 * handles are passed as pointers.
 */

#ifndef RUNTIME_INTEROP_H
#define RUNTIME_INTEROP_H

#include <stddef.h>
#include <stdint.h>
#include "runtime.h"

/**
 * The device was made with shaderFloat16 and storageBuffer16BitAccess: shaders may compute in 16 bits.
 */
#define RUNTIME_VULKAN_F16 1

/**
 * A Vulkan device that the host has made, for runtime_engine_create_on_vulkan. Everything in it stays the host's, and has to
 * live until the engine and all that belongs to it are released.
 *
 * The instance is of version 1.2 or newer. The device was made with timelineSemaphore and, where its physical device reports
 * them, robustBufferAccess and the features of VkPhysicalDeviceVulkan11Features to 13Features: what is reported is taken for
 * switched on. The queue has to compute. While the engine works (in runtime_engine_step, or at any time where it has a thread)
 * nobody else may submit to that queue: give it one of its own where the family has several.
 */
typedef struct {
    /**
     * sizeof(runtime_vulkan_device) of the caller's header.
     */
    uint32_t struct_size;
    /**
     * Version that the instance was made with, as VK_MAKE_API_VERSION gives it.
     */
    uint32_t api_version;
    /**
     * The address of vkGetInstanceProcAddr.
     */
    const void *get_instance_proc_addr;
    /**
     * VkInstance.
     */
    const void *instance;
    /**
     * VkPhysicalDevice.
     */
    const void *physical_device;
    /**
     * VkDevice.
     */
    const void *device;
    /**
     * Family of the queue.
     */
    uint32_t queue_family;
    /**
     * Its index in the family.
     */
    uint32_t queue_index;
    /**
     * Names of the extensions that the instance was made with.
     */
    const char *const *instance_extensions;
    /**
     * Names of the extensions that the device was made with.
     */
    const char *const *device_extensions;
    /**
     * How many names instance_extensions has.
     */
    uint32_t instance_extension_count;
    /**
     * How many names device_extensions has.
     */
    uint32_t device_extension_count;
    /**
     * RUNTIME_VULKAN flags, added up.
     */
    uint32_t flags;
    /**
     * Zero.
     */
    uint32_t reserved;
} runtime_vulkan_device;

/**
 * All defaults: runtime_vulkan_device x = RUNTIME_VULKAN_DEVICE_INIT;
 */
#define RUNTIME_VULKAN_DEVICE_INIT { (uint32_t)sizeof(runtime_vulkan_device), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/**
 * A CUDA context that the host has made, for runtime_engine_create_on_cuda. Both stay the host's, and have to live until the
 * engine and all that belongs to it are released.
 */
typedef struct {
    /**
     * sizeof(runtime_cuda_context) of the caller's header.
     */
    uint32_t struct_size;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * CUcontext.
     */
    void *context;
    /**
     * CUstream on which everything is ordered; NULL: the context's default stream.
     */
    void *stream;
} runtime_cuda_context;

/**
 * All defaults: runtime_cuda_context x = RUNTIME_CUDA_CONTEXT_INIT;
 */
#define RUNTIME_CUDA_CONTEXT_INIT { (uint32_t)sizeof(runtime_cuda_context), 0, 0, 0 }

#ifdef __cplusplus
extern "C" {
#endif

/**
 * Sets struct_size and clears the rest. NULL is allowed and does nothing.
 */
void runtime_vulkan_device_init(runtime_vulkan_device *device);

/**
 * Sets struct_size and clears the rest. NULL is allowed and does nothing.
 */
void runtime_cuda_context_init(runtime_cuda_context *context);

/**
 * As runtime_engine_create, on the host's Vulkan device; backend and device of the options are not looked at.
 */
runtime_status runtime_engine_create_on_vulkan(const runtime_engine_options *options,
                                               const runtime_vulkan_device *device,
                                               runtime_engine *engine,
                                               runtime_error *error);

/**
 * As runtime_engine_create, in the host's CUDA context; backend and device of the options are not looked at. Without an NVIDIA
 * driver it is RUNTIME_ERROR_DEVICE.
 */
runtime_status runtime_engine_create_on_cuda(const runtime_engine_options *options,
                                             const runtime_cuda_context *context,
                                             runtime_engine *engine,
                                             runtime_error *error);

#ifdef __cplusplus
}
#endif

#endif  /* RUNTIME_INTEROP_H */
