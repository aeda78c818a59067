//! The tokenizer every other part of the crate uses, whatever file it came from.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, Encoding, TokenizerImpl};

use super::pieces::{Pieces, Rules};
use super::spm::SpmModel;
use super::stream::StreamDecoder;
use crate::{Error, Result};

/// Strings that end a turn in the chat formats of the supported families, for files that do not say.
const END_OF_TURN: [&str; 8] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
];

type SpmTokenizer =
    TokenizerImpl<SpmModel, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// What turns text into ids.
pub(super) enum Engine {
    /// Everything a tokenizer.json can describe, and byte-level BPE from GGUF metadata.
    Json(Box<tokenizers::Tokenizer>),
    /// SentencePiece BPE from GGUF metadata.
    SentencePiece(Box<SpmTokenizer>),
}

impl Engine {
    fn encode(&self, text: &str) -> Result<Encoding> {
        match self {
            Self::Json(tokenizer) => tokenizer.encode(text, false),
            Self::SentencePiece(tokenizer) => tokenizer.encode(text, false),
        }
        .map_err(|error| Error::Text(format!("cannot tokenize: {error}")))
    }

    fn token(&self, id: u32) -> Option<String> {
        match self {
            Self::Json(tokenizer) => tokenizer.id_to_token(id),
            Self::SentencePiece(tokenizer) => tokenizer.id_to_token(id),
        }
    }

    fn id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Json(tokenizer) => tokenizer.token_to_id(token),
            Self::SentencePiece(tokenizer) => tokenizer.token_to_id(token),
        }
    }

    /// One more than the largest id; ids need not be dense.
    fn size(&self) -> usize {
        let vocab = match self {
            Self::Json(tokenizer) => tokenizer.get_vocab(true),
            Self::SentencePiece(tokenizer) => tokenizer.get_vocab(true),
        };
        vocab.values().max().map_or(0, |&id| id as usize + 1)
    }

    /// Ids of added tokens, and whether each is special.
    pub(super) fn added(&self) -> Vec<(u32, bool)> {
        let added = match self {
            Self::Json(tokenizer) => tokenizer.get_added_tokens_decoder(),
            Self::SentencePiece(tokenizer) => tokenizer.get_added_tokens_decoder(),
        };
        added.into_iter().map(|(id, token)| (id, token.special)).collect()
    }
}

/// The ingredients of a [`Tokenizer`].
pub(super) struct Parts {
    pub engine: Engine,
    pub rules: Rules,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub pad: Option<u32>,
    /// Added before and after the text when special tokens are asked for.
    pub prefix: Vec<u32>,
    pub suffix: Vec<u32>,
    /// Ids that end a turn besides `eos`.
    pub end_of_turn: Vec<u32>,
}

struct Inner {
    engine: Engine,
    pieces: Pieces,
    special: HashSet<u32>,
    size: usize,
    strip_space: bool,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    end_ids: Vec<u32>,
}

/// One token of a text: its id and the bytes of the text it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSpan {
    /// Token id.
    pub id: u32,
    /// Byte range in the encoded text; empty for a token that was added. Tokens that share one
    /// character have the same range: the whole character.
    pub bytes: Range<usize>,
}

/// Text to token ids and back. Cheap to clone, shared between threads.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.0.size)
            .field("bos", &self.0.bos)
            .field("eos", &self.0.eos)
            .finish()
    }
}

/// A special token of tokenizer_config.json or special_tokens_map.json: a string or `{"content": …}`.
pub(super) fn special_token(files: &[&Value], name: &str) -> Option<String> {
    files
        .iter()
        .map(|file| &file[name])
        .find_map(|entry| entry.as_str().or_else(|| entry["content"].as_str()).map(str::to_owned))
}

impl Tokenizer {
    /// Words are taken apart anew each time. The tokenizer's crate otherwise keeps those that it has seen in storage of the calling
    /// thread, for ever: in somebody else's process, on somebody else's threads, that is a leak of up to 10,000 words a model.
    /// Does nothing to a tokenizer that is shared already.
    pub fn remember_no_words(&mut self) {
        if let Some(Engine::Json(tokenizer)) = Arc::get_mut(&mut self.0).map(|inner| &mut inner.engine) {
            let mut model = tokenizer.get_model().clone();
            model.resize_cache(0);
            tokenizer.with_model(model);
        }
    }

