//! Random sequences of calls with NULL, made-up, stale and live handles, wrong sizes and wrong numbers.

use super::calls::{Args, Call, calls};
use super::exports::*;
use super::support::Engine;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::ffi::{c_char, c_void};
use std::ptr::{null, null_mut};

/// Bytes of each scratch area: enough for everything that is written into it.
const SCRATCH: usize = 64 * 4096;

pub struct Fuzz {
    rng: ChaCha8Rng,
    /// Handles that were given out, live or not, by kind.
    given: HashMap<String, Vec<u64>>,
    /// Where the latest call puts handles.
    placed: Vec<(String, usize)>,
    scratch: Vec<Box<[u64]>>,
    used: usize,
    text: [u8; 65],
}

impl Fuzz {
    fn new(engine: &Engine) -> Self {
        let given = [("runtime_engine", engine.engine.id), ("runtime_model", engine.model.id)];
        let mut text = [b'a'; 65];
        text[64] = 0;
        text[..2].copy_from_slice(b"[]");
        Self {
            rng: ChaCha8Rng::seed_from_u64(7),
            given: given.into_iter().map(|(kind, id)| (kind.to_owned(), vec![id])).collect(),
            placed: Vec::new(),
            scratch: (0..8).map(|_| vec![0u64; SCRATCH / 8].into()).collect(),
            used: 0,
            text,
        }
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_range(0..n) == 0
    }

    /// A scratch area of the call's own, NULL now and then.
    fn area(&mut self) -> *mut u64 {
        if self.one_in(8) {
            return null_mut();
        }
        self.used += 1;
        self.scratch[self.used - 1].as_mut_ptr()
    }

    /// Cleared, with some struct_size in front.
    fn sized<T>(&mut self) -> *mut T {
        let area = self.area();
        if !area.is_null() {
            let exact = size_of::<T>() as u64;
            let size = match self.rng.random_range(0..12) {
                0 => 0,
                1 => 3,
                2 => 5000,
                3 => u64::from(u32::MAX),
                4 => exact + 8,
                _ => exact,
            };
            unsafe {
                area.write_bytes(0, 512);
                area.cast::<u32>().write(size as u32);
            }
        }
        area.cast()
    }

    /// Takes note of the handles that a call gave.
    fn collect(&mut self) {
        for (kind, area) in std::mem::take(&mut self.placed) {
            let id = self.scratch[area][0];
            if id != 0 {
                self.given.entry(kind).or_default().push(id);
            }
        }
        self.used = 0;
    }
}

unsafe extern "C" fn nothing(_: *mut c_void) {}

unsafe extern "C" fn no_line(_: *mut c_void, _: i32, _: *const c_char, _: usize) {}

impl Args for Fuzz {
    fn error(&mut self) -> *mut runtime_error {
        self.sized()
    }
    fn handle<T>(&mut self, kind: &str, make: fn(u64) -> T) -> T {
        let given = self.given.get(kind).map_or(&[][..], Vec::as_slice);
        let live = (!given.is_empty()).then(|| given[self.rng.random_range(0..given.len())]);
        let id = match self.rng.random_range(0..8) {
            0 => 0,
            1 => self.rng.random(),
            // A handle of another kind, or one bit off.
            2 => self.given["runtime_model"][0],
            3 => live.unwrap_or(1) ^ (1 << self.rng.random_range(0..64)),
            _ => live.unwrap_or(2),
        };
        make(id)
    }
    fn place<T>(&mut self, kind: &str) -> *mut T {
        let area = self.area();
        if !area.is_null() {
            unsafe { area.write(0) };
            self.placed.push((kind.into(), self.used - 1));
        }
        area.cast()
    }
    fn text(&mut self) -> *const c_char {
        if self.one_in(8) { null() } else { self.text.as_ptr().cast() }
    }
    fn text_len(&mut self) -> usize {
        match self.rng.random_range(0..4) {
            0 => usize::MAX,
            1 => 2,
            _ => self.rng.random_range(0..=64),
        }
    }
    fn list<T>(&mut self) -> *const T {
        let area = self.area();
        if !area.is_null() {
            unsafe { area.write_bytes(0, 256) };
        }
        area.cast()
    }
    fn data(&mut self) -> *const c_void {
        self.list::<u64>().cast()
    }
    fn buffer<T>(&mut self) -> *mut T {
        self.area().cast()
    }
    fn count(&mut self) -> usize {
        self.rng.random_range(0..=32)
    }
    fn small(&mut self) -> usize {
        self.rng.random_range(0..30)
    }
    fn number(&mut self) -> u64 {
        match self.rng.random_range(0..4) {
            0 => 0,
            1 => 1,
            2 => self.rng.random_range(0..10),
            _ => self.rng.random(),
        }
    }
    fn out<T>(&mut self) -> *mut T {
        self.area().cast()
    }
    fn options<T>(&mut self) -> *const T {
        self.sized::<T>().cast_const()
    }
    fn result<T>(&mut self) -> *mut T {
        self.sized()
    }
    fn userdata(&mut self) -> *mut c_void {
        null_mut()
    }
    fn free(&mut self) -> runtime_free_fn {
        None
    }
    fn wake(&mut self) -> runtime_wake_fn {
        if self.one_in(2) { None } else { Some(nothing) }
    }
    fn log(&mut self) -> runtime_log_fn {
        if self.one_in(2) { None } else { Some(no_line) }
    }
}

