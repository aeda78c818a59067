//! The `runtime` program: argument parsing and what a terminal shows; the work is in the library.
//!
//! Exit codes: 0; 1 with one line `error: …` on stderr; 2 for wrong arguments.

#![allow(clippy::print_stderr, reason = "a program talks to its terminal")]

mod bench;
mod chat;
mod common;
mod devices;
mod export;
mod generate;
mod grpo;
mod inspect;
mod merge;
mod preference;
mod progress;
mod pull;
mod sampling;
mod score;
#[cfg(feature = "serve")]
mod serve;
mod speculative;
#[cfg(feature = "serve")]
mod together;
mod tokenize;
mod train;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Loads a language model once, serves it and fine-tunes it: on the CPU, over WebGPU, on CUDA.
#[derive(Parser)]
#[command(name = "runtime", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Continue a prompt, or answer it with --chat
    Generate(generate::Args),
    /// Talk to a model
    Chat(chat::Args),
    /// Log-probabilities of a text, token by token
    Score(score::Args),
    /// Fine-tune a LoRA adapter
    Train(Box<train::Args>),
    /// Fine-tune a LoRA adapter on rewards for the model's own answers
    Grpo(grpo::Args),
    /// Write model and adapter as one model that transformers loads
    Merge(merge::Args),
    /// Write model, or model and adapter, as GGUF or as a Hugging Face folder
    Export(export::Args),
    /// Serve a model over HTTP, with OpenAI's endpoints
    #[cfg(feature = "serve")]
    Serve(Box<serve::Args>),
    /// Measure prefill and decode speed against the device's copy bandwidth
    Bench(bench::Args),
    /// Token ids of a text
    Tokenize(tokenize::Args),
    /// What this machine has, and what --backend auto would take
    Devices(devices::Args),
    /// Download a model from the Hugging Face hub
    Pull(pull::Args),
    /// What a model file or folder holds
    Inspect(inspect::Args),
}

/// What clap exits with, too.
pub const WRONG_ARGUMENTS: i32 = 2;

fn main() -> ExitCode {
    quiet_mesa();
    let result = match Cli::parse().command {
        Command::Generate(args) => generate::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Score(args) => score::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Grpo(args) => grpo::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Export(args) => export::run(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(*args),
        Command::Bench(args) => bench::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Inspect(args) => inspect::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // `runtime … | head`: the reader has seen enough.
        Err(runtime::Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever a driver or a template put into its message.
            let message = error.to_string();
            let line: Vec<&str> = message.split_whitespace().collect();
            eprintln!("error: {}", line.join(" "));
            ExitCode::FAILURE
        }
    }
}

/// Mesa's device-select layer looks for a Wayland display and prints an `error:` of its own on machines without one.
/// It only reorders devices, which we choose ourselves.
#[cfg(target_os = "linux")]
fn quiet_mesa() {
    if std::env::var_os("NODEVICE_SELECT").is_none() {
        // SAFETY: no other thread has been started yet.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

#[cfg(not(target_os = "linux"))]
fn quiet_mesa() {}
