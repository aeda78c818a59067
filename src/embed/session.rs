//! A text that grows: what a program appends, and what the model answers. It holds tokens only; their keys and values lie in the
//! engine's pages, found again by their contents, so a fork costs nothing and shares what it has in common.

use super::adapter::{Adapter, Blend, resolve};
use super::event::EventKind;
use super::model::Model;
use super::request::Request;
use super::state;
use crate::engine::text::{TextOptions, submit_text};
use crate::engine::{Grammar, SamplingParams};
use crate::error::{Error, Result};
use crate::token::RenderOptions;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How to answer.
#[derive(Clone, Debug, Default)]
pub struct Generate {
    /// Most tokens; 0: 128, or as many as there is room for.
    pub max_tokens: usize,
    /// The answer does not end before so many.
    pub min_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// Go on past the model's end-of-text tokens.
    pub ignore_eos: bool,
    /// What the answer must look like.
    pub grammar: Option<Grammar>,
    /// Report log-probabilities of the answer's tokens.
    pub logprobs: bool,
    /// Requests with smaller numbers are served first.
    pub priority: i32,
}

/// A session's text, shared with the request that adds to it.
#[derive(Clone, Default)]
pub(super) struct SessionState {
    pub tokens: Vec<u32>,
    /// The messages, where the text was made of messages.
    pub chat: Option<Chat>,
    /// Lengths at which the messages are known: what a rewind can go back to.
    marks: Vec<(usize, Option<Chat>)>,
    busy: bool,
}

/// A conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Chat {
    pub messages: Vec<Value>,
    /// What the assistant has said since the last of them; `None` where it is not its turn.
    pub open: Option<String>,
}

impl SessionState {
    /// A text that was saved.
    pub fn restored(tokens: Vec<u32>, chat: Option<Chat>) -> Self {
        let marks = vec![(tokens.len(), chat.clone())];
        Self { tokens, chat, marks, busy: false }
    }

    fn mark(&mut self) {
        let len = self.tokens.len();
        self.marks.retain(|(at, _)| *at < len);
        self.marks.push((len, self.chat.clone()));
    }

    /// More of an answer.
    pub fn hear(&mut self, ids: &[u32], text: &str) {
        self.tokens.extend_from_slice(ids);
        if let Some(open) = self.chat.as_mut().and_then(|chat| chat.open.as_mut()) {
            open.push_str(text);
        }
    }

    /// The answer is complete, or will not be.
    pub fn answered(&mut self) {
        self.busy = false;
        self.mark();
    }
}

/// A text that grows. Used by one thread at a time; while a request runs on it, it can only be cancelled.
pub struct Session {
    state: Arc<Mutex<SessionState>>,
    adapters: Mutex<Blend>,
    model: Arc<Model>,
}

impl Session {
    /// An empty text.
    ///
    /// # Errors
    /// Those of [`Model::loaded`].
    pub fn new(model: &Arc<Model>) -> Result<Arc<Self>> {
        model.ready()?;
        Ok(Self::with(model, SessionState::default(), Blend::new()))
    }

    fn with(model: &Arc<Model>, state: SessionState, adapters: Blend) -> Arc<Self> {
        let (state, adapters) = (Arc::new(Mutex::new(state)), Mutex::new(adapters));
        Arc::new(Self { state, adapters, model: model.clone() })
    }

