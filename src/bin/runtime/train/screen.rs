//! What a run shows: data, memory, progress, evaluations, answers.

use super::samples::Samples;
use crate::{common, progress};
use indicatif::ProgressBar;
use runtime::Result;
use runtime::format::peft::Adapter;
use runtime::model::LoadedModel;
use runtime::train::{DataReport, EvalReport, MemoryReport, Observer, Recipe, StepReport};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a step is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Characters of the first row that are shown.
const EXAMPLE: usize = 1500;

pub struct Screen {
    stop: Arc<AtomicBool>,
    bar: Option<ProgressBar>,
    /// When the last plain line was printed.
    last: Option<Instant>,
    /// When the first step of this run ended, and its number.
    first: Option<(Instant, usize)>,
    memory: u64,
    samples: Samples,
}

impl Screen {
    pub fn new(stop: Arc<AtomicBool>, model: Arc<LoadedModel>, recipe: &Recipe) -> Self {
        Self { stop, bar: None, last: None, first: None, memory: 0, samples: Samples::new(model, recipe) }
    }

    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }

    /// A line above the bar.
    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// `1 h 5 min`, at the pace of the steps so far.
    fn left(&mut self, report: &StepReport) -> Option<String> {
        let (began, step) = *self.first.get_or_insert((Instant::now(), report.step));
        let done = report.step - step;
        let each = began.elapsed().as_secs_f64() / done as f64;
        (done > 0).then(|| duration(each * (report.total_steps - report.step) as f64))
    }
}

/// Seconds in the two largest units.
fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

fn data(what: &str, report: &DataReport) {
    let DataReport { rows, tokens, counted, shortest, median, p95, longest, truncated, skipped, bins, .. } = report;
    let packed = if *bins > 0 { format!(" in {bins} bins") } else { String::new() };
    eprintln!("{what}: {rows} rows{packed}, {tokens} tokens ({counted} count)");
    eprintln!("lengths: shortest {shortest}, median {median}, 95 % up to {p95}, longest {longest}");
    if report.files.len() > 1 || report.files.iter().any(|(_, _, weight)| *weight != 1.0) {
        for (path, rows, weight) in &report.files {
            eprintln!("  {}: {rows} rows, weight {weight}", path.display());
        }
    }
    if *truncated > 0 {
        eprintln!("note: {truncated} rows are cut at --max-length");
    }
    if let Some(first) = skipped.first() {
        eprintln!("note: {} rows have no token that counts and are left out, the first in line {first}", skipped.len());
    }
    if report.malformed > 0 {
        eprintln!("note: {} rows are malformed and left out:", report.malformed);
        report.complaints.iter().for_each(|complaint| eprintln!("  {complaint}"));
        if report.malformed > report.complaints.len() {
            eprintln!("  …");
        }
    }
}

/// The first row, with what counts in colour or between marks.
fn example(report: &DataReport) {
    let (open, close) = if std::io::stderr().is_terminal() { ("\x1b[32m", "\x1b[0m") } else { ("⟦", "⟧") };
    eprintln!("first row; what counts is {}marked{}:", open, close);
    let mut room = EXAMPLE;
    for (text, counted) in &report.example {
        let shown: String = text.chars().take(room).collect();
        room -= shown.chars().count();
        if *counted { eprint!("{open}{shown}{close}") } else { eprint!("{shown}") }
    }
    eprintln!("{}", if room == 0 { " …" } else { "" });
}

impl Observer for Screen {
    fn data(&mut self, report: &DataReport) {
        data("data", report);
        if !report.example.is_empty() {
            example(report);
        }
    }

    fn eval_data(&mut self, report: &DataReport) {
        data("evaluation data", report);
    }

    fn plan(&mut self, report: &MemoryReport) {
        self.memory = report.total();
        eprintln!("{report}");
    }

    fn step(&mut self, report: &StepReport) {
        let StepReport { step, total_steps, loss, grad_norm, lr, tok_s, .. } = report;
        let memory = common::bytes(self.memory);
        let pairs = report.pairs.map_or_else(String::new, |p| {
            format!("  margin {:.3}  right {:.0} %", p.rewards_chosen - p.rewards_rejected, 100.0 * p.accuracy)
        });
        let text = format!("loss {loss:.4}{pairs}  lr {lr:.2e}  grad {grad_norm:.2}  {tok_s:.0} tok/s  {memory}");
        let left = self.left(report);
        if self.bar.is_none() && self.last.is_none() {
            self.bar = progress::bar(*total_steps as u64, "step {pos}/{len} {wide_bar} {msg}");
        }
        let text = left.map_or_else(|| text.clone(), |left| format!("{text}  {left} left"));
        if let Some(bar) = &self.bar {
            bar.set_message(text);
            bar.set_position(*step as u64);
            return;
        }
        let due = self.last.is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if due || step == total_steps {
            eprintln!("step {step}/{total_steps}  {text}");
            self.last = Some(Instant::now());
        }
    }

    fn evaluated(&mut self, report: &EvalReport) {
        let EvalReport { step, loss, best, .. } = report;
        self.say(&format!("step {step}: evaluation loss {loss:.4}{}", if *best { ", the lowest so far" } else { "" }));
    }

    fn sample(&mut self, step: usize, adapter: Adapter) -> Result<()> {
        for (prompt, answer) in self.samples.answers(&adapter)? {
            self.say(&format!("step {step}: {prompt} → {answer}"));
        }
        Ok(())
    }

    fn should_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
