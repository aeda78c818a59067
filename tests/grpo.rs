//! GRPO on a tiny model on the CPU: the reward rises, the same seed gives the same adapter, and wrong judges are named.
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
use runtime::grpo::{Answer, GrpoOptions, GrpoReport, run};
use runtime::train::{Recipe, Schedule};
use std::ops::ControlFlow;
use std::path::Path;
use train_support::{golden, open, worst};

/// The share of an answer's characters that are lower-case vowels: something that a random model can drift to.
fn vowels(answer: &Answer) -> f64 {
    let all = answer.answer.chars().count().max(1) as f64;
    answer.answer.chars().filter(|c| "aeiou".contains(*c)).count() as f64 / all
}

fn recipe(folder: &Path, steps: usize) -> Recipe {
    let data = folder.join("prompts.jsonl");
    let rows = [
        r#"{"prompt": "Hello"}"#,
        r#"{"prompt": [{"role": "user", "content": "Where does the ferry go?"}]}"#,
        r#"{"prompt": "The lighthouse"}"#,
    ];
    std::fs::write(&data, rows.join("\n")).unwrap();
    Recipe {
        data: vec![data.into()],
        output: folder.join("adapter"),
        rank: Some(8),
        lr: 2e-2,
        warmup_steps: 0,
        max_steps: Some(steps),
        weight_decay: 0.0,
        schedule: Schedule::Constant,
        ..Recipe::default()
    }
}

fn rewards(folder: &Path, steps: usize) -> Vec<f64> {
    let model = open(&golden("tiny/chat"), BackendChoice::Cpu);
    let options = GrpoOptions { prompts: 3, generations: 8, max_tokens: 12 };
    let mut reward = |answers: &[Answer]| Ok(answers.iter().map(vowels).collect());
    let mut seen = Vec::new();
    let mut observe = |report: &GrpoReport| {
        seen.push(report.reward);
        ControlFlow::Continue(())
    };
    run(&model, &recipe(folder, steps), &options, &mut reward, &mut observe).unwrap();
    seen
}

#[test]
fn the_reward_rises() {
    let folder = tempfile::tempdir().unwrap();
    let seen = rewards(folder.path(), 30);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&seen[..5]), mean(&seen[25..]));
    eprintln!("reward {first:.3} → {last:.3}: {seen:.2?}");
    assert!(first < 0.3 && last > first + 0.3, "{first} to {last}");
    let model = open(&golden("tiny/chat"), BackendChoice::Cpu);
    assert!(Adapter::read(&folder.path().join("adapter"), model.config()).is_ok());
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(rewards(a.path(), 3), rewards(b.path(), 3));
    let model = open(&golden("tiny/chat"), BackendChoice::Cpu);
    let [a, b] = [a, b].map(|folder| Adapter::read(&folder.path().join("adapter"), model.config()).unwrap());
    assert_eq!(worst(&a, &b), 0.0);
}

#[test]
fn wrong_rewards_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = open(&golden("tiny/chat"), BackendChoice::Cpu);
    let options = GrpoOptions { prompts: 1, generations: 2, max_tokens: 4 };
    for (rewards, part) in [(vec![1.0], "1 rewards for 2 answers"), (vec![1.0, f64::NAN], "answer 1 is NaN")] {
        let mut reward = |_: &[Answer]| Ok(rewards.clone());
        let mut observe = |_: &GrpoReport| ControlFlow::Continue(());
        let error =
            run(&model, &recipe(folder.path(), 1), &options, &mut reward, &mut observe).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