    /// Reads a Hugging Face tokenizer: the bytes of tokenizer.json, and the other two files where they
    /// exist ([`Value::Null`] where not).
    ///
    /// # Errors
    /// [`Error::Format`] for a file that does not parse or contradicts itself, [`Error::Unsupported`]
    /// for a decoder that is neither byte-level nor SentencePiece's.
    pub fn from_json(tokenizer_json: &[u8], tokenizer_config: &Value, special_tokens_map: &Value) -> Result<Self> {
        const FILE: &str = "tokenizer.json";
        let format = |place: &str, message: String| Error::format(FILE, place, message);
        let json: Value = serde_json::from_slice(tokenizer_json).map_err(|error| format("JSON", error.to_string()))?;
        let rules = Rules::from_json(&json["decoder"])?;
        let mut tokenizer =
            tokenizers::Tokenizer::from_bytes(tokenizer_json).map_err(|error| format("content", error.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| format("truncation", error.to_string()))?;
        add_missing(&mut tokenizer, tokenizer_config)?;

        let files = [tokenizer_config, special_tokens_map];
        let id = |name: &str| special_token(&files, name).and_then(|token| tokenizer.token_to_id(&token));
        let (bos, eos, pad) = (id("bos_token"), id("eos_token"), id("pad_token"));
        let flag = |name: &str| tokenizer_config.get(name).map(|value| value.as_bool().unwrap_or(false));
        let (prefix, suffix) = match (flag("add_bos_token"), flag("add_eos_token")) {
            (None, None) => template_tokens(&tokenizer)?,
            // As transformers: either key replaces what tokenizer.json says about both.
            (add_bos, add_eos) => {
                let wanted =
                    |add: Option<bool>, id: Option<u32>| id.filter(|_| add == Some(true)).into_iter().collect();
                (wanted(add_bos, bos), wanted(add_eos, eos))
            }
        };
        // It adds special tokens, which is done here, and may trim white space off the offsets.
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        let engine = Engine::Json(Box::new(tokenizer));
        Self::assemble(Parts { engine, rules, bos, eos, pad, prefix, suffix, end_of_turn: Vec::new() })
    }

    pub(super) fn assemble(parts: Parts) -> Result<Self> {
        let Parts { engine, rules, bos, eos, pad, prefix, suffix, end_of_turn } = parts;
        let size = engine.size();
        // Ids beyond any real vocabulary come from a damaged file; the table below is one entry an id.
        const MAX_SIZE: usize = 1 << 24;
        if size == 0 || size > MAX_SIZE {
            return Err(Error::format("tokenizer", "vocabulary", format!("largest id plus one is {size}")));
        }
        let added = engine.added();
        let added_ids: HashSet<u32> = added.iter().map(|&(id, _)| id).collect();
        let special: HashSet<u32> = added.iter().filter(|(_, special)| *special).map(|&(id, _)| id).collect();
        let mut pieces = Pieces::default();
        for id in 0..size as u32 {
            let token = engine.token(id).unwrap_or_default();
            if rules.byte_level && added_ids.contains(&id) {
                // Added tokens are plain text, not spelled in the byte alphabet.
                pieces.push(token.as_bytes());
            } else {
                pieces.push(&rules.bytes(&token));
            }
        }
        let mut end_ids: Vec<u32> = eos.into_iter().chain(end_of_turn).collect();
        end_ids.extend(END_OF_TURN.iter().filter_map(|token| engine.id(token)).filter(|id| special.contains(id)));
        end_ids.sort_unstable();
        end_ids.dedup();
        let strip_space = rules.strip_space;
        let inner = Inner { engine, pieces, special, size, strip_space, bos, eos, pad, prefix, suffix, end_ids };
        Ok(Self(Arc::new(inner)))
    }

    /// Token ids of `text`. Strings of special tokens in it become those tokens; `add_special` adds
    /// what the model expects around a text (BOS, EOS).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.0.engine.encode(text)?;
        let (prefix, suffix) = self.around(add_special);
        Ok([prefix, encoding.get_ids(), suffix].concat())
    }

    /// As [`Self::encode`], with the bytes of `text` behind each token.
    pub fn encode_with_offsets(&self, text: &str, add_special: bool) -> Result<Vec<TokenSpan>> {
        let encoding = self.0.engine.encode(text)?;
        let (prefix, suffix) = self.around(add_special);
        let added = |ids: &[u32], at: usize| ids.iter().map(|&id| TokenSpan { id, bytes: at..at }).collect::<Vec<_>>();
        let mut spans = added(prefix, 0);
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
        spans.extend(tokens.map(|(&id, &(start, end))| TokenSpan { id, bytes: start..end }));
        spans.extend(added(suffix, text.len()));
        Ok(spans)
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    pub(super) fn around(&self, add_special: bool) -> (&[u32], &[u32]) {
        if add_special { (&self.0.prefix, &self.0.suffix) } else { (&[], &[]) }
    }

    /// The text of `ids`; bytes that are not UTF-8 become U+FFFD. Unknown ids are empty.
    #[must_use]
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut bytes = Vec::new();
        for &id in ids.iter().filter(|id| !(skip_special && self.is_special(**id))) {
            bytes.extend_from_slice(self.token_bytes(id));
        }
        let text = if self.0.strip_space { bytes.strip_prefix(b" ").unwrap_or(&bytes) } else { &bytes };
        String::from_utf8_lossy(text).into_owned()
    }

