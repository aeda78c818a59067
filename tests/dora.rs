//! DoRA: training, serving and merging against PEFT (scripts/golden/dora.py), on every backend that is there.
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
use runtime::engine::{Engine, EngineOptions, Event, Request};
use runtime::format::Checkpoint;
use runtime::format::peft::Adapter;
use runtime::format::quant::dequantise_row;
use runtime::model::{LoadOptions, LoadedModel};
use runtime::tensor::DType;
use runtime::train::export::{FileType, merge, write_adapter_gguf, write_model_gguf};
use runtime::train::{Job, Recipe};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use train_support::{compare_steps, floats, golden, json, open, recipe, tensors, worst};

fn load(path: &Path, weights: Option<DType>) -> Arc<LoadedModel> {
    let options =
        LoadOptions { backend: BackendChoice::Cpu, compute: ComputeType::F32, weights, ..LoadOptions::default() };
    LoadedModel::open(path, &options).unwrap()
}

fn case(name: &str) -> Value {
    let all = json(&golden("dora/curves.json"));
    all["cases"].as_array().unwrap().iter().find(|case| case["name"] == name).unwrap().clone()
}

fn from(init: &str, case: &Value) -> Recipe {
    Recipe { init_adapter: Some(golden("dora").join(init)), ..recipe(case) }
}

/// Bar 1: PEFT's thirty steps within 0.5 %, and the adapter at the end; on plain weights, on NF4 as bitsandbytes reads it back.
#[test]
fn thirty_steps_like_peft() {
    let plain = case("dora");
    let nf4 = case("dora_nf4");
    let runs = [
        ("tiny/chat", None, "init", &plain),
        ("qlora/nf4", None, "init_nf4", &nf4),
        ("tiny/chat_wide", Some(DType::NF4), "init_nf4", &nf4),
    ];
    for (path, weights, init, case) in runs {
        let model = load(&golden(path), weights);
        let mut job = Job::new(&model, &from(init, case)).unwrap();
        let first = job.accumulate(&|| false).unwrap().unwrap();
        compare_steps(&mut job, case, first.loss, 5e-3, 5e-2, 30);
        if init == "init" {
            let off = worst(&job.adapter().unwrap(), &Adapter::read(&golden("dora/final"), model.config()).unwrap());
            eprintln!("adapters after 30 steps differ by {off:.1e}");
            assert!(off <= 2e-2, "{off}");
        }
    }
}

/// The same losses and gradients on the GPU backends.
fn a_step_like_the_cpu_s(model: &Arc<LoadedModel>, tolerance: f64) {
    let case = case("dora");
    let mut reference = Job::new(&load(&golden("tiny/chat"), None), &from("init", &case)).unwrap();
    for recompute in [false, true] {
        let mut job = Job::new(model, &Recipe { recompute, ..from("init", &case) }).unwrap();
        let loss = job.accumulate(&|| false).unwrap().unwrap().loss;
        if !recompute {
            reference.accumulate(&|| false).unwrap();
        }
        let off = worst(
            &job.gradients().unwrap().into_adapter().unwrap(),
            &reference.gradients().unwrap().into_adapter().unwrap(),
        );
        let want = case["steps"][0]["loss"].as_f64().unwrap();
        eprintln!("loss {loss} (PEFT {want}), gradients differ by {off:.1e}");
        assert!(((loss - want) / want).abs() <= tolerance && off <= 10.0 * tolerance, "{loss} {off}");
    }
}

#[test]
fn a_step_on_wgpu() {
    let options = LoadOptions { backend: BackendChoice::Wgpu, compute: ComputeType::F32, ..LoadOptions::default() };
    match LoadedModel::open(&golden("tiny/chat"), &options) {
        Ok(model) => a_step_like_the_cpu_s(&model, 1e-4),
        Err(error) => assert!(std::env::var_os("RUNTIME_NO_WGPU").is_some(), "{error}"),
    }
}

#[test]
fn a_step_on_cuda() {
    for (compute, tolerance) in [(ComputeType::F32, 1e-4), (ComputeType::BF16, 1e-2), (ComputeType::F16, 5e-3)] {
        if let Some(model) = train_support::cuda(compute, &golden("tiny/chat")) {
            a_step_like_the_cpu_s(&model, tolerance);
        }
    }
}

