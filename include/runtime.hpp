// runtime.hpp - runtime.h for C++17: handles that release themselves, strings and vectors, no exceptions.
//
// Header-only, over include/runtime.h, whose comments say what each function does. Conventions:
//
//   - Objects are move-only and release their handle when they go. An object that could not be made is empty: test it
//     with `if (!object)`.
//   - What can fail takes an optional `runtime::error *` and returns a status, an object, or std::optional.
//   - Events borrow their text: `event::words()` is valid until the next poll of the same engine.
//   - Nothing is thrown by this header (std::bad_alloc aside), and it compiles with -fno-exceptions.
#ifndef RUNTIME_HPP
#define RUNTIME_HPP

#include <runtime.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace runtime {

/// Why a call failed.
class error : public runtime_error {
public:
    error() noexcept { runtime_error_init(this); }
    /// Whether the latest call that filled it failed.
    explicit operator bool() const noexcept { return code != RUNTIME_OK; }
    /// One line of English; empty after success.
    std::string_view what() const noexcept { return message; }
    /// "RUNTIME_ERROR_IO".
    std::string_view name() const noexcept { return runtime_status_name(code); }
};

/// Options of a C struct, initialised.
template <class T, void (*Init)(T *)> struct initialised : T {
    initialised() noexcept { Init(this); }
};
using engine_options = initialised<runtime_engine_options, runtime_engine_options_init>;
using model_options = initialised<runtime_model_options, runtime_model_options_init>;
using generate_options = initialised<runtime_generate_options, runtime_generate_options_init>;
using training_options = initialised<runtime_training_options, runtime_training_options_init>;
using pacing = initialised<runtime_pacing, runtime_pacing_init>;
using model_info = initialised<runtime_model_info, runtime_model_info_init>;
using memory_info = initialised<runtime_memory_info, runtime_memory_info_init>;
using metrics = initialised<runtime_metrics, runtime_metrics_init>;
using adapter_info = initialised<runtime_adapter_info, runtime_adapter_info_init>;
using requirements = initialised<runtime_requirements, runtime_requirements_init>;

/// A handle that is released once. Move-only.
template <class Handle, runtime_status (*Release)(Handle)> class owned {
public:
    owned() noexcept : handle_{0} {}
    explicit owned(Handle handle) noexcept : handle_(handle) {}
    owned(owned &&other) noexcept : handle_(std::exchange(other.handle_, Handle{0})) {}
    owned &operator=(owned &&other) noexcept {
        if (this != &other) {
            reset();
            handle_ = std::exchange(other.handle_, Handle{0});
        }
        return *this;
    }
    owned(const owned &) = delete;
    owned &operator=(const owned &) = delete;
    ~owned() { reset(); }

    /// Whether there is an object.
    explicit operator bool() const noexcept { return handle_.id != 0; }
    /// The C handle, still owned by this.
    Handle get() const noexcept { return handle_; }
    /// What events of this object carry.
    std::uint64_t id() const noexcept { return handle_.id; }
    /// Releases it now.
    void reset() noexcept { Release(std::exchange(handle_, Handle{0})); }

protected:
    Handle handle_;
};

/// One thing that happened. Its text is borrowed until the next poll.
struct event : runtime_event {
    /// Whole characters of an answer, a stop string, or an error's message.
    std::string_view words() const noexcept { return text_len ? std::string_view(text, text_len) : std::string_view(); }
    /// An embedding, or log-probabilities.
    std::vector<float> numbers() const { return std::vector<float>(values, values + value_count); }
    /// Whether it is of a type and belongs to an object.
    template <class Object> bool is(std::int32_t kind, const Object &of) const noexcept {
        return type == kind && object == of.id();
    }
};

/// A request that runs. It owns nothing: its handle ends with its last event.
class request {
public:
    request() noexcept : handle_{0} {}
    explicit request(runtime_request handle) noexcept : handle_(handle) {}
    explicit operator bool() const noexcept { return handle_.id != 0; }
    std::uint64_t id() const noexcept { return handle_.id; }
    runtime_status cancel(error *e = nullptr) const noexcept { return runtime_request_cancel(handle_, e); }

private:
    runtime_request handle_;
};

/// LoRA weights of a model.
class adapter : public owned<runtime_adapter, runtime_adapter_release> {
public:
    using owned::owned;
    runtime_status save(std::string_view path, error *e = nullptr) const noexcept {
        return runtime_adapter_save(handle_, path.data(), path.size(), e);
    }
    std::optional<adapter_info> info(error *e = nullptr) const noexcept {
        adapter_info info;
        if (runtime_adapter_get_info(handle_, &info, e) != RUNTIME_OK) return std::nullopt;
        return info;
    }
    /// For session::set_adapters.
    runtime_adapter_ref scaled(float scale = 1.0f) const noexcept { return runtime_adapter_ref{handle_, scale, 0}; }

private:
    friend class training;
};

