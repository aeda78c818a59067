//! Gathers the CUDA kernels, and compiles them ahead of time where NVRTC is found: PTX for compute capability 8.0 and
//! newer, machine code for 9.0a (or those of the two that RUNTIME_CUDA_TARGETS names: `sm_90a`, `compute_80`). Without NVRTC,
//! or with RUNTIME_NO_NVRTC=1, the program compiles what it needs when it runs.

#![allow(clippy::expect_used, clippy::panic)] // a build script stops at the first error

#[cfg(feature = "cuda")]
#[path = "src/backend/cuda/nvrtc.rs"]
#[allow(dead_code)] // the program uses the rest
mod nvrtc;
#[cfg(feature = "cuda")]
#[path = "src/backend/cuda/variants.rs"]
mod variants;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    link_library();
    #[cfg(feature = "cuda")]
    cuda::kernels();
}

/// llguidance exports a C interface of its own: it does not leave the shared library. Where the linker puts the program together
/// from libraries, it is told to hide what they export; where they were merged before (LTO), which names. The linker that Rust
/// brings along for this target takes a second version script, GNU's does not.
fn link_library() {
    let target = std::env::var("TARGET").expect("cargo sets TARGET");
    let script =
        std::path::Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("src/ffi/hidden.map");
    println!("cargo:rerun-if-changed={}", script.display());
    if target.contains("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    }
    if target == "x86_64-unknown-linux-gnu" {
        println!("cargo:rustc-cdylib-link-arg=-Wl,--version-script={}", script.display());
        // The same machine code once, whatever it was generated for.
        println!("cargo:rustc-cdylib-link-arg=-Wl,--icf=all");
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::nvrtc::Nvrtc;
    use super::variants::parts;
    use std::fmt::Write as _;
    use std::hash::{DefaultHasher, Hash, Hasher};
    use std::path::{Path, PathBuf};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::{env, fs, thread};

    /// Writes `kernels.rs` with the sources and the compressed images, and `reports.rs` with what the assembler said about the
    /// registers of those for Hopper, which tests/kernels.rs reads.
    pub fn kernels() {
        println!("cargo:rerun-if-changed=kernels");
        println!("cargo:rerun-if-changed=src/backend/cuda/nvrtc.rs");
        println!("cargo:rerun-if-changed=src/backend/cuda/variants.rs");
        println!("cargo:rerun-if-env-changed=RUNTIME_NVRTC");
        println!("cargo:rerun-if-env-changed=RUNTIME_NO_NVRTC");
        println!("cargo:rerun-if-env-changed=RUNTIME_CUDA_TARGETS");
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let folder = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("kernels");
        let mut files: Vec<PathBuf> = fs::read_dir(&folder).expect("kernels/").flatten().map(|e| e.path()).collect();
        files.sort();
        let of = |extension: &str| -> Vec<PathBuf> {
            files.iter().filter(|p| p.extension().is_some_and(|e| e == extension)).cloned().collect()
        };
        let (headers, sources) = (of("cuh"), of("cu"));
        let found = match env::var_os("RUNTIME_NO_NVRTC") {
            Some(_) => Err("RUNTIME_NO_NVRTC is set".to_owned()),
            None => Nvrtc::find(),
        };
        let nvrtc = found.map_err(|why| println!("cargo:warning=CUDA kernels are not compiled ahead: {why}")).ok();
        let mut text = String::from("/// What `#include` finds.\npub const HEADERS: &[(&str, &str)] = &[\n");
        for path in &headers {
            writeln!(text, "    (\"{}\", include_str!({:?})),", file_name(path), path).expect("a string grows");
        }
        text += "];\n/// Every kernel file.\npub const KERNELS: &[Kernel] = &[\n";
        let texts: Vec<(String, String)> = headers.iter().map(|h| (file_name(h), read(h))).collect();
        let headers: Vec<(&str, &str)> = texts.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
        let mut jobs = Vec::new();
        for path in &sources {
            let file = path.file_stem().expect("a name").to_string_lossy();
            jobs.extend(parts(&file).into_iter().map(|(part, option)| (path, part, option)));
        }
        // The compiler works on one thread; files are independent.
        let next = AtomicUsize::new(0);
        let images = Mutex::new(vec![[None, None]; jobs.len()]);
        thread::scope(|scope| {
            let Some(nvrtc) = &nvrtc else { return };
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some((path, part, option)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let made = compile(nvrtc, path, part, option.as_deref(), &headers, &out);
                        let at = jobs.iter().position(|job| job.1 == *part).expect("a job");
                        images.lock().expect("no panic")[at] = made;
                    }
                });
            }
        });
        let mut reports = String::from("const REPORTS: &[(&str, &str)] = &[\n");
        for ((path, part, option), [cubin, ptx]) in jobs.iter().zip(images.into_inner().expect("no panic")) {
            if let Some(image) = &cubin {
                writeln!(reports, "    ({part:?}, include_str!({:?})),", report_of(image)).expect("a string grows");
            }
            let image = |p: Option<PathBuf>| p.map_or("None".into(), |p| format!("Some(include_bytes!({p:?}))"));
            let (cubin, ptx) = (image(cubin), image(ptx));
            writeln!(
                text,
                "    Kernel {{ name: {part:?}, source: include_str!({path:?}), option: {option:?}, cubin: {cubin}, ptx: {ptx} }},"
            )
            .expect("a string grows");
        }
        text += "];\n";
        fs::write(out.join("kernels.rs"), text).expect("OUT_DIR can be written");
        fs::write(out.join("reports.rs"), reports + "];\n").expect("OUT_DIR can be written");
    }

    /// The headers that a text includes, directly or not.
    fn included<'a>(text: &str, headers: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut found: Vec<(&str, &str)> = Vec::new();
        let mut texts = vec![text];
        while let Some(text) = texts.pop() {
            for header in headers {
                if text.contains(&format!("#include \"{}\"", header.0)) && !found.contains(header) {
                    found.push(*header);
                    texts.push(header.1);
                }
            }
        }
        found.sort_unstable();
        found
    }

    /// The images of one part: machine code for Hopper, and PTX unless only Hopper runs it.
    fn compile(
        nvrtc: &Nvrtc,
        path: &Path,
        part: &str,
        option: Option<&str>,
        headers: &[(&str, &str)],
        out: &Path,
    ) -> [Option<PathBuf>; 2] {
        let source = read(path);
        let wanted = env::var("RUNTIME_CUDA_TARGETS").unwrap_or_else(|_| "sm_90a,compute_80".into());
        ["sm_90a", "compute_80"].map(|arch| {
            if part.starts_with("sm90_") && arch != "sm_90a" || !wanted.split(',').any(|target| target == arch) {
                return None;
            }
            // Named by what it is made of, so that a build compiles again only what has changed.
            let mut hash = DefaultHasher::new();
            (&source, included(&source, headers), option, nvrtc.version).hash(&mut hash);
            let target = out.join(format!("{}.{arch}.{:016x}.zst", part.replace('/', "-"), hash.finish()));
            let assembled = arch == "sm_90a";
            if target.exists() && (!assembled || report_of(&target).exists()) {
                return Some(target);
            }
            let options: Vec<&str> = option.into_iter().chain(assembled.then_some("--ptxas-options=-v")).collect();
            let compiled = nvrtc
                .compile(&file_name(path), &source, headers, arch, &options)
                .unwrap_or_else(|log| panic!("kernels/{part} for {arch}: {log}"));
            // Half of what zlib makes of them, and faster to unpack.
            let packed = zstd::encode_all(&compiled.image[..], 19).expect("a vector grows");
            if assembled {
                fs::write(report_of(&target), &compiled.log).expect("OUT_DIR can be written");
            }
            fs::write(&target, packed).expect("OUT_DIR can be written");
            Some(target)
        })
    }

    /// Where the assembler's report on an image lies.
    fn report_of(image: &Path) -> PathBuf {
        image.with_extension("log")
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    fn file_name(path: &Path) -> String {
        path.file_name().expect("a name").to_string_lossy().into_owned()
    }
}
