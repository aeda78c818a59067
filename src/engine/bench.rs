//! How fast a model runs on a device, beside the ceiling that the device's memory sets.

use super::{Engine, EngineOptions, Event, Request, Usage};
use crate::error::{Error, Result};
use crate::model::LoadedModel;
use serde::Serialize;
use std::ops::ControlFlow;
use std::sync::{Arc, mpsc};
use std::time::Instant;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct BenchOptions {
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens to generate after each.
    pub new_tokens: usize,
    /// Requests at once.
    pub batch: usize,
    /// Runs after one warm-up; medians are reported.
    pub runs: usize,
}

/// What was measured; `serde` gives the JSON of `runtime bench`.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// Prompt tokens a second, all requests together.
    pub prefill_tok_s: f64,
    /// Generated tokens a second after the first, all requests together.
    pub decode_tok_s: f64,
    /// Copy bandwidth of the device, read plus written, in GB/s (10⁹ bytes).
    pub copy_gb_s: f64,
    /// Share of it that decoding one token for each request takes for reading the weights once.
    pub decode_bandwidth_share: f64,
    /// Bytes of weights that a decode step reads; of the embedding only a row, unless it is the head too.
    pub weight_bytes: u64,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens generated after each.
    pub new_tokens: usize,
    /// Requests at once.
    pub batch: usize,
    /// Runs.
    pub runs: usize,
    /// File or folder name.
    pub model: String,
    /// Backend.
    pub backend: &'static str,
    /// Device.
    pub device: String,
}

/// Measures; takes the engine's own path, with the end of text ignored.
///
/// # Errors
/// [`Error::Invalid`] for sizes that cannot be run; those of [`Engine::start`] and of the requests.
pub fn run(model: Arc<LoadedModel>, options: &BenchOptions) -> Result<BenchReport> {
    let BenchOptions { prompt_tokens, new_tokens, batch, runs } = *options;
    if prompt_tokens == 0 || new_tokens < 2 || batch == 0 || runs == 0 {
        return Err(Error::invalid("bench needs a prompt of 1 token, 2 new tokens, 1 request and 1 run at least"));
    }
    let sizes =
        EngineOptions { max_seqs: batch, max_len: Some(prompt_tokens + new_tokens), ..EngineOptions::default() };
    let engine = Engine::start(model.clone(), sizes)?;
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for round in 0..=runs {
        let (prefill_s, decode_s) = one_round(&engine, model.config().vocab, options)?;
        // The first round compiles and records.
        if round > 0 {
            prefill.push((batch * prompt_tokens) as f64 / prefill_s);
            decode.push((batch * (new_tokens - 1)) as f64 / decode_s);
        }
    }
    drop(engine);
    let (prefill_tok_s, decode_tok_s) = (median(prefill), median(decode));
    let weight_bytes = decode_bytes(&model);
    let bandwidth = model.device.copy_bandwidth()?;
    let info = model.device.info();
    Ok(BenchReport {
        prefill_tok_s,
        decode_tok_s,
        copy_gb_s: bandwidth / 1e9,
        decode_bandwidth_share: weight_bytes as f64 * decode_tok_s / batch as f64 / bandwidth,
        weight_bytes,
        prompt_tokens,
        new_tokens,
        batch,
        runs,
        model: model.name.clone(),
        backend: info.backend,
        device: info.name.clone(),
    })
}

/// Seconds until every request has its first token, and from there to the last token of all.
fn one_round(engine: &Engine, vocab: usize, options: &BenchOptions) -> Result<(f64, f64)> {
    let (sender, events) = mpsc::channel();
    let start = Instant::now();
    for row in 0..options.batch {
        let sender = sender.clone();
        let mut first = None;
        let sink = move |event| {
            let done = match event {
                Event::Token { .. } => {
                    first.get_or_insert_with(Instant::now);
                    return ControlFlow::Continue(());
                }
                Event::Done { usage, .. } => Ok((first.unwrap_or(start), Instant::now(), usage)),
                Event::Failed(error) => Err(error),
            };
            let _ = sender.send(done);
            ControlFlow::Break(())
        };
        // Any tokens do; each request has its own, so that no cache can help.
        let token = |i: usize| (1 + (row * 7919 + i * 31) % vocab.saturating_sub(1).max(1)) as u32;
        let request = Request {
            prompt: (0..options.prompt_tokens).map(token).collect(),
            max_tokens: options.new_tokens,
            ignore_eos: true,
            ..Request::default()
        };
        engine.submit(request, Box::new(sink))?;
    }
    drop(sender);
    let done = events.iter().collect::<Result<Vec<(Instant, Instant, Usage)>>>()?;
    let first = done.iter().map(|(first, ..)| *first).max();
    let end = done.iter().map(|(_, end, _)| *end).max();
    match (first, end, &done[..]) {
        // Alone, a request's own clock leaves the way to the engine's thread out.
        (_, _, [(_, _, usage)]) if options.batch == 1 => Ok((usage.prefill_s, usage.decode_s)),
        (Some(first), Some(end), _) if done.len() == options.batch => {
            Ok(((first - start).as_secs_f64(), (end - first).as_secs_f64()))
        }
        _ => Err(Error::internal("the engine dropped a request")),
    }
}

fn decode_bytes(model: &LoadedModel) -> u64 {
    let tied = model.config().tied_head;
    let read = model.checkpoint.tensors.iter().filter(|(name, _)| tied || !name.ends_with("embed_tokens.weight"));
    read.map(|(_, tensor)| tensor.data.len() as u64).sum()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        _ if values.is_empty() => 0.0,
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn median_is_the_middle() {
        assert_eq!(super::median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(super::median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
