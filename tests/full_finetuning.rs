//! Full fine-tuning against transformers, and modules_to_save against PEFT (scripts/golden/full_sft.py): gradients of every
//! parameter, thirty steps, and the files that are left, on the CPU and on wgpu.
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
use runtime::format::peft::{Adapter, AdapterConfig, LoraWeights, TargetModules};
use runtime::format::quant::dequantise_row;
use runtime::format::safetensors::Tensors;
use runtime::format::{Checkpoint, Source, safetensors};
use runtime::model::lora::Projection;
use runtime::model::whole::TrainLayout;
use runtime::model::{LoadOptions, LoadedModel};
use runtime::tensor::{DType, HostTensor};
use runtime::train::batch::MicroBatch;
use runtime::train::data::Row;
use runtime::train::export::{FileType, merge, write_adapter_gguf, write_model_gguf};
use runtime::train::trainer::{Trainer, TrainerOptions};
use runtime::train::{self, Job, Optim, Outcome, Preference, Recipe};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use train_support::{compare_steps, cuda, floats, golden, json, open, recipe, relative_norm, uniform};

/// Of the script.
const SEED: u64 = 3407;
const LENGTH: usize = 96;

fn case(name: &str) -> Value {
    let all = json(&golden("full/cases.json"));
    all["cases"].as_array().unwrap().iter().find(|case| case["name"] == name).unwrap().clone()
}

/// The script's rows: ids modulo the vocabulary, every token counted.
fn rows(model: &LoadedModel) -> Vec<Row> {
    let vocab = model.config().vocab as u64;
    let row = |(line, row): (usize, &Value)| {
        let ids: Vec<u32> = row["ids"]
            .as_array()
            .unwrap()
            .iter()
            .take(LENGTH)
            .map(|id| (id.as_u64().unwrap() % vocab) as u32)
            .collect();
        Row { counted: (0..ids.len()).map(|t| t > 0).collect(), ids, line: line + 1 }
    };
    json(&golden("sft/tiny_rows.json")).as_array().unwrap().iter().enumerate().map(row).collect()
}

fn full(case: &Value) -> Recipe {
    let plain = Recipe { data: Vec::new(), max_length: LENGTH, ..recipe(case) };
    Recipe { full_finetuning: true, rank: None, alpha: None, ..plain }
}

fn job(model: &Arc<LoadedModel>, recipe: &Recipe) -> Job {
    Job::from_rows(model, recipe, rows(model), None).unwrap()
}

fn read(path: &str) -> Tensors {
    let source = Source::open(&golden(path)).unwrap();
    safetensors::read(&source, &|_| false).unwrap()
}

/// Log-probabilities of a model in a folder, against those of a case's `after`.
fn scores_like(folder: &Path, case: &Value, tolerance: f64) {
    let list = |key: &str| case["after"][key].as_array().unwrap();
    let ids: Vec<u32> = list("ids").iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let engine = Engine::start(open(folder, BackendChoice::Cpu), EngineOptions::default()).unwrap();
    let scores = engine.score(&ids, None).unwrap().logprobs;
    let apart = scores.iter().zip(list("logprobs")).map(|(a, b)| (f64::from(*a) - b.as_f64().unwrap()).abs());
    let apart = apart.fold(0.0, f64::max);
    eprintln!("{}: log-probabilities at most {apart:.1e} apart", case["name"]);
    assert!(apart <= tolerance, "{}: {apart}", case["name"]);
}

/// Steps, gradients of every parameter, and the model that is written.
fn like_transformers(name: &str, backend: BackendChoice) {
    on(name, &open(&golden(&format!("tiny/{name}")), backend), [2e-4, 1e-4, 2e-3, 5e-3]);
}

