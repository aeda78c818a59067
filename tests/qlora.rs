//! Training on quantised weights: NF4 made at load and by bitsandbytes, ggml's types, against PEFT (scripts/golden/qlora.py);
//! and that what was trained is what is served.
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
use runtime::engine::{Engine, EngineOptions};
use runtime::format::quant::dequantise_row;
use runtime::format::{Checkpoint, Source, safetensors};
use runtime::model::{LoadOptions, LoadedModel};
use runtime::tensor::{DType, HostTensor};
use runtime::train::export::{FileType, write_model_gguf};
use runtime::train::{Job, LossOn, Recipe};
use std::path::Path;
use std::sync::Arc;
use train_support::{compare_steps, floats, golden, json, recipe};

fn load(path: &Path, weights: Option<DType>) -> runtime::Result<Arc<LoadedModel>> {
    let options =
        LoadOptions { backend: BackendChoice::Cpu, compute: ComputeType::F32, weights, ..LoadOptions::default() };
    LoadedModel::open(path, &options)
}

fn values(tensor: &HostTensor) -> Vec<f32> {
    let mut out = vec![0.0; tensor.len()];
    dequantise_row(tensor.dtype, &tensor.data, &mut out).unwrap();
    out
}

#[test]
fn what_bitsandbytes_wrote_reads_as_bitsandbytes_reads_it() {
    let checkpoint = Checkpoint::open(&golden("qlora/nf4")).unwrap();
    let source = Source::open(&golden("qlora/expected.safetensors")).unwrap();
    let expected = safetensors::read(&source, &|_| false).unwrap();
    assert_eq!(expected.len(), 2);
    for (name, tensor) in &expected {
        assert_eq!(checkpoint.tensors[name].dtype, DType::NF4);
        assert_eq!(values(&checkpoint.tensors[name]), floats(tensor), "{name}");
    }
    assert_eq!(checkpoint.tensors["model.embed_tokens.weight"].dtype, DType::BF16);
}

/// Rounding at load against bitsandbytes' own: the same codes and scales but for ties.
#[test]
fn nf4_made_at_load_is_bitsandbytes_nf4() {
    let folder = golden("tiny/chat_wide");
    let model = load(&folder, Some(DType::NF4)).unwrap();
    assert_eq!(model.weights["model.layers.0.mlp.up_proj.weight"].desc().dtype, DType::NF4);
    assert_eq!(model.weights["model.embed_tokens.weight"].desc().dtype, DType::BF16);
    // The same text scores the same on both.
    let ids: Vec<u32> = (3..40).map(|i| (i * 37) % 317).collect();
    let score = |model: Arc<LoadedModel>| {
        Engine::start(model, EngineOptions::default()).unwrap().score(&ids, None).unwrap().logprobs
    };
    let (ours, theirs) = (score(model), score(load(&golden("qlora/nf4"), None).unwrap()));
    let plain = score(load(&folder, None).unwrap());
    let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let (same, rounding) = (apart(&ours, &theirs), apart(&ours, &plain));
    eprintln!("at load against bitsandbytes {same:.1e}; rounding itself {rounding:.1e}");
    // A handful of codes differ where the CPU backend of bitsandbytes rounds ties otherwise (scripts/golden/nf4.py counts them).
    assert!(same <= 0.01 * rounding && rounding > 0.1, "{same} {rounding}");
}

/// PEFT's thirty steps on the matrices as bitsandbytes reads them back: within 0.5 %.
#[test]
fn qlora_like_peft() {
    let cases = json(&golden("qlora/curve.json"));
    let case = &cases["cases"][0];
    for (path, weights) in [("qlora/nf4", None), ("tiny/chat_wide", Some(DType::NF4))] {
        let model = load(&golden(path), weights).unwrap();
        let recipe = Recipe { init_adapter: Some(golden("qlora/init")), ..recipe(case) };
        let mut job = Job::new(&model, &recipe).unwrap();
        let first = job.accumulate(&|| false).unwrap().unwrap();
        compare_steps(&mut job, case, first.loss, 5e-3, 5e-2, 30);
    }
}