    /// The model that answers.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    fn state(&self) -> MutexGuard<'_, SessionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The text, where no request is adding to it.
    fn idle(&self) -> Result<MutexGuard<'_, SessionState>> {
        let state = self.state();
        match state.busy {
            true => Err(Error::Busy("a request is running on this session: wait for its end, or cancel it".into())),
            false => Ok(state),
        }
    }

    fn adapters(&self) -> Blend {
        self.adapters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The adapters that answer from now on.
    ///
    /// # Errors
    /// [`Error::Invalid`] where they do not belong to the model or are too large together.
    pub fn set_adapters(&self, blend: Blend) -> Result<()> {
        resolve(&*self.model.ready()?, &self.model, &blend)?;
        *self.adapters.lock().unwrap_or_else(PoisonError::into_inner) = blend;
        Ok(())
    }

    /// Appends text as it stands; gives the tokens that there are now. In a conversation the assistant has then begun to say so.
    ///
    /// # Errors
    /// [`Error::Text`] for a model without tokenizer; [`Error::Busy`] while a request runs.
    pub fn append_text(&self, text: &str) -> Result<usize> {
        let mut state = self.idle()?;
        let ids = self.model.loaded()?.tokenizer()?.encode(text, state.tokens.is_empty())?;
        state.hear(&ids, text);
        state.mark();
        Ok(state.tokens.len())
    }

    /// Appends tokens.
    ///
    /// # Errors
    /// [`Error::Invalid`] for tokens outside the vocabulary; [`Error::Busy`] while a request runs.
    pub fn append_tokens(&self, ids: &[u32]) -> Result<usize> {
        let mut state = self.idle()?;
        let model = self.model.loaded()?;
        let vocab = model.config().vocab;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::invalid(format!("token {id} is outside the vocabulary of {vocab}")));
        }
        let text = model.tokenizer.as_ref().map(|t| t.decode(ids, true)).unwrap_or_default();
        state.hear(ids, &text);
        state.mark();
        Ok(state.tokens.len())
    }

    /// Appends messages to the conversation, which then ends with the beginning of the assistant's answer.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no list of messages, or where the text did not begin with messages; [`Error::Text`] where the
    /// model has no chat template; [`Error::Busy`] while a request runs.
    pub fn append_messages(&self, messages: Value) -> Result<usize> {
        let mut state = self.idle()?;
        let Value::Array(new) = messages else { return Err(Error::invalid("messages must be a JSON list")) };
        if new.is_empty() || new.iter().any(|message| !message["role"].is_string()) {
            return Err(Error::invalid("messages must be a JSON list of objects with a 'role' and a 'content'"));
        }
        let mut chat = match &state.chat {
            Some(chat) => chat.clone(),
            None if state.tokens.is_empty() => Chat::default(),
            None => {
                return Err(Error::invalid(
                    "messages can only follow messages: this session has text, or was rewound to within a message",
                ));
            }
        };
        if let Some(said) = chat.open.take() {
            chat.messages.push(json!({ "role": "assistant", "content": said }));
        }
        chat.messages.extend(new);
        let asks = chat.messages.last().is_some_and(|message| message["role"] != "assistant");
        chat.open = asks.then(String::new);
        let model = self.model.loaded()?;
        let options = RenderOptions { add_generation_prompt: asks, ..RenderOptions::default() };
        let text = model.chat()?.render(&Value::Array(chat.messages.clone()), &options)?;
        state.tokens = model.tokenizer()?.encode(&text, false)?;
        state.chat = Some(chat);
        state.mark();
        Ok(state.tokens.len())
    }

    /// What an answer will be asked for with.
    pub fn ask(&self, userdata: u64) -> Arc<Request> {
        Request::new(self.model.host(), EventKind::RequestDone, userdata)
    }

    /// Begins to answer; text and end come as events of `asked`, and the answer is appended.
    ///
    /// # Errors
    /// Those of [`submit_text`]; [`Error::Busy`] while another request runs; [`Error::Invalid`] where it is not the assistant's turn.
    pub fn generate(&self, options: Generate, asked: &Arc<Request>) -> Result<()> {
        let ready = self.model.ready()?;
        let shared = self.model.host().shared();
        let mut state = self.idle()?;
        if state.chat.as_ref().is_some_and(|chat| chat.open.is_none()) {
            return Err(Error::invalid("the conversation ends with the assistant's words: append a user's message"));
        }
        let room = ready.engine.max_len().saturating_sub(state.tokens.len());
        let request = crate::engine::Request {
            prompt: state.tokens.clone(),
            max_tokens: if options.max_tokens == 0 { room.min(128) } else { options.max_tokens },
            min_tokens: options.min_tokens,
            ignore_eos: options.ignore_eos,
            sampling: options.sampling,
            logprobs: options.logprobs.then_some(0),
            adapter: resolve(&ready, &self.model, &self.adapters())?,
            grammar: options.grammar,
            priority: options.priority,
            ..crate::engine::Request::default()
        };
        let text = TextOptions { stop: options.stop, continues_prompt: state.chat.is_none(), ..TextOptions::default() };
        state.busy = true;
        // The engine's thread may answer before this function has returned.
        drop(state);
        asked.belongs_to(&self.state);
        let sink = asked.sink();
        match submit_text(&ready.engine, request, text, sink) {
            Ok(id) => {
                asked.submitted(&ready, id);
                shared.notify();
                Ok(())
            }
            Err(error) => {
                asked.withdraw();
                self.state().busy = false;
                Err(error)
            }
        }
    }

    /// Another session with the same text and adapters.
    ///
    /// # Errors
    /// [`Error::Busy`] while a request runs.
    pub fn fork(&self) -> Result<Arc<Self>> {
        let state = self.idle()?.clone();
        Ok(Self::with(&self.model, state, self.adapters()))
    }

    /// Cuts the text to its first `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Invalid`] for more tokens than there are; [`Error::Busy`] while a request runs.
    pub fn rewind(&self, tokens: usize) -> Result<()> {
        let mut state = self.idle()?;
        if tokens > state.tokens.len() {
            let len = state.tokens.len();
            return Err(Error::invalid(format!("cannot rewind to {tokens} tokens, there are {len}")));
        }
        let mark = state.marks.iter().find(|(at, _)| *at == tokens).map(|(_, chat)| chat.clone());
        state.tokens.truncate(tokens);
        state.chat = mark.flatten();
        state.mark();
        Ok(())
    }

    /// The tokens.
    pub fn tokens(&self) -> Vec<u32> {
        self.state().tokens.clone()
    }

    /// How many there are.
    pub fn token_count(&self) -> usize {
        self.state().tokens.len()
    }

    /// The text and what it belongs to, to be restored later, by another process too.
    ///
    /// # Errors
    /// [`Error::Busy`] while a request runs.
    pub fn save(&self) -> Result<Vec<u8>> {
        let state = self.idle()?.clone();
        state::save(&state, self.model.ready()?.hash, &hashes(&self.adapters()))
    }

    /// As [`Session::save`], with the keys and values of its text, as far as they are in the cache: restored, it goes on without
    /// computing them again.
    ///
    /// # Errors
    /// As [`Session::save`]; [`Error::Device`].
    pub fn save_with_cache(&self) -> Result<Vec<u8>> {
        let state = self.idle()?.clone();
        let (ready, adapters) = (self.model.ready()?, self.adapters());
        let bytes = state::save(&state, ready.hash, &hashes(&adapters))?;
        if state.tokens.is_empty() {
            return Ok(bytes);
        }
        let name = resolve(&ready, &self.model, &adapters)?;
        let cache = ready.driver().save_cache(&ready.engine, &state.tokens, name.as_deref())?;
        Ok(state::with_cache(bytes, cache))
    }

    /// A session as it was saved. Its adapters are given, and have to be the same.
    ///
    /// # Errors
    /// [`Error::Format`] for bytes that are no saved session; [`Error::Invalid`] for another model or other adapters.
    pub fn restore(model: &Arc<Model>, bytes: &[u8], adapters: Blend) -> Result<Arc<Self>> {
        let ready = model.ready()?;
        let (state, cache) = state::load(bytes, ready.hash, &hashes(&adapters))?;
        let vocab = model.loaded()?.config().vocab;
        if state.tokens.iter().any(|id| *id as usize >= vocab) {
            return Err(Error::format("session", "tokens", format!("a token outside the vocabulary of {vocab}")));
        }
        let tokens = state.tokens.clone();
        let session = Self::with(model, state, Blend::new());
        session.set_adapters(adapters)?;
        if let Some(cache) = cache.filter(|_| !tokens.is_empty()) {
            let name = resolve(&ready, model, &session.adapters())?;
            ready.driver().load_cache(&ready.engine, &tokens, name.as_deref(), cache)?;
        }
        Ok(session)
    }
}

fn hashes(blend: &[(Arc<Adapter>, f32)]) -> Vec<(u64, f32)> {
    blend.iter().map(|(adapter, scale)| (adapter.hash(), *scale)).collect()
}
