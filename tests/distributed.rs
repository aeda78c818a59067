//! Several processes on this machine (CPU, loopback TCP), started as torchrun would, train what one process with a larger
//! batch trains; they resume; and one that differs, fails or dies ends all.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

use serde_json::Value;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().min(60000)
}

/// `runtime train` on a tiny model, in the order of the file and without dropout, with more arguments.
fn command(output: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runtime"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(["train", "-m", "tests/golden/tiny/chat", "--backend", "cpu", "--dtype", "f32", "--rank", "4"]);
    command.args(["--lr", "5e-3", "--max-length", "512", "--warmup-steps", "2", "-o"]).arg(output);
    command.arg("--log").arg(output.join("log.jsonl"));
    command.args(more).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// As torchrun starts it.
fn ranked(mut command: Command, rank: usize, world_size: usize, port: u16) -> Child {
    let variables = [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world_size), ("MASTER_PORT", port.into())];
    command.envs(variables.map(|(name, value)| (name, value.to_string()))).env("MASTER_ADDR", "127.0.0.1");
    command.env("RAYON_NUM_THREADS", "1").spawn().unwrap()
}

fn together(output: &Path, more: &[&str], world_size: usize) {
    let port = port();
    let all: Vec<Child> = (0..world_size).map(|rank| ranked(command(output, more), rank, world_size, port)).collect();
    for child in all {
        succeeded(&child.wait_with_output().unwrap());
    }
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn log(output: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(output.join("log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn adapter(output: &Path) -> Vec<u8> {
    std::fs::read(output.join("adapter_model.safetensors")).unwrap()
}

/// Compares two logs line by line: numbers of tokens and rates exactly, losses and norms to what f32 sums in another order may
/// differ by.
fn same_curves(found: &[Value], expected: &[Value]) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        for key in ["step", "lr", "tokens", "counted"] {
            assert_eq!(f[key], e[key], "{key} of {f} and {e}");
        }
        for key in ["loss", "eval_loss", "grad_norm", "rewards/margins"] {
            let (Some(f), Some(e)) = (f[key].as_f64(), e[key].as_f64()) else {
                assert_eq!(f[key], e[key]);
                continue;
            };
            assert!((f - e).abs() <= 2e-5 * e.abs().max(1.0), "{key}: {f} and {e}");
        }
    }
}

#[test]
fn two_processes_are_one_with_twice_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let data = ["--data", "tests/golden/sft/data.jsonl", "--eval-data", "tests/golden/sft/data.jsonl"];
    let run = [&data[..], &["--max-steps", "8", "--eval-steps", "4", "--grad-accum", "2"]].concat();
    succeeded(&command(&one, &[&run[..], &["--batch-size", "4"]].concat()).output().unwrap());
    together(&two, &[&run[..], &["--batch-size", "2"]].concat(), 2);
    same_curves(&log(&two), &log(&one));
    // Rank 0 alone has written.
    assert_eq!(log(&two).len(), 8 + 2);
    assert!(two.join("README.md").is_file() && two.join("checkpoint-8").is_dir());
}

#[test]
fn three_processes_on_pairs_with_a_last_step_that_is_not_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (one, three) = (folder.path().join("one"), folder.path().join("three"));
    let run = ["--data", "tests/golden/preference/texts.jsonl", "--preference", "dpo", "--epochs", "0.72"];
    succeeded(&command(&one, &[&run[..], &["--batch-size", "3", "--grad-accum", "1"]].concat()).output().unwrap());
    together(&three, &[&run[..], &["--batch-size", "1", "--grad-accum", "1"]].concat(), 3);
    same_curves(&log(&three), &log(&one));
}

#[test]
fn a_run_of_two_resumes_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    let run = [
        "--data",
        "tests/golden/sft/data.jsonl",
        "--dropout",
        "0.1",
        "--schedule",
        "constant_with_warmup",
        "--resume",
        "auto",
    ];
    let steps = |n: &'static str| [&run[..], &["--max-steps", n]].concat();
    together(&whole, &steps("6"), 2);
    together(&broken, &steps("3"), 2);
    together(&broken, &steps("6"), 2);
    assert_eq!(log(&broken).len(), 6);
    assert_eq!(adapter(&broken), adapter(&whole));
    // Another number of processes takes other rows at each step.
    let alone = command(&broken, &steps("9")).output().unwrap();
    let error = String::from_utf8_lossy(&alone.stderr).into_owned();
    assert!(error.contains("it was made by 2 processes, now there are 1"), "{error}");
}

/// What happens to the second process in the middle of the run.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Lives,
    Dies,
    Sleeps,
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// The last lines of two processes, which both have to fail within a while.
fn failures(first: &[&str], second: &[&str], fate: Fate) -> [String; 2] {
    let folder = tempfile::tempdir().unwrap();
    let (output, port) = (folder.path().join("out"), port());
    let mut all: Vec<Child> =
        [first, second].iter().enumerate().map(|(rank, more)| ranked(command(&output, more), rank, 2, port)).collect();
    let until = Instant::now() + Duration::from_secs(60);
    if fate != Fate::Lives {
        while !output.join("log.jsonl").is_file() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        signal(&all[1], if fate == Fate::Dies { "-KILL" } else { "-STOP" });
    }
    let waiting = if fate == Fate::Sleeps { 1 } else { 2 };
    while all[..waiting].iter_mut().any(|c| c.try_wait().unwrap().is_none()) {
        assert!(Instant::now() < until, "a process goes on without the other");
        std::thread::sleep(Duration::from_millis(5));
    }
    if fate == Fate::Sleeps {
        all[1].kill().unwrap();
    }
    let ends: Vec<String> = all
        .into_iter()
        .map(|mut child| {
            let mut text = String::new();
            child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            assert!(!child.wait().unwrap().success(), "{text}");
            text.lines().last().unwrap_or_default().to_owned()
        })
        .collect();
    [ends[0].clone(), ends[1].clone()]
}

#[test]
fn what_ends_one_ends_all() {
    let data = ["--data", "tests/golden/sft/data.jsonl", "--max-steps", "100000", "--ddp-timeout", "15"];
    let other = [&data[..], &["--weight-decay", "0.5"]].concat();
    let [zero, one] = failures(&data, &other, Fate::Lives);
    assert_eq!(one, "error: weight_decay is 0.5 in rank 1 and 0.01 in rank 0");
    assert_eq!(zero, "error: rank 1 failed: weight_decay is 0.5 in rank 1 and 0.01 in rank 0");

    let [zero, one] = failures(&data, &["--data", "no.jsonl", "--max-steps", "100000"], Fate::Lives);
    assert_eq!(one, "error: --data no.jsonl: no such file or folder");
    assert_eq!(zero, "error: rank 1 failed: --data no.jsonl: no such file or folder");

    let [zero, _] = failures(&data, &data, Fate::Dies);
    assert_eq!(zero, "error: rank 1 is gone: its connection is closed");

    let [zero, _] = failures(&data, &data, Fate::Sleeps);
    assert_eq!(zero, "error: rank 1 has not answered for 15 s (ddp_timeout)");
}
