//! Tokenizers from GGUF metadata: byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`).
//!
//! The keys are those of the GGUF specification's tokenizer section; the ids are llama.cpp's, which is
//! the program these files are written for.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence};
use tokenizers::{AddedToken, TokenizerImpl};

use super::pieces::{META, Rules};
use super::pretokenize;
use super::spm::SpmModel;
use super::tokenizer::{Engine, Parts, Tokenizer};
use crate::{Error, Result};

/// `tokenizer.ggml.token_type` of an unknown-token entry.
const UNKNOWN: i32 = 2;
/// A control token: never text.
const CONTROL: i32 = 3;
/// A token whose string is recognised in text before anything else.
const USER_DEFINED: i32 = 4;

/// The `tokenizer.ggml.*` keys of a GGUF file, as they stand there.
#[derive(Debug, Clone, Default)]
pub struct GgufTokenizer {
    /// `model`: `gpt2` or `llama`.
    pub model: String,
    /// `pre`: how text is cut into words before BPE.
    pub pre: Option<String>,
    /// `tokens`, by id.
    pub tokens: Vec<String>,
    /// `scores`, by id (`llama`).
    pub scores: Option<Vec<f32>>,
    /// `token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    pub token_types: Option<Vec<i32>>,
    /// `merges`: two token strings with a space between (`gpt2`).
    pub merges: Option<Vec<String>>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `eot_token_id`: ends a turn, where that is not `eos`.
    pub eot: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix` (`llama`; true where absent).
    pub add_space_prefix: Option<bool>,
    /// `remove_extra_whitespaces`: only unigram models use it; `true` is refused for `llama`.
    pub remove_extra_whitespaces: Option<bool>,
}

impl Tokenizer {
    /// Rebuilds the tokenizer of a GGUF file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another `model`, an unknown `pre`; [`Error::Format`] where lists are
    /// missing, differ in length or contradict each other.
    pub fn from_gguf(mut gguf: GgufTokenizer) -> Result<Self> {
        check(&gguf)?;
        let count = gguf.tokens.len();
        for (id, token) in gguf.tokens.iter_mut().enumerate() {
            if token.is_empty() {
                // As llama.cpp does: an empty string would match everywhere.
                *token = format!("[EMPTY_{id}]");
            }
        }
        let (engine, rules, add_bos) = match gguf.model.as_str() {
            "gpt2" => byte_level(&mut gguf)?,
            "llama" => sentencepiece(&mut gguf)?,
            other => {
                return Err(Error::unsupported(format!(
                    "tokenizer.ggml.model is '{other}'; known are gpt2 (byte-level BPE) and llama (SentencePiece)"
                )));
            }
        };
        let wanted = |add: bool, id: Option<u32>| if add { id.into_iter().collect() } else { Vec::new() };
        Tokenizer::assemble(Parts {
            engine,
            rules,
            bos: gguf.bos,
            eos: gguf.eos,
            // Written as -1 by some converters; nothing here pads.
            pad: gguf.pad.filter(|&id| (id as usize) < count),
            prefix: wanted(gguf.add_bos.unwrap_or(add_bos), gguf.bos),
            suffix: wanted(gguf.add_eos.unwrap_or(false), gguf.eos),
            end_of_turn: gguf.eot.into_iter().collect(),
        })
    }
}

fn format_error(key: &str, message: String) -> Error {
    Error::format("GGUF metadata", format!("tokenizer.ggml.{key}"), message)
}

fn check(gguf: &GgufTokenizer) -> Result<()> {
    let count = gguf.tokens.len();
    if count == 0 {
        return Err(format_error("tokens", "is missing or empty".into()));
    }
    for (key, len) in
        [("token_type", gguf.token_types.as_ref().map(Vec::len)), ("scores", gguf.scores.as_ref().map(Vec::len))]
    {
        if let Some(len) = len
            && len != count
        {
            return Err(format_error(key, format!("has {len} entries, but there are {count} tokens")));
        }
    }
    for (key, id) in [
        ("bos_token_id", gguf.bos),
        ("eos_token_id", gguf.eos),
        ("eot_token_id", gguf.eot),
        ("unknown_token_id", gguf.unk),
    ] {
        if let Some(id) = id
            && id as usize >= count
        {
            return Err(format_error(key, format!("is {id}, but there are {count} tokens")));
        }
    }
    let mut ids: HashMap<&str, usize> = HashMap::with_capacity(count);
    for (id, token) in gguf.tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()) {
        if let Some(first) = ids.insert(token, id) {
            return Err(format_error("tokens", format!("entries {first} and {id} are both {token:?}")));
        }
    }
    Ok(())
}

/// The tokens recognised in text before anything else; control and unknown tokens count as special.
fn added_tokens(gguf: &GgufTokenizer) -> Vec<AddedToken> {
    let types = gguf.token_types.as_deref().unwrap_or_default();
    let mut added: Vec<AddedToken> = Vec::new();
    for (token, kind) in gguf.tokens.iter().zip(types) {
        if matches!(*kind, UNKNOWN | CONTROL | USER_DEFINED) {
            added.push(AddedToken::from(token.as_str(), *kind != USER_DEFINED).normalized(false));
        }
    }
    added
}

fn byte_level(gguf: &mut GgufTokenizer) -> Result<(Engine, Rules, bool)> {
    let kind = pretokenize::kind(gguf.pre.as_deref())?;
    let added = added_tokens(gguf);
    let merges = gguf.merges.take().ok_or_else(|| format_error("merges", "is missing".into()))?;
    let mut pairs = Vec::with_capacity(merges.len());
    for (rank, merge) in merges.iter().enumerate() {
        // The first character may itself be a space in old files.
        let skip = merge.chars().next().map_or(0, char::len_utf8);
        let space = merge.get(skip..).and_then(|rest| rest.find(' ')).map(|at| at + skip);
        let Some(space) = space else {
            return Err(format_error(
                "merges",
                format!("entry {rank} is {merge:?}, not two tokens with a space between"),
            ));
        };
        pairs.push((merge[..space].to_owned(), merge[space + 1..].to_owned()));
    }
    let vocab: Vocab = gguf.tokens.drain(..).zip(0..).collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, pairs)
        .ignore_merges(kind.ignore_merges)
        .build()
        .map_err(|error| format_error("merges", error.to_string()))?;
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(pretokenize::build(&kind.patterns)?));
    tokenizer.add_tokens(added).map_err(|error| format_error("tokens", error.to_string()))?;
    Ok((Engine::Json(Box::new(tokenizer)), Rules::byte_level(), kind.add_bos))
}

fn sentencepiece(gguf: &mut GgufTokenizer) -> Result<(Engine, Rules, bool)> {
    if gguf.remove_extra_whitespaces == Some(true) {
        return Err(Error::unsupported("tokenizer.ggml.remove_extra_whitespaces with model llama".to_owned()));
    }
    let added = added_tokens(gguf);
    let scores = gguf.scores.take().ok_or_else(|| format_error("scores", "is missing".into()))?;
    let prefix = gguf.add_space_prefix.unwrap_or(true);
    let mut steps = Vec::new();
    if prefix {
        // Applied to each stretch of text between special tokens, as llama.cpp does.
        steps.push(NormalizerWrapper::Prepend(Prepend::new(META.to_owned())));
    }
    let replace = Replace::new(" ", META).map_err(|error| Error::internal(error.to_string()))?;
    steps.push(NormalizerWrapper::Replace(replace));
    let model = SpmModel::new(std::mem::take(&mut gguf.tokens), scores, gguf.unk.unwrap_or(0));
    let mut tokenizer = TokenizerImpl::new(model);
    tokenizer
        .with_normalizer(Some(Sequence::new(steps)))
        .and_then(|tokenizer| tokenizer.add_tokens(added))
        .map_err(|error| format_error("tokens", error.to_string()))?;
    Ok((Engine::SentencePiece(Box::new(tokenizer)), Rules::sentencepiece(prefix), true))
}
