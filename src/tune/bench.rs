//! What training beside requests costs both: token rates and inter-token latencies alone and together, and how soon a published
//! version answers.

use crate::engine::pacing::Pace;
use crate::engine::{
    DeviceAdapter, Engine, EngineOptions, Event, Guest, House, KvSize, Request, RequestId, SamplingParams, Turn,
};
use crate::error::{Error, Result};
use crate::model::LoadedModel;
use crate::train::data::Row;
use crate::train::{Job, Optim, Recipe};
use serde::Serialize;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What to measure.
#[derive(Clone, Debug)]
pub struct TogetherOptions {
    /// Answers that run all the time.
    pub streams: usize,
    /// Tokens of their prompts.
    pub prompt: usize,
    /// Sequences of a training step.
    pub batch: usize,
    /// Tokens of each.
    pub length: usize,
    /// Rank of the adapters.
    pub rank: usize,
    /// Optimizer.
    pub optim: Optim,
    /// Compute activations again in the backward pass.
    pub recompute: bool,
    /// Shares to try, one after another.
    pub shares: Vec<f64>,
    /// Limit on what training may add between two tokens.
    pub itl_slo: Option<Duration>,
    /// Seconds of each measurement.
    pub seconds: f64,
    /// Publishes to time.
    pub publishes: usize,
}

/// Inter-token latencies, in seconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Half of the gaps are shorter.
    pub p50: f64,
    /// 99 of 100 are shorter.
    pub p99: f64,
    /// The longest.
    pub max: f64,
    /// Tokens a second of all streams together.
    pub tok_s: f64,
}

/// One share.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Together {
    /// What training was promised.
    pub train_share: f64,
    /// Training tokens a second.
    pub train_tok_s: f64,
    /// Of its speed alone.
    pub train_kept: f64,
    /// What the streams saw.
    pub itl: Latency,
    /// p99 compared with that without training.
    pub p99_growth: f64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct TogetherReport {
    /// The model's name.
    pub model: String,
    /// The device's.
    pub device: String,
    /// As asked for.
    pub streams: usize,
    /// Sequences and tokens of a training step.
    pub train_batch: [usize; 2],
    /// Training by its own loop, tokens a second.
    pub train_loop_tok_s: f64,
    /// Training at a server without requests, tokens a second.
    pub train_alone_tok_s: f64,
    /// That of the loop's.
    pub idle_kept: f64,
    /// The streams without training.
    pub itl_alone: Latency,
    /// Both, for each share.
    pub together: Vec<Together>,
    /// Seconds from publishing to the first token of the new version: median, 99th of 100, longest.
    pub publish_to_token_s: [f64; 3],
    /// How many were timed.
    pub publishes: usize,
}

/// What the trainer's seat is told, and tells.
struct Desk {
    publish: AtomicBool,
    /// When steps were complete, and their tokens.
    steps: Mutex<Vec<(Instant, usize)>>,
    training: AtomicBool,
}

struct Seat {
    job: Job,
    placed: DeviceAdapter,
    desk: Arc<Desk>,
    /// When a publish began, or what went wrong.
    told: Sender<Result<Instant>>,
}

impl Guest for Seat {
    fn turn(&mut self, deadline: Instant, house: &mut dyn House) -> Turn {
        if self.desk.publish.swap(false, Ordering::SeqCst) {
            let began = Instant::now();
            let published = house.publish("live", &mut self.placed).map(|_| began);
            let _ = self.told.send(published);
            return Turn::Worked;
        }
        if !self.desk.training.load(Ordering::SeqCst) {
            return Turn::Idle;
        }
        match self.job.turn(deadline) {
            Ok(None) => {}
            Ok(Some(report)) => {
                let mut steps = self.desk.steps.lock().unwrap_or_else(PoisonError::into_inner);
                steps.push((Instant::now(), report.tokens));
            }
            Err(error) => {
                let _ = self.told.send(Err(error));
                return Turn::Ended;
            }
        }
        Turn::Worked
    }
}

fn rate(steps: &[(Instant, usize)]) -> f64 {
    match steps {
        [(first, _), rest @ .., (last, tokens)] => {
            let all: usize = rest.iter().map(|(_, tokens)| tokens).sum::<usize>() + tokens;
            all as f64 / last.duration_since(*first).as_secs_f64().max(1e-9)
        }
        _ => 0.0,
    }
}

/// Answers that run until they are dropped: one that has become too long begins anew.
struct Streams {
    engine: Engine,
    ids: Vec<RequestId>,
    /// Tokens of prompts, and of answers.
    lengths: [usize; 2],
    sender: Sender<(usize, Told)>,
    told: Receiver<(usize, Told)>,
}

/// What a stream tells.
enum Told {
    Token(Instant),
    End,
    Failed(Error),
}

