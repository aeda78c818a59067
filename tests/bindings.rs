//! The header under every compiler and standard, the shared library as a host sees it, and every binding: compiled and run.
//! What is not installed is skipped with a line that says so; scripts/test.sh installs all of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::undocumented_unsafe_blocks,
    missing_docs
)]

#[path = "c_api/layout.rs"]
mod layout;
#[path = "c_api/support.rs"]
#[allow(dead_code)]
mod support;

mod exports {
    pub use runtime::ffi::*;
}

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{TINY, library, root, run, text};

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        println!("skipped: no {program}");
    }
    found
}

fn header() -> String {
    let read = |name: &str| std::fs::read_to_string(root().join("include").join(name)).unwrap();
    read("runtime.h") + &read("runtime_interop.h")
}

/// Runs a command that must succeed; its standard output.
fn ok(command: &mut Command) -> String {
    let output = command.current_dir(root()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

#[cfg(unix)]
fn shared() -> PathBuf {
    library().join(format!("{}runtime{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX))
}

/// Included twice, every initialiser used.
fn every_macro() -> String {
    let mut source = String::from(
        "#include <runtime_interop.h>\n#include <runtime.h>\n#include <runtime_interop.h>\nint main(void)\n{\n",
    );
    let header = header();
    let macros = header.lines().filter_map(|line| line.strip_prefix("#define RUNTIME_")?.split_once("_INIT "));
    let names: Vec<String> = macros.map(|(name, _)| format!("runtime_{}", name.to_lowercase())).collect();
    assert!(names.len() >= 14, "{names:?}");
    for name in &names {
        writeln!(source, "    {name} {name}_ = {}_INIT;", name.to_uppercase()).unwrap();
    }
    source.push_str("    return (int)(0");
    for name in &names {
        write!(source, " + ({name}_.struct_size != sizeof({name}))").unwrap();
    }
    source.push_str(");\n}\n");
    source
}

#[test]
fn the_header_is_clean_under_every_compiler_and_standard() {
    let folder = tempfile::tempdir().unwrap();
    let mut clean = 0;
    for (compilers, extension, standards) in [
        (["gcc", "clang"], "c", ["c89", "c99", "c11", "c17"]),
        (["g++", "clang++"], "cpp", ["c++98", "c++11", "c++17", "c++20"]),
    ] {
        let source = folder.path().join(format!("every_macro.{extension}"));
        std::fs::write(&source, every_macro()).unwrap();
        for compiler in compilers.into_iter().filter(|compiler| has(compiler)) {
            for standard in standards {
                let mut command = Command::new(compiler);
                command.arg(format!("-std={standard}"));
                command.args(["-pedantic-errors", "-Wall", "-Wextra", "-Werror", "-Iinclude", "-c", "-o", "/dev/null"]);
                ok(command.arg(&source));
                clean += 1;
            }
        }
    }
    println!("clean under {clean} compilers and standards");
    assert!(clean >= 8);
}

#[test]
fn layouts_are_the_same_in_c_and_rust_and_do_not_change() {
    let folder = tempfile::tempdir().unwrap();
    let rust = layout::layout();
    let mut source = String::from("#include <runtime_interop.h>\n#include <stdio.h>\nint main(void)\n{\n");
    for line in &rust {
        let mut words = line.split(' ');
        let name = words.next().unwrap();
        writeln!(source, "    printf(\"{name} %u\", (unsigned)sizeof({name}));").unwrap();
        for field in words.skip(1).step_by(2) {
            writeln!(source, "    printf(\" {field} %u\", (unsigned)offsetof({name}, {field}));").unwrap();
        }
        source.push_str("    printf(\"\\n\");\n");
    }
    source.push_str("    return 0;\n}\n");
    let (file, program) = (folder.path().join("layout.c"), folder.path().join("layout"));
    std::fs::write(&file, source).unwrap();
    ok(Command::new("cc").args(["-Iinclude", "-o"]).arg(&program).arg(&file));
    let c = text(&run(&program, &[]).stdout);
    let rust = rust.join("\n") + "\n";
    assert_eq!(c, rust);
    if cfg!(target_pointer_width = "64") {
        snapshot("tests/c_api/layout.txt", &rust);
    }
    let structs = header().lines().filter(|line| line.starts_with("} runtime_")).count();
    assert_eq!(rust.lines().count(), structs, "tests/c_api/layout.rs has every struct");
}

/// Compares with a committed file; RUNTIME_BLESS=1 writes it.
fn snapshot(path: &str, found: &str) {
    let file = root().join(path);
    if std::env::var_os("RUNTIME_BLESS").is_some() {
        std::fs::write(&file, found).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(found, committed, "{path}: an ABI that others rely on would change");
}

#[cfg(target_os = "linux")]
#[test]
fn the_symbols_are_those_of_the_header() {
    if !has("nm") {
        return;
    }
    let symbols = ok(Command::new("nm").args(["-D", "--defined-only"]).arg(shared()));
    let mut found: Vec<&str> = symbols.lines().filter_map(|line| line.split(' ').next_back()).collect();
    found.sort_unstable();
    let list = found.join("\n") + "\n";
    snapshot("tests/c_api/symbols.txt", &list);
    let header = header();
    let missing: Vec<&&str> = found.iter().filter(|name| !header.contains(&format!("{name}("))).collect();
    assert!(missing.is_empty(), "exported and not declared: {missing:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_host_notices_nothing_and_two_copies_live_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("quiet");
    ok(Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Iinclude", "tests/c/quiet.c", "-o"])
        .arg(&program)
        .arg("-ldl"));
    let copies = ["one.so", "two.so"].map(|name| folder.path().join(name));
    for copy in &copies {
        std::fs::copy(shared(), copy).unwrap();
    }
    let output = run(&program, &[copies[0].to_str().unwrap(), copies[1].to_str().unwrap(), TINY]);
    assert_eq!(output.status.code(), Some(0), "tests/c/quiet.c says what its numbers mean");
    println!("{} bytes on stdout, {} on stderr", output.stdout.len(), output.stderr.len());
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[cfg(target_os = "linux")]
#[test]
fn valgrind_finds_nothing() {
    if !has("valgrind") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = support::compile("cc", "examples/c/first_text.c", folder.path()).unwrap();
    let log = folder.path().join("valgrind.txt");
    let mut command = Command::new("valgrind");
    command.env_remove("LD_LIBRARY_PATH").arg(format!("--log-file={}", log.display()));
    command.args([
        "--error-exitcode=9",
        "--leak-check=full",
        "--errors-for-leak-kinds=definite",
        "--show-leak-kinds=definite",
        "-q",
    ]);
    let output = command.arg(&program).args([TINY, "Hello", "cpu"]).current_dir(root()).output().unwrap();
    let found = std::fs::read_to_string(&log).unwrap_or_default();
    println!("valgrind: {} lines of complaints", found.lines().count());
    assert!(output.status.success() && found.is_empty(), "{}\n{found}", output.status);
}

fn linked(command: &mut Command) -> &mut Command {
    let folder = library();
    command.arg(format!("-L{}", folder.display())).args(["-lruntime", &format!("-Wl,-rpath,{}", folder.display())])
}

#[test]
fn c_examples() {
    let folder = tempfile::tempdir().unwrap();
    let program = support::compile("cc", "examples/c/frame_loop.c", folder.path()).unwrap();
    let output = run(&program, &[TINY, "30"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let out = text(&output.stdout);
    assert!(out.contains("training steps in 30 frames") && out.contains("slices: p50"), "{out}");
}

/// Compiles a C program against the shared library, with these arguments besides.
fn c_program(source: &str, folder: &Path, name: &str, args: &[&str]) -> PathBuf {
    let program = folder.join(name);
    let mut command = Command::new("cc");
    command.args(["-std=c99", "-pedantic-errors", "-Wall", "-Wextra", "-Werror", "-g", "-Iinclude"]).args(args);
    ok(linked(command.args([source, "-ldl", "-o"]).arg(&program)));
    program
}

/// A Vulkan device that C has made (software Vulkan is enough), and a CUDA context that is none.
#[cfg(target_os = "linux")]
#[test]
fn foreign_devices() {
    let folder = tempfile::tempdir().unwrap();
    let program = c_program("tests/c/vulkan.c", folder.path(), "vulkan", &[]);
    let output = run(&program, &[TINY]);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}: {out}{err}", output.status);
    print!("{out}");
    let waived = std::env::var_os("RUNTIME_NO_WGPU").is_some();
    assert!(waived || !out.contains("skipped"), "no Vulkan: scripts/test.sh installs a software adapter");
}

/// In a process of its own: the allocator's books are the whole process's.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn a_hundred_cycles_give_everything_back() {
    let folder = tempfile::tempdir().unwrap();
    let program = c_program("tests/c/cycles.c", folder.path(), "cycles", &[]);
    let output = run(&program, &[TINY, "100"]);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    print!("{out}");
    assert!(output.status.success(), "{}: {out}{err}", output.status);
}

/// The C programs, instrumented, against the library as it is: what it is handed and hands out is watched, and so are the
/// allocator's calls of both. No nightly compiler is needed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn sanitizers_find_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut clean = 0;
    for (source, args) in [
        ("examples/c/first_text.c", &[TINY, "Hello", "cpu"][..]),
        ("examples/c/frame_loop.c", &[TINY, "20"][..]),
        ("tests/c/cycles.c", &[TINY, "14"][..]),
    ] {
        let name = Path::new(source).file_stem().unwrap().to_str().unwrap();
        let flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
        let program = c_program(source, folder.path(), name, &flags);
        let mut command = Command::new(&program);
        // cycles.c does not count under a sanitizer, which has an allocator of its own.
        command.env("ASAN_OPTIONS", "detect_leaks=1:exitcode=99").env_remove("LD_LIBRARY_PATH");
        let output = command.current_dir(root()).args(args).output().unwrap();
        let err = text(&output.stderr);
        assert!(output.status.code() != Some(99) && !err.contains("runtime error"), "{source}: {err}");
        assert!(output.status.success(), "{source}: {}: {err}", output.status);
        clean += 1;
    }
    println!("{clean} programs are clean under address, leak and undefined-behaviour sanitizers");
}

#[test]
fn cpp() {
    let folder = tempfile::tempdir().unwrap();
    let mut compilers = 0;
    for compiler in ["g++", "clang++"].into_iter().filter(|compiler| has(compiler)) {
        compilers += 1;
        for source in ["tests/c/owned.cpp", "examples/cpp/npcs.cpp"] {
            let program = folder.path().join(Path::new(source).file_stem().unwrap());
            let mut command = Command::new(compiler);
            command.args(["-std=c++17", "-fno-exceptions", "-pedantic-errors", "-Wall", "-Wextra", "-Werror"]);
            ok(linked(command.args(["-Iinclude", source, "-o"]).arg(&program)));
            // The example takes its time for each frame: once is enough.
            if compilers == 1 || source.starts_with("tests") {
                let output = run(&program, &[TINY]);
                let (out, err) = (text(&output.stdout), text(&output.stderr));
                assert!(output.status.success(), "{compiler} {source}: {}\n{out}{err}", output.status);
                print!("{out}");
            }
        }
    }
    assert!(compilers > 0);
}

#[cfg(unix)]
#[test]
fn python() {
    if !has("python3") {
        return;
    }
    let mut command = Command::new("python3");
    command.env("RUNTIME_LIBRARY", shared()).env("PYTHONPATH", root().join("bindings/python"));
    command.env_remove("LD_LIBRARY_PATH").env("PYTHONDONTWRITEBYTECODE", "1");
    print!("{}", ok(command.arg("bindings/python/tests/test_all.py")));
}

/// `pip install` from the checkout, into a folder of its own.
#[cfg(unix)]
#[test]
fn python_wheel() {
    let python = root().join(".venv/bin/python");
    if !python.exists() {
        println!("skipped: no .venv");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("site");
    // The build leaves its folders beside the sources: build a copy.
    let source = folder.path().join("source");
    ok(Command::new("cp").arg("-r").arg("bindings/python").arg(&source));
    let mut pip = Command::new(&python);
    pip.env("RUNTIME_LIBRARY", shared()).args(["-m", "pip", "install", "-q", "--no-deps", "--target"]);
    ok(pip.arg(&target).arg(&source));
    let mut import = Command::new(&python);
    import.env_remove("LD_LIBRARY_PATH").env_remove("RUNTIME_LIBRARY").env("PYTHONPATH", &target);
    let found = ok(import.args(["-c", "import runtime_engine as r; print(r.__file__, r.version())"]));
    assert!(
        found.starts_with(target.to_str().unwrap()) && found.trim().ends_with(env!("CARGO_PKG_VERSION")),
        "{found}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn csharp() {
    if !has("mcs") || !has("mono") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (source, expected) in [("tests/Tests.cs", "ok any order of release"), ("examples/FrameLoop.cs", "Hello")] {
        let program = folder.path().join("program.exe");
        let mut command = Command::new("mcs");
        command.args(["-unsafe", "-langversion:7.2", "-warnaserror", "bindings/csharp/Native.cs"]);
        command.arg("bindings/csharp/Runtime.cs").arg(format!("bindings/csharp/{source}"));
        ok(command.arg(format!("-out:{}", program.display())));
        let mut mono = Command::new("mono");
        let out = ok(mono.env("LD_LIBRARY_PATH", library()).arg(&program).arg(TINY));
        assert!(out.contains(expected), "{source}: {out}");
        print!("{out}");
    }
}