/// What takes longer than other calls comes less often.
const RARE: &[&str] = &[
    "runtime_device_count",
    "runtime_device_get_info",
    "runtime_engine_create",
    "runtime_engine_get_requirements",
    "runtime_engine_release",
    "runtime_model_release",
    "runtime_model_load",
    "runtime_model_load_fd",
    "runtime_model_load_buffer",
    "runtime_model_load_io",
    "runtime_model_cancel",
    "runtime_engine_pause",
    "runtime_engine_set_memory_limit",
    "runtime_engine_trim",
    "runtime_training_seal",
    "runtime_training_create",
    "runtime_session_load_state",
    "runtime_session_fork",
    "runtime_session_generate",
    "runtime_session_create",
    "runtime_decoder_create",
    "runtime_model_embed",
    "runtime_model_score",
];

/// Runs `sequences` of 1 to 6 calls and prints what came of them.
pub fn run(sequences: usize) {
    let engine = Engine::loaded(RUNTIME_RUN_STEPPED);
    let mut fuzz = Fuzz::new(&engine);
    let all = calls::<Fuzz>();
    // Calls of some with defaults would probe every GPU; the last two write files.
    // And the engine and the model that the others need stay.
    let never = [
        "runtime_engine_create",
        "runtime_engine_release",
        "runtime_model_release",
        "runtime_device_count",
        "runtime_device_get_info",
        "runtime_adapter_save",
        "runtime_training_checkpoint",
    ];
    let rare: Vec<&Call<Fuzz>> = all.iter().filter(|(n, _)| RARE.contains(n) && !never.contains(n)).collect();
    let often: Vec<&Call<Fuzz>> = all.iter().filter(|(n, _)| !RARE.contains(n) && !never.contains(n)).collect();
    let mut statuses = HashMap::<runtime_status, usize>::new();
    let mut made = 0usize;
    for _ in 0..sequences {
        for _ in 0..fuzz.rng.random_range(1..=6) {
            let from = if fuzz.one_in(500) { &rare } else { &often };
            let (name, call) = from[fuzz.rng.random_range(0..from.len())];
            if let Some(status) = call(&mut fuzz) {
                assert!((-14..=0).contains(&status) && status != RUNTIME_ERROR_PANIC, "{name}: {status}");
                *statuses.entry(status).or_default() += 1;
            }
            made += 1;
            fuzz.collect();
        }
    }
    assert_eq!(unsafe { runtime_engine_resume(engine.engine, null_mut()) }, RUNTIME_OK);
    let mut statuses: Vec<_> = statuses.into_iter().collect();
    statuses.sort_unstable();
    println!("{sequences} sequences, {made} calls, by status: {statuses:?}");
    for (_, ids) in fuzz.given.iter().filter(|(kind, _)| kind.ends_with("session")) {
        for id in ids {
            runtime_session_release(runtime_session { id: *id });
        }
    }
}
