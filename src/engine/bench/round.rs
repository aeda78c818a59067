//! Requests that are submitted together, and when each of their tokens came.

use crate::engine::{Engine, Event, Request, Usage};
use crate::error::{Error, Result};
use std::ops::ControlFlow;
use std::sync::mpsc;
use std::time::Instant;

/// One request: random tokens in, greedy ones out, past the end of text.
pub struct Job {
    pub prompt_tokens: usize,
    pub max_tokens: usize,
    /// Prompts of different seeds begin with different tokens.
    pub seed: usize,
    pub adapter: Option<String>,
}

pub struct Round {
    start: Instant,
    /// Times of the tokens of each, and its counts.
    pub requests: Vec<(Vec<Instant>, Usage)>,
    /// Seconds that the engine's thread worked, waiting for the device left out.
    pub host_s: f64,
}

impl Round {
    /// `like` has what the requests share.
    pub fn run(engine: &Engine, like: &Request, jobs: impl Iterator<Item = Job>) -> Result<Self> {
        let vocab = engine.model().config().vocab;
        let (sender, events) = mpsc::channel();
        let before = engine.stats().host_s;
        let start = Instant::now();
        let mut expected = 0;
        for job in jobs {
            expected += 1;
            let (sender, wanted) = (sender.clone(), job.max_tokens);
            let mut times = Vec::with_capacity(wanted);
            let sink = move |event| {
                let done = match event {
                    Event::Started { .. } | Event::Prompt(_) => return ControlFlow::Continue(()),
                    Event::Token { .. } => {
                        times.push(Instant::now());
                        return ControlFlow::Continue(());
                    }
                    Event::Done { usage, .. } if times.len() == wanted => Ok((std::mem::take(&mut times), usage)),
                    Event::Done { .. } => Err(Error::internal("the engine ended an answer early")),
                    Event::Failed(error) => Err(error),
                };
                let _ = sender.send(done);
                ControlFlow::Break(())
            };
            let token = |i: usize| (1 + (job.seed + i * 31) % vocab.saturating_sub(1).max(1)) as u32;
            let request = Request {
                prompt: (0..job.prompt_tokens).map(token).collect(),
                max_tokens: job.max_tokens,
                adapter: job.adapter,
                ignore_eos: true,
                ..like.clone()
            };
            engine.submit(request, Box::new(sink))?;
        }
        drop(sender);
        let requests = events.iter().collect::<Result<Vec<(Vec<Instant>, Usage)>>>()?;
        match requests.len() == expected {
            true => Ok(Self { start, requests, host_s: engine.stats().host_s - before }),
            false => Err(Error::internal("the engine dropped a request")),
        }
    }

    /// Seconds until every request has its first token, without the way of a lonely request to the engine's thread.
    pub fn prefill_s(&self) -> f64 {
        match &self.requests[..] {
            [(_, usage)] => usage.prefill_s,
            _ => self.first_token_s(),
        }
    }

    /// Seconds until every request has its first token.
    pub fn first_token_s(&self) -> f64 {
        let last = self.requests.iter().filter_map(|(times, _)| times.first()).max();
        last.map_or(0.0, |last| (*last - self.start).as_secs_f64())
    }

    /// Seconds until every request has its last token.
    pub fn total_s(&self) -> f64 {
        let last = self.requests.iter().filter_map(|(times, _)| times.last()).max();
        last.map_or(0.0, |last| (*last - self.start).as_secs_f64())
    }

    /// Tokens a second while all requests decode: from the last first token to the first last one.
    pub fn decode_tok_s(&self) -> Result<f64> {
        let begin = self.requests.iter().filter_map(|(times, _)| times.first()).max();
        let end = self.requests.iter().filter_map(|(times, _)| times.last()).min();
        match begin.zip(end) {
            Some((begin, end)) if begin < end => {
                let all = self.requests.iter().flat_map(|(times, _)| times);
                let tokens = all.filter(|time| begin < *time && *time <= end).count();
                Ok(tokens as f64 / (*end - *begin).as_secs_f64())
            }
            _ => Err(Error::invalid("the first answers end before the last ones begin: ask for more new tokens")),
        }
    }
}
