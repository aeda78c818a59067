//! One turn of a conversation, whichever endpoint asked for it: from messages, tools and parameters to running
//! requests and the form of their answers.

use super::answer::Form;
use super::http::App;
use super::openai::{ApiError, Fields, Params, messages};
use super::running::Running;
use super::tools::Tools;
use crate::engine::Grammar;
use crate::token::RenderOptions;
use serde_json::{Map, Value};

/// A conversation as the chat template gets it.
pub(super) struct Conversation {
    pub messages: Value,
    pub options: RenderOptions,
    /// Whether the tokenizer adds its special tokens around what the template writes.
    pub add_special: bool,
}

impl Conversation {
    /// Chat's fields, vLLM's additions included.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let messages = messages::for_template(fields.require("messages")?)?;
        let continue_final_message = fields.take("continue_final_message")?.unwrap_or(false);
        let add_generation_prompt = fields.take("add_generation_prompt")?.unwrap_or(!continue_final_message);
        if continue_final_message && add_generation_prompt {
            let message = "`continue_final_message` and `add_generation_prompt` exclude each other";
            return Err(ApiError::field("continue_final_message", message));
        }
        let options = RenderOptions {
            add_generation_prompt,
            continue_final_message,
            tools: None,
            documents: fields.take("documents")?,
            kwargs: fields.take::<Map<String, Value>>("chat_template_kwargs")?.unwrap_or_default(),
        };
        Ok(Self { messages, options, add_special: fields.take("add_special_tokens")?.unwrap_or(false) })
    }

    /// The prompt's text and its tokens.
    pub fn prompt(self, app: &App, tools: &Tools) -> Result<(String, Vec<u32>), ApiError> {
        let Self { messages, mut options, add_special } = self;
        let model = app.engine.model();
        let template = model
            .chat
            .as_ref()
            .ok_or_else(|| ApiError::field("messages", "the model has no chat template; use /v1/completions"))?;
        let messages = app.style.show(tools, messages, &mut options);
        let text = template.render(&messages, &options)?;
        // The template writes BOS where the model wants it.
        let ids = model.tokenizer()?.encode(&text, add_special)?;
        Ok((text, ids))
    }
}

/// What an endpoint has read out of its request.
pub(super) struct Turn {
    pub conversation: Conversation,
    pub tools: Tools,
    pub params: Params,
    /// Which field the prompt came from, for errors about its length.
    pub prompt_field: &'static str,
}

/// A turn at work.
pub(super) struct Started {
    pub running: Running,
    pub form: Form,
    pub prompt_tokens: usize,
    /// The prompt, where log-probabilities of its tokens are wanted.
    pub prompt: Vec<u32>,
    pub tools: Tools,
    pub params: Params,
}

impl Turn {
    /// Renders, tokenizes and submits.
    pub fn start(mut self, app: &App) -> Result<Started, ApiError> {
        if let Some(schema) = self.tools.schema() {
            if self.params.constraint.is_some() {
                let message = "a required tool call and a format of the answer exclude each other";
                return Err(ApiError::field("tool_choice", message));
            }
            self.params.constraint = Some(Grammar::JsonSchema(schema));
        }
        let (text, prompt) = self.conversation.prompt(app, &self.tools)?;
        let form = app.style.form(&self.tools, &text)?;
        self.params.request.grammar_start = form.grammar_start(&text);
        let prompt_tokens = prompt.len();
        let kept = self.params.request.prompt_logprobs.map(|_| prompt.clone()).unwrap_or_default();
        let requests = self.params.requests(prompt, app.engine.max_len(), None, self.prompt_field)?;
        let running = Running::start(app, requests, &self.params.text)?;
        Ok(Started { running, form, prompt_tokens, prompt: kept, tools: self.tools, params: self.params })
    }
}
