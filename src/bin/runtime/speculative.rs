//! How tokens are guessed ahead: flags that commands share, vLLM's among them.

use crate::common;
use clap::Args;
use runtime::engine::EngineOptions;
use runtime::format::Checkpoint;
use runtime::model::LoadedModel;
use runtime::{Error, Result};
use serde::Deserialize;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

#[derive(Args, Clone, Debug)]
pub struct SpeculativeArgs {
    /// A smaller model with the same vocabulary that guesses the next tokens, to be checked in one step
    #[arg(long, value_name = "MODEL")]
    speculative_model: Option<String>,
    /// Tokens to guess and to check in one step, for each answer; without a draft model they come from the text so far
    #[arg(long, value_name = "N")]
    num_speculative_tokens: Option<usize>,
    /// The same as vLLM takes it: {"model": …, "num_speculative_tokens": N}, or {"method": "ngram", …}
    #[arg(long, value_name = "JSON", conflicts_with_all = ["speculative_model", "num_speculative_tokens"])]
    speculative_config: Option<Config>,
}

/// vLLM's `--speculative-config`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    method: Option<String>,
    model: Option<String>,
    num_speculative_tokens: Option<usize>,
    /// The longest run of tokens that is looked for, and the shortest.
    prompt_lookup_max: Option<usize>,
    prompt_lookup_min: Option<usize>,
    draft_tensor_parallel_size: Option<usize>,
}

/// What the engine needs of it.
pub struct Speculation {
    /// Tokens to guess.
    pub guesses: usize,
    /// Lengths of the endings that are looked for in the text so far.
    pub runs: RangeInclusive<usize>,
    /// What guesses them.
    pub draft: Option<Arc<LoadedModel>>,
}

impl Default for Speculation {
    fn default() -> Self {
        let EngineOptions { guesses, guess_runs: runs, draft, .. } = EngineOptions::default();
        Self { guesses, runs, draft }
    }
}

/// vLLM's older spellings of the method ngram, as models.
const NGRAM: [&str; 2] = ["ngram", "[ngram]"];

/// Tokens that are guessed where a model or a method is named, but no number.
const USUAL_TOKENS: usize = 4;

impl FromStr for Config {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let config: Self = serde_json::from_str(text).map_err(|error| Error::invalid(error.to_string()))?;
        match (config.method.as_deref(), &config.model) {
            (None | Some("ngram"), Some(model)) if NGRAM.contains(&model.as_str()) => {}
            (Some("ngram"), None) | (None | Some("draft_model"), Some(_)) => {}
            (Some("ngram"), Some(model)) => {
                return Err(Error::invalid(format!("method ngram uses no model, got '{model}'")));
            }
            (None | Some("draft_model"), None) => {
                return Err(Error::invalid("a model, or the method ngram, is needed"));
            }
            (Some(other), _) => {
                return Err(Error::invalid(format!("method '{other}' is not supported: use draft_model or ngram")));
            }
        }
        if config.draft_tensor_parallel_size.is_some_and(|size| size != 1) {
            return Err(Error::invalid("draft_tensor_parallel_size can only be 1 here"));
        }
        Ok(config)
    }
}

impl Config {
    /// As vLLM has it: one of the two numbers stands for both.
    fn runs(&self) -> Option<RangeInclusive<usize>> {
        let (low, high) = (self.prompt_lookup_min, self.prompt_lookup_max);
        Some(low.or(high)?..=high.or(low)?)
    }
}

impl SpeculativeArgs {
    /// Puts the draft model, where there is one, on the device of `model`.
    pub fn load(&self, model: &LoadedModel) -> Result<Speculation> {
        let config = self.speculative_config.clone().unwrap_or_else(|| Config {
            model: self.speculative_model.clone(),
            num_speculative_tokens: self.num_speculative_tokens,
            ..Config::default()
        });
        let speculates = config.model.is_some() || self.speculative_config.is_some();
        let guesses = config.num_speculative_tokens.unwrap_or(if speculates { USUAL_TOKENS } else { 0 });
        let load = |name: String| LoadedModel::load(Checkpoint::open(&common::resolve(&name)?)?, model.device.clone());
        let runs = config.runs().unwrap_or(Speculation::default().runs);
        let name = config.model.filter(|name| !NGRAM.contains(&name.as_str()));
        Ok(Speculation { guesses, runs, draft: name.map(load).transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    #[test]
    fn vllms_spellings() {
        let parse = |text: &str| text.parse::<Config>();
        assert_eq!(parse(r#"{"model": "m", "num_speculative_tokens": 5}"#).unwrap().num_speculative_tokens, Some(5));
        assert!(parse(r#"{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}"#).is_ok());
        assert!(parse(r#"{"method": "draft_model", "model": "m"}"#).is_ok());
        let wrong = |text: &str| parse(text).unwrap_err().to_string();
        assert!(wrong(r#"{"method": "eagle", "model": "m"}"#).contains("'eagle'"));
        assert!(wrong(r#"{"num_speculative_tokens": 3}"#).contains("model"));
        assert!(wrong(r#"{"model": "m", "quantization": "fp8"}"#).contains("quantization"));
        let runs = |numbers: &str| parse(&format!(r#"{{"method": "ngram"{numbers}}}"#)).unwrap().runs();
        assert_eq!(runs(""), None);
        assert_eq!(runs(r#", "prompt_lookup_max": 5"#), Some(5..=5));
        assert_eq!(runs(r#", "prompt_lookup_max": 5, "prompt_lookup_min": 3"#), Some(3..=5));
        assert!(wrong("{").contains("EOF"));
    }
}
