//! One answer from its first event to its end, for the endpoints whose answers are lists of blocks.

use super::answer::{Block, Blocks, Change, Form};
use super::openai::ApiError;
use super::running::Running;
use crate::engine::text::TextEvent;
use crate::engine::{FinishReason, Usage};
use crate::error::Error;
use std::future::poll_fn;

/// What there is of an answer.
pub(super) struct Progress {
    blocks: Blocks,
    /// Once it has ended.
    pub end: Option<End>,
}

/// How an answer ended.
pub(super) struct End {
    pub reason: FinishReason,
    pub usage: Usage,
    pub reasoning_tokens: usize,
    /// The stop string.
    pub stop: Option<String>,
}

impl Progress {
    pub fn new(form: &Form) -> Self {
        Self { blocks: Blocks::new(form), end: None }
    }

    /// Takes an event; what it changed.
    pub fn event(&mut self, event: TextEvent) -> Result<Vec<Change>, ApiError> {
        match event {
            // Asked for by no endpoint of this kind.
            TextEvent::Prompt(_) => Ok(Vec::new()),
            TextEvent::Delta { text, tokens } => Ok(self.blocks.push(&text, tokens)),
            TextEvent::Done { reason: FinishReason::Cancelled, .. } => Err(Error::Cancelled.into()),
            TextEvent::Done { reason, usage, stop } => {
                let changes = self.blocks.finish();
                self.end = Some(End { reason, usage, reasoning_tokens: self.blocks.reasoning_tokens, stop });
                Ok(changes)
            }
            TextEvent::Failed(error) => Err(error.into()),
        }
    }

    /// Waits for the end; all blocks, and how it ended.
    pub async fn finish(&mut self, mut running: Running) -> Result<(Vec<Block>, End), ApiError> {
        let mut done = Vec::new();
        while let Some((_, event)) = poll_fn(|context| running.poll_next(context)).await {
            let changes = self.event(event)?.into_iter();
            done.extend(changes.filter_map(|change| match change {
                Change::Close(block) => Some(block),
                Change::Open(_) | Change::More { .. } => None,
            }));
        }
        let end = self.end.take().ok_or_else(|| ApiError::server("the answer has no end"))?;
        Ok((done, end))
    }
}
