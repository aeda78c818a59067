//! Training of the tiny chat models against PEFT, and against itself: recomputation, packing, accumulation,
//! dropout, resuming.
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
use runtime::format::peft::Adapter;
use runtime::format::{Source, safetensors};
use runtime::model::{LoadOptions, LoadedModel};
use runtime::train::{self, Job, LossOn, Observer, Optim, Recipe, Schedule, StepReport};
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use train_support::{compare_steps, cuda, floats, golden, json, open, recipe, relative_norm, tensors, worst};

/// Largest differences from PEFT that a backend may show.
struct Tolerance {
    loss: f64,
    gradient: f64,
    adapter: f64,
}

fn like_peft(name: &str, backend: BackendChoice, tolerance: &Tolerance) {
    let model = open(&golden(&format!("tiny/{name}")), backend);
    for case in json(&golden(&format!("sft/tiny_{name}.json")))["cases"].as_array().unwrap() {
        let loss = case["loss"].as_str().unwrap();
        let folder = golden(&format!("sft/tiny_{name}"));
        let mut job = Job::new(&model, &Recipe { init_adapter: Some(folder.join("init")), ..recipe(case) }).unwrap();
        let first = job.accumulate(&|| false).unwrap().unwrap();
        let source = Source::open(&folder.join(format!("gradients_{loss}.safetensors"))).unwrap();
        let expected = safetensors::read(&source, &|_| false).unwrap();
        let found = tensors(&job.gradients().unwrap().into_adapter().unwrap());
        assert_eq!(found.len(), expected.len());
        let mut largest = 0f64;
        for (tensor, values) in found {
            let difference = relative_norm(&values, &floats(&expected[&tensor]));
            largest = largest.max(difference);
            assert!(difference <= tolerance.gradient, "{name} {loss}: gradient of {tensor} is off by {difference}");
        }
        compare_steps(&mut job, case, first.loss, tolerance.loss, 10.0 * tolerance.loss, 12);
        let last = Adapter::read(&folder.join(format!("final_{loss}")), model.config()).unwrap();
        let difference = worst(&job.adapter().unwrap(), &last);
        eprintln!("{name} {loss}: gradients within {largest:.1e}, adapter after 12 steps within {difference:.1e}");
        assert!(difference <= tolerance.adapter, "{name} {loss}: the final adapter is off by {difference}");
    }
}

/// Bar 3; the final adapter is AdamW's, which turns tiny differences of near-zero gradients into whole steps.
const CPU: Tolerance = Tolerance { loss: 2e-3, gradient: 1e-3, adapter: 2e-2 };

#[test]
fn qwen3_like_peft_on_cpu() {
    like_peft("chat", BackendChoice::Cpu, &CPU);
}

#[test]
fn llama_like_peft_on_cpu() {
    like_peft("chat_llama", BackendChoice::Cpu, &CPU);
}

/// The same over Vulkan, Metal or DX12, software adapters included; a machine without any passes. One family: a software
/// adapter spends most of the time on compiling shaders.
#[cfg(feature = "wgpu")]
#[test]
fn like_peft_on_wgpu() {
    let options = LoadOptions { backend: BackendChoice::Wgpu, ..LoadOptions::default() };
    if let Err(error) = LoadedModel::open(&golden("tiny/chat"), &options) {
        eprintln!("skipped: {error}");
        return;
    }
    like_peft("chat", BackendChoice::Wgpu, &Tolerance { loss: 1e-2, gradient: 1e-3, adapter: 5e-2 });
}

/// On an NVIDIA GPU in f32; a machine without one passes.
#[test]
fn like_peft_on_cuda() {
    if cuda(ComputeType::F32, &golden("tiny/chat")).is_some() {
        let tolerance = Tolerance { loss: 2e-3, gradient: 1e-3, adapter: 5e-2 };
        like_peft("chat", BackendChoice::Cuda, &tolerance);
        like_peft("chat_llama", BackendChoice::Cuda, &tolerance);
    }
}