/// The same with tolerances: of gradients, losses, norms (all relative) and log-probabilities.
fn on(name: &str, model: &Arc<LoadedModel>, [gradient, loss, norm, score]: [f64; 4]) {
    let case = case(name);
    let mut job = job(model, &full(&case));
    let first = job.accumulate(&|| false).unwrap().unwrap();
    let gradients = job.gradients().unwrap();
    let expected = read(&format!("full/{name}.gradients.safetensors"));
    assert_eq!(gradients.whole().keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (tensor, expected) in &expected {
        let apart = relative_norm(&floats(&gradients.whole()[tensor]), &floats(expected));
        assert!(apart <= gradient, "{name}: the gradient of {tensor} is {apart} apart");
    }
    compare_steps(&mut job, &case, first.loss, loss, norm, 30);
    let folder = tempfile::tempdir().unwrap();
    job.outcome().unwrap().write(folder.path(), &model.checkpoint, Some(DType::F32)).unwrap();
    scores_like(folder.path(), &case, score);
}

#[test]
fn tied_with_norms_of_the_heads() {
    like_transformers("chat", BackendChoice::Cpu);
}

#[test]
fn tied_with_biases() {
    like_transformers("chat_llama", BackendChoice::Cpu);
    like_transformers("llama_bias", BackendChoice::Cpu);
}

#[test]
fn heads_of_their_own() {
    like_transformers("qwen3", BackendChoice::Cpu);
    like_transformers("qwen2_window", BackendChoice::Cpu);
}

#[cfg(feature = "wgpu")]
#[test]
fn the_same_on_wgpu() {
    if runtime::backend::devices().iter().all(|device| device.backend != "wgpu") {
        assert!(std::env::var_os("RUNTIME_NO_WGPU").is_some(), "no wgpu adapter");
        return;
    }
    like_transformers("chat", BackendChoice::Wgpu);
    like_transformers("qwen2_window", BackendChoice::Wgpu);
    like_peft("saved", BackendChoice::Wgpu);
}

/// In f32 as on the CPU; in bf16 the weights are rounded in products and nowhere else, so that small steps are not lost.
#[test]
fn the_same_on_cuda() {
    for name in ["chat", "qwen2_window", "llama_bias"] {
        let path = golden(&format!("tiny/{name}"));
        let Some(model) = cuda(ComputeType::F32, &path) else { return };
        on(name, &model, [2e-4, 2e-4, 2e-3, 5e-3]);
        let Some(model) = cuda(ComputeType::BF16, &path) else { return };
        on(name, &model, [0.1, 2e-2, 0.1, 0.5]);
    }
}

/// The script's initial adapter, the saved modules as the model has them.
fn initial(case: &Value, model: &LoadedModel) -> Adapter {
    let config = model.config();
    let names: Vec<String> =
        case["modules_to_save"].as_array().unwrap().iter().map(|m| m.as_str().unwrap().into()).collect();
    let side = |module: &str, side: &str, shape: [usize; 2], bound: f64| {
        let text = format!("base_model.model.{module}.lora_{side}.weight");
        HostTensor::from_f32(shape.to_vec(), &uniform(SEED, &text, shape[0] * shape[1], bound as f32)).unwrap()
    };
    let lora = |layer: usize, p: Projection| {
        let (module, (outputs, inputs)) = (p.module(layer), p.shape(config));
        let a = side(&module, "A", [4, inputs], 1.0 / (inputs as f64).sqrt());
        let weights = LoraWeights { a, b: side(&module, "B", [outputs, 4], 0.02), scale: 2.0, magnitude: None };
        (module, weights)
    };
    let saved = runtime::model::weights::saved_tensors(config, &names).unwrap().into_iter().map(|(name, shape)| {
        let tensors = &model.checkpoint.tensors;
        let own = tensors.get(&name).unwrap_or_else(|| &tensors["model.embed_tokens.weight"]);
        let mut numbers = vec![0.0; own.len()];
        dequantise_row(own.dtype, &own.data, &mut numbers).unwrap();
        (name, HostTensor::from_f32(shape, &numbers).unwrap())
    });
    let targets = TargetModules::List(Projection::ALL.map(|p| p.name().to_owned()).to_vec());
    let adapter = AdapterConfig { modules_to_save: names, ..AdapterConfig::new(4, 8.0, targets) };
    let modules = (0..config.layers).flat_map(|l| Projection::ALL.map(|p| lora(l, p))).collect();
    Adapter { config: adapter, modules, saved: saved.collect() }
}

/// Steps and the adapter after them; the files, merged and not.
fn like_peft(name: &str, backend: BackendChoice) {
    let case = case(name);
    let model = open(&golden(&format!("tiny/{}", case["model"].as_str().unwrap())), backend);
    let plain = Recipe { data: Vec::new(), max_length: LENGTH, ..recipe(&case) };
    let mut job = Job::from_rows(&model, &plain, rows(&model), Some(&initial(&case, &model))).unwrap();
    let first = job.accumulate(&|| false).unwrap().unwrap();
    compare_steps(&mut job, &case, first.loss, 1e-4, 2e-3, 30);
    let folder = tempfile::tempdir().unwrap();
    let (written, merged) = (folder.path().join("adapter"), folder.path().join("merged"));
    job.adapter().unwrap().write(&written).unwrap();
    // The same tensors under the same names as PEFT's, of about the same numbers.
    let read = |path: &Path| {
        let source = Source::open(&path.join("adapter_model.safetensors")).unwrap();
        safetensors::read(&source, &|_| false).unwrap()
    };
    let (found, expected) = (read(&written), read(&golden(&format!("full/{name}"))));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (tensor, expected) in &expected {
        let apart = relative_norm(&floats(&found[tensor]), &floats(expected));
        assert!(apart <= 2e-2, "{name}: {tensor} is {apart} apart");
    }
    let saved = |path: &Path| json(&path.join("adapter_config.json"))["modules_to_save"].clone();
    assert_eq!(saved(&written), saved(&golden(&format!("full/{name}"))));
    // PEFT's own adapter, read and merged, computes what PEFT computes; ours nearly so.
    for (adapter, tolerance) in [(golden(&format!("full/{name}")), 2e-4), (written, 1e-2)] {
        let adapter = Adapter::read(&adapter, model.config()).unwrap();
        merge(&model.checkpoint, Some(&adapter), &merged, Some(DType::F32)).unwrap();
        scores_like(&merged, &case, tolerance);
    }
    let untied = json(&merged.join("config.json"))["tie_word_embeddings"] == false;
    assert!(untied, "the embedding was trained, the head was not, or another way");
}

#[test]
fn modules_to_save_like_peft() {
    like_peft("saved", BackendChoice::Cpu);
    like_peft("embed", BackendChoice::Cpu);
}

/// What PEFT wrote at the start of its run is what we start from.
#[test]
fn an_adapter_with_saved_modules_is_read_and_written() {
    let (case, model) = (case("saved"), open(&golden("tiny/chat"), BackendChoice::Cpu));
    let (found, expected) = (Adapter::read(&golden("full/init"), model.config()).unwrap(), initial(&case, &model));
    assert_eq!(found.saved.keys().collect::<Vec<_>>(), expected.saved.keys().collect::<Vec<_>>());
    assert!(found.saved.iter().all(|(name, tensor)| floats(tensor) == floats(&expected.saved[name])));
    // No engine adds whole modules to its model, and no GGUF adapter has them; both say what can be done.
    let engine =
        Engine::start(Arc::clone(&model), EngineOptions { max_adapters: 1, max_rank: 4, ..EngineOptions::default() })
            .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let gguf = write_adapter_gguf(model.config(), &found, &folder.path().join("a.gguf"), DType::F16).map(drop);
    for refused in [engine.load_adapter("a", &found), gguf] {
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("modules_to_save") && message.contains("runtime merge"), "{message}");
    }
    // The merged model as GGUF has a head of its own.
    let path = folder.path().join("model.gguf");
    write_model_gguf(&model.checkpoint, Some(&found), &path, FileType::F32).unwrap();
    let exported = Checkpoint::open(&path).unwrap();
    assert!(!exported.config.tied_head);
}

