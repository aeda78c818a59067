//! The C ABI as C sees it: programs compiled strictly and run, what calls give back, and what engines, sessions and jobs do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::undocumented_unsafe_blocks, // every call here is one of the C ABI, with pointers to the test's own variables
    missing_docs
)]

#[path = "c_api/limits.rs"]
mod limits;
#[path = "c_api/support.rs"]
mod support;

mod exports {
    pub use runtime::ffi::*;
}

use exports::*;
use std::ffi::CStr;
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use support::*;

#[test]
fn the_first_program_answers_as_the_command_line_does() {
    let folder = tempfile::tempdir().unwrap();
    let real = root().join(SMOLLM2).exists();
    let (model, prompt) = if real { (SMOLLM2, "What is the capital of France?") } else { (TINY, "Hello") };
    let cli = Path::new(env!("CARGO_BIN_EXE_runtime"));
    let expected = run(cli, &["generate", "-m", model, "--backend", "cpu", "--chat", "-p", prompt, "-n", "24"]);
    assert!(expected.status.success(), "{}", text(&expected.stderr));
    let mut compilers = 0;
    for compiler in ["gcc", "clang", "cc"] {
        let Some(program) = compile(compiler, "examples/c/first_text.c", folder.path()) else { continue };
        compilers += 1;
        let output = run(&program, &[model, prompt, "cpu"]);
        assert!(output.status.success(), "{compiler}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), text(&expected.stdout), "{compiler}");
        assert_eq!(text(&output.stderr), "", "the library prints nothing");
    }
    assert!(compilers > 0, "no C compiler");
}

#[test]
fn first_text_takes_25_lines_and_the_readme_shows_them() {
    let lines = std::fs::read_to_string(root().join("examples/c/hello.c")).unwrap();
    assert!(lines.lines().count() <= 25, "{} lines", lines.lines().count());
    let readme = std::fs::read_to_string(root().join("bindings/c/README.md")).unwrap();
    let block = readme.split("```c\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert_eq!(block, lines, "bindings/c/README.md shows other lines than examples/c/hello.c");
    let folder = tempfile::tempdir().unwrap();
    let program = compile("cc", "examples/c/hello.c", folder.path()).expect("a C compiler");
    let output = run(&program, &[TINY]);
    assert!(output.status.success() && !output.stdout.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn errors_reach_c() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile("cc", "examples/c/first_text.c", folder.path()).expect("a C compiler");
    let output = run(&program, &["no/such/model.gguf", "x", "cpu"]);
    assert_eq!(output.status.code(), Some(1));
    let line = text(&output.stderr);
    assert!(line.starts_with("error: load: RUNTIME_ERROR_IO: no/such/model.gguf"), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
}

#[test]
fn wrong_arguments_are_statuses() {
    let e = Engine::cpu(RUNTIME_RUN_STEPPED);
    let mut error = record();
    let mut model = runtime_model { id: 77 };
    unsafe {
        let status = runtime_model_load(e.engine, null(), 0, null(), &mut model, &mut error);
        assert_eq!((status, model.id, message(&error)), (RUNTIME_ERROR_INVALID_ARGUMENT, 0, "path is empty"));
        let mut options: runtime_engine_options = std::mem::zeroed();
        let mut engine = runtime_engine { id: 77 };
        options.backend = 9;
        let status = runtime_engine_create(&options, &mut engine, &mut error);
        assert_eq!((status, engine.id), (RUNTIME_ERROR_INVALID_ARGUMENT, 0));
        assert_eq!(message(&error), "backend is 9, expected one of RUNTIME_BACKEND");
        options.struct_size = 3;
        assert_eq!(runtime_engine_create(&options, &mut engine, &mut error), RUNTIME_ERROR_INVALID_ARGUMENT);
        assert_eq!(runtime_engine_create(null(), null_mut(), &mut error), RUNTIME_ERROR_INVALID_ARGUMENT);
        let missing = "/no/such/file";
        let path = missing.as_ptr().cast();
        assert_eq!(runtime_model_load(e.engine, path, missing.len(), null(), &mut model, null_mut()), RUNTIME_OK);
        let status = runtime_model_wait(model, 60_000, &mut error);
        assert_eq!((status, error.detail), (RUNTIME_ERROR_IO, 2), "errno: {}", message(&error));
        let mut session = runtime_session { id: 1 };
        assert_eq!(runtime_session_create(model, &mut session, null_mut()), RUNTIME_ERROR_IO, "it never came to be");
        assert_eq!((runtime_model_release(model), session.id), (RUNTIME_OK, 0));
    }
}

#[test]
fn callers_of_other_versions() {
    let e = Engine::loaded(RUNTIME_RUN_THREAD);
    unsafe {
        // A struct that ends earlier, one with a zero tail, and one that sets what this library does not know.
        let mut wide = [0u64; 40];
        let read = |wide: &[u64; 40]| {
            let mut training = runtime_training { id: 0 };
            let status = runtime_training_create(e.model, wide.as_ptr().cast(), &mut training, null_mut());
            runtime_training_release(training);
            status
        };
        for (size, last, expected) in [
            (0u64, 0, RUNTIME_OK),
            (size_of::<runtime_training_options>() as u64, 0, RUNTIME_OK),
            (size_of::<runtime_training_options>() as u64 + 16, 0, RUNTIME_OK),
            (size_of::<runtime_training_options>() as u64 + 16, 1, RUNTIME_ERROR_INVALID_ARGUMENT),
            (16, 0, RUNTIME_ERROR_INVALID_ARGUMENT),
        ] {
            wide[0] = size;
            wide[size_of::<runtime_training_options>() / 8] = last;
            assert_eq!(read(&wide), expected, "size {size}, tail {last}");
        }
        // A result: a newer caller's tail is cleared, and nothing is written beyond what an older one has.
        let mut metrics = [u64::MAX; 16];
        metrics[0] = 96;
        assert_eq!(runtime_engine_get_metrics(e.engine, metrics.as_mut_ptr().cast(), null_mut()), RUNTIME_OK);
        assert_eq!((metrics[0] & 0xFFFF_FFFF, metrics[10], metrics[11], metrics[12]), (96, 0, 0, u64::MAX));
    }
}

#[test]
fn stale_and_made_up_handles_are_statuses() {
    assert_eq!(runtime_model_release(runtime_model { id: 0 }), RUNTIME_OK, "zero is nothing to release");
    let e = Engine::loaded(RUNTIME_RUN_THREAD);
    let mut error = record();
    for id in [1, u64::MAX, e.engine.id, e.model.id ^ (1 << 40)] {
        let status = unsafe { runtime_model_cancel(runtime_model { id }, &mut error) };
        assert_eq!(status, RUNTIME_ERROR_STALE_HANDLE, "{id:#x}");
        assert!(message(&error).contains("model handle"), "{}", message(&error));
    }
    let session = e.session("Hello");
    assert_eq!(runtime_session_release(session), RUNTIME_OK);
    assert_eq!(runtime_session_release(session), RUNTIME_ERROR_STALE_HANDLE, "twice");
}

#[test]
fn both_run_modes_give_the_same_text() {
    let (own, stepped) = (Engine::loaded(RUNTIME_RUN_THREAD), Engine::loaded(RUNTIME_RUN_STEPPED));
    let session = own.session("Hello");
    let expected = own.answer(session, 24, |_| {});
    assert_eq!(expected.status, RUNTIME_OK);
    assert!(!expected.ids.is_empty());
    let session = stepped.session("Hello");
    // A budget of one microsecond: every slice is one operation.
    let answer = stepped.answer(session, 24, |o| o.userdata = 9);
    assert_eq!((answer.status, &answer.text, &answer.ids), (RUNTIME_OK, &expected.text, &expected.ids));
    assert!(answer.steps > 100, "the work was cut into {} slices", answer.steps);
    assert_eq!(answer.userdata, 9);
    unsafe {
        let status = runtime_engine_step(own.engine, 1, null_mut(), null_mut());
        assert_eq!(status, RUNTIME_ERROR_INVALID_ARGUMENT, "it has a thread of its own");
    }
}

#[test]
fn sessions_fork_rewind_and_come_back() {
    let e = Engine::loaded(RUNTIME_RUN_THREAD);
    let session = e.session("Hello there, how are");
    let start = e.tokens(session);
    let first = e.answer(session, 12, |_| {});
    let whole = e.tokens(session);
    assert_eq!(whole, [start.clone(), first.ids.clone()].concat(), "the answer is appended");
    unsafe {
        let mut fork = runtime_session { id: 0 };
        assert_eq!(runtime_session_fork(session, &mut fork, null_mut()), RUNTIME_OK);
        let (a, b) = (e.answer(session, 8, |_| {}), e.answer(fork, 8, |_| {}));
        assert_eq!(a.ids, b.ids, "both go on in the same way");
        assert!(b.cached > 0, "the fork's keys and values are there: {} cached", b.cached);
        assert_eq!(runtime_session_rewind(fork, start.len(), null_mut()), RUNTIME_OK);
        assert_eq!(e.answer(fork, 12, |_| {}).ids, first.ids, "from the same place, the same");
        assert_eq!(runtime_session_rewind(fork, 1 << 20, null_mut()), RUNTIME_ERROR_INVALID_ARGUMENT);
        // To bytes and back.
        let mut size = 0;
        assert_eq!(runtime_session_save_state(session, null_mut(), 0, &mut size, null_mut()), RUNTIME_OK);
        let mut bytes = vec![0u8; size];
        let data = bytes.as_mut_ptr().cast();
        assert_eq!(runtime_session_save_state(session, data, 1, &mut size, null_mut()), RUNTIME_ERROR_BUFFER_TOO_SMALL);
        assert_eq!(runtime_session_save_state(session, data, size, &mut size, null_mut()), RUNTIME_OK);
        let mut back = runtime_session { id: 0 };
        let load = |bytes: &[u8], back: &mut runtime_session| {
            runtime_session_load_state(e.model, bytes.as_ptr().cast(), bytes.len(), null(), 0, back, null_mut())
        };
        assert_eq!(load(&bytes, &mut back), RUNTIME_OK);
        assert_eq!(e.tokens(back), e.tokens(session));
        bytes[40] ^= 1;
        assert_eq!(load(&bytes, &mut back), RUNTIME_ERROR_FORMAT);
        assert_eq!(back.id, 0);
    }
}

#[test]
fn a_session_takes_its_cache_to_another_engine() {
    let (from, to) = (Engine::loaded(RUNTIME_RUN_THREAD), Engine::loaded(RUNTIME_RUN_STEPPED));
    let session = from.session("Hello there, how are you today? I was wondering about the weather.");
    assert!(from.answer(session, 24, |_| {}).ids.len() > 1);
    unsafe {
        let mut size = 0;
        assert_eq!(runtime_session_save_state_with_cache(session, null_mut(), 0, &mut size, null_mut()), RUNTIME_OK);
        let mut bytes = vec![0u8; size];
        let data = bytes.as_mut_ptr().cast();
        assert_eq!(runtime_session_save_state_with_cache(session, data, size, &mut size, null_mut()), RUNTIME_OK);
        let mut plain = 0;
        assert_eq!(runtime_session_save_state(session, null_mut(), 0, &mut plain, null_mut()), RUNTIME_OK);
        println!("{plain} bytes without, {size} with keys and values");
        assert!(size > plain);
        let mut back = runtime_session { id: 0 };
        let load = |bytes: &[u8], back: &mut runtime_session| {
            runtime_session_load_state(to.model, bytes.as_ptr().cast(), bytes.len(), null(), 0, back, null_mut())
        };
        assert_eq!(load(&bytes, &mut back), RUNTIME_OK);
        let answer = to.answer(back, 8, |_| {});
        assert!(answer.cached >= 16, "{} tokens were not computed again", answer.cached);
        assert_eq!(answer.ids, from.answer(session, 8, |_| {}).ids, "and it goes on as it would have");
        *bytes.last_mut().unwrap() ^= 1;
        assert_eq!(load(&bytes, &mut back), RUNTIME_ERROR_FORMAT);
    }
}

/// Stepped, so that what follows a cancel is counted in slices: no more than one.
#[test]
fn cancel_takes_effect_within_a_slice_in_every_phase() {
    let e = Engine::loaded(RUNTIME_RUN_STEPPED);
    let timed = |phase: &str, cancel: &dyn Fn() -> runtime_status| {
        let began = Instant::now();
        assert_eq!(cancel(), RUNTIME_OK);
        println!("cancelling in {phase} took {:?}", began.elapsed());
    };
    // Prompts longer than a slice.
    let long = "The quick brown fox. ".repeat(4);
    for (phase, slices) in [("a queue", 0), ("prefill", 1), ("decode", 3)] {
        let session = e.session(&long);
        let request = e.generate(session, 100, |o| o.ignore_eos = 1);
        for _ in 0..slices {
            unsafe { runtime_engine_step(e.engine, if phase == "prefill" { 1 } else { 1000 }, null_mut(), null_mut()) };
        }
        timed(phase, &|| unsafe { runtime_request_cancel(request, null_mut()) });
        assert!(e.slices_until(RUNTIME_EVENT_REQUEST_DONE, request.id) <= 1, "{phase}");
        runtime_session_release(session);
    }
    let training = e.training(100_000);
    e.wait_for(RUNTIME_EVENT_TRAINING_STEP, training.id);
    timed("training", &|| unsafe { runtime_training_cancel(training, null_mut()) });
    assert!(e.slices_until(RUNTIME_EVENT_TRAINING_DONE, training.id) <= 1);
    runtime_training_release(training);
    // Loading goes on on a thread of its own, and ends by itself.
    let model = e.load();
    timed("loading", &|| unsafe { runtime_model_cancel(model, null_mut()) });
    let status = unsafe { runtime_model_wait(model, 60_000, null_mut()) };
    assert!([RUNTIME_ERROR_CANCELLED, RUNTIME_OK].contains(&status), "{status}: it may have been done already");
    runtime_model_release(model);
}

#[test]
fn preference_tuning_moves_the_pairs_apart() {
    let e = Engine::loaded(RUNTIME_RUN_STEPPED);
    let pair = r#"{"prompt": "The sky is", "chosen": " blue", "rejected": " green"}"#;
    let add = |training, pair: &str| unsafe {
        runtime_training_add_preference(training, pair.as_ptr().cast(), pair.len(), null_mut())
    };
    unsafe {
        let mut options: runtime_training_options = std::mem::zeroed();
        runtime_training_options_init(&mut options);
        options.max_steps = 12;
        options.learning_rate = 5e-3;
        options.beta = 0.5;
        let mut training = runtime_training { id: 0 };
        let status = runtime_training_create(e.model, &options, &mut training, null_mut());
        assert_eq!(status, RUNTIME_ERROR_INVALID_ARGUMENT, "beta without a preference loss");
        options.preference = RUNTIME_PREFERENCE_DPO;
        assert_eq!(runtime_training_create(e.model, &options, &mut training, null_mut()), RUNTIME_OK);
        let example = r#"{"text": "no pair"}"#;
        let status = runtime_training_add_example(training, example.as_ptr().cast(), example.len(), null_mut());
        assert_eq!(status, RUNTIME_ERROR_INVALID_ARGUMENT, "the job takes pairs");
        assert_eq!(add(training, r#"{"prompt": "The sky is"}"#), RUNTIME_ERROR_INVALID_ARGUMENT);
        assert_eq!(add(training, pair), RUNTIME_OK);
        assert_eq!(runtime_training_seal(training, null_mut()), RUNTIME_OK);
        assert_eq!(runtime_training_start(training, null_mut()), RUNTIME_OK);
        let (first, last) = e.losses(training.id);
        // Without training both answers are as likely as for the reference: ln 2.
        assert!((first - std::f64::consts::LN_2).abs() < 1e-3 && last < 0.6 * first, "{first} → {last}");
        runtime_training_release(training);
        // A job that takes examples takes no pairs.
        options = std::mem::zeroed();
        assert_eq!(runtime_training_create(e.model, &options, &mut training, null_mut()), RUNTIME_OK);
        assert_eq!(add(training, pair), RUNTIME_ERROR_INVALID_ARGUMENT);
        runtime_training_release(training);
    }
}

#[test]
fn a_conversation_and_a_form() {
    let e = Engine::loaded(RUNTIME_RUN_THREAD);
    let session = e.session("");
    let say = |words: &str| {
        let json = serde_json::json!([{ "role": "user", "content": words }]).to_string();
        unsafe { runtime_session_append_messages(session, json.as_ptr().cast(), json.len(), null_mut()) }
    };
    assert_eq!(say("Hi"), RUNTIME_OK);
    let mark = e.tokens(session).len();
    let first = e.answer(session, 8, |_| {});
    assert_eq!(say("And now?"), RUNTIME_OK);
    // What the chat template makes of it all.
    let all = serde_json::json!([
        { "role": "user", "content": "Hi" },
        { "role": "assistant", "content": first.text },
        { "role": "user", "content": "And now?" },
    ]);
    assert_eq!(e.tokens(session), e.tokenized(&e.rendered(&all.to_string()), false));
    // A form: one of two words, though the model would say something else.
    let choice = c"[\"yes\",\"no\"]";
    let answer = e.answer(session, 8, |o| {
        (o.grammar_type, o.grammar, o.grammar_len) = (RUNTIME_GRAMMAR_CHOICE, choice.as_ptr(), usize::MAX);
    });
    assert!(["yes", "no"].contains(&answer.text.as_str()), "'{}'", answer.text);
    unsafe {
        assert_eq!(runtime_session_rewind(session, mark, null_mut()), RUNTIME_OK);
        assert_eq!(e.answer(session, 8, |_| {}).text, first.text);
        assert_eq!(runtime_session_rewind(session, mark - 1, null_mut()), RUNTIME_OK);
        assert_eq!(say("?"), RUNTIME_ERROR_INVALID_ARGUMENT, "rewound to within a message");
    }
}

#[test]
fn text_tokens_embeddings_and_scores() {
    let e = Engine::loaded(RUNTIME_RUN_THREAD);
    let words = "naïve 日本 Hello";
    let ids = e.tokenized(words, false);
    let mut decoder = runtime_decoder { id: 0 };
    let mut out = String::new();
    unsafe {
        assert_eq!(runtime_decoder_create(e.model, 1, &mut decoder, null_mut()), RUNTIME_OK);
        for id in &ids {
            let (mut buffer, mut len) = ([0u8; 64], 0);
            let data = buffer.as_mut_ptr().cast();
            assert_eq!(runtime_decoder_push(decoder, *id, data, 64, &mut len, null_mut()), RUNTIME_OK);
            out.push_str(std::str::from_utf8(&buffer[..len]).expect("whole characters"));
        }
        assert_eq!(runtime_decoder_release(decoder), RUNTIME_OK);
        assert_eq!(out, words);
        let mut request = runtime_request { id: 0 };
        assert_eq!(runtime_model_embed(e.model, ids.as_ptr(), ids.len(), 5, &mut request, null_mut()), RUNTIME_OK);
        let mut info: runtime_model_info = std::mem::zeroed();
        assert_eq!(runtime_model_get_info(e.model, &mut info, null_mut()), RUNTIME_OK);
        let embedding = e.numbers(RUNTIME_EVENT_EMBEDDING, request);
        assert_eq!(embedding.len(), info.hidden as usize);
        assert_eq!(runtime_model_score(e.model, ids.as_ptr(), ids.len(), 5, &mut request, null_mut()), RUNTIME_OK);
        let scores = e.numbers(RUNTIME_EVENT_SCORES, request);
        assert_eq!(scores.len(), ids.len() - 1);
        assert!(scores.iter().all(|p| p.is_finite() && *p <= 0.0), "{scores:?}");
        assert_eq!(runtime_request_cancel(request, null_mut()), RUNTIME_ERROR_STALE_HANDLE, "it has ended");
    }
}

#[test]
fn cancel_takes_effect_at_once() {
    for mode in [RUNTIME_RUN_THREAD, RUNTIME_RUN_STEPPED] {
        let e = Engine::loaded(mode);
        let session = e.session("Hello");
        let request = e.generate(session, 100, |o| o.ignore_eos = 1);
        e.work(3);
        let began = Instant::now();
        assert_eq!(unsafe { runtime_request_cancel(request, null_mut()) }, RUNTIME_OK);
        let took = began.elapsed();
        let end = e.end_of(request);
        assert_eq!((end.status, end.reason), (RUNTIME_ERROR_CANCELLED, RUNTIME_FINISH_CANCELLED));
        println!("mode {mode}: cancelling took {took:?}");
        // The session is free again, with what was said.
        assert_eq!(e.answer(session, 4, |_| {}).status, RUNTIME_OK);
        let training = e.training(1000);
        e.work(20);
        assert_eq!(unsafe { runtime_training_cancel(training, null_mut()) }, RUNTIME_OK);
        assert_eq!(e.wait_for(RUNTIME_EVENT_TRAINING_DONE, training.id).status, RUNTIME_ERROR_CANCELLED);
        assert_eq!(e.answer(session, 4, |_| {}).status, RUNTIME_OK, "the others live on");
        runtime_training_release(training);
    }
}

#[test]
fn a_job_trains_while_others_speak_and_is_heard_in_open_sessions() {
    let e = Engine::loaded(RUNTIME_RUN_THREAD);
    let (open, plain) = (e.session("Hello"), e.session("Hello"));
    let before = e.answer(plain, 16, |_| {});
    let training = e.training(30);
    let mut adapter = runtime_adapter { id: 0 };
    e.wait_for(RUNTIME_EVENT_TRAINING_STEP, training.id);
    unsafe {
        assert_eq!(runtime_training_snapshot_adapter(training, &mut adapter, null_mut()), RUNTIME_OK);
        let one = [runtime_adapter_ref { adapter, scale: 1.0, reserved: 0 }];
        assert_eq!(runtime_session_set_adapters(open, one.as_ptr(), 1, null_mut()), RUNTIME_OK);
    }
    let during = e.session("Hello");
    assert_eq!(e.answer(during, 16, |_| {}).ids, before.ids, "another session is not touched");
    let (first, last) = e.losses(training.id);
    assert!(last < first / 2.0, "the loss fell from {first} to {last}");
    unsafe {
        // The same handle, the new weights.
        let id = adapter.id;
        assert_eq!(runtime_training_snapshot_adapter(training, &mut adapter, null_mut()), RUNTIME_OK);
        assert_eq!(adapter.id, id);
    }
    let learned = e.answer(open, 16, |_| {});
    assert_ne!(learned.ids, before.ids, "the open session speaks with the adapter");
    // Half and half of the same adapter is the adapter.
    let halves = [runtime_adapter_ref { adapter, scale: 0.5, reserved: 0 }; 2];
    let mixed = e.session("Hello");
    unsafe { assert_eq!(runtime_session_set_adapters(mixed, halves.as_ptr(), 2, null_mut()), RUNTIME_OK) };
    assert_eq!(e.answer(mixed, 16, |_| {}).ids, learned.ids);
    // To disk and back.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter").to_str().unwrap().to_owned();
    unsafe {
        assert_eq!(runtime_adapter_save(adapter, path.as_ptr().cast(), path.len(), null_mut()), RUNTIME_OK);
        let mut again = runtime_adapter { id: 0 };
        let status = runtime_adapter_load(e.model, path.as_ptr().cast(), path.len(), &mut again, null_mut());
        assert_eq!(status, RUNTIME_OK);
        let (mut a, mut b): (runtime_adapter_info, runtime_adapter_info) = (std::mem::zeroed(), std::mem::zeroed());
        runtime_adapter_get_info(adapter, &mut a, null_mut());
        runtime_adapter_get_info(again, &mut b, null_mut());
        assert_eq!((a.hash, a.rank, a.modules), (b.hash, b.rank, b.modules));
        let checkpoint = folder.path().to_str().unwrap();
        let status = runtime_training_checkpoint(training, checkpoint.as_ptr().cast(), checkpoint.len(), null_mut());
        assert_eq!(status, RUNTIME_OK);
        assert!(folder.path().join("checkpoint-30").is_dir());
        // Any order of release.
        assert_eq!(runtime_training_release(training), RUNTIME_OK);
        assert_eq!((runtime_adapter_release(again), runtime_adapter_release(adapter)), (RUNTIME_OK, RUNTIME_OK));
    }
    assert_eq!(e.answer(open, 4, |_| {}).status, RUNTIME_OK, "the session keeps its adapter");
}

static FREED: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" fn freed(_: *mut std::ffi::c_void) {
    FREED.fetch_add(1, Ordering::SeqCst);
}

unsafe extern "C" fn size(file: *mut std::ffi::c_void) -> u64 {
    unsafe { (*file.cast::<Vec<u8>>()).len() as u64 }
}

unsafe extern "C" fn read(file: *mut std::ffi::c_void, offset: u64, out: *mut std::ffi::c_void, len: usize) -> i32 {
    let bytes = unsafe { &*file.cast::<Vec<u8>>() };
    let Some(part) = bytes.get(offset as usize..offset as usize + len) else { return 1 };
    unsafe { out.cast::<u8>().copy_from_nonoverlapping(part.as_ptr(), len) };
    0
}

/// Path, descriptor with an offset, buffer, callbacks: the same model.
#[cfg(unix)]
#[test]
fn a_model_comes_from_anywhere() {
    use std::os::fd::AsRawFd;
    let path = root().join(SMOLLM2);
    let Ok(mut bytes) = std::fs::read(&path) else {
        eprintln!("skipped: no {SMOLLM2}");
        return;
    };
    let e = Engine::cpu(RUNTIME_RUN_THREAD);
    let mut options: runtime_model_options = unsafe { std::mem::zeroed() };
    (options.max_tokens, options.max_adapters) = (64, -1);
    let text = path.to_str().unwrap();
    let mut model = runtime_model { id: 0 };
    let sum = |e: &Engine, model: runtime_model| unsafe {
        let mut error = record();
        assert_eq!(runtime_model_wait(model, 120_000, &mut error), RUNTIME_OK, "{}", message(&error));
        let (ids, mut request) = ([504u32, 253, 2470, 281], runtime_request { id: 0 });
        assert_eq!(runtime_model_score(model, ids.as_ptr(), 4, 0, &mut request, null_mut()), RUNTIME_OK);
        let scores = e.numbers(RUNTIME_EVENT_SCORES, request);
        assert_eq!(runtime_model_release(model), RUNTIME_OK);
        scores
    };
    unsafe {
        runtime_model_load(e.engine, text.as_ptr().cast(), text.len(), &options, &mut model, null_mut());
        let expected = sum(&e, model);
        // In a pak: behind 1000 bytes of something else.
        let mut pak = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut pak, &[7; 1000]).unwrap();
        std::io::Write::write_all(&mut pak, &bytes).unwrap();
        let fd = pak.as_file().as_raw_fd();
        let status = runtime_model_load_fd(e.engine, fd, 1000, 0, &options, &mut model, null_mut());
        assert_eq!(status, RUNTIME_OK);
        drop(pak);
        assert_eq!(sum(&e, model), expected, "descriptor");
        let mut io: runtime_io = std::mem::zeroed();
        io.userdata = (&raw mut bytes).cast();
        io.size = Some(size);
        io.read = Some(read);
        io.close = Some(freed);
        assert_eq!(runtime_model_load_io(e.engine, &io, &options, &mut model, null_mut()), RUNTIME_OK);
        assert_eq!(sum(&e, model), expected, "callbacks");
        let (data, len) = (bytes.as_ptr().cast(), bytes.len());
        let status =
            runtime_model_load_buffer(e.engine, data, len, Some(freed), null_mut(), &options, &mut model, null_mut());
        assert_eq!(status, RUNTIME_OK);
        assert_eq!(sum(&e, model), expected, "buffer");
    }
    e.until(|e| e.memory().total == 0);
    assert_eq!(FREED.load(Ordering::SeqCst), 2, "close and free were called once each");
}

#[test]
fn pause_pace_and_metrics() {
    let e = Engine::loaded(RUNTIME_RUN_STEPPED);
    let session = e.session("Hello");
    let request = e.generate(session, 8, |_| {});
    unsafe {
        assert_eq!(runtime_engine_pause(e.engine, null_mut()), RUNTIME_OK);
        let mut busy = 7;
        assert_eq!(runtime_engine_step(e.engine, 10_000, &mut busy, null_mut()), RUNTIME_OK);
        assert_eq!(busy, 0, "paused");
        assert_eq!(runtime_engine_resume(e.engine, null_mut()), RUNTIME_OK);
        assert_eq!(e.end_of(request).status, RUNTIME_OK);
        let mut metrics: runtime_metrics = std::mem::zeroed();
        assert_eq!(runtime_engine_get_metrics(e.engine, &mut metrics, null_mut()), RUNTIME_OK);
        assert!(metrics.slices > 0 && metrics.requests == 1 && metrics.tokens > 0);
        let mut pacing: runtime_pacing = std::mem::zeroed();
        pacing.mode = 9;
        assert_eq!(runtime_engine_set_pacing(e.engine, &pacing, null_mut()), RUNTIME_ERROR_INVALID_ARGUMENT);
    }
}

#[test]
fn names_and_versions() {
    let (version, name, unknown) = unsafe {
        (
            CStr::from_ptr(runtime_version()),
            CStr::from_ptr(runtime_status_name(RUNTIME_ERROR_PANIC)),
            CStr::from_ptr(runtime_status_name(12345)),
        )
    };
    assert_eq!(version.to_str(), Ok(env!("CARGO_PKG_VERSION")));
    assert_eq!(name.to_str(), Ok("RUNTIME_ERROR_PANIC"));
    assert_eq!(unknown.to_str(), Ok("RUNTIME_ERROR_UNKNOWN"));
    assert_eq!(runtime_abi_version(), RUNTIME_ABI_VERSION);
}
