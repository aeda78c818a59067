//! Shared by the training tests: golden cases, the hash that makes initial adapters, comparisons.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use runtime::backend::{BackendChoice, ComputeType};
use runtime::format::peft::Adapter;
use runtime::model::{LoadOptions, LoadedModel};
use runtime::tensor::HostTensor;
use runtime::train::{Job, LossOn, Recipe, Schedule};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

pub fn json(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub fn open(path: &Path, backend: BackendChoice) -> Arc<LoadedModel> {
    // What is compared with PEFT in f32 is computed in f32.
    LoadedModel::open(path, &LoadOptions { backend, compute: ComputeType::F32, ..LoadOptions::default() }).unwrap()
}

/// A model on an NVIDIA GPU; `None` without one, unless `RUNTIME_CUDA` says that there must be one.
#[allow(dead_code)] // not every test has a CUDA half
pub fn cuda(compute: ComputeType, path: &Path) -> Option<Arc<LoadedModel>> {
    let options = LoadOptions { backend: BackendChoice::Cuda, compute, ..LoadOptions::default() };
    match LoadedModel::open(path, &options) {
        Ok(model) => Some(model),
        Err(error) => {
            assert!(std::env::var_os("RUNTIME_CUDA").is_none(), "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// SmolLM2-135M-Instruct as GGUF, or `None` (with a note) where it has not been fetched.
pub fn smollm2() -> Option<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("RUNTIME_SMOLLM2").map_or_else(default, PathBuf::from);
    if !path.is_file() {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// The recipe of a golden case.
pub fn recipe(case: &Value) -> Recipe {
    let number = |key: &str| case[key].as_f64().unwrap_or_else(|| panic!("{key}"));
    let size = |key: &str| case[key].as_u64().unwrap_or_else(|| panic!("{key}")) as usize;
    Recipe {
        data: vec![golden("sft/data.jsonl").into()],
        rank: Some(size("rank")),
        alpha: Some(number("alpha")),
        batch_size: size("batch_size"),
        grad_accum: size("grad_accum"),
        max_length: 512,
        lr: number("lr"),
        warmup_steps: size("warmup_steps"),
        max_steps: Some(size("max_steps")),
        weight_decay: number("weight_decay"),
        max_grad_norm: number("max_grad_norm"),
        schedule: Schedule::Linear,
        loss: case["loss"].as_str().unwrap().parse::<LossOn>().unwrap(),
        shuffle: false,
        ..Recipe::default()
    }
}

/// Compares steps with PEFT's: losses to a relative `tolerance`, learning rates and counts exactly. The first step has
/// been accumulated by the caller, whose loss is `first`.
pub fn compare_steps(job: &mut Job, case: &Value, first: f64, tolerance: f64, norm_tolerance: f64, steps: usize) {
    let name = case["name"].as_str().unwrap();
    for (i, expected) in case["steps"].as_array().unwrap().iter().take(steps).enumerate() {
        let (loss, norm, lr) = if i == 0 {
            let (norm, lr) = job.update().unwrap();
            (first, norm, lr)
        } else {
            let report = job.step().unwrap();
            assert_eq!(
                report.tokens,
                expected["tokens"].as_u64().unwrap() as usize,
                "{name}: tokens of step {}",
                i + 1
            );
            assert_eq!(
                report.counted,
                expected["counted"].as_u64().unwrap() as usize,
                "{name}: counted of step {}",
                i + 1
            );
            (report.loss, report.grad_norm, report.lr)
        };
        let want = expected["loss"].as_f64().unwrap();
        let want_norm = expected["grad_norm"].as_f64().unwrap();
        eprintln!("{name} step {:2}: loss {loss:.6} (PEFT {want:.6}), norm {norm:.5} ({want_norm:.5})", i + 1);
        assert!(((loss - want) / want).abs() <= tolerance, "{name}: loss of step {} is {loss}, PEFT's {want}", i + 1);
        assert!(
            ((f64::from(norm) - want_norm) / want_norm).abs() <= norm_tolerance,
            "{name}: norm of step {} is {norm}, PEFT's {want_norm}",
            i + 1
        );
        assert!((lr - expected["lr"].as_f64().unwrap()).abs() <= 1e-12, "{name}: lr of step {}", i + 1);
    }
}

pub fn floats(tensor: &HostTensor) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(&tensor.data)
}

/// ‖a − b‖ / ‖b‖
pub fn relative_norm(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    assert!(difference.is_finite());
    if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() }
}

/// PEFT's tensor names and values of an adapter (or of its gradients).
pub fn tensors(adapter: &Adapter) -> Vec<(String, Vec<f32>)> {
    let sides = adapter.modules.iter().flat_map(|(module, w)| {
        let sides = [("A.weight", Some(&w.a)), ("B.weight", Some(&w.b)), ("magnitude_vector", w.magnitude.as_ref())];
        let there = sides.into_iter().filter_map(|(side, tensor)| Some((side, tensor?)));
        there.map(move |(side, t)| (format!("base_model.model.{module}.lora_{side}"), floats(t)))
    });
    sides.collect()
}

/// The largest relative difference over all tensors of two adapters.
pub fn worst(found: &Adapter, expected: &Adapter) -> f64 {
    let pairs = tensors(found).into_iter().zip(tensors(expected));
    pairs
        .map(|((a, x), (b, y))| {
            assert_eq!(a, b);
            relative_norm(&x, &y)
        })
        .fold(0.0, f64::max)
}

// The hash of scripts/golden/peft_sft.py.

fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// `word(text, i)` for i = 0, 1, …
pub fn words(seed: u64, text: &str) -> impl Iterator<Item = u64> + use<> {
    let hash = text.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3));
    let key = mix(seed ^ hash);
    (0..).map(move |i: u64| mix(key.wrapping_add(i)))
}

/// `value(text, i)` for `count` elements.
pub fn uniform(seed: u64, text: &str, count: usize, bound: f32) -> Vec<f32> {
    let unit = |w: u64| (w >> 40) as f32 * 2f32.powi(-23) - 1.0;
    words(seed, text).take(count).map(|w| unit(w) * bound).collect()
}
