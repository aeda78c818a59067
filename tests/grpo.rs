//! GRPO's loss against TRL's; and on a tiny model on the CPU: the reward rises, the same seed gives the same adapter, a run that
//! resumes too, and wrong judges are named.
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
use runtime::grpo::{Answer, AnswerTokens, GrpoOptions, GrpoReport, LossType, ScaleRewards, run, step_loss};
use runtime::train::{Recipe, Schedule};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::Path;
use train_support::{golden, json, open, worst};

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
        schedule: Schedule::ConstantWithWarmup,
        ..Recipe::default()
    }
}

const OPTIONS: GrpoOptions = GrpoOptions {
    prompts: 3,
    generations: 8,
    max_tokens: 12,
    beta: 0.0,
    use_bias_correction_kl: true,
    num_iterations: 1,
    epsilon: 0.2,
    epsilon_high: None,
    loss_type: LossType::Dapo,
    scale_rewards: ScaleRewards::Group,
    mask_truncated_completions: false,
};

fn reports(recipe: &Recipe, options: &GrpoOptions) -> Vec<GrpoReport> {
    let model = open(&golden("tiny/chat"), BackendChoice::Cpu);
    let mut reward = |answers: &[Answer]| Ok(answers.iter().map(vowels).collect());
    let mut seen = Vec::new();
    let mut observe = |report: &GrpoReport| {
        seen.push(GrpoReport { step_s: 0.0, ..*report });
        ControlFlow::Continue(())
    };
    run(&model, recipe, options, &mut reward, &mut observe).unwrap();
    seen
}

fn rewards(folder: &Path, steps: usize) -> Vec<f64> {
    reports(&recipe(folder, steps), &OPTIONS).iter().map(|report| report.reward).collect()
}

#[test]
fn the_loss_is_trls() {
    let data = json(&golden("grpo/loss.json"));
    let numbers = |value: &Value| value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
    let rows = |name: &str| -> Vec<Vec<f32>> {
        let rows = data[name].as_array().unwrap().iter();
        rows.map(|row| numbers(row).into_iter().map(|x| x as f32).collect()).collect()
    };
    let (now, old, reference, advantages) = (rows("now"), rows("old"), rows("reference"), numbers(&data["advantages"]));
    let close = |found: f64, expected: f64, what: &str| {
        assert!((found - expected).abs() <= 1e-6 + 2e-5 * expected.abs(), "{what}: {found}, TRL's {expected}");
    };
    let cases = data["cases"].as_array().unwrap();
    for case in cases {
        let options = GrpoOptions {
            max_tokens: data["max_tokens"].as_u64().unwrap() as usize,
            loss_type: case["loss_type"].as_str().unwrap().parse().unwrap(),
            beta: case["beta"].as_f64().unwrap(),
            use_bias_correction_kl: case["use_bias_correction_kl"].as_bool().unwrap(),
            epsilon: case["epsilon"].as_f64().unwrap(),
            epsilon_high: case["epsilon_high"].as_f64(),
            ..OPTIONS
        };
        let old = if case["fresh"] == true { &now } else { &old };
        let answers: Vec<AnswerTokens> = (0..now.len())
            .map(|i| AnswerTokens { advantage: advantages[i], now: &now[i], old: &old[i], reference: &reference[i] })
            .collect();
        let found = step_loss(&options, &answers);
        close(found.loss, case["loss"].as_f64().unwrap(), &format!("loss of {options:?}"));
        close(found.kl, case["kl"].as_f64().unwrap(), &format!("kl of {options:?}"));
        close(found.clip_ratio, case["clip_ratio"].as_f64().unwrap(), &format!("clip_ratio of {options:?}"));
        for (found, expected) in found.weights.iter().zip(case["weights"].as_array().unwrap()) {
            let expected = numbers(expected);
            assert_eq!(found.len(), expected.len());
            found.iter().zip(expected).for_each(|(f, e)| close(*f, e, &format!("a weight of {options:?}")));
        }
    }
    assert_eq!(cases.len(), 36);
}

#[test]
fn several_steps_on_the_same_answers_near_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let options = GrpoOptions { num_iterations: 3, beta: 0.02, ..OPTIONS };
    let seen = reports(&recipe(folder.path(), 45), &options);
    let mean = |part: &[GrpoReport]| part.iter().map(|r| r.reward).sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&seen[..6]), mean(&seen[39..]));
    let (kl, clipped): (Vec<f64>, Vec<f64>) = seen.iter().map(|r| (r.kl, r.clip_ratio)).unzip();
    eprintln!("reward {first:.3} → {last:.3}, kl {kl:.3?}, clipped {clipped:.3?}");
    assert!(last > first + 0.2, "{first} to {last}");
    // The adapter starts as the reference; the first of three steps is on policy, the others need not be.
    assert!(kl[0] < 1e-9 && kl[44] > 0.01);
    assert!((0..15).all(|i| clipped[3 * i] == 0.0) && clipped.iter().any(|c| *c > 0.0));
}

#[test]
fn a_strong_pull_keeps_it_near_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let slow = Recipe { lr: 4e-3, ..recipe(folder.path(), 24) };
    let end = |beta: f64| reports(&slow, &GrpoOptions { beta, ..OPTIONS })[23].kl;
    let (free, pulled) = (end(1e-3), end(2.0));
    assert!(free > 0.5 && pulled < 0.1 * free, "{free} and {pulled}");
}

#[test]
fn a_resumed_run_is_the_unbroken_one() {
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = GrpoOptions { num_iterations: 2, beta: 0.05, ..OPTIONS };
    let part = |folder: &Path, steps: usize| Recipe {
        save_steps: Some(2),
        resume: Some("auto".into()),
        log: Some(folder.join("log.jsonl")),
        ..recipe(folder, steps)
    };
    let all = reports(&part(whole.path(), 8), &options);
    reports(&part(broken.path(), 4), &options);
    let rest = reports(&part(broken.path(), 8), &options);
    let plain =
        |reports: &[GrpoReport]| reports.iter().map(|r| GrpoReport { total_steps: 8, ..*r }).collect::<Vec<_>>();
    assert_eq!(plain(&rest), plain(&all[4..]));
    assert_eq!(std::fs::read_to_string(broken.path().join("log.jsonl")).unwrap().lines().count(), 8);
    let model = open(&golden("tiny/chat"), BackendChoice::Cpu);
    let adapter = |folder: &Path| Adapter::read(&folder.join("adapter"), model.config()).unwrap();
    assert_eq!(worst(&adapter(whole.path()), &adapter(broken.path())), 0.0);
    // Other options would not give the same.
    let mut reward = |answers: &[Answer]| Ok(answers.iter().map(vowels).collect());
    let mut observe = |_: &GrpoReport| ControlFlow::Continue(());
    let other = GrpoOptions { beta: 0.1, ..options };
    let error = run(&model, &part(broken.path(), 10), &other, &mut reward, &mut observe).unwrap_err().to_string();
    assert!(error.contains("beta is 0.1, the checkpoint was made with 0.05"), "{error}");
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
    let options = GrpoOptions { prompts: 1, generations: 2, max_tokens: 4, ..OPTIONS };
    for (rewards, part) in [(vec![1.0], "1 rewards for 2 answers"), (vec![1.0, f64::NAN], "answer 1 is NaN")] {
        let mut reward = |_: &[Answer]| Ok(rewards.clone());
        let mut observe = |_: &GrpoReport| ControlFlow::Continue(());
        let error =
            run(&model, &recipe(folder.path(), 1), &options, &mut reward, &mut observe).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
