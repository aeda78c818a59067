//! Fields of the recipe: schedules against transformers, variants of LoRA and optimizers against PEFT, evaluation, paged
//! state, noise, logs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod train_support;

use runtime::backend::BackendChoice;
use runtime::format::peft::Adapter;
use runtime::model::LoadedModel;
use runtime::train::{self, EvalReport, Job, LrCurve, Observer, Optim, Recipe, StepReport};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use train_support::{compare_steps, golden, json, open, recipe, tensors};

#[test]
fn schedules_like_transformers() {
    for case in json(&golden("sft/schedules.json"))["cases"].as_array().unwrap() {
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let curve = LrCurve {
            schedule: case["schedule"].as_str().unwrap().parse().unwrap(),
            lr: case["lr"].as_f64().unwrap(),
            warmup_steps: size("warmup_steps"),
            total_steps: size("total_steps"),
            num_cycles: case["num_cycles"].as_f64(),
            power: case["power"].as_f64().unwrap_or(1.0),
            lr_end: case["lr_end"].as_f64().unwrap_or(1e-7),
        };
        for (step, rate) in case["rates"].as_array().unwrap().iter().enumerate() {
            let (found, expected) = (curve.at(step), rate.as_f64().unwrap());
            assert!((found - expected).abs() <= 1e-12, "{case}: step {step}: {found}");
        }
    }
}

fn tiny() -> Arc<LoadedModel> {
    open(&golden("tiny/chat"), BackendChoice::Cpu)
}

fn variant(name: &str) -> (Recipe, Value) {
    let all = json(&golden("sft/variants.json"));
    let case = all["cases"].as_array().unwrap().iter().find(|case| case["name"] == name).unwrap().clone();
    let init = if name == "rslora" { "sft/tiny_chat/init_rslora" } else { "sft/tiny_chat/init" };
    let plain = Recipe { init_adapter: Some(golden(init)), ..recipe(&case) };
    (plain.with(case["settings"].as_object().unwrap().clone()).unwrap(), case)
}

/// Bar 1: 30 steps in f32 within 0.5 %.
#[test]
fn variants_like_peft() {
    for name in ["lora", "rslora", "loraplus", "label_smoothing", "lion", "sgd"] {
        let (recipe, case) = variant(name);
        let mut job = Job::new(&tiny(), &recipe).unwrap();
        let first = job.accumulate(&|| false).unwrap().unwrap();
        compare_steps(&mut job, &case, first.loss, 5e-3, 5e-2, 30);
    }
}

#[test]
fn a_fresh_rslora_adapter_says_so() {
    let recipe = Recipe { alpha: Some(8.0), use_rslora: Some(true), ..short() };
    let adapter = Job::new(&tiny(), &recipe).unwrap().adapter().unwrap();
    assert!(adapter.config.use_rslora);
    assert!(adapter.modules.values().all(|module| module.scale == 4.0));
    let plain = Recipe { init_adapter: Some(golden("sft/tiny_chat/init")), ..recipe };
    let message = Job::new(&tiny(), &plain).err().expect("refused").to_string();
    assert!(message.contains("use_rslora is true, but the adapter"), "{message}");
}

fn short() -> Recipe {
    Recipe {
        data: vec![golden("sft/data.jsonl").into()],
        rank: Some(4),
        max_length: 512,
        batch_size: 2,
        grad_accum: 2,
        lr: 5e-3,
        warmup_steps: 1,
        max_steps: Some(6),
        ..Recipe::default()
    }
}

struct Ran {
    losses: Vec<f64>,
    adapter: Vec<(String, Vec<f32>)>,
    host: u64,
}

fn losses(recipe: &Recipe) -> Ran {
    let mut job = Job::new(&tiny(), recipe).unwrap();
    let host = job.memory().host;
    let mut losses = Vec::new();
    while !job.is_done() {
        losses.push(job.step().unwrap().loss);
    }
    Ran { losses, adapter: tensors(&job.adapter().unwrap()), host }
}

/// State in host memory changes where it is, and nothing else.
#[test]
fn paged_state_gives_the_same_bits() {
    for (plain, paged) in
        [(Optim::AdamW, Optim::PagedAdamW), (Optim::AdamW8bit, Optim::PagedAdamW8bit), (Optim::Lion, Optim::PagedLion)]
    {
        let recipe = Recipe { loraplus_lr_ratio: Some(2.0), ..short() };
        let (a, b) =
            (losses(&Recipe { optim: plain, ..recipe.clone() }), losses(&Recipe { optim: paged, ..recipe.clone() }));
        assert_eq!((a.losses, a.adapter), (b.losses, b.adapter), "{paged:?}");
        assert!(a.host == 0 && b.host > 0, "{paged:?}: {} {}", a.host, b.host);
    }
}