/// On a quantised model the saved module is decoded, trained in f32, and takes the place of the quantised one.
#[test]
fn modules_to_save_on_a_quantised_model() {
    let wide = open(&golden("tiny/chat_wide"), BackendChoice::Cpu);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q4.gguf");
    write_model_gguf(&wide.checkpoint, None, &path, FileType::Q4_K_M).unwrap();
    let model = open(&path, BackendChoice::Cpu);
    let recipe = Recipe {
        modules_to_save: vec!["embed_tokens".into(), "lm_head".into()],
        rank: Some(4),
        max_length: LENGTH,
        max_steps: Some(6),
        lr: 2e-3,
        warmup_steps: 0,
        shuffle: false,
        ..Recipe::default()
    };
    let mut job = job(&model, &recipe);
    let first = job.step().unwrap().loss;
    for _ in 0..5 {
        job.step().unwrap();
    }
    let adapter = job.adapter().unwrap();
    assert_eq!(adapter.saved.len(), 2);
    let merged = folder.path().join("merged");
    merge(&model.checkpoint, Some(&adapter), &merged, None).unwrap();
    let evaluated = |model: &Arc<LoadedModel>| {
        let engine = Engine::start(Arc::clone(model), EngineOptions::default()).unwrap();
        let scores = engine.score(&rows(model)[0].ids, None).unwrap().logprobs;
        -scores.iter().map(|x| f64::from(*x)).sum::<f64>() / scores.len() as f64
    };
    let (before, after) = (evaluated(&model), evaluated(&open(&merged, BackendChoice::Cpu)));
    assert!(after < before && first > 0.0, "from {before} to {after}");
    // Every weight of it cannot be trained.
    let all = Recipe { full_finetuning: true, max_length: LENGTH, ..Recipe::default() };
    let error = Job::from_rows(&model, &all, rows(&model), None);
    let message = error.err().unwrap().to_string();
    assert!(message.contains("full_finetuning of a model in") && message.contains("16 or 32 bits"), "{message}");
    let options = LoadOptions { backend: BackendChoice::Cpu, weights: Some(DType::NF4), ..LoadOptions::default() };
    let loaded = LoadedModel::open(&golden("tiny/chat_wide"), &options).unwrap();
    let error = Job::from_rows(&loaded, &all, rows(&loaded), None);
    assert!(error.err().unwrap().to_string().contains("--load-in-4bit"));
}