/// A text that grows.
class session : public owned<runtime_session, runtime_session_release> {
public:
    using owned::owned;
    runtime_status append_text(std::string_view text, error *e = nullptr) const noexcept {
        return runtime_session_append_text(handle_, text.data(), text.size(), e);
    }
    runtime_status append_tokens(const std::vector<std::uint32_t> &ids, error *e = nullptr) const noexcept {
        return runtime_session_append_tokens(handle_, ids.data(), ids.size(), e);
    }
    runtime_status append_messages(std::string_view json, error *e = nullptr) const noexcept {
        return runtime_session_append_messages(handle_, json.data(), json.size(), e);
    }
    runtime_status set_adapters(std::initializer_list<runtime_adapter_ref> adapters, error *e = nullptr) const noexcept {
        return runtime_session_set_adapters(handle_, adapters.begin(), adapters.size(), e);
    }
    request generate(const generate_options &options = {}, error *e = nullptr) const noexcept {
        runtime_request made{0};
        runtime_session_generate(handle_, &options, &made, e);
        return request(made);
    }
    session fork(error *e = nullptr) const noexcept {
        runtime_session made{0};
        runtime_session_fork(handle_, &made, e);
        return session(made);
    }
    runtime_status rewind(std::size_t tokens, error *e = nullptr) const noexcept {
        return runtime_session_rewind(handle_, tokens, e);
    }
    std::size_t token_count() const noexcept {
        std::size_t count = 0;
        runtime_session_get_token_count(handle_, &count, nullptr);
        return count;
    }
    std::vector<std::uint32_t> tokens(error *e = nullptr) const {
        std::vector<std::uint32_t> ids(token_count());
        std::size_t count = 0;
        if (runtime_session_get_tokens(handle_, ids.data(), ids.size(), &count, e) != RUNTIME_OK) count = 0;
        ids.resize(count);
        return ids;
    }
    std::vector<std::uint8_t> save_state(error *e = nullptr) const {
        std::size_t size = 0;
        runtime_session_save_state(handle_, nullptr, 0, &size, e);
        std::vector<std::uint8_t> bytes(size);
        if (size && runtime_session_save_state(handle_, bytes.data(), size, &size, e) != RUNTIME_OK) bytes.clear();
        return bytes;
    }
};

/// A training job.
class training : public owned<runtime_training, runtime_training_release> {
public:
    using owned::owned;
    runtime_status add_example(std::string_view json, error *e = nullptr) const noexcept {
        return runtime_training_add_example(handle_, json.data(), json.size(), e);
    }
    runtime_status add_preference(std::string_view json, error *e = nullptr) const noexcept {
        return runtime_training_add_preference(handle_, json.data(), json.size(), e);
    }
    runtime_status seal(error *e = nullptr) const noexcept { return runtime_training_seal(handle_, e); }
    runtime_status start(error *e = nullptr) const noexcept { return runtime_training_start(handle_, e); }
    runtime_status pause(error *e = nullptr) const noexcept { return runtime_training_pause(handle_, e); }
    runtime_status resume(error *e = nullptr) const noexcept { return runtime_training_resume(handle_, e); }
    runtime_status cancel(error *e = nullptr) const noexcept { return runtime_training_cancel(handle_, e); }
    runtime_status checkpoint(std::string_view path, error *e = nullptr) const noexcept {
        return runtime_training_checkpoint(handle_, path.data(), path.size(), e);
    }
    /// Into an adapter: a new one where it is empty, else its weights are replaced, in open sessions, too.
    runtime_status snapshot(adapter &into, error *e = nullptr) const noexcept {
        return runtime_training_snapshot_adapter(handle_, &into.handle_, e);
    }
};

