//! A run that is killed (SIGKILL, as by a machine that goes away) at random moments and resumed ends with the bits of an
//! unbroken one.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const KILLS: usize = 20;

fn start(output: &Path) -> Child {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_runtime"));
    command.current_dir(root).args(["train", "-m", "tests/golden/tiny/chat", "--backend", "cpu", "--dtype", "f32"]);
    command.args(["--data", "tests/golden/sft/data.jsonl", "--rank", "4", "--dropout", "0.1", "--lr", "5e-3"]);
    command.args(["--neftune-noise-alpha", "5", "--optim", "adamw_8bit", "--max-steps", "40", "--max-length", "512"]);
    // Written after every step, so that many of the kills meet a checkpoint that is being written.
    command.args(["--save-steps", "1", "--save-total-limit", "2", "--resume", "auto", "-o"]).arg(output);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn adapter(output: &Path) -> Vec<u8> {
    std::fs::read(output.join("adapter_model.safetensors")).unwrap()
}

fn finish(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn killed_and_resumed_gives_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    let began = Instant::now();
    finish(start(&whole));
    let took = began.elapsed();
    let expected = adapter(&whole);

    // The standard library's hasher is keyed by the system's random numbers.
    let fraction = || (RandomState::new().hash_one(0) >> 11) as f64 / (1u64 << 53) as f64;
    let (mut kills, mut runs) = (0, 0);
    while kills < KILLS {
        let mut child = start(&broken);
        // Up to a third of a run: most runs then take several attempts.
        let moment = took.mul_f64(fraction() * 0.33) + Duration::from_millis(1);
        let until = Instant::now() + moment;
        while Instant::now() < until && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        match child.try_wait().unwrap() {
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
            }
            // It got to its end: from the start again.
            Some(_) => {
                finish(child);
                assert_eq!(adapter(&broken), expected, "after {kills} kills");
                std::fs::remove_dir_all(&broken).unwrap();
                runs += 1;
            }
        }
    }
    finish(start(&broken));
    assert_eq!(adapter(&broken), expected, "after {kills} kills");
    println!("{kills} kills in {} runs of {:.2} s each", runs + 1, took.as_secs_f64());
}
