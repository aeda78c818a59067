//! The C ABI as C sees it: the first program compiled strictly and run, and what wrong calls give back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

use runtime::ffi::*;
use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::ptr::{null, null_mut};

/// The tiny checkpoint that has a tokenizer and a chat template.
const TINY: &str = "tests/golden/tiny/chat";
/// Fetched by scripts/fetch_model.sh.
const SMOLLM2: &str = ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder with libruntime.so: cargo puts it beside the program, and for tests into deps/.
fn library() -> PathBuf {
    let release = Path::new(env!("CARGO_BIN_EXE_runtime")).parent().unwrap();
    let name = format!("{}runtime{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    // The newer of the two belongs to this build.
    let age = |folder: &PathBuf| std::fs::metadata(folder.join(&name)).and_then(|meta| meta.modified()).ok();
    let folders = [release.join("deps"), release.to_owned()];
    folders.into_iter().filter(|folder| age(folder).is_some()).max_by_key(age).expect("the shared library")
}

/// Compiles with `compiler`, as strictly as it can; `None` where there is no such compiler.
fn compile(compiler: &str, source: &str, target: &Path) -> Option<PathBuf> {
    Command::new(compiler).arg("--version").output().ok()?;
    let program = target.join(format!("first_text_{compiler}"));
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

fn run(program: &Path, args: &[&str]) -> Output {
    // cargo's own search path would win over the program's and may hold an older library.
    let mut command = Command::new(program);
    command.env_remove("LD_LIBRARY_PATH").env_remove("DYLD_LIBRARY_PATH");
    command.current_dir(root()).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

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
        let Some(program) = compile(compiler, "tests/c/first_text.c", folder.path()) else { continue };
        compilers += 1;
        let output = run(&program, &[model, prompt, "cpu"]);
        assert!(output.status.success(), "{compiler}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), text(&expected.stdout), "{compiler}");
        assert_eq!(text(&output.stderr), "", "the library prints nothing");
    }
    assert!(compilers > 0, "no C compiler");
}

#[test]
fn errors_reach_c() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile("cc", "tests/c/first_text.c", folder.path()).expect("a C compiler");
    let output = run(&program, &["no/such/model.gguf", "x", "cpu"]);
    assert_eq!(output.status.code(), Some(1));
    let line = text(&output.stderr);
    assert!(line.starts_with("error: load: RUNTIME_ERROR_IO: no/such/model.gguf"), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
}

#[test]
fn the_example_is_the_tested_program() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    assert_eq!(read("examples/c/first_text.c"), read("tests/c/first_text.c"));
}

/// A record that is not clean, so that a call has to fill it.
fn record() -> runtime_error {
    runtime_error {
        struct_size: size_of::<runtime_error>() as u32,
        code: 77,
        detail: 77,
        message: [b'?' as c_char; 512],
    }
}

fn message(error: &runtime_error) -> &str {
    // SAFETY: the library ends it with a NUL.
    unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_str().unwrap()
}

fn load(path: &str, options: *const runtime_model_options) -> (runtime_status, runtime_model, runtime_error) {
    let (mut model, mut error) = (runtime_model { id: 77 }, record());
    // SAFETY: all pointers are to our own variables.
    let status = unsafe { runtime_model_load(path.as_ptr().cast(), path.len(), options, &mut model, &mut error) };
    assert_eq!(error.code, status);
    (status, model, error)
}

fn options(change: impl FnOnce(&mut runtime_model_options)) -> runtime_model_options {
    // SAFETY: integers.
    let mut options = unsafe { std::mem::zeroed::<runtime_model_options>() };
    // SAFETY: our own variable.
    unsafe { runtime_model_options_init(&mut options) };
    options.backend = RUNTIME_BACKEND_CPU;
    change(&mut options);
    options
}

unsafe extern "C" fn collect(userdata: *mut c_void, text: *const c_char, len: usize) -> i32 {
    // SAFETY: the test passes a Vec; the library passes `len` bytes.
    let (out, text) = unsafe { (&mut *userdata.cast::<Vec<u8>>(), std::slice::from_raw_parts(text.cast::<u8>(), len)) };
    out.extend_from_slice(text);
    0
}

unsafe extern "C" fn stop(_: *mut c_void, _: *const c_char, _: usize) -> i32 {
    1
}

fn generate(
    model: runtime_model,
    prompt: &str,
    on_text: runtime_text_fn,
    max_tokens: u32,
) -> (runtime_status, String, runtime_error) {
    let (mut out, mut error) = (Vec::<u8>::new(), record());
    // SAFETY: integers and floats; then all pointers are to our own variables.
    let status = unsafe {
        let mut options = std::mem::zeroed::<runtime_generate_options>();
        runtime_generate_options_init(&mut options);
        options.max_tokens = max_tokens;
        let userdata = (&raw mut out).cast();
        runtime_generate(model, prompt.as_ptr().cast(), prompt.len(), &options, on_text, userdata, &mut error)
    };
    (status, text(&out), error)
}

#[test]
fn wrong_arguments_are_statuses() {
    let tiny = root().join(TINY);
    let tiny = tiny.to_str().unwrap();
    let (status, model, error) = load("", null());
    assert_eq!((status, model.id, message(&error)), (RUNTIME_ERROR_INVALID_ARGUMENT, 0, "path is empty"));
    let (status, _, error) = load(tiny, &options(|o| o.backend = 9));
    assert_eq!(
        (status, message(&error)),
        (RUNTIME_ERROR_INVALID_ARGUMENT, "backend is 9, expected one of RUNTIME_BACKEND")
    );
    let (status, ..) = load(tiny, &options(|o| o.struct_size = 3));
    assert_eq!(status, RUNTIME_ERROR_INVALID_ARGUMENT);
    let (status, _, error) = load("/no/such/file", &options(|_| {}));
    assert_eq!((status, error.detail), (RUNTIME_ERROR_IO, 2), "errno");
    // SAFETY: NULL where the header allows it or must be refused.
    unsafe {
        assert_eq!(runtime_model_load(null(), 0, null(), null_mut(), null_mut()), RUNTIME_ERROR_INVALID_ARGUMENT);
        let mut model = runtime_model { id: 1 };
        assert_eq!(runtime_model_load(null(), 5, null(), &mut model, null_mut()), RUNTIME_ERROR_INVALID_ARGUMENT);
        assert_eq!(model.id, 0);
        runtime_model_options_init(null_mut());
        runtime_generate_options_init(null_mut());
    }
}

#[test]
fn stale_and_made_up_handles_are_statuses() {
    assert_eq!(runtime_model_release(runtime_model { id: 0 }), RUNTIME_OK, "zero is nothing to release");
    let mut id = 0x9E37_79B9_7F4A_7C15u64;
    for _ in 0..2000 {
        // Any walk over 64-bit values does.
        id = id.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        assert_eq!(runtime_model_release(runtime_model { id }), RUNTIME_ERROR_STALE_HANDLE, "{id:#x}");
        let (status, _, error) = generate(runtime_model { id }, "x", Some(collect), 1);
        assert_eq!(status, RUNTIME_ERROR_STALE_HANDLE);
        assert!(message(&error).contains("model handle"), "{}", message(&error));
    }
}

#[test]
fn a_model_lives_from_load_to_release() {
    let tiny = root().join(TINY);
    let (status, model, error) = load(tiny.to_str().unwrap(), &options(|o| o.max_tokens = 64));
    assert_eq!(status, RUNTIME_OK, "{}", message(&error));
    assert_eq!(message(&error), "");
    let (status, first, error) = generate(model, "Hello", Some(collect), 8);
    assert_eq!(status, RUNTIME_OK, "{}", message(&error));
    // Four threads at once get what one gets.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(generate(model, "Hello", Some(collect), 8).1, first));
        }
    });
    let (status, ..) = generate(model, "Hello", None, 8);
    assert_eq!(status, RUNTIME_ERROR_INVALID_ARGUMENT, "no callback");
    if !first.is_empty() {
        assert_eq!(generate(model, "Hello", Some(stop), 8).0, RUNTIME_ERROR_CANCELLED);
        assert_eq!(generate(model, "Hello", Some(collect), 8).1, first, "after a cancelled one");
    }
    let (status, ..) = generate(model, "Hello", Some(collect), 1 << 30);
    assert!(status == RUNTIME_ERROR_INVALID_ARGUMENT || status == RUNTIME_OK, "too many tokens: {status}");
    assert_eq!(runtime_model_release(model), RUNTIME_OK);
    assert_eq!(runtime_model_release(model), RUNTIME_ERROR_STALE_HANDLE, "twice");
    assert_eq!(generate(model, "Hello", Some(collect), 8).0, RUNTIME_ERROR_STALE_HANDLE);
}

#[test]
fn names_and_versions() {
    // SAFETY: static strings.
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
    assert_eq!(size_of::<runtime_model_options>(), 24);
    assert_eq!(size_of::<runtime_generate_options>(), 32);
    assert_eq!(size_of::<runtime_error>(), 524);
}