/// A new adapter: magnitudes are the lengths of the rows, so nothing changes at first, with dropout neither; files that PEFT
/// writes, too; an unbroken run and one that goes on from a checkpoint end in the same bits.
#[test]
fn a_run_from_the_start_and_from_a_checkpoint() {
    let (path, folder) = (golden("tiny/chat"), tempfile::tempdir().unwrap());
    let model = load(&path, None);
    let at = |name: &str| folder.path().join(name);
    let plain = Recipe {
        rank: Some(4),
        alpha: Some(8.0),
        dropout: 0.2,
        max_steps: Some(6),
        lr: 5e-3,
        warmup_steps: 0,
        ..Recipe { init_adapter: None, output: at("whole"), ..recipe(&case("dora")) }
    };
    let dora = Recipe { use_dora: Some(true), ..plain.clone() };
    let first = |recipe: &Recipe| Job::new(&model, recipe).unwrap().accumulate(&|| false).unwrap().unwrap().loss;
    let (with, without) = (first(&dora), first(&plain));
    assert!((with - without).abs() < 1e-5, "{with} {without}");

    let mut job = Job::new(&model, &dora).unwrap();
    let start = job.adapter().unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    for (module, weights) in &start.modules {
        let tensor = &checkpoint.tensors[&format!("{module}.weight")];
        let mut values = vec![0.0; tensor.len()];
        dequantise_row(tensor.dtype, &tensor.data, &mut values).unwrap();
        let lengths = values.chunks(tensor.cols()).map(|row| row.iter().map(|x| x * x).sum::<f32>().sqrt());
        for (found, length) in floats(weights.magnitude.as_ref().unwrap()).into_iter().zip(lengths) {
            assert!((found - length).abs() <= 1e-5 * length, "{module}: {found}, the row's length is {length}");
        }
    }
    for _ in 0..3 {
        job.step().unwrap();
    }
    job.save(&at("part")).unwrap();
    for _ in 0..3 {
        job.step().unwrap();
    }
    let whole = job.adapter().unwrap();
    assert!(worst(&whole, &start) > 1e-3, "nothing was learned");
    let resumed = Recipe { resume: Some(at("part")), output: at("rest"), ..dora.clone() };
    let mut rest = Job::new(&model, &resumed).unwrap();
    while !rest.is_done() {
        rest.step().unwrap();
    }
    assert_eq!(tensors(&rest.adapter().unwrap()), tensors(&whole));
    let error = Job::new(&model, &Recipe { use_dora: Some(false), ..resumed }).err().unwrap().to_string();
    assert!(error.contains("use_dora is false, but the adapter"), "{error}");

    // The names and shapes of PEFT's file.
    whole.write(&at("adapter")).unwrap();
    let again = Adapter::read(&at("adapter"), model.config()).unwrap();
    assert!(again.config.use_dora);
    assert_eq!(tensors(&again), tensors(&whole));
    let names = |folder: &Path| {
        let source = runtime::format::Source::open(&folder.join("adapter_model.safetensors")).unwrap();
        let tensors = runtime::format::safetensors::read(&source, &|_| false).unwrap();
        tensors.into_iter().map(|(name, tensor)| (name, tensor.shape)).collect::<Vec<_>>()
    };
    assert_eq!(names(&at("adapter")), names(&golden("dora/final")));
}

fn engine(model: &Arc<LoadedModel>, adapters: &[(&str, &Path)]) -> Engine {
    let options = EngineOptions { max_adapters: 2, max_rank: 8, dora: true, ..EngineOptions::default() };
    let engine = Engine::start(model.clone(), options).unwrap();
    for (name, folder) in adapters {
        engine.load_adapter(name, &Adapter::read(folder, model.config()).unwrap()).unwrap();
    }
    engine
}

fn close(found: &[f32], expected: &Value, tolerance: f32, what: &str) {
    let expected: Vec<f32> = expected.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
    assert_eq!(found.len(), expected.len());
    let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    eprintln!("{what}: {off:.1e}");
    assert!(off <= tolerance, "{what}: {off}");
}

