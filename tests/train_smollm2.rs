//! Training of SmolLM2-135M-Instruct (Q4_1) against PEFT on the same dequantised weights: bar 3 of the fine-tuner.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod train_support;

use runtime::backend::{BackendChoice, ComputeType};
use runtime::format::peft::{Adapter, AdapterConfig, LoraWeights, TargetModules};
use runtime::format::{Source, safetensors};
use runtime::model::lora::Projection;
use runtime::model::{LoadedModel, ModelConfig};
use runtime::tensor::HostTensor;
use runtime::train::{Job, Recipe};
use serde_json::Value;
use std::sync::Arc;
use train_support::{compare_steps, cuda, floats, golden, json, open, recipe, smollm2, tensors, uniform, words};

/// The initial adapter of a case, from the golden script's hash.
fn initial(case: &Value, config: &ModelConfig) -> Adapter {
    let (rank, seed) = (case["rank"].as_u64().unwrap() as usize, case["seed"].as_u64().unwrap());
    let (alpha, init_b) = (case["alpha"].as_f64().unwrap(), case["init_b"].as_f64().unwrap());
    let names = Projection::ALL.map(|p| p.name().to_owned()).to_vec();
    let module = |layer: usize, p: Projection| {
        let (name, (outputs, inputs)) = (p.module(layer), p.shape(config));
        let tensor = |side: &str, shape: [usize; 2], bound: f64| {
            let text = format!("base_model.model.{name}.lora_{side}.weight");
            HostTensor::from_f32(shape.to_vec(), &uniform(seed, &text, shape[0] * shape[1], bound as f32)).unwrap()
        };
        let weights = LoraWeights {
            a: tensor("A", [rank, inputs], 1.0 / (inputs as f64).sqrt()),
            b: tensor("B", [outputs, rank], init_b),
            scale: (alpha / rank as f64) as f32,
            magnitude: None,
        };
        (name, weights)
    };
    let modules = (0..config.layers).flat_map(|l| Projection::ALL.map(|p| module(l, p))).collect();
    Adapter { config: AdapterConfig::new(rank, alpha, TargetModules::List(names)), modules, saved: Default::default() }
}

/// The 261 numbers of a gradient summary.
fn summary(seed: u64, name: &str, gradient: &[f32]) -> Vec<f64> {
    let mut out = vec![gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt()];
    for j in 0..4 {
        let stream = format!("{name}#sign{j}");
        out.push(
            gradient
                .iter()
                .zip(words(seed, &stream))
                .map(|(g, w)| if w >> 63 == 1 { -f64::from(*g) } else { f64::from(*g) })
                .sum(),
        );
    }
    let stream = format!("{name}#sample");
    out.extend(words(seed, &stream).take(256).map(|w| f64::from(gradient[(w % gradient.len() as u64) as usize])));
    out
}

fn check_gradients(job: &Job, case: &Value, tolerance: f64) {
    let name = case["name"].as_str().unwrap();
    let source = Source::open(&golden(&format!("sft/smollm2_{name}.gradients.safetensors"))).unwrap();
    let expected = safetensors::read(&source, &|_| false).unwrap();
    let mut largest = 0f64;
    for (tensor, gradient) in tensors(&job.gradients().unwrap().into_adapter().unwrap()) {
        let Some(expected) = expected.get(&tensor) else {
            assert!(gradient.iter().all(|g| *g == 0.0), "{tensor} should have no gradient while B is zero");
            continue;
        };
        let (found, expected) = (summary(3407, &tensor, &gradient), floats(expected));
        let norm = f64::from(expected[0]);
        let apart = |range: std::ops::Range<usize>| {
            range.map(|i| (found[i] - f64::from(expected[i])).powi(2)).sum::<f64>().sqrt()
        };
        // ±1 projections and scaled samples both estimate the norm of the difference.
        let share = (gradient.len() as f64 / 256.0).sqrt();
        let difference = apart(0..1).max(apart(1..5) / 2.0).max(apart(5..261) * share) / norm;
        largest = largest.max(difference);
        assert!(difference <= tolerance, "{name}: the gradient of {tensor} is off by {difference}");
    }
    eprintln!("{name}: gradients within {largest:.1e}");
}

