//! How fast a model runs on a device, beside the ceiling that the device's memory sets.

mod round;
pub mod traffic;

use super::kv::PAGE;
use super::{Engine, EngineOptions, KvSize, KvType, Request};
use crate::error::{Error, Result};
use crate::model::LoadedModel;
use round::{Job, Round};
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// What to measure.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens to generate after each.
    pub new_tokens: usize,
    /// Requests at once: each of these is measured.
    pub batches: Vec<usize>,
    /// Runs after one warm-up; medians are reported.
    pub runs: usize,
    /// Most tokens in one step; `None`: the engine's own.
    pub max_step_tokens: Option<usize>,
    /// What each request asks for besides its prompt and its length.
    pub request: Request,
    /// Type of the key/value cache.
    pub kv_type: KvType,
    /// When loading the model began.
    pub started: Instant,
}

/// Speed at one number of requests.
#[derive(Clone, Debug, Serialize)]
pub struct BatchReport {
    /// Requests at once.
    pub batch: usize,
    /// Prompt tokens a second, all requests together.
    pub prefill_tok_s: f64,
    /// Generated tokens a second after the first, all requests together.
    pub decode_tok_s: f64,
    /// Seconds from submitting a prompt that is in the prefix cache to its first token; all requests together: to the last's.
    pub cached_first_token_s: f64,
    /// Seconds of the engine's thread for a generated token, waiting for the device left out.
    pub host_s_per_token: f64,
    /// Share of the copy bandwidth that decoding one token for each request takes for reading the weights once.
    pub decode_bandwidth_share: f64,
}

/// What was measured; `serde` gives the JSON of `runtime bench`.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// The first of the batch sizes.
    #[serde(flatten)]
    pub first: BatchReport,
    /// All of them.
    pub batches: Vec<BatchReport>,
    /// Seconds from the start until the weights were on the device.
    pub load_s: f64,
    /// Seconds from the start until one request had its first token: loading, compiling and its prompt.
    pub first_token_s: f64,
    /// Copy bandwidth of the device, read plus written, in GB/s (10⁹ bytes).
    pub copy_gb_s: f64,
    /// Bytes of weights that a decode step reads; of the embedding only a row, unless it is the head too.
    pub weight_bytes: u64,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens generated after each.
    pub new_tokens: usize,
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
    let load_s = options.started.elapsed().as_secs_f64();
    let (prompt_tokens, new_tokens, runs) = (options.prompt_tokens, options.new_tokens, options.runs);
    let most = options.batches.iter().copied().max().unwrap_or(0);
    if prompt_tokens == 0 || new_tokens < 2 || options.batches.contains(&0) || most == 0 || runs == 0 {
        return Err(Error::invalid("bench needs a prompt of 1 token, 2 new tokens, 1 request and 1 run at least"));
    }
    let max_len = prompt_tokens + new_tokens;
    let defaults = EngineOptions::default();
    let sizes = EngineOptions {
        max_seqs: most,
        max_len: Some(max_len),
        kv: KvSize::Tokens(most * max_len.next_multiple_of(PAGE)),
        kv_type: options.kv_type,
        max_step_tokens: options.max_step_tokens.unwrap_or(defaults.max_step_tokens),
        ..defaults
    };
    let engine = Engine::start(model.clone(), sizes)?;
    // Any tokens do, but no two requests of a round begin alike, and no two rounds.
    let round = |batch: usize, max_tokens: usize, salt: usize| {
        let seeds = (0..batch).map(|row| salt * 104_729 + row * 7919);
        Round::run(&engine, &options.request, seeds.map(|seed| Job { prompt_tokens, max_tokens, seed, adapter: None }))
    };
    round(1, 1, 0)?;
    let first_token_s = options.started.elapsed().as_secs_f64();
    let weight_bytes = decode_bytes(&model);
    let bandwidth = model.device.copy_bandwidth()?;
    let mut batches = Vec::with_capacity(options.batches.len());
    for &batch in &options.batches {
        let (mut prefill, mut cached, mut decode, mut host) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for number in 1..=runs + 1 {
            // New prompts, then the same again: the prefix cache has them, so that all requests decode at the same time.
            let first = round(batch, 1, number)?;
            let again = round(batch, new_tokens, number)?;
            // The first round compiles and records.
            if number > 1 {
                prefill.push((batch * prompt_tokens) as f64 / first.prefill_s());
                cached.push(again.first_token_s());
                decode.push(again.decode_tok_s()?);
                host.push(again.host_s / (batch * new_tokens) as f64);
            }
        }
        let (prefill_tok_s, decode_tok_s) = (median(prefill), median(decode));
        batches.push(BatchReport {
            batch,
            prefill_tok_s,
            decode_tok_s,
            cached_first_token_s: median(cached),
            host_s_per_token: median(host),
            decode_bandwidth_share: weight_bytes as f64 * decode_tok_s / batch as f64 / bandwidth,
        });
    }
    let info = model.device.info();
    let Some(first) = batches.first().cloned() else { return Err(Error::internal("no batch was measured")) };
    Ok(BenchReport {
        first,
        batches,
        load_s,
        first_token_s,
        copy_gb_s: bandwidth / 1e9,
        weight_bytes,
        prompt_tokens,
        new_tokens,
        runs,
        model: model.name.clone(),
        backend: info.backend,
        device: info.name.clone(),
    })
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
