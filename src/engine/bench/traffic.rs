//! How much of a mixed traffic a model gets through: all requests arrive at once, each with its own lengths.

use super::round::{Job, Round};
use crate::engine::{Engine, EngineOptions, Request, Stats};
use crate::error::{Error, Result};
use crate::format::peft::Adapter;
use crate::model::LoadedModel;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// Lengths of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Lengths {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub max_tokens: usize,
}

/// Reads JSON lines of [`Lengths`], as `benches/traffic.py` writes them.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] with the line.
pub fn read(path: &Path) -> Result<Vec<Lengths>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let file = path.display().to_string();
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let requests: Vec<Lengths> = lines
        .map(|(at, line)| {
            serde_json::from_str(line).map_err(|e| Error::format(&file, format!("line {}", at + 1), e.to_string()))
        })
        .collect::<Result<_>>()?;
    match requests.is_empty() {
        true => Err(Error::format(file, "line 1", "no request: expected {\"prompt_tokens\": …, \"max_tokens\": …}")),
        false => Ok(requests),
    }
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct TrafficReport {
    /// Requests.
    pub requests: usize,
    /// Adapters that they were spread over; 0: the base model alone.
    pub adapters: usize,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Tokens of all answers.
    pub output_tokens: usize,
    /// From the first request to the last token.
    pub seconds: f64,
    /// Tokens of answers a second.
    pub output_tok_s: f64,
    /// Requests a second.
    pub requests_s: f64,
    /// Seconds of the engine's thread for a token of an answer, waiting for the device left out.
    pub host_s_per_token: f64,
    /// Seconds until half of the requests have their first token.
    pub median_first_token_s: f64,
    /// The engine's counters after it.
    pub stats: Stats,
}

/// Runs `requests` through an engine of its own, whose programs are ready, after the first hundred of them as a warm-up. Request i uses adapter
/// i modulo their number.
///
/// # Errors
/// Those of [`Engine::start`] and of the requests.
pub fn run(
    model: Arc<LoadedModel>,
    options: EngineOptions,
    requests: &[Lengths],
    adapters: &[Adapter],
) -> Result<TrafficReport> {
    let engine = Engine::start(model, EngineOptions { prefix_cache: false, ..options })?;
    for (index, adapter) in adapters.iter().enumerate() {
        engine.load_adapter(&name(index), adapter)?;
    }
    engine.prepare()?;
    let jobs = |requests: &[Lengths]| {
        let jobs = requests.iter().enumerate().map(|(index, lengths)| Job {
            prompt_tokens: lengths.prompt_tokens,
            max_tokens: lengths.max_tokens,
            seed: index * 7919,
            adapter: (!adapters.is_empty()).then(|| name(index % adapters.len())),
        });
        jobs.collect::<Vec<_>>().into_iter()
    };
    Round::run(&engine, &Request::default(), jobs(&requests[..requests.len().min(100)]))?;
    let round = Round::run(&engine, &Request::default(), jobs(requests))?;
    let seconds = round.total_s();
    let output_tokens: usize = requests.iter().map(|lengths| lengths.max_tokens).sum();
    let firsts = round.requests.iter().map(|(_, usage)| usage.queue_s + usage.prefill_s).collect();
    Ok(TrafficReport {
        requests: requests.len(),
        adapters: adapters.len(),
        prompt_tokens: requests.iter().map(|lengths| lengths.prompt_tokens).sum(),
        output_tokens,
        seconds,
        output_tok_s: output_tokens as f64 / seconds,
        requests_s: requests.len() as f64 / seconds,
        host_s_per_token: round.host_s / output_tokens as f64,
        median_first_token_s: super::median(firsts),
        stats: engine.stats(),
    })
}

fn name(index: usize) -> String {
    format!("adapter-{index}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_and_mistakes_have_a_line() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::internal(e.to_string()))?;
        let path = folder.path().join("traffic.jsonl");
        let write = |text: &str| std::fs::write(&path, text).map_err(|e| Error::io(&path, e));
        write("{\"prompt_tokens\": 5, \"max_tokens\": 6}\n\n{\"prompt_tokens\": 7, \"max_tokens\": 8}\n")?;
        let expected = [(5, 6), (7, 8)].map(|(prompt_tokens, max_tokens)| Lengths { prompt_tokens, max_tokens });
        assert_eq!(read(&path)?, expected);
        write("{\"prompt_tokens\": 5, \"max_tokens\": 6}\n{\"prompt_tokens\": 5}\n")?;
        assert!(read(&path).is_err_and(|e| e.to_string().contains("line 2")));
        write("")?;
        assert!(read(&path).is_err_and(|e| e.to_string().contains("no request")));
        Ok(())
    }
}
