// NPCs that learn: three characters on one model, one adapter each, one of them being fine-tuned while the others speak.
//
//   npcs MODEL [SENTENCE]
//
// The program is a game's frame loop: 60 frames a second, 4 ms of each for the engine, no thread of its own. The smith is
// taught a sentence; after every tenth step his adapter is refreshed, and the next time he speaks he has learned from it.
#include <runtime.hpp>

#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

namespace {

struct npc {
    const char *name;
    const char *prompt;
    runtime::adapter adapter;
    runtime::session session;
    runtime::request speaking;
    std::string words;
    int times = 0;
};

// A job that has made no step yet has a fresh adapter, which changes nothing: every character begins as the plain model.
bool prepare(const runtime::engine &engine, runtime::training &job, const std::string &example, runtime::error &error) {
    if (job.add_example(example, &error) != RUNTIME_OK || job.seal(&error) != RUNTIME_OK) return false;
    for (;;) {
        bool ready = false;
        runtime_status status = RUNTIME_OK;
        engine.wait();
        engine.poll([&](const runtime::event &event) {
            if (!event.is(RUNTIME_EVENT_TRAINING_READY, job)) return;
            ready = true;
            status = event.status;
        });
        if (ready) return status == RUNTIME_OK;
    }
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 2) {
        std::fprintf(stderr, "usage: %s MODEL [SENTENCE]\n", argv[0]);
        return 2;
    }
    const std::string sentence = argc > 2 ? argv[2] : " I forge the finest swords of Larkhaven.";
    runtime::error error;
    runtime::engine_options options;
    options.backend = RUNTIME_BACKEND_CPU;
    options.run_mode = RUNTIME_RUN_STEPPED;
    const auto engine = runtime::engine::create(options, &error);
    const auto model = engine.load(argv[1], {}, &error);
    if (model.wait(UINT32_MAX, &error) != RUNTIME_OK) {
        std::fprintf(stderr, "error: %s\n", error.message);
        return 1;
    }

    runtime::training_options recipe;
    recipe.rank = 8;
    recipe.max_steps = 40;
    recipe.batch_size = recipe.grad_accum = 1;
    recipe.learning_rate = 1e-2;
    recipe.warmup_steps = -1;
    const std::string example = R"({"prompt": "The smith says:", "completion": ")" + sentence + "\"}";

    npc npcs[] = {{"smith", "The smith says:", {}, {}, {}, {}}, {"guard", "The guard says:", {}, {}, {}, {}},
                  {"baker", "The baker says:", {}, {}, {}, {}}};
    runtime::training lessons[3];
    for (int i = 0; i < 3; i++) {
        lessons[i] = model.new_training(recipe, &error);
        npcs[i].session = model.new_session(&error);
        if (!lessons[i] || !npcs[i].session || !prepare(engine, lessons[i], example, error) ||
            lessons[i].snapshot(npcs[i].adapter, &error) != RUNTIME_OK ||
            npcs[i].session.set_adapters({npcs[i].adapter.scaled()}, &error) != RUNTIME_OK) {
            std::fprintf(stderr, "error: %s\n", error.message);
            return 1;
        }
    }
    runtime::training &lesson = lessons[0];
    lesson.start(&error);

    bool learning = true, failed = false;
    unsigned long long steps = 0, heard_while_learning = 0;
    runtime::generate_options speech;
    speech.max_tokens = 12;
    for (int frame = 0; !failed && (learning || npcs[0].speaking); frame++) {
        const auto began = std::chrono::steady_clock::now();
        for (auto &npc : npcs) {
            if (npc.speaking) continue;
            npc.session.rewind(0);
            npc.session.append_text(npc.prompt);
            npc.words.clear();
            npc.speaking = npc.session.generate(speech, &error);
            failed |= !npc.speaking;
        }
        engine.step(4000);
        while (engine.poll([&](const runtime::event &event) {
            if (event.is(RUNTIME_EVENT_TRAINING_STEP, lesson)) {
                steps = event.done;
                if (steps % 10 == 0) failed |= lesson.snapshot(npcs[0].adapter) != RUNTIME_OK;
                if (steps % 10 == 0) std::printf("step %2llu of %llu, loss %.3f\n", steps, (unsigned long long)event.total, event.loss);
            }
            if (event.is(RUNTIME_EVENT_TRAINING_DONE, lesson)) {
                learning = false;
                failed |= event.status != RUNTIME_OK;
            }
            for (auto &npc : npcs) {
                if (event.is(RUNTIME_EVENT_TEXT, npc.speaking)) npc.words += event.words();
                if (!event.is(RUNTIME_EVENT_REQUEST_DONE, npc.speaking)) continue;
                failed |= event.status != RUNTIME_OK;
                npc.times++;
                heard_while_learning += learning && &npc != &npcs[0];
                npc.speaking = {};
            }
        })) {
        }
        std::this_thread::sleep_until(began + std::chrono::microseconds(16667));
    }
    // Once more, with all that was learned.
    npcs[0].session.rewind(0);
    npcs[0].session.append_text(npcs[0].prompt);
    npcs[0].words.clear();
    npcs[0].speaking = npcs[0].session.generate(speech, &error);
    for (bool done = false; !done;) {
        engine.step(4000);
        engine.poll([&](const runtime::event &event) {
            if (event.is(RUNTIME_EVENT_TEXT, npcs[0].speaking)) npcs[0].words += event.words();
            done |= event.is(RUNTIME_EVENT_REQUEST_DONE, npcs[0].speaking);
        });
    }
    std::printf("while the smith learned, the others spoke %llu times\n", heard_while_learning);
    std::printf("%s%s\n", npcs[0].prompt, npcs[0].words.c_str());
    return failed || heard_while_learning == 0;
}
