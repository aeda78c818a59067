//! What the tests of the C ABI share: compiling C, and an engine that remembers the events it has seen.

use crate::exports::*;
use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::ptr::{null, null_mut};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The tiny checkpoint that has a tokenizer and a chat template.
pub const TINY: &str = "tests/golden/tiny/chat";
/// Fetched by scripts/fetch_model.sh.
pub const SMOLLM2: &str = ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf";

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder with libruntime.so: cargo puts it beside the program, and for tests into deps/.
pub fn library() -> PathBuf {
    let release = Path::new(env!("CARGO_BIN_EXE_runtime")).parent().unwrap();
    let name = format!("{}runtime{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    // The newer of the two belongs to this build.
    let age = |folder: &PathBuf| std::fs::metadata(folder.join(&name)).and_then(|meta| meta.modified()).ok();
    let folders = [release.join("deps"), release.to_owned()];
    folders.into_iter().filter(|folder| age(folder).is_some()).max_by_key(age).expect("the shared library")
}

/// Compiles with `compiler`, as strictly as it can; `None` where there is no such compiler.
pub fn compile(compiler: &str, source: &str, target: &Path) -> Option<PathBuf> {
    Command::new(compiler).arg("--version").output().ok()?;
    let program = target.join(format!("{}_{compiler}", Path::new(source).file_stem().unwrap().to_str().unwrap()));
    let folder = library();
    let output = Command::new(compiler)
        .current_dir(root())
        .args(["-std=c99", "-pedantic-errors", "-Wall", "-Wextra", "-Werror", "-Iinclude", source, "-o"])
        .arg(&program)
        .arg(format!("-L{}", folder.display()))
        .args(["-lruntime", &format!("-Wl,-rpath,{}", folder.display())])
        .output()
        .unwrap();
    assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
    Some(program)
}

pub fn run(program: &Path, args: &[&str]) -> Output {
    // cargo's own search path would win over the program's and may hold an older library.
    let mut command = Command::new(program);
    command.env_remove("LD_LIBRARY_PATH").env_remove("DYLD_LIBRARY_PATH");
    command.current_dir(root()).args(args).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A record that is not clean, so that a call has to fill it.
pub fn record() -> runtime_error {
    runtime_error {
        struct_size: size_of::<runtime_error>() as u32,
        code: 77,
        detail: 77,
        message: [b'?' as c_char; 512],
    }
}

pub fn message(error: &runtime_error) -> &str {
    unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_str().unwrap()
}

/// A copy of an event.
#[derive(Clone, Debug)]
pub struct Seen {
    pub kind: i32,
    pub object: u64,
    pub userdata: u64,
    pub status: runtime_status,
    pub reason: i32,
    pub text: String,
    pub ids: Vec<u32>,
    pub values: Vec<f32>,
    pub done: u64,
    pub total: u64,
    pub loss: f64,
    pub cached: u32,
}

/// A whole answer.
pub struct Answer {
    pub status: runtime_status,
    pub text: String,
    pub ids: Vec<u32>,
    pub userdata: u64,
    pub cached: u32,
    /// Calls of runtime_engine_step.
    pub steps: usize,
}

pub struct Engine {
    pub engine: runtime_engine,
    pub model: runtime_model,
    mode: i32,
    seen: Mutex<Vec<Seen>>,
}

unsafe fn list<T: Copy>(data: *const T, len: usize) -> Vec<T> {
    if len == 0 { Vec::new() } else { unsafe { std::slice::from_raw_parts(data, len) }.to_vec() }
}

impl Engine {
    /// Without a model.
    pub fn cpu(mode: i32) -> Self {
        let mut engine = runtime_engine { id: 0 };
        let mut error = record();
        unsafe {
            let mut options: runtime_engine_options = std::mem::zeroed();
            runtime_engine_options_init(&mut options);
            (options.backend, options.run_mode) = (RUNTIME_BACKEND_CPU, mode);
            assert_eq!(runtime_engine_create(&options, &mut engine, &mut error), RUNTIME_OK, "{}", message(&error));
        }
        let model = runtime_model { id: 0 };
        Self { engine, model, mode, seen: Mutex::default() }
    }

    /// With the tiny model.
    pub fn loaded(mode: i32) -> Self {
        let mut e = Self::cpu(mode);
        e.model = e.load();
        let mut error = record();
        let status = unsafe { runtime_model_wait(e.model, 60_000, &mut error) };
        assert_eq!(status, RUNTIME_OK, "{}", message(&error));
        e
    }

    /// Begins to load the tiny model.
    pub fn load(&self) -> runtime_model {
        let path = root().join(TINY);
        let path = path.to_str().unwrap();
        let mut model = runtime_model { id: 0 };
        let status = unsafe {
            runtime_model_load(self.engine, path.as_ptr().cast(), path.len(), null(), &mut model, null_mut())
        };
        assert_eq!(status, RUNTIME_OK);
        model
    }

    /// A session that begins with some words.
    pub fn session(&self, words: &str) -> runtime_session {
        let (mut session, mut error) = (runtime_session { id: 0 }, record());
        unsafe {
            let status = runtime_session_create(self.model, &mut session, &mut error);
            assert_eq!(status, RUNTIME_OK, "{}", message(&error));
            if !words.is_empty() {
                let status = runtime_session_append_text(session, words.as_ptr().cast(), words.len(), &mut error);
                assert_eq!(status, RUNTIME_OK, "{}", message(&error));
            }
        }
        session
    }

    pub fn tokens(&self, session: runtime_session) -> Vec<u32> {
        let (mut ids, mut n) = (vec![0; 4096], 0);
        let status = unsafe { runtime_session_get_tokens(session, ids.as_mut_ptr(), ids.len(), &mut n, null_mut()) };
        assert_eq!(status, RUNTIME_OK);
        ids.truncate(n);
        ids
    }

    pub fn tokenized(&self, words: &str, special: bool) -> Vec<u32> {
        let (mut ids, mut n) = (vec![0; 4096], 0);
        let data = ids.as_mut_ptr();
        let status = unsafe {
            let words = (words.as_ptr().cast(), words.len());
            runtime_model_tokenize(self.model, words.0, words.1, u32::from(special), data, 4096, &mut n, null_mut())
        };
        assert_eq!(status, RUNTIME_OK);
        ids.truncate(n);
        ids
    }

    pub fn rendered(&self, messages: &str) -> String {
        let (mut out, mut n) = (vec![0u8; 4096], 0);
        let data = out.as_mut_ptr().cast();
        let status = unsafe {
            let messages = (messages.as_ptr().cast(), messages.len());
            runtime_model_apply_template(self.model, messages.0, messages.1, 1, data, 4096, &mut n, null_mut())
        };
        assert_eq!(status, RUNTIME_OK);
        text(&out[..n])
    }

    pub fn generate(
        &self,
        session: runtime_session,
        max_tokens: u32,
        change: impl FnOnce(&mut runtime_generate_options),
    ) -> runtime_request {
        let (mut request, mut error) = (runtime_request { id: 0 }, record());
        unsafe {
            let mut options: runtime_generate_options = std::mem::zeroed();
            runtime_generate_options_init(&mut options);
            options.max_tokens = max_tokens;
            change(&mut options);
            let status = runtime_session_generate(session, &options, &mut request, &mut error);
            assert_eq!(status, RUNTIME_OK, "{}", message(&error));
        }
        request
    }

    /// Takes what has happened; how many events that were.
    fn poll(&self) -> usize {
        let mut events: [runtime_event; 8] = unsafe { std::mem::zeroed() };
        let mut n = 0;
        unsafe {
            assert_eq!(runtime_engine_poll(self.engine, events.as_mut_ptr(), 8, &mut n, null_mut()), RUNTIME_OK);
        }
        let mut seen = self.seen.lock().unwrap();
        for event in &events[..n] {
            seen.push(Seen {
                kind: event.r#type,
                object: event.object,
                userdata: event.userdata,
                status: event.status,
                reason: event.finish_reason,
                text: text(&unsafe { list(event.text.cast::<u8>(), event.text_len) }),
                ids: unsafe { list(event.ids, event.id_count) },
                values: unsafe { list(event.values, event.value_count) },
                done: event.done,
                total: event.total,
                loss: event.loss,
                cached: event.cached_tokens,
            });
        }
        n
    }

    /// A little work, or time for the engine's thread to do some.
    pub fn work(&self, slices: usize) {
        for _ in 0..slices {
            if self.mode == RUNTIME_RUN_STEPPED {
                unsafe { assert_eq!(runtime_engine_step(self.engine, 1, null_mut(), null_mut()), RUNTIME_OK) };
            } else {
                unsafe { runtime_engine_wait(self.engine, 1, null_mut(), null_mut()) };
            }
        }
    }

    /// The first event of a kind that came for an object, and what came for it before.
    fn take(&self, kind: i32, object: u64) -> (Vec<Seen>, Seen, usize) {
        let deadline = Instant::now() + Duration::from_secs(120);
        let mut steps = 0;
        loop {
            self.poll();
            let mut seen = self.seen.lock().unwrap();
            let own: Vec<Seen> = seen.iter().filter(|event| event.object == object).cloned().collect();
            if let Some(at) = own.iter().position(|event| event.kind == kind) {
                let mut left = at + 1;
                seen.retain(|event| {
                    let gone = event.object == object && left > 0;
                    left -= usize::from(gone);
                    !gone
                });
                return (own[..at].to_vec(), own[at].clone(), steps);
            }
            drop(seen);
            assert!(Instant::now() < deadline, "no event of type {kind} for {object:#x}");
            self.work(1);
            steps += 1;
        }
    }

    /// Slices that are worked on until an event has come.
    pub fn slices_until(&self, kind: i32, object: u64) -> usize {
        while self.poll() > 0 {}
        self.take(kind, object).2
    }

    pub fn wait_for(&self, kind: i32, object: u64) -> Seen {
        self.take(kind, object).1
    }

    pub fn end_of(&self, request: runtime_request) -> Seen {
        self.wait_for(RUNTIME_EVENT_REQUEST_DONE, request.id)
    }

    pub fn numbers(&self, kind: i32, request: runtime_request) -> Vec<f32> {
        let event = self.wait_for(kind, request.id);
        assert_eq!(event.status, RUNTIME_OK, "{}", event.text);
        event.values
    }

    pub fn answer(
        &self,
        session: runtime_session,
        max_tokens: u32,
        change: impl FnOnce(&mut runtime_generate_options),
    ) -> Answer {
        let request = self.generate(session, max_tokens, change);
        let (before, end, steps) = self.take(RUNTIME_EVENT_REQUEST_DONE, request.id);
        Answer {
            status: end.status,
            text: before.iter().map(|event| event.text.as_str()).collect(),
            ids: before.iter().flat_map(|event| event.ids.clone()).collect(),
            userdata: end.userdata,
            cached: end.cached,
            steps,
        }
    }

    /// A job that learns one sentence, started.
    pub fn training(&self, max_steps: u32) -> runtime_training {
        let (mut training, mut error) = (runtime_training { id: 0 }, record());
        let example = c"{\"prompt\": \"Hello\", \"completion\": \" world, this is what was learned\"}";
        unsafe {
            let mut options: runtime_training_options = std::mem::zeroed();
            runtime_training_options_init(&mut options);
            (options.max_steps, options.rank, options.batch_size, options.grad_accum) = (max_steps, 8, 1, 1);
            (options.learning_rate, options.warmup_steps) = (2e-2, -1);
            let status = runtime_training_create(self.model, &options, &mut training, &mut error);
            assert_eq!(status, RUNTIME_OK, "{}", message(&error));
            let status = runtime_training_add_example(training, example.as_ptr(), usize::MAX, &mut error);
            assert_eq!(status, RUNTIME_OK, "{}", message(&error));
            assert_eq!(runtime_training_seal(training, null_mut()), RUNTIME_OK);
            assert_eq!(runtime_training_start(training, null_mut()), RUNTIME_OK);
        }
        self.wait_for(RUNTIME_EVENT_TRAINING_READY, training.id);
        training
    }

    /// The first and the last loss of a job, at its end.
    pub fn losses(&self, training: u64) -> (f64, f64) {
        let (before, end, _) = self.take(RUNTIME_EVENT_TRAINING_DONE, training);
        assert_eq!(end.status, RUNTIME_OK, "{}", end.text);
        let steps: Vec<f64> = before.iter().filter(|e| e.kind == RUNTIME_EVENT_TRAINING_STEP).map(|e| e.loss).collect();
        (steps[0], steps[steps.len() - 1])
    }

    pub fn memory(&self) -> runtime_memory_info {
        unsafe {
            let mut info = std::mem::zeroed();
            assert_eq!(runtime_engine_get_memory_info(self.engine, &mut info, null_mut()), RUNTIME_OK);
            info
        }
    }

    /// Waits for something that happens soon.
    pub fn until(&self, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            assert!(Instant::now() < deadline, "it has not happened; memory: {} bytes", self.memory().total);
            self.work(1);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let status = runtime_model_release(self.model);
        assert!([RUNTIME_OK, RUNTIME_ERROR_STALE_HANDLE].contains(&status), "a test may have released it");
        assert_eq!(runtime_engine_release(self.engine), RUNTIME_OK);
    }
}
