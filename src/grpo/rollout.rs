//! Prompts, and answers to them from the engine.

use super::GrpoOptions;
use crate::engine::{Engine, Event, Request, SamplingParams};
use crate::error::{Error, Result};
use crate::model::LoadedModel;
use crate::token::RenderOptions;
use crate::train::Recipe;
use crate::train::data::Row;
use crate::train::files::each_row;
use serde_json::Value;
use std::ops::ControlFlow;
use std::sync::mpsc;

/// One answer.
pub struct Rollout {
    /// The row that the prompt came from.
    pub row: Value,
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens of the answer, the one that ends it included.
    pub answer: Vec<u32>,
    /// The answer without it.
    pub text: String,
    /// It ended by itself.
    pub ended: bool,
}

/// The rows of the data file and their tokens, handed out in turn.
pub struct Prompts {
    rows: Vec<(Value, Vec<u32>)>,
    next: usize,
}

impl Prompts {
    /// Reads `recipe.data`.
    pub fn read(recipe: &Recipe, model: &LoadedModel) -> Result<Self> {
        let mut rows = Vec::new();
        for file in &recipe.data {
            each_row(&file.path, &mut |line, row| {
                let row = row.and_then(|row| prompt(&row, model).map(|ids| (row, ids)));
                rows.push(row.map_err(|e| Error::invalid(format!("{}:{line}: {e}", file.path.display())))?);
                Ok(())
            })?;
        }
        if rows.is_empty() {
            return Err(Error::invalid("data has no rows; expected one JSON object a line, a JSON list or Parquet"));
        }
        Ok(Self { rows, next: 0 })
    }

    /// Tokens of the longest prompt.
    pub fn longest(&self) -> usize {
        self.rows.iter().map(|(_, ids)| ids.len()).max().unwrap_or(0)
    }

    /// Passes over prompts that an earlier part of the run has had.
    pub fn skip(&mut self, count: usize) {
        self.next += count;
    }

    /// The tokens of each.
    pub fn tokens(&self) -> impl Iterator<Item = Row> {
        self.rows.iter().enumerate().map(|(i, (_, ids))| Row {
            ids: ids.clone(),
            counted: vec![false; ids.len()],
            line: i + 1,
        })
    }

    fn next(&mut self) -> (Value, Vec<u32>) {
        let row = self.rows[self.next % self.rows.len()].clone();
        self.next += 1;
        row
    }
}

fn prompt(row: &Value, model: &LoadedModel) -> Result<Vec<u32>> {
    let tokenizer = model.tokenizer()?;
    let ids = match &row["prompt"] {
        Value::String(text) => tokenizer.encode(text, true)?,
        Value::Array(_) => {
            let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
            tokenizer.encode(&model.chat()?.render(&row["prompt"], &options)?, false)?
        }
        _ => return Err(Error::invalid("expected the key 'prompt', a text or a list of messages")),
    };
    if ids.is_empty() { Err(Error::invalid("'prompt' is empty")) } else { Ok(ids) }
}

/// The answers of a step: `generations` to each of `prompts` prompts, those to one prompt together. They are drawn at
/// temperature 1 from all tokens: from the distribution whose gradient is taken. Seeds follow from the run's and from how many
/// steps are `done`.
pub fn roll_out(
    engine: &Engine,
    prompts: &mut Prompts,
    options: &GrpoOptions,
    adapter: &str,
    seed: u64,
    done: usize,
) -> Result<Vec<Rollout>> {
    let tokenizer = engine.model().tokenizer()?;
    let ends = [&engine.model().config().eos[..], tokenizer.end_ids()].concat();
    let mut waiting = Vec::new();
    for _ in 0..options.prompts {
        let (row, ids) = prompts.next();
        for _ in 0..options.generations {
            let request = Request {
                prompt: ids.clone(),
                max_tokens: options.max_tokens,
                // The end is learned, too, so it has to be reported: the sink stops at it.
                ignore_eos: true,
                sampling: SamplingParams {
                    temperature: 1.0,
                    seed: Some(answer_seed(seed, done, waiting.len())),
                    ..SamplingParams::default()
                },
                adapter: Some(adapter.to_owned()),
                ..Request::default()
            };
            let (sender, events) = mpsc::channel();
            let ends = ends.clone();
            let sink = move |event| {
                let last = matches!(&event, Event::Token { id, .. } if ends.contains(id));
                match sender.send(event) {
                    Ok(()) if !last => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                }
            };
            engine.submit(request, Box::new(sink))?;
            waiting.push((row.clone(), ids.clone(), events));
        }
    }
    let mut rollouts = Vec::with_capacity(waiting.len());
    for (row, prompt, events) in waiting {
        let mut answer = Vec::new();
        for event in events {
            match event {
                Event::Token { id, .. } => answer.push(id),
                Event::Failed(error) => return Err(error),
                Event::Started { .. } | Event::Prompt(_) | Event::Done { .. } => {}
            }
        }
        let ended = answer.last().is_some_and(|id| ends.contains(id));
        let text = tokenizer.decode(&answer[..answer.len() - usize::from(ended)], true);
        rollouts.push(Rollout { row, prompt, answer, text, ended });
    }
    Ok(rollouts)
}

/// A seed for answer `i` of the step after `done` steps: neighbours differ in all bits (SplitMix64's mix).
fn answer_seed(seed: u64, done: usize, i: usize) -> u64 {
    let mut z = seed ^ ((done as u64) << 32 | i as u64).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