fn tiny() -> Arc<LoadedModel> {
    open(&golden("tiny/chat"), BackendChoice::Cpu)
}

/// A short recipe over the golden data, B not zero so that every gradient counts.
fn short() -> Recipe {
    Recipe {
        data: vec![golden("sft/data.jsonl").into()],
        init_adapter: Some(golden("sft/tiny_chat/init")),
        max_length: 512,
        batch_size: 2,
        grad_accum: 2,
        lr: 5e-3,
        warmup_steps: 1,
        max_steps: Some(12),
        shuffle: false,
        ..Recipe::default()
    }
}

/// Loss and gradients of the first step.
fn first_step(model: &Arc<LoadedModel>, recipe: &Recipe) -> (f64, Adapter) {
    let mut job = Job::new(model, recipe).unwrap();
    let sum = job.accumulate(&|| false).unwrap().unwrap();
    (sum.loss, job.gradients().unwrap().into_adapter().unwrap())
}

fn same_first_step(a: &Recipe, b: &Recipe, tolerance: f64) {
    let model = tiny();
    let ((loss_a, gradients_a), (loss_b, gradients_b)) = (first_step(&model, a), first_step(&model, b));
    assert!((loss_a - loss_b).abs() <= tolerance * loss_a, "losses {loss_a} and {loss_b}");
    let difference = worst(&gradients_a, &gradients_b);
    assert!(difference <= tolerance, "gradients differ by {difference}");
}

#[test]
fn recomputation_changes_nothing_but_memory() {
    for dropout in [0.0, 0.2] {
        let keep = Recipe { dropout, ..short() };
        let again = Recipe { recompute: true, ..keep.clone() };
        same_first_step(&keep, &again, 1e-6);
        let model = tiny();
        let arena = |recipe: &Recipe| Job::new(&model, recipe).unwrap().memory().arena;
        assert!(arena(&again) < arena(&keep));
    }
}

#[test]
fn what_waits_in_host_memory_comes_back_as_it_was() {
    let model = tiny();
    let here = Recipe { recompute: true, ..short() };
    let away = Recipe { activation_offloading: true, ..here.clone() };
    same_first_step(&here, &away, 0.0);
    let memory = |recipe: &Recipe| *Job::new(&model, recipe).unwrap().memory();
    let (here, away) = (memory(&here), memory(&away));
    // Inputs of all layers, of 64 numbers a token.
    let layers = model.config().layers;
    assert_eq!(away.offloaded as usize, layers * away.step_tokens * model.config().hidden * 4);
    assert!(away.live_peak < here.live_peak, "{away} and {here}");
}

/// In pinned memory, which kernels write and read over the bus; in both types of activations.
#[test]
fn what_waits_in_host_memory_comes_back_as_it_was_on_cuda() {
    for compute in [ComputeType::F32, ComputeType::BF16] {
        let Some(model) = cuda(compute, &golden("tiny/chat")) else { return };
        let here = Recipe { recompute: true, ..short() };
        let away = Recipe { activation_offloading: true, ..here.clone() };
        let (a, b) = (first_step(&model, &here), first_step(&model, &away));
        assert_eq!(a.0, b.0);
        assert_eq!(worst(&a.1, &b.1), 0.0);
    }
}

#[test]
fn packed_rows_do_not_see_each_other() {
    let apart = Recipe { batch_size: 48, grad_accum: 1, ..short() };
    let model = tiny();
    let bins = Job::new(&model, &Recipe { packing: true, ..apart.clone() }).unwrap().data().bins;
    assert!(bins > 1 && bins < 24, "{bins} bins");
    let packed = Recipe {
        packing: true,
        batch_size: 2,
        grad_accum: bins.div_ceil(2),
        max_steps: None,
        epochs: Some(1.0),
        ..apart.clone()
    };
    same_first_step(&apart, &packed, 2e-5);
}

