//! Answers on the way: an engine on the same weights, with the adapter as it is now.

use crate::common::{ADAPTER, largest_rank};
use crate::generate::chat_ids;
use runtime::Result;
use runtime::engine::text::{TextOptions, generate_text};
use runtime::engine::{Engine, EngineOptions, KvSize, Request};
use runtime::format::peft::Adapter;
use runtime::model::LoadedModel;
use runtime::train::Recipe;
use serde_json::json;
use std::sync::Arc;

pub struct Samples {
    model: Arc<LoadedModel>,
    prompts: Vec<String>,
    tokens: usize,
    engine: Option<Engine>,
}

impl Samples {
    pub fn new(model: Arc<LoadedModel>, recipe: &Recipe) -> Self {
        Self { model, prompts: recipe.sample_prompts.clone(), tokens: recipe.sample_tokens, engine: None }
    }

    /// Each prompt with its answer, greedily: what differs from time to time is the adapter's doing.
    pub fn answers(&mut self, adapter: &Adapter) -> Result<Vec<(String, String)>> {
        let prompts: Vec<Vec<u32>> = self.prompts.iter().map(|prompt| self.ids(prompt)).collect::<Result<_>>()?;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + self.tokens;
        if self.engine.is_none() {
            let options = EngineOptions {
                max_seqs: 1,
                max_len: Some(longest.min(self.model.config().max_positions)),
                kv: KvSize::Tokens(longest.next_multiple_of(64)),
                prefix_cache: false,
                max_adapters: 1,
                max_rank: largest_rank(adapter),
                dora: adapter.config.use_dora,
                ..EngineOptions::default()
            };
            self.engine = Some(Engine::start(Arc::clone(&self.model), options)?);
        }
        let Some(engine) = &self.engine else { return Ok(Vec::new()) };
        engine.load_adapter(ADAPTER, adapter)?;
        let mut answers = Vec::new();
        for (prompt, ids) in self.prompts.iter().zip(prompts) {
            let request =
                Request { prompt: ids, max_tokens: self.tokens, adapter: Some(ADAPTER.into()), ..Request::default() };
            let done = generate_text(engine, request, TextOptions::default())?;
            answers.push((prompt.clone(), done.text));
        }
        Ok(answers)
    }

    /// In the model's chat template, where it has one.
    fn ids(&self, prompt: &str) -> Result<Vec<u32>> {
        match &self.model.chat {
            Some(_) => chat_ids(&self.model, &json!([{ "role": "user", "content": prompt }])),
            None => self.model.tokenizer()?.encode(prompt, true),
        }
    }
}