/// A loss that is scaled for the sake of small types gives the same gradients: a power of two changes no bit of an f32.
#[test]
fn gradients_of_a_scaled_loss() {
    let model = open(&golden("tiny/llama_bias"), BackendChoice::Cpu);
    let batch = MicroBatch::new(&rows(&model)[..2]);
    let options = TrainerOptions { tokens: batch.ids.len(), seqs: 2, max_len: LENGTH, ..TrainerOptions::default() };
    let gradients = |options: &TrainerOptions| {
        let layout = TrainLayout::full(model.config(), None);
        let mut trainer = Trainer::new(model.device.clone(), model.config(), &model.weights, layout, options).unwrap();
        let params = uniform(SEED, "weights", trainer.layout().len, 0.1);
        trainer.set_params(&params).unwrap();
        trainer.micro_batch(&batch, 1.0 / 150.0, 1).unwrap();
        trainer.gradients().unwrap()
    };
    let plain = gradients(&options);
    assert!(plain == gradients(&TrainerOptions { scale_loss: true, ..options }));
    assert!(plain == gradients(&TrainerOptions { recompute: true, ..options }));
    assert!(plain.iter().any(|g| *g != 0.0));
}

fn short(output: &Path) -> Recipe {
    Recipe {
        full_finetuning: true,
        data: vec![golden("sft/data.jsonl").into()],
        output: output.to_owned(),
        max_length: 256,
        batch_size: 2,
        grad_accum: 2,
        lr: 2e-3,
        warmup_steps: 1,
        max_steps: Some(6),
        ..Recipe::default()
    }
}

/// A run that goes on from a checkpoint ends in the same bits as one that was not interrupted, whatever the model's type and the
/// optimizer; a whole run leaves a model in the type of the one that it began with.
#[test]
fn a_resumed_run_ends_in_the_same_bits() {
    let model = open(&golden("tiny/chat"), BackendChoice::Cpu);
    for optim in [Optim::AdamW, Optim::AdamW8bit, Optim::PagedAdamW] {
        let folder = tempfile::tempdir().unwrap();
        let (whole, half) = (folder.path().join("whole"), folder.path().join("half"));
        let recipe = Recipe { optim, save_steps: Some(3), ..short(&whole) };
        let summary = train::run(Arc::clone(&model), &recipe, &mut ()).unwrap();
        assert_eq!(summary.adapter.as_deref(), Some(whole.as_path()));
        let resumed = Recipe { output: half.clone(), resume: Some(whole.join("checkpoint-3")), ..recipe.clone() };
        train::run(Arc::clone(&model), &resumed, &mut ()).unwrap();
        for file in ["model.safetensors", "checkpoint-6/model.safetensors", "checkpoint-6/optimizer.safetensors"] {
            let bytes = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
            assert!(bytes(&whole) == bytes(&half), "{optim:?}: {file} differs");
        }
        let written = Checkpoint::open(&whole).unwrap();
        assert_eq!(written.tensors["model.embed_tokens.weight"].dtype, DType::BF16);
        assert_eq!(written.config, model.checkpoint.config);
        assert!(open(&whole, BackendChoice::Cpu).tokenizer().is_ok());
        // An adapter's recipe cannot go on from it, nor this one from another model.
        let other = Recipe { full_finetuning: false, rank: Some(4), ..resumed };
        let message = train::run(Arc::clone(&model), &other, &mut ()).unwrap_err().to_string();
        assert!(message.contains("full_finetuning is false, the checkpoint was made with true"), "{message}");
    }
}