/// All rows at once, and in parts of different sizes. Neighbouring micro-batches run together where they fit (two of
/// 4 rows do), so one part is large enough to stand alone.
#[test]
fn accumulation_equals_one_large_batch() {
    let whole = Recipe { batch_size: 48, grad_accum: 1, ..short() };
    for loss in [LossOn::All, LossOn::Assistant] {
        let whole = Recipe { loss, ..whole.clone() };
        for (batch_size, grad_accum) in [(1, 48), (4, 12), (24, 2)] {
            same_first_step(&whole, &Recipe { batch_size, grad_accum, ..whole.clone() }, 2e-5);
        }
    }
}

#[test]
fn dropout_follows_the_seed() {
    let model = tiny();
    let with = |dropout: f32, seed: u64| first_step(&model, &Recipe { dropout, seed, ..short() }).0;
    assert_eq!(with(0.3, 1), with(0.3, 1));
    assert_ne!(with(0.3, 1), with(0.3, 2));
    assert_ne!(with(0.3, 1), with(0.0, 1));
}

/// Counts steps and stops after some.
struct StopAfter {
    limit: usize,
    seen: Cell<usize>,
    losses: Vec<f64>,
}

impl StopAfter {
    fn new(limit: usize) -> Self {
        Self { limit, seen: Cell::new(0), losses: Vec::new() }
    }
}

impl Observer for StopAfter {
    fn step(&mut self, report: &StepReport) {
        self.seen.set(report.step);
        self.losses.push(report.loss);
    }
    fn should_stop(&self) -> bool {
        self.seen.get() >= self.limit
    }
}

fn bytes(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("adapter_model.safetensors")).unwrap()
}

#[test]
fn a_resumed_run_equals_an_unbroken_one() {
    let model = tiny();
    let folder = tempfile::tempdir().unwrap();
    for (name, packing, optim) in
        [("plain", false, Optim::AdamW), ("packed", true, Optim::AdamW), ("8 bits", false, Optim::AdamW8bit)]
    {
        let base = Recipe { dropout: 0.1, shuffle: true, packing, optim, init_adapter: None, rank: Some(4), ..short() };
        let base = Recipe { batch_size: if packing { 1 } else { 5 }, ..base };
        let at = |part: &str| folder.path().join(name).join(part);
        let whole = Recipe { output: at("whole"), log: Some(at("log")), ..base.clone() };
        let mut unbroken = StopAfter::new(usize::MAX);
        let summary = train::run(model.clone(), &whole, &mut unbroken).unwrap();
        assert_eq!((summary.steps, summary.stopped), (12, false));
        let log = std::fs::read_to_string(at("log")).unwrap();
        assert_eq!(log.lines().count(), 12);
        let line: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
        let keys: Vec<_> = line.as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["step", "loss", "grad_norm", "lr", "tokens", "tok_s"]);

        let mut first = StopAfter::new(6);
        let part = Recipe { output: at("part"), ..base.clone() };
        let summary = train::run(model.clone(), &part, &mut first).unwrap();
        assert!(summary.stopped && summary.adapter.is_none());
        assert_eq!(summary.checkpoint.as_deref(), Some(at("part/checkpoint-6").as_path()));
        let mut second = StopAfter::new(usize::MAX);
        let rest = Recipe { resume: Some(at("part")), output: at("rest"), ..base.clone() };
        train::run(model.clone(), &rest, &mut second).unwrap();
        assert_eq!(unbroken.losses, [first.losses, second.losses].concat());
        assert_eq!(bytes(&at("whole")), bytes(&at("rest")));
    }
}

