//! What the endpoints have in common: sampling, stopping, counts, streaming.

use super::{ApiError, Fields, tokens};
use crate::engine::Grammar;
use crate::engine::text::TextOptions;
use crate::engine::{Request, SamplingParams};
use crate::model::LoadedModel;
use crate::serve::constraint;
use crate::serve::running::Finished;
use serde_json::{Map, Value, json};

/// Choices (n × prompts) of one HTTP request.
pub const MAX_CHOICES: usize = 128;
/// Alternatives a token, as at OpenAI and vLLM.
pub const MAX_LOGPROBS: usize = 20;

/// Sampling parameters for requests that do not state them: those of the model's generation_config.json, as
/// in vLLM, else OpenAI's (temperature 1, no truncation).
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    temperature: f32,
    top_p: f32,
    top_k: usize,
    min_p: f32,
    repetition_penalty: f32,
}

impl Defaults {
    /// Takes what is there and usable; `do_sample` and the rest are transformers' own business.
    pub fn from_generation_config(config: &Value) -> Self {
        let number = |name: &str, default: f32, usable: fn(f32) -> bool| {
            config[name].as_f64().map(|value| value as f32).filter(|value| usable(*value)).unwrap_or(default)
        };
        Self {
            temperature: number("temperature", 1.0, |t| t >= 0.0),
            top_p: number("top_p", 1.0, |p| p > 0.0 && p <= 1.0),
            top_k: config["top_k"].as_u64().map_or(0, |k| k as usize),
            min_p: number("min_p", 0.0, |p| (0.0..=1.0).contains(&p)),
            repetition_penalty: number("repetition_penalty", 1.0, |r| r > 0.0),
        }
    }
}

/// How to answer.
pub struct Params {
    /// Everything but prompt, length, adapter and log-probabilities.
    pub request: Request,
    /// How the answer becomes text.
    pub text: TextOptions,
    /// What the answer is held to.
    pub constraint: Option<Grammar>,
    /// Choices a prompt.
    pub n: usize,
    /// Answers a prompt, of which the `n` likeliest are returned.
    pub best_of: usize,
    /// `max_tokens`, where stated.
    pub max_tokens: Option<usize>,
    /// Answer in pieces.
    pub stream: bool,
    /// End the stream with a chunk that has the counts.
    pub include_usage: bool,
    /// Each chunk has the counts so far.
    pub usage_each: bool,
}

/// One stop string, or several.
#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum Stop {
    One(String),
    Many(Vec<String>),
}

impl Params {
    /// Takes the fields that chat and completions share.
    pub fn take(fields: &mut Fields, defaults: &Defaults, model: &LoadedModel) -> Result<Self, ApiError> {
        let mut params = Self::common(fields, defaults, model)?;
        params.text.stop = stop_strings(fields)?;
        params.request.prompt_logprobs = prompt_logprobs(fields, params.stream)?;
        let n = fields.take("n")?.unwrap_or(1);
        if !(1..=MAX_CHOICES).contains(&n) {
            return Err(ApiError::field("n", format!("`n` must be between 1 and {MAX_CHOICES}, not {n}")));
        }
        let max_tokens = fields.take("max_tokens")?;
        let (include_usage, usage_each) = stream_options(fields, params.stream)?;
        let best_of = best_of(fields, n, params.stream)?;
        let constraint = constraint::take(fields)?;
        Ok(Self { n, best_of, max_tokens, include_usage, usage_each, constraint, ..params })
    }

