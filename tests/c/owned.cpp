// runtime.hpp: what is move-only, what is empty, what comes back. Run with a model.
#include <runtime.hpp>

#include <cstdio>
#include <cstdlib>
#include <type_traits>

#define CHECK(condition)                                                     \
    do {                                                                     \
        if (!(condition)) {                                                  \
            std::fprintf(stderr, "line %d: %s\n", __LINE__, #condition);     \
            std::exit(1);                                                    \
        }                                                                    \
    } while (0)

static_assert(!std::is_copy_constructible_v<runtime::engine> && std::is_nothrow_move_constructible_v<runtime::engine>);
static_assert(!std::is_copy_assignable_v<runtime::session> && std::is_nothrow_move_assignable_v<runtime::session>);

static std::string answer(const runtime::engine &engine, const runtime::session &session, runtime_status expected) {
    runtime::generate_options options;
    options.max_tokens = 8;
    options.ignore_eos = 1;
    runtime::error error;
    const auto request = session.generate(options, &error);
    CHECK(request && !error);
    std::string words;
    for (bool done = false; !done;) {
        engine.wait();
        engine.poll([&](const runtime::event &event) {
            if (event.is(RUNTIME_EVENT_TEXT, request)) words += event.words();
            if (!event.is(RUNTIME_EVENT_REQUEST_DONE, request)) return;
            CHECK(event.status == expected);
            done = true;
        });
    }
    return words;
}

int main(int, char **argv) {
    runtime::error error;
    runtime::engine_options options;
    options.backend = RUNTIME_BACKEND_CPU;
    auto engine = runtime::engine::create(options, &error);
    CHECK(engine && !error);

    auto missing = engine.load("/no/such/model.gguf");
    CHECK(missing.wait(UINT32_MAX, &error) == RUNTIME_ERROR_IO && error);
    CHECK(error.name() == "RUNTIME_ERROR_IO" && error.what().find("/no/such/model.gguf") != std::string_view::npos);
    CHECK(!missing.new_session());

    auto model = engine.load(argv[1]);
    CHECK(model.wait() == RUNTIME_OK);
    CHECK(model.info() && model.info()->has_tokenizer);
    const auto ids = model.tokenize("Hello there", false);
    CHECK(!ids.empty() && model.detokenize(ids) == "Hello there");

    auto session = model.new_session();
    CHECK(session.append_text("Hello") == RUNTIME_OK);
    const auto start = session.token_count();
    const auto first = answer(engine, session, RUNTIME_OK);
    const auto state = session.save_state();
    auto fork = session.fork();
    auto restored = model.load_state(state);
    CHECK(restored.tokens() == session.tokens() && fork.tokens() == session.tokens());
    CHECK(session.rewind(start) == RUNTIME_OK && answer(engine, session, RUNTIME_OK) == first);

    auto moved = std::move(session);
    CHECK(!session && moved);
    moved = std::move(fork);
    CHECK(!fork && moved);
    CHECK(engine.memory() && engine.memory()->total > 0 && engine.figures()->tokens > 0);
    // The model and the engine go first: the session keeps them.
    model.reset();
    engine.reset();
    CHECK(moved.append_text("!") == RUNTIME_OK);
    return 0;
}