#[test]
fn moments_in_8_bits_train_as_well_in_a_quarter_of_the_memory() {
    let model = tiny();
    let run = |optim: Optim| {
        let recipe = Recipe { optim, init_adapter: None, rank: Some(4), ..short() };
        let mut job = Job::new(&model, &recipe).unwrap();
        let memory = *job.memory();
        let mut losses = Vec::new();
        while !job.is_done() {
            losses.push(job.step().unwrap().loss);
        }
        (losses, memory)
    };
    let ((exact, full), (rounded, small)) = (run(Optim::AdamW), run(Optim::AdamW8bit));
    assert_eq!(full.moments, 2 * full.adapters);
    // A byte an element and 4 a block of 256, twice.
    let numbers = full.adapters / 4;
    assert_eq!(small.moments, 2 * (numbers + 4 * numbers.div_ceil(256)));
    let gained = exact[0] - exact[exact.len() - 1];
    assert!(gained > 0.05 && exact != rounded, "{exact:?}");
    for (a, b) in exact.iter().zip(&rounded) {
        assert!((a - b).abs() < 0.1 * gained, "{exact:?}\n{rounded:?}");
    }
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let model = tiny();
    let folder = tempfile::tempdir().unwrap();
    let base = Recipe { output: folder.path().into(), max_steps: Some(2), ..short() };
    train::run(model.clone(), &base, &mut ()).unwrap();
    let refused = |recipe: Recipe, part: &str| {
        let message = Job::new(&model, &recipe).err().expect("refused").to_string();
        assert!(message.contains(part), "{message}");
    };
    let resumed = Recipe { resume: Some(folder.path().into()), max_steps: Some(4), ..base };
    refused(Recipe { lr: 1e-4, ..resumed.clone() }, "lr is 0.0001, the checkpoint was made with 0.005");
    refused(Recipe { optim: Optim::AdamW8bit, ..resumed.clone() }, "optim is \"adamw_8bit\"");
    refused(Recipe { rank: Some(8), ..resumed.clone() }, "rank is 8, but the adapter");
    refused(Recipe { max_length: 500, ..resumed.clone() }, "max_length is 500");
    let few = folder.path().join("few.jsonl");
    std::fs::write(&few, r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#).unwrap();
    refused(Recipe { data: vec![few.into()], ..resumed.clone() }, "the data differs");
    refused(Recipe { resume: Some(folder.path().join("nothing")), ..resumed.clone() }, "nothing");
    assert_eq!(Job::new(&model, &resumed).unwrap().steps_done(), 2);
}

#[test]
fn a_fresh_adapter_is_peft_s_and_learns() {
    let model = tiny();
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe {
        output: folder.path().into(),
        init_adapter: None,
        rank: Some(8),
        alpha: Some(16.0),
        target_modules: vec!["q_proj".into(), "down_proj".into()],
        schedule: Schedule::Cosine,
        max_steps: Some(20),
        batch_size: 8,
        lr: 2e-2,
        ..short()
    };
    let job = Job::new(&model, &recipe).unwrap();
    let start = job.adapter().unwrap();
    assert_eq!(start.modules.len(), 4);
    for (name, values) in tensors(&start) {
        let inputs = if name.contains("down_proj") { 96f32 } else { 64.0 };
        let largest = values.iter().fold(0f32, |m, x| m.max(x.abs()));
        let bound = 1.0 / inputs.sqrt();
        assert!(
            if name.contains("lora_B") { largest == 0.0 } else { largest <= bound && largest > 0.9 * bound },
            "{name}"
        );
    }
    let memory = *job.memory();
    drop(job);
    assert_eq!(memory.parameters, 8 * (64 + 128 + 96 + 64) * 2);
    let parts = memory.weights + memory.adapters + memory.gradients + memory.moments + memory.tables + memory.arena;
    assert!(memory.total() == parts && memory.live_peak <= memory.arena && memory.live_peak > 0, "{memory}");
    let mut watch = StopAfter::new(usize::MAX);
    let summary = train::run(model.clone(), &recipe, &mut watch).unwrap();
    assert!(summary.loss.unwrap() < 0.8 * watch.losses[0], "{:?}", watch.losses);
    let read = Adapter::read(folder.path(), model.config()).unwrap();
    assert_eq!((read.config.r, read.config.lora_alpha), (8, 16.0));
    assert_eq!(Adapter::read(&summary.checkpoint.unwrap(), model.config()).unwrap().modules.len(), 4);
}