/// Losses to a relative `tolerance`, gradients to half of it (bar 3: 0.2 % and 1e-3 on the CPU).
fn like_peft(model: &Arc<LoadedModel>, name: &str, tolerance: f64, steps: usize) {
    let cases = json(&golden("sft/smollm2.json"));
    let case = cases["cases"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap();
    let folder = tempfile::tempdir().unwrap();
    initial(case, model.config()).write(folder.path()).unwrap();
    let mut job = Job::new(model, &Recipe { init_adapter: Some(folder.path().into()), ..recipe(case) }).unwrap();
    eprintln!("{name}: {}", job.memory());
    let first = job.accumulate(&|| false).unwrap().unwrap();
    check_gradients(&job, case, tolerance / 2.0);
    compare_steps(&mut job, case, first.loss, tolerance, 0.02, steps);
}

/// The losses of twelve steps alone, to a relative `tolerance`; the norms of the gradients to ten times that.
fn losses_like_peft(model: &Arc<LoadedModel>, name: &str, tolerance: f64) {
    let cases = json(&golden("sft/smollm2.json"));
    let case = cases["cases"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap();
    let folder = tempfile::tempdir().unwrap();
    initial(case, model.config()).write(folder.path()).unwrap();
    let mut job = Job::new(model, &Recipe { init_adapter: Some(folder.path().into()), ..recipe(case) }).unwrap();
    let first = job.accumulate(&|| false).unwrap().unwrap();
    compare_steps(&mut job, case, first.loss, tolerance, 10.0 * tolerance, 12);
}

/// Both losses from PEFT's own start (B zero), and both with a random B, where every gradient is there from the start.
#[test]
fn like_peft_on_cpu() {
    let Some(path) = smollm2() else { return };
    let model = open(&path, BackendChoice::Cpu);
    for (name, steps) in [("all", 12), ("assistant", 12), ("all_random_b", 4), ("assistant_random_b", 4)] {
        like_peft(&model, name, 2e-3, steps);
    }
}

/// On an NVIDIA GPU: in f32 as on the CPU, in 16 bits the losses alone.
#[test]
fn like_peft_on_cuda() {
    let Some(path) = smollm2() else { return };
    let Some(model) = cuda(ComputeType::F32, &path) else { return };
    for name in ["all", "assistant", "all_random_b", "assistant_random_b"] {
        like_peft(&model, name, 2e-3, 12);
    }
    // An H100 is off by 1.0 % in f16 after nine steps from a random B; an emulation of the roundings of bf16 by 1.3 %.
    for compute in [ComputeType::BF16, ComputeType::F16] {
        let Some(model) = cuda(compute, &path) else { return };
        for name in ["all", "assistant", "all_random_b", "assistant_random_b"] {
            losses_like_peft(&model, name, 2e-2);
        }
    }
}

/// The first steps over wgpu; software Vulkan takes minutes for all twelve (see below).
#[cfg(feature = "wgpu")]
#[test]
fn like_peft_on_wgpu() {
    let Some(path) = smollm2() else { return };
    like_peft(&open(&path, BackendChoice::Wgpu), "assistant", 1e-2, 3);
}

/// All of bar 3 over wgpu: `cargo test --release --test train_smollm2 -- --ignored`.
#[cfg(feature = "wgpu")]
#[test]
#[ignore = "ten minutes on software Vulkan"]
fn twelve_steps_like_peft_on_wgpu() {
    let Some(path) = smollm2() else { return };
    let model = open(&path, BackendChoice::Wgpu);
    for name in ["all", "assistant"] {
        like_peft(&model, name, 1e-2, 12);
    }
}