/// Evaluation, the best checkpoint and pairs work as with adapters.
#[test]
fn the_best_model_and_pairs() {
    let model = open(&golden("tiny/chat"), BackendChoice::Cpu);
    let folder = tempfile::tempdir().unwrap();
    let best = folder.path().join("best");
    let recipe = Recipe {
        eval_data: vec![golden("sft/data.jsonl").into()],
        eval_steps: Some(2),
        load_best_model_at_end: true,
        // Far too large a rate: the first evaluation is the best.
        lr: 5.0,
        ..short(&best)
    };
    let summary = train::run(Arc::clone(&model), &recipe, &mut ()).unwrap();
    let (step, _) = summary.best.unwrap();
    let kept = Outcome::read(&best.join(format!("checkpoint-{step}")), &model.checkpoint, true).unwrap();
    let again = folder.path().join("again");
    kept.write(&again, &model.checkpoint, None).unwrap();
    let bytes = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert!(bytes(&best) == bytes(&again), "the model is that of step {step}");

    // All of the pairs in every step.
    let pairs = Recipe {
        data: vec![golden("preference/messages.jsonl").into()],
        preference: Some(Preference::default()),
        output: folder.path().join("pairs"),
        batch_size: 15,
        lr: 2e-4,
        grad_accum: 4,
        ..short(&best)
    };
    let mut job = Job::new(&model, &pairs).unwrap();
    let first = job.step().unwrap();
    // The reference is the model as it was loaded: before the first step nothing differs from it.
    assert!((first.loss - std::f64::consts::LN_2).abs() < 1e-5, "{}", first.loss);
    let last = (0..5).map(|_| job.step().unwrap().loss).last().unwrap();
    assert!(last < 0.95 * first.loss, "from {} to {last}", first.loss);
}

#[test]
fn what_does_not_combine_is_named() {
    let model = open(&golden("tiny/chat"), BackendChoice::Cpu);
    let adapters = Recipe { max_length: LENGTH, ..Recipe::default() };
    let plain = Recipe { full_finetuning: true, ..adapters.clone() };
    let saved = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let cases = [
        (Recipe { rank: Some(8), ..plain.clone() }, "rank is set, and full_finetuning"),
        (
            Recipe { modules_to_save: saved(&["lm_head"]), ..plain.clone() },
            "modules_to_save is set, and full_finetuning",
        ),
        (
            Recipe { sample_steps: Some(1), sample_prompts: saved(&["hello"]), ..plain.clone() },
            "sample_prompts with full_finetuning",
        ),
        (Recipe { modules_to_save: saved(&["wte"]), ..adapters.clone() }, "the model has no module 'wte'"),
        (
            Recipe { modules_to_save: saved(&["q_proj"]), ..adapters },
            "q_proj is among target_modules and modules_to_save",
        ),
    ];
    for (recipe, part) in cases {
        let message = Job::from_rows(&model, &recipe, rows(&model), None).err().unwrap().to_string();
        assert!(message.contains(part), "'{message}' does not contain '{part}'");
    }
    let own = Recipe { output: golden("tiny/chat"), data: vec![golden("sft/data.jsonl").into()], ..plain };
    let message = train::run(model, &own, &mut ()).unwrap_err().to_string();
    assert!(message.contains("is the model's own folder"), "{message}");
}