/// An adapter trained on a quantised base, served on the same: the loss that training sees is the score that serving gives.
#[test]
fn what_was_trained_is_what_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let (gguf, data) = (folder.path().join("q4_k_m.gguf"), folder.path().join("row.jsonl"));
    let wide = golden("tiny/chat_wide");
    write_model_gguf(&Checkpoint::open(&wide).unwrap(), None, &gguf, FileType::Q4_K_M).unwrap();
    let text = "The ferry leaves at noon, and the harbour is called Port Amber.";
    std::fs::write(&data, serde_json::json!({ "text": text }).to_string()).unwrap();
    for (path, weights) in [(wide.as_path(), Some(DType::NF4)), (&gguf, None), (wide.as_path(), Some(DType::Q8_0))] {
        let model = load(path, weights).unwrap();
        let recipe = Recipe {
            data: vec![data.clone().into()],
            rank: Some(4),
            batch_size: 1,
            grad_accum: 1,
            max_length: 128,
            lr: 1e-2,
            warmup_steps: 0,
            max_steps: Some(9),
            loss: LossOn::All,
            ..Recipe::default()
        };
        let mut job = Job::new(&model, &recipe).unwrap();
        let first = job.step().unwrap().loss;
        for _ in 0..6 {
            job.step().unwrap();
        }
        let trained = job.accumulate(&|| false).unwrap().unwrap().loss;
        assert!(trained < 0.9 * first, "it learns: {first} to {trained}");
        let adapter = folder.path().join("adapter");
        job.adapter().unwrap().write(&adapter).unwrap();
        let tokenizer = model.tokenizer().unwrap();
        let mut ids = tokenizer.encode(text, true).unwrap();
        ids.push(tokenizer.eos().unwrap());
        let adapter = runtime::format::peft::Adapter::read(&adapter, model.config()).unwrap();
        let engine =
            Engine::start(model, EngineOptions { max_adapters: 1, max_rank: 4, ..EngineOptions::default() }).unwrap();
        engine.load_adapter("a", &adapter).unwrap();
        let scores = engine.score(&ids, Some("a")).unwrap().logprobs;
        let served = -scores.iter().map(|x| f64::from(*x)).sum::<f64>() / scores.len() as f64;
        eprintln!("{weights:?}: trained {trained:.7}, served {served:.7}");
        assert!((served - trained).abs() <= 1e-6, "{weights:?}: trained {trained}, served {served}");
    }
}

#[test]
fn what_cannot_be_quantised_is_named() {
    let error = |path: &Path, dtype| load(path, Some(dtype)).err().map(|e| e.to_string()).unwrap_or_default();
    let narrow = error(&golden("tiny/chat"), DType::NF4);
    assert!(narrow.contains("down_proj") && narrow.contains("rows of 96") && narrow.contains("64"), "{narrow}");
    let twice = error(&golden("qlora/nf4"), DType::Q8_0);
    assert!(twice.contains("is nf4") && twice.contains("16 or 32 bits"), "{twice}");
    // A broken file says which tensor lacks what.
    let folder = tempfile::tempdir().unwrap();
    let good = safetensors::read_folder_with_bytes(&golden("qlora/nf4"), &|_| false).unwrap();
    for (drop, part) in [(".nested_absmax", "nested_absmax"), (".quant_state.bitsandbytes__nf4", "quant_state")] {
        let mut tensors = good.clone();
        tensors.retain(|name, _| !name.ends_with(&format!("q_proj.weight{drop}")));
        let message = runtime::format::bnb::assemble("x", &mut tensors).unwrap_err().to_string();
        assert!(message.contains(part) && message.contains("q_proj"), "{message}");
    }
    drop(folder);
}