    /// Takes the fields that all endpoints have or get as vLLM's additions: sampling, tokens, `stream`.
    pub fn common(fields: &mut Fields, defaults: &Defaults, model: &LoadedModel) -> Result<Self, ApiError> {
        let vocab_size = model.config().vocab;
        let sampling = sampling(fields, defaults, vocab_size)?;
        let request = Request {
            min_tokens: fields.take("min_tokens")?.unwrap_or(0),
            priority: fields.take("priority")?.unwrap_or(0),
            ignore_eos: fields.take("ignore_eos")?.unwrap_or(false),
            stop_ids: fields.take("stop_token_ids")?.unwrap_or_default(),
            allowed_ids: tokens::allowed(fields, vocab_size)?,
            bad_words: tokens::bad_words(fields, model)?,
            sampling,
            ..Request::default()
        };
        let text = TextOptions {
            stop: Vec::new(),
            skip_special: fields.take("skip_special_tokens")?.unwrap_or(true),
            include_stop: fields.take("include_stop_str_in_output")?.unwrap_or(false),
            continues_prompt: false,
        };
        let stream = fields.take("stream")?.unwrap_or(false);
        for (name, neutral) in not_yet() {
            fields.unsupported(name, &neutral)?;
        }
        Ok(Self {
            request,
            text,
            constraint: None,
            n: 1,
            best_of: 1,
            max_tokens: None,
            stream,
            include_usage: false,
            usage_each: false,
        })
    }

    /// The choices to return, `n` a prompt.
    pub fn best(&self, finished: Vec<Finished>) -> Vec<Finished> {
        if self.best_of > self.n { best(finished, self.n, self.best_of) } else { finished }
    }

    /// Requests for the answers to a prompt of `prompt`; `default` tokens each where the client does not say.
    pub fn requests(
        &self,
        prompt: Vec<u32>,
        max_len: usize,
        default: Option<usize>,
        prompt_field: &str,
    ) -> Result<Vec<Request>, ApiError> {
        if self.max_tokens == Some(0) {
            return Err(ApiError::field("max_tokens", "`max_tokens` must be at least 1"));
        }
        let len = prompt.len();
        let room = max_len.saturating_sub(len);
        let requested = self.max_tokens.unwrap_or(1);
        if requested > room {
            let message = format!(
                "This model's maximum context length is {max_len} tokens. However, you requested {} tokens \
                 ({len} in the {prompt_field}, {requested} in the completion).",
                len.saturating_add(requested),
            );
            return Err(ApiError::context_length(prompt_field, message));
        }
        let max_tokens = self.max_tokens.unwrap_or_else(|| default.map_or(room, |default| default.min(room)));
        if max_tokens < self.request.min_tokens {
            let min = self.request.min_tokens;
            return Err(ApiError::field(
                "min_tokens",
                format!("`min_tokens` ({min}) is more than {max_tokens}, the most tokens of this answer"),
            ));
        }
        let mut request = Request { prompt, max_tokens, ..self.request.clone() };
        if self.best_of > self.n {
            // Their log-probabilities decide which are the best.
            request.logprobs = request.logprobs.or(Some(0));
        }
        request.grammar = self.constraint.clone();
        Ok((0..self.best_of as u64)
            .map(|i| {
                let mut request = request.clone();
                // Different answers, the same ones each time.
                request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(i));
                request
            })
            .collect())
    }
}

/// Of each `best_of` answers the `n` with the highest log-probability a token, best first.
fn best(finished: Vec<Finished>, n: usize, best_of: usize) -> Vec<Finished> {
    let mean = |choice: &Finished| {
        let all = choice.tokens.iter().filter_map(|token| token.logprobs.as_ref()).map(|found| found.logprob);
        let (count, sum) = all.fold((0usize, 0f32), |(count, sum), logprob| (count + 1, sum + logprob));
        if count == 0 { f32::NEG_INFINITY } else { sum / count as f32 }
    };
    let mut finished = finished.into_iter();
    let mut chosen = Vec::new();
    loop {
        let mut group: Vec<Finished> = finished.by_ref().take(best_of).collect();
        if group.is_empty() {
            return chosen;
        }
        group.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        chosen.extend(group.into_iter().take(n));
    }
}