impl Streams {
    fn start(engine: &Engine, options: &TogetherOptions, room: usize) -> Result<Self> {
        let (sender, told) = channel();
        let lengths = [options.prompt, room - options.prompt];
        let mut streams = Self { engine: engine.clone(), ids: Vec::new(), lengths, sender, told };
        for stream in 0..options.streams {
            let id = streams.ask(stream)?;
            streams.ids.push(id);
        }
        // Steady once each has some tokens.
        let mut counts = vec![0; options.streams];
        while counts.iter().any(|count| *count < 4) {
            counts[streams.next()?.0] += 1;
        }
        Ok(streams)
    }

    fn ask(&self, stream: usize) -> Result<RequestId> {
        let sender = self.sender.clone();
        let sink = move |event| {
            let told = match event {
                Event::Token { .. } => Told::Token(Instant::now()),
                Event::Done { .. } => Told::End,
                Event::Failed(error) => Told::Failed(error),
                _ => return ControlFlow::Continue(()),
            };
            if sender.send((stream, told)).is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let vocab = self.engine.model().config().vocab;
        let token = |i: usize| (1 + (stream * 7919 + i * 31) % (vocab - 1).max(1)) as u32;
        let [prompt, answer] = self.lengths;
        let request = Request {
            prompt: (0..prompt).map(token).collect(),
            max_tokens: answer,
            ignore_eos: true,
            sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            ..Request::default()
        };
        self.engine.submit(request, Box::new(sink))
    }

    /// Waits for a token: of which stream, and when it came.
    fn next(&mut self) -> Result<(usize, Instant)> {
        loop {
            let told = self.told.recv_timeout(Duration::from_secs(120));
            match told.map_err(|_| Error::internal("no token of any stream came for two minutes"))? {
                (stream, Told::Token(at)) => return Ok((stream, at)),
                (stream, Told::End) => self.ids[stream] = self.ask(stream)?,
                (_, Told::Failed(error)) => return Err(error),
            }
        }
    }

    /// Gaps between tokens for so many seconds, and until it is enough (but not for more than twenty times as long).
    fn watch(&mut self, streams: usize, seconds: f64, enough: &dyn Fn() -> bool) -> Result<Latency> {
        // What came while nobody watched.
        let began = Instant::now();
        while self.next()?.1 < began {}
        let mut last: Vec<Option<Instant>> = vec![None; streams];
        let (mut gaps, mut count) = (Vec::new(), 0);
        let on = |passed: f64| passed < seconds || (!enough() && passed < 20.0 * seconds);
        while on(began.elapsed().as_secs_f64()) {
            let (stream, at) = self.next()?;
            count += 1;
            gaps.extend(last[stream].replace(at).map(|before| at.duration_since(before).as_secs_f64()));
        }
        gaps.sort_by(f64::total_cmp);
        let at = |share: f64| gaps.get(((gaps.len() as f64 * share) as usize).min(gaps.len().max(1) - 1)).copied();
        let number = |share| at(share).unwrap_or(f64::NAN);
        let tok_s = f64::from(count) / began.elapsed().as_secs_f64();
        Ok(Latency { p50: number(0.5), p99: number(0.99), max: number(1.0), tok_s })
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.ids.iter().for_each(|id| self.engine.cancel(*id));
    }
}

fn job(model: &Arc<LoadedModel>, options: &TogetherOptions) -> Result<Job> {
    let vocab = model.config().vocab;
    let token = |row: usize, i: usize| (1 + (row * 7919 + i * 31 + i * i % 17) % (vocab - 1).max(1)) as u32;
    let row = |row: usize| Row {
        ids: (0..options.length).map(|i| token(row, i)).collect(),
        counted: vec![true; options.length],
        line: row + 1,
    };
    let recipe = Recipe {
        rank: Some(options.rank),
        batch_size: options.batch,
        grad_accum: 1,
        max_length: options.length,
        max_steps: Some(1_000_000),
        // It trains for as long as is measured, on made-up tokens and perhaps random weights: it must not diverge.
        lr: 1e-7,
        optim: options.optim,
        recompute: options.recompute,
        ..Recipe::default()
    };
    Job::from_rows(model, &recipe, (0..options.batch * 2).map(row).collect(), None)
}

/// Measures.
///
/// # Errors
/// [`Error::Invalid`] for sizes that cannot be run; those of the engine and of the trainer.
pub fn run(model: &Arc<LoadedModel>, options: &TogetherOptions) -> Result<TogetherReport> {
    if options.streams == 0
        || options.batch == 0
        || options.length < 2
        || options.seconds.is_nan()
        || options.seconds <= 0.0
    {
        return Err(Error::invalid("the bench needs a stream, a training row of two tokens and some time at least"));
    }
    // One answer after another would be no steady stream: they are as long as all measurements together.
    let most = model.config().max_positions;
    let room = (options.prompt + 4096).min(most);
    if room < options.prompt + 64 {
        return Err(Error::invalid(format!(
            "a prompt of {} tokens leaves no room in {most} positions",
            options.prompt
        )));
    }
    let defaults = EngineOptions::for_server(model);
    let engine = Engine::start(
        model.clone(),
        EngineOptions {
            max_seqs: options.streams,
            max_len: Some(room),
            kv: KvSize::Tokens(options.streams * room.next_multiple_of(16)),
            prefix_cache: false,
            max_adapters: 4,
            max_rank: options.rank,
            ..defaults
        },
    )?;
    engine.prepare()?;
    let mut own = job(model, options)?;
    let mut steps = Vec::new();
    let began = Instant::now();
    while steps.len() < 3 || began.elapsed().as_secs_f64() < options.seconds {
        let report = own.step()?;
        steps.push((Instant::now(), report.tokens));
    }
    let train_loop_tok_s = rate(&steps[1..]);
    let (params, layout, scale) = own.placed();
    let placed = DeviceAdapter::new(params.clone(), layout.clone(), scale);
    let (told, heard) = channel();
    let desk =
        Arc::new(Desk { publish: AtomicBool::new(false), steps: Mutex::default(), training: AtomicBool::new(true) });
    let mut seat = Some(Box::new(Seat { job: own, placed, desk: desk.clone(), told }));
    let taken = |desk: &Desk| std::mem::take(&mut *desk.steps.lock().unwrap_or_else(PoisonError::into_inner));
    let sleep = || std::thread::sleep(Duration::from_secs_f64(options.seconds));

    // The streams alone, before anybody trains.
    let itl_alone = Streams::start(&engine, options, room)?.watch(options.streams, options.seconds, &|| true)?;
    let mut together = Vec::new();
    let mut train_alone_tok_s = 0.0;
    for (index, share) in [f64::NAN].iter().chain(&options.shares).enumerate() {
        let pace = Pace { train_share: if share.is_nan() { 0.5 } else { *share }, itl_slo: options.itl_slo };
        match seat.take() {
            Some(seat) => engine.host(seat, pace)?,
            None => engine.set_pace(pace)?,
        }
        engine.wake();
        if index == 0 {
            taken(&desk);
            sleep();
            train_alone_tok_s = rate(&taken(&desk));
            continue;
        }
        let mut streams = Streams::start(&engine, options, room)?;
        taken(&desk);
        // A rate needs some whole steps.
        let steps = || desk.steps.lock().unwrap_or_else(PoisonError::into_inner).len();
        let watched = streams.watch(options.streams, options.seconds, &|| *share == 0.0 || steps() >= 3);
        let train_tok_s = rate(&taken(&desk));
        drop(streams);
        // The trainer's reason comes first: without it streams run until they end.
        if let Ok(Err(error)) = heard.try_recv() {
            return Err(error);
        }
        let itl = watched?;
        together.push(Together {
            train_share: *share,
            train_tok_s,
            train_kept: train_tok_s / train_alone_tok_s,
            itl,
            p99_growth: itl.p99 / itl_alone.p99,
        });
    }
    desk.training.store(false, Ordering::SeqCst);
    let publish_to_token_s = publish(&engine, &desk, &heard, options.publishes)?;
    Ok(TogetherReport {
        model: model.name.clone(),
        device: model.device.info().name.clone(),
        streams: options.streams,
        train_batch: [options.batch, options.length],
        train_loop_tok_s,
        train_alone_tok_s,
        idle_kept: train_alone_tok_s / train_loop_tok_s,
        itl_alone,
        together,
        publish_to_token_s,
        publishes: options.publishes,
    })
}

/// Publishes and asks the new version for a token, again and again.
fn publish(engine: &Engine, desk: &Desk, heard: &Receiver<Result<Instant>>, times: usize) -> Result<[f64; 3]> {
    let mut seconds = Vec::with_capacity(times);
    for round in 0..times + 3 {
        desk.publish.store(true, Ordering::SeqCst);
        engine.wake();
        let began = heard.recv().map_err(|_| Error::internal("the trainer is gone"))??;
        let (sender, first) = channel();
        let sink = move |event| match event {
            Event::Token { .. } => {
                let _ = sender.send(Instant::now());
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        };
        let request = Request {
            prompt: (1..17).collect(),
            max_tokens: 1,
            ignore_eos: true,
            adapter: Some("live".into()),
            ..Request::default()
        };
        engine.submit(request, Box::new(sink))?;
        let at = first.recv().map_err(|_| Error::internal("the published version did not answer"))?;
        // The first ones make programs.
        if round >= 3 {
            seconds.push(at.duration_since(began).as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let at = |share: usize| seconds.get((seconds.len() * share / 100).min(seconds.len().max(1) - 1)).copied();
    Ok([50, 99, 100].map(|share| at(share).unwrap_or(f64::NAN)))
}