/// Beside the weights and merged into them, as PEFT has it, within 1e-4; on models with and without biases.
#[test]
fn served_and_merged_like_peft() {
    let all = json(&golden("dora/logits.json"));
    for case in all["cases"].as_array().unwrap() {
        let text = |key: &str| case[key].as_str().unwrap();
        let (name, path, folder) = (text("adapter"), golden(text("model")), tempfile::tempdir().unwrap());
        let from = golden("dora").join(name);
        let ids: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let mut models = vec![("cpu", load(&path, None), 1e-4)];
        models.extend(train_support::cuda(ComputeType::F32, &path).map(|model| ("cuda", model, 1e-3)));
        if std::env::var_os("RUNTIME_NO_WGPU").is_none() {
            models.push(("wgpu", open(&path, BackendChoice::Wgpu), 1e-4));
        }
        for (backend, model, tolerance) in models {
            let scores = engine(&model, &[("a", &from)]).score(&ids, Some("a")).unwrap().logprobs;
            close(&scores, &case["beside"], tolerance, &format!("{name} on {backend}"));
        }
        let checkpoint = Checkpoint::open(&path).unwrap();
        let adapter = Adapter::read(&from, &checkpoint.config).unwrap();
        let (merged, gguf) = (folder.path().join("merged"), folder.path().join("merged.gguf"));
        merge(&checkpoint, Some(&adapter), &merged, Some(DType::F32)).unwrap();
        write_model_gguf(&checkpoint, Some(&adapter), &gguf, FileType::F32).unwrap();
        for path in [merged, gguf] {
            let scores = engine(&load(&path, None), &[]).score(&ids, None).unwrap().logprobs;
            close(&scores, &case["merged"], 1e-4, &format!("{name} merged"));
        }
    }
}

fn answer(engine: &Engine, adapter: Option<&str>) -> std::sync::mpsc::Receiver<u32> {
    let (send, tokens) = std::sync::mpsc::channel();
    let request = Request {
        prompt: vec![5, 17, 101, 33, 7, 64, 120],
        max_tokens: 12,
        adapter: adapter.map(str::to_owned),
        ..Request::default()
    };
    let sink = Box::new(move |event| {
        if let Event::Token { id, .. } = event {
            let _ = send.send(id);
        }
        ControlFlow::Continue(())
    });
    engine.submit(request, sink).unwrap();
    tokens
}

/// Requests of a DoRA adapter, of a plain one and of none share their steps, and answer as they do alone.
#[test]
fn beside_other_adapters() {
    let model = load(&golden("tiny/chat"), None);
    let (dora, lora) = (golden("dora/final"), golden("sft/tiny_chat/final_all"));
    let all = [Some("dora"), Some("lora"), None];
    let together = engine(&model, &[("dora", &dora), ("lora", &lora)]);
    let streams = all.map(|adapter| answer(&together, adapter));
    let answers = streams.map(|tokens| tokens.iter().collect::<Vec<u32>>());
    let alone = |folder: Option<&Path>| {
        let plain = folder.is_none_or(|folder| folder != dora);
        let options = EngineOptions { max_adapters: 1, max_rank: 4, dora: !plain, ..EngineOptions::default() };
        let engine = Engine::start(model.clone(), options).unwrap();
        if let Some(folder) = folder {
            engine.load_adapter("a", &Adapter::read(folder, model.config()).unwrap()).unwrap();
        }
        answer(&engine, folder.map(|_| "a")).iter().collect::<Vec<u32>>()
    };
    assert_eq!(answers, [alone(Some(&dora)), alone(Some(&lora)), alone(None)]);
    assert!(answers[0] != answers[1] && answers[0] != answers[2] && answers[0].len() == 12, "{answers:?}");
}

#[test]
fn what_has_no_room_for_magnitudes_says_so() {
    let model = load(&golden("tiny/chat"), None);
    let adapter = Adapter::read(&golden("dora/final"), model.config()).unwrap();
    let engine = Engine::start(model.clone(), EngineOptions { max_adapters: 1, ..EngineOptions::default() }).unwrap();
    let error = engine.load_adapter("a", &adapter).unwrap_err().to_string();
    assert!(error.contains("use_dora") && error.contains("--enable-dora") && error.contains("merge"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let error = write_adapter_gguf(model.config(), &adapter, &folder.path().join("a.gguf"), DType::F32);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("DoRA") && error.contains("merge"), "{error}");
}