/// A model of an engine.
class model : public owned<runtime_model, runtime_model_release> {
public:
    using owned::owned;
    /// Waits until it can be used; RUNTIME_ERROR_BUSY when the time was too short.
    runtime_status wait(std::uint32_t timeout_ms = UINT32_MAX, error *e = nullptr) const noexcept {
        return runtime_model_wait(handle_, timeout_ms, e);
    }
    runtime_status cancel(error *e = nullptr) const noexcept { return runtime_model_cancel(handle_, e); }
    std::optional<model_info> info(error *e = nullptr) const noexcept {
        model_info info;
        if (runtime_model_get_info(handle_, &info, e) != RUNTIME_OK) return std::nullopt;
        return info;
    }
    session new_session(error *e = nullptr) const noexcept {
        runtime_session made{0};
        runtime_session_create(handle_, &made, e);
        return session(made);
    }
    session load_state(const std::vector<std::uint8_t> &bytes, std::initializer_list<runtime_adapter_ref> adapters = {},
                       error *e = nullptr) const noexcept {
        runtime_session made{0};
        runtime_session_load_state(handle_, bytes.data(), bytes.size(), adapters.begin(), adapters.size(), &made, e);
        return session(made);
    }
    adapter load_adapter(std::string_view path, error *e = nullptr) const noexcept {
        runtime_adapter made{0};
        runtime_adapter_load(handle_, path.data(), path.size(), &made, e);
        return adapter(made);
    }
    training new_training(const training_options &options = {}, error *e = nullptr) const noexcept {
        runtime_training made{0};
        runtime_training_create(handle_, &options, &made, e);
        return training(made);
    }
    std::vector<std::uint32_t> tokenize(std::string_view text, bool add_special = true, error *e = nullptr) const {
        std::size_t count = 0;
        runtime_model_tokenize(handle_, text.data(), text.size(), add_special, nullptr, 0, &count, e);
        std::vector<std::uint32_t> ids(count);
        if (count) runtime_model_tokenize(handle_, text.data(), text.size(), add_special, ids.data(), count, &count, e);
        return ids;
    }
    std::string detokenize(const std::vector<std::uint32_t> &ids, bool skip_special = true, error *e = nullptr) const {
        std::size_t len = 0;
        runtime_model_detokenize(handle_, ids.data(), ids.size(), skip_special, nullptr, 0, &len, e);
        std::string text(len, '\0');
        if (len) runtime_model_detokenize(handle_, ids.data(), ids.size(), skip_special, text.data(), len, &len, e);
        return text;
    }
    request embed(const std::vector<std::uint32_t> &ids, std::uint64_t userdata = 0, error *e = nullptr) const noexcept {
        runtime_request made{0};
        runtime_model_embed(handle_, ids.data(), ids.size(), userdata, &made, e);
        return request(made);
    }
    request score(const std::vector<std::uint32_t> &ids, std::uint64_t userdata = 0, error *e = nullptr) const noexcept {
        runtime_request made{0};
        runtime_model_score(handle_, ids.data(), ids.size(), userdata, &made, e);
        return request(made);
    }
};

/// A device and everything on it.
class engine : public owned<runtime_engine, runtime_engine_release> {
public:
    using owned::owned;
    static engine create(const engine_options &options = {}, error *e = nullptr) noexcept {
        runtime_engine made{0};
        runtime_engine_create(&options, &made, e);
        return engine(made);
    }
    /// Begins to load; see model::wait.
    model load(std::string_view path, const model_options &options = {}, error *e = nullptr) const noexcept {
        runtime_model made{0};
        runtime_model_load(handle_, path.data(), path.size(), &options, &made, e);
        return model(made);
    }
    /// Works for a while; true while there is more to do.
    bool step(std::uint32_t budget_us, error *e = nullptr) const noexcept {
        std::uint32_t busy = 0;
        runtime_engine_step(handle_, budget_us, &busy, e);
        return busy != 0;
    }
    /// Calls `f(const event &)` for what has happened, up to 16 events; gives how many there were.
    template <class F> std::size_t poll(F &&f, error *e = nullptr) const {
        runtime_event events[16];
        std::size_t count = 0;
        runtime_event_init(&events[0]);
        if (runtime_engine_poll(handle_, events, 16, &count, e) != RUNTIME_OK) return 0;
        for (std::size_t i = 0; i < count; i++) f(static_cast<const event &>(event{events[i]}));
        return count;
    }
    bool wait(std::uint32_t timeout_ms = UINT32_MAX, error *e = nullptr) const noexcept {
        std::uint32_t ready = 0;
        runtime_engine_wait(handle_, timeout_ms, &ready, e);
        return ready != 0;
    }
    runtime_status set_memory_limit(std::uint64_t soft, std::uint64_t hard, error *e = nullptr) const noexcept {
        return runtime_engine_set_memory_limit(handle_, soft, hard, e);
    }
    runtime_status set_pacing(const pacing &pace, error *e = nullptr) const noexcept {
        return runtime_engine_set_pacing(handle_, &pace, e);
    }
    runtime_status pause(error *e = nullptr) const noexcept { return runtime_engine_pause(handle_, e); }
    runtime_status resume(error *e = nullptr) const noexcept { return runtime_engine_resume(handle_, e); }
    runtime_status trim(error *e = nullptr) const noexcept { return runtime_engine_trim(handle_, e); }
    std::optional<memory_info> memory(error *e = nullptr) const noexcept {
        memory_info info;
        if (runtime_engine_get_memory_info(handle_, &info, e) != RUNTIME_OK) return std::nullopt;
        return info;
    }
    std::optional<metrics> figures(error *e = nullptr) const noexcept {
        metrics figures;
        if (runtime_engine_get_metrics(handle_, &figures, e) != RUNTIME_OK) return std::nullopt;
        return figures;
    }
};

} // namespace runtime

#endif // RUNTIME_HPP