fn sampling(fields: &mut Fields, defaults: &Defaults, vocab_size: usize) -> Result<SamplingParams, ApiError> {
    // vLLM writes "all" as -1.
    let top_k = match fields.take::<i64>("top_k")? {
        None => defaults.top_k,
        Some(-1 | 0) => 0,
        Some(k) => usize::try_from(k).map_err(|_| {
            ApiError::field("top_k", format!("`top_k` must be -1, 0 (all tokens) or positive, not {k}"))
        })?,
    };
    let penalty = |value: f32| (-2.0..=2.0).contains(&value);
    Ok(SamplingParams {
        temperature: fields
            .number("temperature", "[0, 2]", |t| (0.0..=2.0).contains(&t))?
            .unwrap_or(defaults.temperature),
        top_p: fields.number("top_p", "(0, 1]", |p| p > 0.0 && p <= 1.0)?.unwrap_or(defaults.top_p),
        top_k,
        min_p: fields.number("min_p", "[0, 1]", |p| (0.0..=1.0).contains(&p))?.unwrap_or(defaults.min_p),
        repetition_penalty: fields
            .number("repetition_penalty", "(0, 2]", |r| r > 0.0 && r <= 2.0)?
            .unwrap_or(defaults.repetition_penalty),
        presence_penalty: fields.number("presence_penalty", "[-2, 2]", penalty)?.unwrap_or(0.0),
        frequency_penalty: fields.number("frequency_penalty", "[-2, 2]", penalty)?.unwrap_or(0.0),
        logit_bias: tokens::logit_bias(fields, vocab_size)?,
        seed: fields.take::<i64>("seed")?.map(|seed| seed as u64),
    })
}

fn stop_strings(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let stop = match fields.take("stop")? {
        None => Vec::new(),
        Some(Stop::One(stop)) => vec![stop],
        Some(Stop::Many(stops)) => stops,
    };
    if stop.iter().any(String::is_empty) {
        return Err(ApiError::field("stop", "`stop` must not be an empty string"));
    }
    Ok(stop)
}

/// How many answers to choose from; a stream cannot wait for all of them.
fn best_of(fields: &mut Fields, n: usize, stream: bool) -> Result<usize, ApiError> {
    let best_of = fields.take("best_of")?.unwrap_or(n);
    let wrong = |message: String| Err(ApiError::field("best_of", message));
    match best_of {
        _ if !(n..=MAX_CHOICES).contains(&best_of) => {
            wrong(format!("`best_of` must be between `n` ({n}) and {MAX_CHOICES}, not {best_of}"))
        }
        _ if stream && best_of > n => wrong("`best_of` above `n` cannot be streamed".into()),
        _ => Ok(best_of),
    }
}

/// Alternatives to report with each token of the prompt; in no stream, as at vLLM.
fn prompt_logprobs(fields: &mut Fields, stream: bool) -> Result<Option<usize>, ApiError> {
    const NAME: &str = "prompt_logprobs";
    match fields.take::<i64>(NAME)? {
        None => Ok(None),
        Some(_) if stream => Err(ApiError::field(NAME, format!("`{NAME}` cannot be streamed"))),
        Some(top) => match usize::try_from(top) {
            Ok(top) if top <= MAX_LOGPROBS => Ok(Some(top)),
            _ => Err(ApiError::field(NAME, format!("`{NAME}` must be in [0, {MAX_LOGPROBS}], not {top}"))),
        },
    }
}

/// Whether the stream is to end with the counts, and whether each chunk is to have them.
fn stream_options(fields: &mut Fields, stream: bool) -> Result<(bool, bool), ApiError> {
    const NAME: &str = "stream_options";
    let Some(options) = fields.take::<Map<String, Value>>(NAME)? else { return Ok((false, false)) };
    if !stream {
        return Err(ApiError::field(NAME, "`stream_options` is only allowed when `stream` is true"));
    }
    let mut options = Fields::new(options);
    let include = options.take("include_usage")?.unwrap_or(false);
    let each = options.take("continuous_usage_stats")?.unwrap_or(false);
    // Padding against eavesdroppers who guess from sizes: OpenAI's business, and no part of the answer.
    options.take::<bool>("include_obfuscation")?;
    options.finish()?;
    Ok((include, include && each))
}

/// Fields that would change the answer if they were supported, and the values that ask for nothing.
fn not_yet() -> Vec<(&'static str, Vec<Value>)> {
    let off = || vec![json!(false)];
    vec![
        ("kv_transfer_params", vec![]),
        ("length_penalty", vec![json!(1), json!(1.0)]),
        ("logits_processors", vec![json!([])]),
        ("return_token_ids", off()),
        ("return_tokens_as_token_ids", off()),
        ("truncate_prompt_tokens", vec![]),
        ("use_beam_search", off()),
        ("vllm_xargs", vec![json!({})]),
    ]
}
