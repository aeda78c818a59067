//! Preference tuning against TRL (scripts/golden/preference.py): DPO, hinge, IPO, DPO with likelihood, ORPO.
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
use runtime::train::{Job, Preference, PreferenceLoss, Recipe};
use train_support::{golden, json, open, tensors};

fn recipe(case: &serde_json::Value) -> Recipe {
    let name = case["name"].as_str().unwrap();
    let (loss, rpo_alpha) = match name {
        "rpo" => (PreferenceLoss::Sigmoid, 0.5),
        "cdpo" => (PreferenceLoss::Sigmoid, 0.0),
        other => (other.parse().unwrap(), 0.0),
    };
    let label_smoothing = if case["name"] == "cdpo" { 0.1 } else { 0.0 };
    Recipe {
        data: vec![golden("preference").join(case["data"].as_str().unwrap()).into()],
        init_adapter: Some(golden("preference/init")),
        batch_size: 2,
        grad_accum: 1,
        max_length: 512,
        lr: case["lr"].as_f64().unwrap(),
        warmup_steps: 5,
        max_steps: Some(30),
        shuffle: false,
        preference: Some(Preference { loss, beta: case["beta"].as_f64().unwrap(), rpo_alpha, label_smoothing }),
        ..Recipe::default()
    }
}

/// Thirty steps of each loss: within 0.5 % of TRL's, rewards and norms of gradients along.
fn like_trl(backend: BackendChoice, only: &[&str], tolerance: f64) {
    let model = open(&golden("tiny/chat"), backend);
    let curves = json(&golden("preference/curves.json"));
    for case in curves["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        if !only.is_empty() && !only.contains(&name) {
            continue;
        }
        let mut job = Job::new(&model, &recipe(case)).unwrap();
        let mut worst = 0f64;
        for (i, want) in case["steps"].as_array().unwrap().iter().enumerate() {
            let report = job.step().unwrap();
            let number = |key: &str| want[key].as_f64().unwrap();
            // The reports are rounded to four digits; a hinge can reach 0.
            let off = (report.loss - number("loss")).abs() / number("loss").abs().max(0.05);
            worst = worst.max(off);
            assert!(off <= tolerance, "{name} step {}: loss {}, TRL's {}", i + 1, report.loss, number("loss"));
            assert!((report.lr - number("lr")).abs() <= 1e-9, "{name}: lr of step {}", i + 1);
            let norm = number("grad_norm");
            assert!(
                (f64::from(report.grad_norm) - norm).abs() <= 10.0 * tolerance * norm.max(0.1),
                "{name} step {}: norm {} {norm}",
                i + 1,
                report.grad_norm
            );
            let pairs = report.pairs.unwrap();
            for (ours, theirs) in
                [(pairs.rewards_chosen, "rewards_chosen"), (pairs.rewards_rejected, "rewards_rejected")]
            {
                let theirs = number(theirs);
                assert!(
                    (ours - theirs).abs() <= 0.01 * theirs.abs() + 0.002,
                    "{name} step {}: reward {ours} {theirs}",
                    i + 1
                );
            }
            assert!((pairs.accuracy - number("accuracy")).abs() < 0.01, "{name} step {}", i + 1);
        }
        eprintln!("{name}: losses within {worst:.1e}");
    }
}

#[test]
fn losses_like_trl_on_cpu() {
    like_trl(BackendChoice::Cpu, &[], 5e-3);
}

/// Recomputation, and pairs of two micro-batches: the same gradients.
#[test]
fn accumulation_and_recomputation_change_nothing() {
    let model = open(&golden("tiny/chat"), BackendChoice::Cpu);
    let curves = json(&golden("preference/curves.json"));
    for case in curves["cases"].as_array().unwrap() {
        let whole = Recipe { batch_size: 4, ..recipe(case) };
        let gradients = |recipe: &Recipe| {
            let mut job = Job::new(&model, recipe).unwrap();
            let sum = job.accumulate(&|| false).unwrap().unwrap();
            (sum.loss, tensors(&job.gradients().unwrap()))
        };
        let (loss, expected) = gradients(&whole);
        for other in
            [Recipe { batch_size: 1, grad_accum: 4, ..whole.clone() }, Recipe { recompute: true, ..whole.clone() }]
        {
            let (same, found) = gradients(&other);
            assert!((same - loss).abs() <= 1e-5 * loss, "{}: {same} {loss}", case["name"]);
            for ((name, a), (_, b)) in found.iter().zip(&expected) {
                let off = train_support::relative_norm(a, b);
                assert!(off <= 1e-4, "{}: {name} off by {off}", case["name"]);
            }
        }
    }
}
