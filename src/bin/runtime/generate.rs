//! `runtime generate`

use crate::common::{self, ADAPTER, CacheArgs, Ids, ModelArgs};
use crate::sampling::SamplingArgs;
use crate::speculative::SpeculativeArgs;
use runtime::engine::text::{Completion, TextEvent, TextOptions, generate_text, submit_text};
use runtime::engine::{Engine, FinishReason, Request, Usage};
use runtime::model::LoadedModel;
use runtime::token::RenderOptions;
use runtime::{Error, Result};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::mpsc;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    speculative: SpeculativeArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// A LoRA adapter in PEFT's format
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Put the prompt into the model's chat template, as a user's message
    #[arg(long, conflicts_with = "ids")]
    chat: bool,
    /// Print one JSON object instead of the text
    #[arg(long)]
    json: bool,
}

/// Text or token ids; one of them.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct PromptArgs {
    /// The prompt, as text
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// The prompt, as token ids
    #[arg(long, value_name = "1,2,3")]
    ids: Option<Ids>,
}

impl PromptArgs {
    /// Token ids; what the model expects around a text (BOS) is added to text only.
    pub fn encode(&self, model: &LoadedModel) -> Result<Vec<u32>> {
        match (&self.prompt, &self.ids) {
            (_, Some(ids)) => Ok(ids.0.clone()),
            (Some(text), None) => model.tokenizer()?.encode(text, true),
            (None, None) => Err(Error::invalid("pass -p PROMPT or --ids 1,2,3")),
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let model = args.model.load()?;
    let prompt = match &args.prompt.prompt {
        Some(text) if args.chat => chat_ids(&model, &json!([{ "role": "user", "content": text }]))?,
        _ => args.prompt.encode(&model)?,
    };
    let speculation = args.speculative.load(&model)?;
    let engine = common::engine(model, args.adapter.as_deref(), args.cache, speculation)?;
    let request = args.sampling.request(prompt, args.adapter.as_ref().map(|_| ADAPTER.to_owned()));
    let options =
        TextOptions { stop: args.sampling.stop.clone(), continues_prompt: !args.chat, ..TextOptions::default() };
    if args.json {
        let done = generate_text(&engine, request, options)?;
        return common::print_json(&report(&engine, &done));
    }
    stream(&engine, request, options, common::print)?;
    common::print("\n")
}

/// A conversation as the model's template writes it, ready for the assistant's turn.
pub fn chat_ids(model: &LoadedModel, messages: &Value) -> Result<Vec<u32>> {
    let template = model.chat()?;
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    model.tokenizer()?.encode(&template.render(messages, &options)?, false)
}

/// Passes the text on as it comes; returns when the answer is complete. The engine's thread never waits for a terminal.
pub fn stream(
    engine: &Engine,
    request: Request,
    options: TextOptions,
    mut on_text: impl FnMut(&str) -> Result<()>,
) -> Result<(FinishReason, Usage)> {
    let (sender, events) = mpsc::channel();
    let sink = move |event| match sender.send(event) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    };
    submit_text(engine, request, options, Box::new(sink))?;
    for event in events {
        match event {
            TextEvent::Prompt(_) => {}
            TextEvent::Delta { text, .. } => on_text(&text)?,
            TextEvent::Done { reason, usage, .. } => return Ok((reason, usage)),
            TextEvent::Failed(error) => return Err(error),
        }
    }
    Err(Error::internal("the engine dropped a request"))
}

fn report(engine: &Engine, done: &Completion) -> Value {
    let usage = &done.usage;
    // The first token comes out of the prefill; the clock of decoding starts with it.
    let decoded = usage.completion_tokens.saturating_sub(1);
    json!({
        "ids": done.ids,
        "text": done.text,
        "finish_reason": done.reason.as_str(),
        "prompt_tokens": usage.prompt_tokens,
        "prefill_tok_s": rate(usage.prompt_tokens, usage.prefill_s),
        "decode_tok_s": rate(decoded, usage.decode_s),
        "backend": engine.model().device.info().backend,
    })
}

/// Per second; null where nothing was measured.
fn rate(count: usize, seconds: f64) -> Option<f64> {
    (count > 0 && seconds > 0.0).then(|| count as f64 / seconds)
}
