//! Adapters that go from a trainer to the requests without leaving the device: the numbers are those of training, and no request
//! sees two versions.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod train_support;

use runtime::Error;
use runtime::backend::metered::{Ledger, Purpose, metered};
use runtime::backend::{BackendChoice, BufferDesc, ComputeType};
use runtime::engine::pacing::Pace;
use runtime::engine::{
    DeviceAdapter, Engine, EngineOptions, Event, Guest, House, KvSize, Request, SamplingParams, Turn,
};
use runtime::format::Checkpoint;
use runtime::model::LoadedModel;
use runtime::model::decoder::Objective;
use runtime::model::lora::{LoraLayout, Projection};
use runtime::tensor::DType;
use runtime::train::batch::MicroBatch;
use runtime::train::data::Row;
use runtime::train::trainer::{Trainer, TrainerOptions};
use runtime::train::{Job, LossOn, Preference, Recipe};
use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use train_support::{cuda, golden, open, smollm2, uniform};

const RANK: usize = 4;
/// What a test under load needs at least.
const PUBLISHES: usize = 1000;
const ANSWERS: usize = 100;

fn layout(model: &LoadedModel) -> LoraLayout {
    layout_of(model, RANK)
}

fn layout_of(model: &LoadedModel, rank: usize) -> LoraLayout {
    LoraLayout::new(model.config(), rank, 1, &Projection::ALL)
}

/// Numbers of an adapter that changes answers.
fn params(layout: &LoraLayout, seed: u64) -> Vec<f32> {
    uniform(seed, "adapter", layout.len, 0.2)
}

/// An adapter in a buffer as a trainer has it.
fn on_device(model: &LoadedModel, seed: u64) -> DeviceAdapter {
    let layout = layout(model);
    let desc = BufferDesc { name: "lora".into(), dtype: DType::F32, rows: 1, cols: layout.len };
    let buffer = model.device.allocate(desc).unwrap();
    model.device.write(&buffer, 0, bytemuck::cast_slice(&params(&layout, seed))).unwrap();
    DeviceAdapter::new(buffer, layout, 2.0)
}

fn engine(model: &Arc<LoadedModel>, places: usize) -> Engine {
    engine_of(model, places, 2 * RANK)
}

fn engine_of(model: &Arc<LoadedModel>, places: usize, max_rank: usize) -> Engine {
    let options = EngineOptions {
        max_seqs: 8,
        max_len: Some(256),
        kv: KvSize::Tokens(2048),
        max_adapters: places,
        max_rank,
        ..EngineOptions::default()
    };
    Engine::start(model.clone(), options).unwrap()
}

fn tiny() -> Arc<LoadedModel> {
    open(&golden("tiny/chat"), BackendChoice::Cpu)
}

/// Publishes some adapters once, then says so.
struct Once(Vec<(String, DeviceAdapter)>, Sender<Vec<u64>>);

impl Guest for Once {
    fn turn(&mut self, _: Instant, house: &mut dyn House) -> Turn {
        let versions = self.0.iter_mut().map(|(name, adapter)| house.publish(name, adapter).unwrap()).collect();
        self.1.send(versions).unwrap();
        Turn::Ended
    }
}

fn publish(engine: &Engine, adapters: Vec<(String, DeviceAdapter)>) -> Vec<u64> {
    let (sender, done) = channel();
    engine.host(Box::new(Once(adapters, sender)), Pace::default()).unwrap();
    done.recv().unwrap()
}

fn answer(engine: &Engine, prompt: &[u32], adapter: &str, tokens: usize) -> Vec<u32> {
    let request = Request {
        prompt: prompt.to_vec(),
        max_tokens: tokens,
        ignore_eos: true,
        adapter: Some(adapter.into()),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        ..Request::default()
    };
    let (sender, events) = channel();
    let sink = move |event| {
        let _ = sender.send(event);
        std::ops::ControlFlow::Continue(())
    };
    engine.submit(request, Box::new(sink)).unwrap();
    let mut ids = Vec::new();
    for event in events {
        match event {
            Event::Token { id, .. } => ids.push(id),
            Event::Failed(error) => panic!("a request failed: {error}"),
            _ => {}
        }
    }
    assert_eq!(ids.len(), tokens);
    ids
}

/// Publishes one of a few adapters after another under the same name, until there were enough of both publishes and answers.
struct Restless {
    adapters: Vec<DeviceAdapter>,
    published: usize,
    answers: Arc<AtomicUsize>,
    busy: Arc<AtomicUsize>,
    done: Arc<AtomicBool>,
}