#[test]
fn noise_follows_the_seed_and_is_not_evaluated() {
    let with = |alpha: Option<f64>, seed: u64| Recipe { neftune_noise_alpha: alpha, seed, shuffle: false, ..short() };
    let first = |recipe: &Recipe| Job::new(&tiny(), recipe).unwrap().step().unwrap().loss;
    let (none, five) = (first(&with(None, 1)), first(&with(Some(5.0), 1)));
    assert_eq!(first(&with(Some(5.0), 1)), five);
    assert_ne!(five, none);
    assert_ne!(first(&with(Some(5.0), 2)), five);
    assert!((five - none).abs() < 0.3 * none, "{five} {none}");
    let eval = |alpha: Option<f64>| {
        let recipe = Recipe { eval_data: vec![golden("sft/data.jsonl").into()], ..with(alpha, 1) };
        Job::new(&tiny(), &recipe).unwrap().evaluate().unwrap().unwrap().loss
    };
    assert_eq!(eval(Some(5.0)), eval(None));
}

/// The loss of the evaluation set is the loss of a step over the same rows.
#[test]
fn evaluation_is_the_loss_of_all_rows() {
    let data = vec![golden("sft/data.jsonl").into()];
    let recipe = Recipe { eval_data: data, batch_size: 48, grad_accum: 1, shuffle: false, ..short() };
    let mut job = Job::new(&tiny(), &recipe).unwrap();
    let evaluated = job.evaluate().unwrap().unwrap();
    let step = job.accumulate(&|| false).unwrap().unwrap();
    assert_eq!(evaluated.counted, step.counted);
    assert!((evaluated.loss - step.loss).abs() < 1e-5 * step.loss, "{} {}", evaluated.loss, step.loss);
    let small = Recipe { batch_size: 1, ..recipe };
    let apart = Job::new(&tiny(), &small).unwrap().evaluate().unwrap().unwrap();
    assert!((evaluated.loss - apart.loss).abs() < 1e-5 * step.loss);
}

#[derive(Default)]
struct Watch {
    steps: Vec<StepReport>,
    evaluations: Vec<EvalReport>,
    samples: Vec<usize>,
    /// A picture, and how many steps found it whole.
    plot: Option<PathBuf>,
    plots: usize,
}

impl Observer for Watch {
    fn step(&mut self, report: &StepReport) {
        self.steps.push(*report);
        let svg = self.plot.as_ref().map(|path| std::fs::read_to_string(path).unwrap());
        self.plots += usize::from(svg.is_some_and(|svg| svg.starts_with("<svg") && svg.ends_with("</svg>\n")));
    }
    fn evaluated(&mut self, report: &EvalReport) {
        self.evaluations.push(*report);
    }
    fn sample(&mut self, step: usize, adapter: Adapter) -> runtime::Result<()> {
        assert!(!adapter.modules.is_empty());
        self.samples.push(step);
        Ok(())
    }
}

