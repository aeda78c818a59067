//! Every CUDA kernel compiles with NVRTC alone, for the oldest and the newest architecture that has kernels of its own, and
//! keeps its variables in registers. Needs no GPU; without NVRTC the test fails (scripts/test.sh installs it), unless
//! `RUNTIME_NO_NVRTC=1` says that there is none on purpose.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]
#![cfg(feature = "cuda")]

use runtime::backend::cuda::library::{HEADERS, KERNELS};
use runtime::backend::cuda::nvrtc::Nvrtc;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

// What the assembler said when the program was built: the same sources, for sm_90a.
include!(concat!(env!("OUT_DIR"), "/reports.rs"));

/// Kernels that may use local memory, with the most bytes of stack and of spills, and why.
const LOCAL_MEMORY: &[(&str, usize, usize, &str)] = &[
    ("attention_decode_d128_bf16_i8", 8, 24, AMPERE),
    ("attention_decode_d128_f16_i8", 8, 12, AMPERE),
    ("attention_packed_d128_bf16", 16, 76, HOPPER),
    ("attention_packed_d128_f16", 16, 76, HOPPER),
    ("attention_paged_d128_bf16", 16, 76, HOPPER),
    ("attention_paged_d128_f16", 16, 76, HOPPER),
    ("matmul_dots1_q5_0_bf16", 8, 12, AMPERE),
    ("matmul_dots1_q5_0_f16", 8, 12, AMPERE),
    ("matmul_dots1_q5_1_bf16", 8, 12, ADAPTERS),
    ("matmul_dots1_q5_1_f16", 8, 12, ADAPTERS),
    ("matmul_rows16_q4_k_bf16", 8, 12, AMPERE),
    ("matmul_rows16_q6_k_bf16", 8, 16, AMPERE),
    ("matmul_rows16_q6_k_f16", 8, 16, AMPERE),
];

const HOPPER: &str = "spills on sm_90a alone, where sm90_attention takes its place";
const ADAPTERS: &str = "three words around an adapter's term, once for each result and not in the loop over k";
const AMPERE: &str = "spills on sm_80 alone; not timed there yet";

/// Bytes of stack frame, and of spill stores and loads, of each kernel in the compiler's report.
fn local_memory(log: &str) -> BTreeMap<String, (usize, usize)> {
    let mut found = BTreeMap::new();
    let mut name = String::new();
    for line in log.lines() {
        if let Some(at) = line.find("Function properties for ").or_else(|| line.find("Compiling entry function '")) {
            let rest = line[at..].trim_start_matches("Function properties for ");
            let rest = rest.trim_start_matches("Compiling entry function '");
            name = rest.split(['\'', ' ']).next().unwrap_or_default().to_owned();
        }
        if line.contains("bytes stack frame") {
            let numbers: Vec<usize> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            found.insert(name.clone(), (numbers[0], numbers[1] + numbers[2]));
        }
    }
    found
}

#[test]
fn every_kernel_compiles_and_stays_in_registers() {
    let nvrtc = match Nvrtc::find() {
        Ok(nvrtc) => nvrtc,
        Err(why) => {
            assert!(std::env::var_os("RUNTIME_NO_NVRTC").is_some(), "{why}: scripts/test.sh installs it");
            return;
        }
    };
    let jobs: Vec<_> = KERNELS
        .iter()
        .flat_map(|kernel| ["sm_90a", "sm_80"].map(|arch| (kernel, arch)))
        .filter(|(kernel, arch)| *arch == "sm_90a" || !kernel.name.starts_with("sm90_"))
        .collect();
    let (next, wrong, count) = (AtomicUsize::new(0), Mutex::new(Vec::new()), AtomicUsize::new(0));
    let work = || {
        while let Some((kernel, arch)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let known = REPORTS.iter().find(|(name, _)| *arch == "sm_90a" && *name == kernel.name);
            let options: Vec<&str> = kernel.option.into_iter().chain(["--ptxas-options=-v"]).collect();
            let compile =
                || nvrtc.compile(&format!("{}.cu", kernel.name), kernel.source, HEADERS, arch, &options).map(|c| c.log);
            let log = match known.map_or_else(compile, |(_, log)| Ok((*log).to_owned())) {
                Ok(log) => log,
                Err(log) => {
                    wrong.lock().unwrap().push(format!("{} for {arch}: {log}", kernel.name));
                    continue;
                }
            };
            for (name, (stack, spills)) in local_memory(&log) {
                count.fetch_add(1, Ordering::Relaxed);
                let allowed = LOCAL_MEMORY.iter().find(|(kernel, ..)| *kernel == name);
                let (most_stack, most_spills) = allowed.map_or((0, 0), |row| (row.1, row.2));
                if stack > most_stack || spills > most_spills {
                    wrong
                        .lock()
                        .unwrap()
                        .push(format!("{name} for {arch}: {stack} bytes of stack, {spills} of spills"));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let wrong = wrong.into_inner().unwrap();
    let count = count.into_inner();
    println!("{} files and parts, {count} kernels", jobs.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 100, "the compiler's report names only {count} kernels");
}