impl Guest for Restless {
    fn turn(&mut self, _: Instant, house: &mut dyn House) -> Turn {
        let which = self.published % self.adapters.len();
        match house.publish("live", &mut self.adapters[which]) {
            Ok(_) => self.published += 1,
            // Requests of older versions hold all places: later.
            Err(Error::Busy(_)) => {
                self.busy.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(50));
            }
            Err(error) => panic!("{error}"),
        }
        if self.published < PUBLISHES || self.answers.load(Ordering::SeqCst) < ANSWERS {
            return Turn::Worked;
        }
        self.done.store(true, Ordering::SeqCst);
        Turn::Ended
    }
}

#[test]
fn a_thousand_publishes_under_load_mix_no_versions() {
    const VERSIONS: usize = 4;
    const TOKENS: usize = 12;
    let model = tiny();
    let engine = engine(&model, VERSIONS + 3);
    let fixed = |i: usize| (format!("fixed-{i}"), on_device(&model, i as u64));
    publish(&engine, (0..VERSIONS).map(fixed).collect());
    // Longer than a page of the cache, so that what one version computed would be found by another.
    let prompts: Vec<Vec<u32>> = (0..3u32).map(|p| (0..40).map(|i| 10 + (i * 7 + p * 3) % 200).collect()).collect();
    let expected: Vec<Vec<Vec<u32>>> = (0..VERSIONS)
        .map(|v| prompts.iter().map(|prompt| answer(&engine, prompt, &format!("fixed-{v}"), TOKENS)).collect())
        .collect();
    let distinct: HashSet<&Vec<u32>> = expected.iter().flatten().collect();
    assert_eq!(distinct.len(), VERSIONS * prompts.len(), "versions answer alike");

    let (busy, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let answers = Arc::new(AtomicUsize::new(0));
    let adapters = (0..VERSIONS).map(|i| on_device(&model, i as u64)).collect();
    let guest = Restless { adapters, published: 0, answers: answers.clone(), busy: busy.clone(), done: done.clone() };
    engine.host(Box::new(guest), Pace { train_share: 0.3, itl_slo: None }).unwrap();
    while !engine.adapters().contains(&"live".to_owned()) {
        std::thread::yield_now();
    }
    let seen = Mutex::new(HashSet::new());
    std::thread::scope(|scope| {
        for worker in 0..6 {
            let (engine, prompts, expected, seen, answers, done) =
                (&engine, &prompts, &expected, &seen, &answers, &done);
            scope.spawn(move || {
                for round in 0.. {
                    if done.load(Ordering::SeqCst) && round > 0 {
                        break;
                    }
                    let which = (worker + round) % prompts.len();
                    let got = answer(engine, &prompts[which], "live", TOKENS);
                    let version = expected.iter().position(|version| version[which] == got);
                    seen.lock().unwrap().insert(version.unwrap_or_else(|| panic!("an answer of no version: {got:?}")));
                    answers.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    let (answers, busy) = (answers.load(Ordering::SeqCst), busy.load(Ordering::SeqCst));
    println!("{PUBLISHES} publishes at least, {busy} put off, {answers} answers");
    assert!(answers >= ANSWERS && seen.into_inner().unwrap().len() > 1);
}

#[test]
fn a_published_adapter_is_the_same_as_a_loaded_one() {
    published_as_loaded(tiny());
}

#[test]
fn a_published_adapter_is_the_same_as_a_loaded_one_on_wgpu() {
    if std::env::var_os("RUNTIME_NO_WGPU").is_none() {
        published_as_loaded(open(&golden("tiny/chat"), BackendChoice::Wgpu));
    }
}

#[test]
fn a_published_adapter_is_the_same_as_a_loaded_one_on_cuda() {
    if let Some(model) = cuda(ComputeType::Auto, &golden("tiny/chat")) {
        published_as_loaded(model);
    }
}

fn published_as_loaded(model: Arc<LoadedModel>) {
    let engine = engine(&model, 3);
    let recipe = Recipe { rank: Some(RANK), max_steps: Some(3), max_length: 64, lr: 0.05, ..Recipe::default() };
    let row = |i: u32| {
        let ids: Vec<u32> = (0..20).map(|t| 5 + (t * 11 + i) % 250).collect();
        Row { counted: vec![true; ids.len()], ids, line: 1 }
    };
    let mut job = Job::from_rows(&model, &recipe, (0..8).map(row).collect(), None).unwrap();
    for _ in 0..3 {
        job.step().unwrap();
    }
    engine.load_adapter("loaded", &job.adapter().unwrap()).unwrap();
    let (buffer, layout, scale) = job.placed();
    let adapter = DeviceAdapter::new(buffer.clone(), layout.clone(), scale);
    let version = publish(&engine, vec![("published".into(), adapter)])[0];
    let text: Vec<u32> = (0..60).map(|i| 3 + (i * 13) % 240).collect();
    let scores = |name: &str| engine.score(&text, Some(name)).unwrap().logprobs;
    assert_eq!(scores("published"), scores("loaded"));
    assert_ne!(engine.score(&text, None).unwrap().logprobs, scores("loaded"));
    // A version keeps its numbers when the trainer goes on, and once it is settled it may lose its place.
    let before = scores("published");
    engine.settle("published", version, &job.adapter().unwrap()).unwrap();
    for i in 0..4 {
        engine.load_adapter(&format!("other-{i}"), &job.adapter().unwrap()).unwrap();
        scores(&format!("other-{i}"));
    }
    assert_eq!(scores("published"), before);
}

/// What the engine says of a text with a published adapter, and what the training forward does: log-probabilities of all
/// tokens but the first.
fn both(model: &Arc<LoadedModel>, text: &[u32]) -> (Vec<f32>, Vec<f32>) {
    // The place on the device is for a larger rank, and what is left of it is zero.
    let (layout, engine) = (layout_of(model, 16), engine_of(model, 1, 32));
    let options = TrainerOptions {
        tokens: text.len(),
        max_len: 256,
        scale: 2.0,
        objective: Objective::Weighted,
        ..TrainerOptions::default()
    };
    let mut trainer =
        Trainer::new(model.device.clone(), model.config(), &model.weights, layout.clone(), &options).unwrap();
    let small: Vec<f32> = params(&layout, 9).iter().map(|x| x * 0.02).collect();
    trainer.set_params(&small).unwrap();
    let adapter = DeviceAdapter::new(trainer.param_buffer().clone(), layout, 2.0);
    publish(&engine, vec![("live".into(), adapter)]);
    let row = Row { ids: text.to_vec(), counted: vec![true; text.len()], line: 1 };
    let losses = trainer.weighted_batch(&MicroBatch::new([&row]), &vec![1.0; text.len()], 1.0, 0).unwrap();
    let trained = losses[..text.len() - 1].iter().map(|loss| -loss).collect();
    (engine.score(text, Some("live")).unwrap().logprobs, trained)
}

const TEXT: &str = "The lighthouse stands on a small island, and its keeper lights the lamp every evening before the sun goes \
                    down. In the morning she writes the weather into a book, makes coffee, and feeds the gulls.";

#[test]
fn served_log_probabilities_are_those_of_training() {
    let mut models = vec![tiny()];
    models.extend(smollm2().map(|path| open(&path, BackendChoice::Cpu)));
    for model in models {
        // A text that a model finds likely: at a log-probability of −20 one bit of f32 is 2e-6 already.
        let text = model.tokenizer().unwrap().encode(TEXT, true).unwrap();
        let (served, trained) = both(&model, &text);
        let worst = served.iter().zip(&trained).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{}: log-probabilities differ by {worst:e} at most", model.name);
        assert!(served.len() > 40 && worst <= 1e-5, "{worst}");
    }
}

#[test]
fn served_log_probabilities_are_close_to_those_of_training_on_cuda() {
    let Some(model) = cuda(ComputeType::Auto, &golden("tiny/chat")) else { return };
    let text: Vec<u32> = (0..64u32).map(|i| (3 + i * 977) % model.config().vocab as u32).collect();
    let (served, trained) = both(&model, &text);
    // Not the same bits: what is served lies in a bank of 16 bits with its scale in B, and its terms are added in the products.
    let apart = served.iter().zip(&trained).map(|(a, b)| (a - b).abs()).sum::<f32>() / served.len() as f32;
    println!("log-probabilities differ by {apart:e} in the mean");
    assert!(apart <= 0.05, "{apart}");
}

fn purpose(name: &str) -> Purpose {
    if name.starts_with("kv") { Purpose::Kv } else { Purpose::Optimizer }
}

#[test]
fn weights_exist_once_whatever_is_made_of_them() {
    let ledger = Arc::new(Ledger::default());
    let device = runtime::backend::open(BackendChoice::Cpu, 0, ComputeType::Auto).unwrap();
    let device = metered(device, ledger.clone(), purpose);
    let checkpoint = Checkpoint::open(Path::new(&golden("tiny/chat"))).unwrap();
    let model = LoadedModel::load(checkpoint, device).unwrap();
    let weights = || ledger.usage().peak[Purpose::Weights as usize];
    let alone = weights();
    assert!(alone > 0);
    let engine = engine(&model, 4);
    let recipe =
        Recipe { rank: Some(RANK), max_steps: Some(1), max_length: 64, loss: LossOn::All, ..Recipe::default() };
    let row = |i: u32| Row { ids: (i..i + 20).collect(), counted: vec![true; 20], line: 1 };
    let mut jobs: Vec<Job> =
        (0..3).map(|_| Job::from_rows(&model, &recipe, (1..9).map(row).collect(), None).unwrap()).collect();
    for (i, job) in jobs.iter_mut().enumerate() {
        job.step().unwrap();
        engine.load_adapter(&format!("a{i}"), &job.adapter().unwrap()).unwrap();
        assert_eq!(answer(&engine, &[1, 2, 3], &format!("a{i}"), 4).len(), 4);
    }
    assert_eq!(weights(), alone);
}

/// Losses, norms and the loss of the evaluation set of some steps, each computed as a whole or in slices of a moment.
fn steps(model: &Arc<LoadedModel>, recipe: &Recipe, slices: bool) -> Vec<(f64, f32, Option<f64>)> {
    let mut job = Job::new(model, recipe).unwrap();
    let (mut all, mut turns) = (Vec::new(), 0);
    while !job.is_done() {
        let report = loop {
            turns += 1;
            let deadline = Instant::now();
            match if slices { job.turn(deadline).unwrap() } else { Some(job.step().unwrap()) } {
                Some(report) => break report,
                None => continue,
            }
        };
        let evaluated = match (job.evaluation_due(), slices) {
            (false, _) => None,
            (true, false) => job.evaluate().unwrap(),
            (true, true) => loop {
                if let Some(report) = job.evaluate_turn(Instant::now()).unwrap() {
                    break Some(report);
                }
            },
        };
        all.push((report.loss, report.grad_norm, evaluated.map(|report| report.loss)));
    }
    if slices && model.device.info().backend == "cpu" {
        assert!(turns > 20 * all.len(), "{turns} slices for {} steps", all.len());
    }
    all
}

fn slices_change_nothing(model: &Arc<LoadedModel>) {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, row: &dyn Fn(usize) -> serde_json::Value| {
        let path = folder.path().join(name);
        std::fs::write(&path, (0..6).map(|i| row(i).to_string() + "\n").collect::<String>()).unwrap();
        path
    };
    let say = |role: &str, text: String| serde_json::json!({"role": role, "content": text});
    let rows = write(
        "rows.jsonl",
        &|i| serde_json::json!({"messages": [say("user", format!("say {i}")), say("assistant", format!("it is {}", i * 7))]}),
    );
    let pairs = write("pairs.jsonl", &|i| {
        serde_json::json!({
            "input": {"messages": [say("user", format!("say {i}"))]},
            "preferred_output": [say("assistant", format!("it is {i}"))],
            "non_preferred_output": [say("assistant", "never".into())],
        })
    });
    let plain = Recipe {
        data: vec![rows.clone().into()],
        eval_data: vec![rows.into()],
        rank: Some(RANK),
        epochs: Some(2.0),
        batch_size: 1,
        grad_accum: 3,
        max_length: 256,
        dropout: 0.1,
        ..Recipe::default()
    };
    let preference = Some(Preference::default());
    let pairs = Recipe { data: vec![pairs.into()], eval_data: Vec::new(), dropout: 0.0, preference, ..plain.clone() };
    for recipe in [plain, pairs] {
        let whole = steps(model, &recipe, false);
        assert_eq!(whole.len(), 4);
        assert_eq!(steps(model, &recipe, true), whole);
    }
}

#[test]
fn slices_of_a_step_change_nothing() {
    slices_change_nothing(&tiny());
}

#[test]
fn slices_of_a_step_change_nothing_on_wgpu() {
    if std::env::var_os("RUNTIME_NO_WGPU").is_none() {
        slices_change_nothing(&open(&golden("tiny/chat"), BackendChoice::Wgpu));
    }
}

#[test]
fn slices_of_a_step_change_nothing_on_cuda() {
    if let Some(model) = cuda(ComputeType::Auto, &golden("tiny/chat")) {
        slices_change_nothing(&model);
    }
}