fn checkpoints(folder: &Path) -> Vec<usize> {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut steps: Vec<usize> = names.filter_map(|n| n.strip_prefix("checkpoint-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

/// A rate so high that the loss rises once: the run ends early, and the best adapter is what is left.
#[test]
fn early_stopping_keeps_the_best() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe {
        output: folder.path().into(),
        eval_data: vec![golden("sft/data.jsonl").into()],
        eval_steps: Some(2),
        early_stopping_patience: Some(1),
        load_best_model_at_end: true,
        save_steps: Some(1),
        save_total_limit: Some(2),
        max_steps: Some(40),
        sample_prompts: vec!["Hello".into()],
        sample_steps: Some(3),
        lr: 0.3,
        ..short()
    };
    let mut watch = Watch::default();
    let summary = train::run(tiny(), &recipe, &mut watch).unwrap();
    let seen: Vec<(usize, f64)> = watch.evaluations.iter().map(|e| (e.step, e.loss)).collect();
    assert!(summary.stopped_early && summary.steps < 40, "{seen:?}");
    let best = seen.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_eq!(summary.best, Some(best));
    assert_eq!(best.0 + 2, summary.steps, "one evaluation after the best one: {seen:?}");
    assert_eq!(checkpoints(folder.path()), [best.0, summary.steps]);
    let file = |folder: &Path| std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    assert_eq!(file(folder.path()), file(&folder.path().join(format!("checkpoint-{}", best.0))));
    assert_eq!(watch.samples, (1..=summary.steps / 3).map(|i| 3 * i).collect::<Vec<_>>());
    // Without steps of its own an evaluation comes after each epoch: 48 rows, 4 a step.
    let recipe = Recipe {
        eval_steps: None,
        early_stopping_patience: None,
        max_steps: Some(14),
        save_steps: None,
        output: folder.path().join("epochs"),
        lr: 1e-3,
        ..recipe
    };
    let mut watch = Watch::default();
    train::run(tiny(), &recipe, &mut watch).unwrap();
    assert_eq!(watch.evaluations.iter().map(|e| e.step).collect::<Vec<_>>(), [12, 14]);
}

#[test]
fn a_half_written_checkpoint_never_replaces_a_whole_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let recipe = Recipe { output: folder.path().into(), save_steps: Some(2), max_steps: Some(4), ..short() };
    train::run(tiny(), &recipe, &mut ()).unwrap();
    assert_eq!(checkpoints(folder.path()), [2, 4]);
    let resumed = || {
        let recipe = Recipe { resume: Some("auto".into()), max_steps: Some(6), ..recipe.clone() };
        Job::new(&tiny(), &recipe).unwrap().steps_done()
    };
    assert_eq!(resumed(), 4);
    // The program ended while it wrote: under another name, whatever is in it.
    std::fs::rename(at("checkpoint-4"), at("checkpoint-4.partial")).unwrap();
    assert_eq!(resumed(), 2);
    std::fs::remove_file(at("checkpoint-4.partial/optimizer.safetensors")).unwrap();
    assert_eq!(resumed(), 2);
    // … or between the two renames of a checkpoint that takes an old one's place.
    std::fs::rename(at("checkpoint-2"), at("checkpoint-2.replaced")).unwrap();
    assert_eq!(resumed(), 2);
    assert!(at("checkpoint-2").is_dir() && !at("checkpoint-2.replaced").exists());
    // Written again, both times whole, nothing is left over.
    train::run(tiny(), &Recipe { resume: Some("auto".into()), ..recipe.clone() }, &mut ()).unwrap();
    train::run(tiny(), &recipe, &mut ()).unwrap();
    assert_eq!(checkpoints(folder.path()), [2, 4]);
    let left = std::fs::read_dir(folder.path())
        .unwrap()
        .flatten()
        .filter(|e| e.path().extension().is_some_and(|x| x == "replaced"));
    assert_eq!(left.count(), 0);
}

/// A frame's data, its length and checksums checked; the checksum bit by bit, as RFC 3720 defines it.
fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
    let crc = |data: &[u8]| {
        let mut crc = !0u32;
        for byte in data {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
            }
        }
        (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
    };
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (mut at, mut out) = (0, Vec::new());
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        assert_eq!(word(at + 8), crc(&bytes[at..at + 8]));
        let data = &bytes[at + 12..at + 12 + length];
        assert_eq!(word(at + 12 + length), crc(data));
        out.push(data.to_vec());
        at += 16 + length;
    }
    out
}

#[test]
fn logs_and_curves() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let recipe = Recipe {
        output: at("out"),
        log: Some(at("log.jsonl")),
        tensorboard: Some(at("tb")),
        plot: Some(at("loss.svg")),
        eval_data: vec![golden("sft/data.jsonl").into()],
        eval_steps: Some(3),
        save_steps: Some(4),
        ..short()
    };
    let mut watch = Watch { plot: recipe.plot.clone(), ..Watch::default() };
    train::run(tiny(), &recipe, &mut watch).unwrap();
    // The curves are there from the first step on.
    assert_eq!(watch.plots, 6);
    let file = std::fs::read_dir(at("tb")).unwrap().next().unwrap().unwrap();
    assert!(file.file_name().to_str().unwrap().starts_with("events.out.tfevents."));
    let events = frames(&std::fs::read(file.path()).unwrap());
    assert!(events[0].ends_with(b"brain.Event:2"));
    // One for the version, one for each step, one for each evaluation.
    assert_eq!(events.len(), 1 + 6 + 2);
    let contains = |event: &[u8], part: &[u8]| event.windows(part.len()).any(|w| w == part);
    let loss = (watch.steps[0].loss as f32).to_le_bytes();
    assert!(contains(&events[1], b"train/loss") && contains(&events[1], &loss));
    assert!(events.iter().any(|event| contains(event, b"eval/loss")));
    let svg = std::fs::read_to_string(at("loss.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.matches("<polyline").count() == 3);
    let log = std::fs::read_to_string(at("log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 8);

    // Going on from step 4: steps 5 and 6 are done again, and are in the log once.
    let again = Recipe { resume: Some(at("out/checkpoint-4")), ..recipe };
    train::run(tiny(), &again, &mut ()).unwrap();
    let plain = |log: &str| -> Vec<Value> {
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|mut v| (v.as_object_mut().unwrap().shift_remove("tok_s"), v).1).collect()
    };
    assert_eq!(plain(&std::fs::read_to_string(at("log.jsonl")).unwrap()), plain(&log));
}
