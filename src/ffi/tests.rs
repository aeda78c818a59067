//! A panic in every export and every worker becomes a status or an event, and the process lives.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use crate::embed::faults;
use std::ffi::{c_char, c_void};
use std::ptr::{null, null_mut};

mod exports {
    pub use crate::ffi::*;
}

#[path = "../../tests/c_api/calls.rs"]
#[allow(clippy::type_complexity, dead_code, missing_docs)]
mod calls;

use calls::Args;
use exports::*;

/// NULL and zero everywhere but for the error record.
struct Nothing {
    error: runtime_error,
}

impl Args for Nothing {
    fn error(&mut self) -> *mut runtime_error {
        &raw mut self.error
    }
    fn handle<T>(&mut self, _: &str, make: fn(u64) -> T) -> T {
        make(0)
    }
    fn place<T>(&mut self, _: &str) -> *mut T {
        null_mut()
    }
    fn text(&mut self) -> *const c_char {
        null()
    }
    fn text_len(&mut self) -> usize {
        0
    }
    fn list<T>(&mut self) -> *const T {
        null()
    }
    fn data(&mut self) -> *const c_void {
        null()
    }
    fn buffer<T>(&mut self) -> *mut T {
        null_mut()
    }
    fn count(&mut self) -> usize {
        0
    }
    fn small(&mut self) -> usize {
        0
    }
    fn number(&mut self) -> u64 {
        0
    }
    fn out<T>(&mut self) -> *mut T {
        null_mut()
    }
    fn options<T>(&mut self) -> *const T {
        null()
    }
    fn result<T>(&mut self) -> *mut T {
        null_mut()
    }
    fn userdata(&mut self) -> *mut c_void {
        null_mut()
    }
    fn free(&mut self) -> runtime_free_fn {
        None
    }
    fn wake(&mut self) -> runtime_wake_fn {
        None
    }
    fn log(&mut self) -> runtime_log_fn {
        None
    }
}

/// One test, since faults are armed for the whole process.
#[test]
fn panics_stay_inside() {
    in_every_export();
    in_every_worker();
}

fn in_every_export() {
    let read = |name: &str| std::fs::read_to_string(format!("{}/include/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let header = read("runtime.h") + &read("runtime_interop.h");
    let calls = calls::calls::<Nothing>();
    let names: Vec<&str> = calls.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, calls::declared(&header), "tests/c_api/calls.rs has every function of the header");
    for (name, call) in &calls {
        faults::arm(name);
        let mut args = Nothing { error: runtime_error { struct_size: 0, code: 0, detail: 0, message: [0; 512] } };
        if let Some(status) = call(&mut args) {
            // Releasing zero does nothing, and so has nothing to panic in but the point itself.
            assert_eq!(status, RUNTIME_ERROR_PANIC, "{name}");
        }
        assert!(!faults::disarm(), "{name} has no fault point, or did not reach it");
    }
    println!("panics injected in {} of {} exports", calls.len(), names.len());
}

struct Engine {
    engine: runtime_engine,
    model: runtime_model,
}

impl Drop for Engine {
    fn drop(&mut self) {
        runtime_model_release(self.model);
        runtime_engine_release(self.engine);
    }
}

/// The status of the next event of this type.
fn next(engine: runtime_engine, kind: i32) -> runtime_status {
    loop {
        // SAFETY: integers and pointers; then our own variables.
        unsafe {
            let mut event: runtime_event = std::mem::zeroed();
            let (mut ready, mut n) = (0, 0);
            assert_eq!(runtime_engine_wait(engine, 60_000, &mut ready, null_mut()), RUNTIME_OK);
            assert_eq!(ready, 1, "no event of type {kind} within a minute");
            runtime_engine_poll(engine, &mut event, 1, &mut n, null_mut());
            if n == 1 && event.r#type == kind {
                return event.status;
            }
        }
    }
}

fn engine() -> Engine {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny/chat");
    let (mut engine, mut model) = (runtime_engine { id: 0 }, runtime_model { id: 0 });
    // SAFETY: integers; our own variables.
    unsafe {
        let mut options: runtime_engine_options = std::mem::zeroed();
        options.backend = RUNTIME_BACKEND_CPU;
        assert_eq!(runtime_engine_create(&options, &mut engine, null_mut()), RUNTIME_OK);
        let load = runtime_model_load(engine, path.as_ptr().cast(), path.len(), null(), &mut model, null_mut());
        assert_eq!(load, RUNTIME_OK);
    }
    Engine { engine, model }
}

fn answer(e: &Engine) -> runtime_status {
    let (mut session, mut request) = (runtime_session { id: 0 }, runtime_request { id: 0 });
    // SAFETY: our own variables.
    unsafe {
        assert_eq!(runtime_session_create(e.model, &mut session, null_mut()), RUNTIME_OK);
        assert_eq!(runtime_session_append_text(session, c"Hello".as_ptr(), usize::MAX, null_mut()), RUNTIME_OK);
        assert_eq!(runtime_session_generate(session, null(), &mut request, null_mut()), RUNTIME_OK);
    }
    let status = next(e.engine, RUNTIME_EVENT_REQUEST_DONE);
    assert_eq!(runtime_session_release(session), RUNTIME_OK);
    status
}

fn in_every_worker() {
    faults::arm("load");
    let broken = engine();
    assert_eq!(next(broken.engine, RUNTIME_EVENT_MODEL_READY), RUNTIME_ERROR_PANIC);
    drop(broken);
    let e = engine();
    assert_eq!(next(e.engine, RUNTIME_EVENT_MODEL_READY), RUNTIME_OK);
    faults::arm("slice");
    assert_eq!(answer(&e), RUNTIME_OK, "the thread goes on after a panic in a slice");
    assert!(!faults::disarm());
    for (point, status) in [("train", RUNTIME_ERROR_PANIC), ("none", RUNTIME_OK)] {
        faults::arm(point);
        let mut training = runtime_training { id: 0 };
        // SAFETY: integers and pointers; our own variables.
        unsafe {
            let mut options: runtime_training_options = std::mem::zeroed();
            (options.max_steps, options.loss, options.rank) = (1, RUNTIME_LOSS_ALL, 4);
            assert_eq!(runtime_training_create(e.model, &options, &mut training, null_mut()), RUNTIME_OK);
            let (ids, mask) = ([5u32, 6, 7, 8], [1u8; 4]);
            let added = runtime_training_add_tokens(training, ids.as_ptr(), mask.as_ptr(), 4, null_mut());
            assert_eq!(added, RUNTIME_OK);
            assert_eq!(runtime_training_seal(training, null_mut()), RUNTIME_OK);
            assert_eq!(runtime_training_start(training, null_mut()), RUNTIME_OK);
        }
        assert_eq!(next(e.engine, RUNTIME_EVENT_TRAINING_DONE), status, "{point}");
        assert_eq!(runtime_training_release(training), RUNTIME_OK);
        faults::disarm();
    }
    assert_eq!(answer(&e), RUNTIME_OK);
}