    /// A decoder for ids that arrive one by one; see [`StreamDecoder`].
    #[must_use]
    pub fn stream(&self, skip_special: bool) -> StreamDecoder {
        StreamDecoder::new(self.clone(), skip_special)
    }

    /// The vocabulary's own spelling of `id`, for example `Ġthe`.
    #[must_use]
    pub fn token_str(&self, id: u32) -> Option<String> {
        self.0.engine.token(id)
    }

    /// The raw bytes `id` stands for; may be a part of a character. Empty for an unknown id.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.0.pieces.get(id)
    }

    /// The id of a vocabulary entry or added token, in the vocabulary's own spelling.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.0.engine.id(token)
    }

    /// One more than the largest id; the model's embedding may have more rows.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.0.size
    }

    /// Beginning of text.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.0.bos
    }

    /// End of text.
    #[must_use]
    pub fn eos(&self) -> Option<u32> {
        self.0.eos
    }

    /// Padding.
    #[must_use]
    pub fn pad(&self) -> Option<u32> {
        self.0.pad
    }

    /// Ids that end an answer: EOS and the end-of-turn tokens of the known chat formats, ascending.
    #[must_use]
    pub fn end_ids(&self) -> &[u32] {
        &self.0.end_ids
    }

    /// Whether `id` is a control token: recognised in text, left out of answers.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.0.special.contains(&id)
    }

    /// Whether [`Self::encode`] with special tokens starts with BOS.
    #[must_use]
    pub fn add_bos(&self) -> bool {
        self.0.bos.is_some() && self.0.prefix.first() == self.0.bos.as_ref()
    }

    /// Whether decoding drops one space at the start of a text (SentencePiece).
    pub(super) fn strips_space(&self) -> bool {
        self.0.strip_space
    }
}

/// Tokens that tokenizer_config.json lists and tokenizer.json lacks, as transformers adds them.
fn add_missing(tokenizer: &mut tokenizers::Tokenizer, config: &Value) -> Result<()> {
    let Some(listed) = config["added_tokens_decoder"].as_object() else { return Ok(()) };
    let error = |id: &str, message: String| {
        Error::format("tokenizer_config.json", format!("added_tokens_decoder.{id}"), message)
    };
    let mut missing = Vec::new();
    for (key, entry) in listed {
        let id: u32 = key.parse().map_err(|_| error(key, "is not a token id".into()))?;
        let Some(content) = entry["content"].as_str().filter(|content| !content.is_empty()) else { continue };
        if tokenizer.token_to_id(content).is_none() {
            let flag = |name: &str| entry[name].as_bool().unwrap_or(false);
            let token = AddedToken::from(content, flag("special"))
                .lstrip(flag("lstrip"))
                .rstrip(flag("rstrip"))
                .single_word(flag("single_word"))
                .normalized(flag("normalized"));
            missing.push((id, token));
        }
    }
    // Ids are handed out in order.
    missing.sort_by_key(|(id, _)| *id);
    for (id, token) in missing {
        let content = token.content.clone();
        tokenizer.add_tokens([token]).map_err(|e| error(&id.to_string(), e.to_string()))?;
        let got = tokenizer.token_to_id(&content);
        if got != Some(id) {
            return Err(error(
                &id.to_string(),
                format!("'{content}' is not in tokenizer.json and would get id {got:?}"),
            ));
        }
    }
    Ok(())
}

/// What tokenizer.json's post-processor puts before and after a text.
fn template_tokens(tokenizer: &tokenizers::Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
    let encode = |special| {
        let encoding = tokenizer.encode("a", special).map_err(|e| Error::Text(format!("cannot tokenize: {e}")))?;
        Ok::<_, Error>(encoding.get_ids().to_vec())
    };
    let (plain, full) = (encode(false)?, encode(true)?);
    let at = full.windows(plain.len().max(1)).position(|window| window == plain);
    Ok(at.map_or_else(Default::default, |at| (full[..at].to_vec(), full[at + plain.len()..].to_vec())))
}
