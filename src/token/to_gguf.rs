//! A tokenizer as `tokenizer.ggml.*` keys, for models that came as Hugging Face's folders. Undone by `gguf`.
//!
//! How text is cut into words has only a name in GGUF. The name is found by trying: it is the first of the known ones
//! with which llama.cpp's rules cut a text of many scripts, digits and spaces into the same ids as tokenizer.json does.

use super::gguf::GgufTokenizer;
use super::pieces::Rules;
use super::tokenizer::Tokenizer;
use crate::format::{GgufArray, GgufValue, TokenizerSource};
use crate::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;

/// The text by which llama.cpp's converter tells pre-tokenizers apart (`get_vocab_base_pre`).
const CHECK: &str = "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u{200d}🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL";

/// Names that are tried, those of common models first; one for each way to cut.
const PRE: [&str; 18] = [
    "llama-bpe",
    "qwen2",
    "smollm",
    "gpt-2",
    "tekken",
    "deepseek-v3",
    "gpt-4o",
    "glm4",
    "chatglm-bpe",
    "qwen35",
    "deepseek-llm",
    "deepseek-coder",
    "falcon",
    "seed-coder",
    "bailingmoe",
    "poro-chat",
    "viking",
    "default",
];

/// Kinds of entries, as in `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The keys of a model with `vocab` rows of embeddings, whose texts begin with `start` and whose answers end with one of `ends`,
/// by its configuration.
///
/// # Errors
/// [`Error::Unsupported`] for vocabularies that are not BPE, and for ways to cut text that llama.cpp has no name for.
pub fn gguf_keys(
    source: &TokenizerSource,
    vocab: usize,
    start: Option<u32>,
    ends: &[u32],
) -> Result<Vec<(String, GgufValue)>> {
    match source {
        TokenizerSource::None => {
            let [eos, eot] = [0, 1].map(|i| ends.get(i).copied());
            let ids = [("bos", start), ("eos", eos), ("eot", eot)];
            let ids = ids.into_iter().filter_map(|(name, id)| Some((name, GgufValue::U32(id?))));
            let ids = ids.map(|(name, id)| (format!("tokenizer.ggml.{name}_token_id"), id));
            let model = ("tokenizer.ggml.model".to_owned(), GgufValue::String("none".into()));
            Ok(std::iter::once(model).chain(ids).collect())
        }
        // Whatever it was written with: the next reader needs it, too.
        TokenizerSource::Gguf(metadata) => {
            let keys = metadata.iter().filter(|(key, _)| key.starts_with("tokenizer."));
            Ok(keys.map(|(key, value)| (key.to_owned(), value.clone())).collect())
        }
        TokenizerSource::Json { tokenizer_json, .. } => {
            let json: Value = serde_json::from_slice(tokenizer_json)
                .map_err(|error| Error::format("tokenizer.json", "JSON", error.to_string()))?;
            let tokenizer = Tokenizer::from_source(source)?;
            Ok(keys(&from_json(&tokenizer, &json, vocab, start, ends)?))
        }
    }
}

fn from_json(
    tokenizer: &Tokenizer,
    json: &Value,
    vocab: usize,
    start: Option<u32>,
    ends: &[u32],
) -> Result<GgufTokenizer> {
    let model = &json["model"];
    let merges: Option<Vec<String>> = model["merges"].as_array().map(|all| all.iter().filter_map(merge).collect());
    let Some(merges) = merges.filter(|_| model["type"].as_str().is_none_or(|kind| kind == "BPE")) else {
        let kind = model["type"].as_str().unwrap_or("of no type");
        return Err(Error::unsupported(format!("GGUF of a tokenizer.json whose model is {kind}: only BPE is written")));
    };
    if tokenizer.vocab_size() > vocab {
        let size = tokenizer.vocab_size();
        return Err(Error::unsupported(format!("GGUF of a model with {vocab} rows of embeddings and {size} tokens")));
    }
    let added: HashMap<u32, bool> = tokenizer.engine().added().into_iter().collect();
    let unknown = model["unk_token"].as_str().and_then(|token| tokenizer.token_id(token));
    let byte_level = Rules::from_json(&json["decoder"])?.byte_level;
    let (mut tokens, mut kinds) = (Vec::with_capacity(vocab), Vec::with_capacity(vocab));
    for id in 0..vocab as u32 {
        let Some(token) = tokenizer.token_str(id) else {
            tokens.push(format!("[PAD{id}]"));
            kinds.push(UNUSED);
            continue;
        };
        kinds.push(match added.get(&id) {
            _ if Some(id) == unknown && !byte_level => UNKNOWN,
            Some(true) => CONTROL,
            Some(false) => USER_DEFINED,
            None if !byte_level && token.len() == 6 && token.starts_with("<0x") => BYTE,
            None => NORMAL,
        });
        tokens.push(token);
    }
    let (prefix, suffix) = tokenizer.around(true);
    let (bos, eos) = (tokenizer.bos().or(start), tokenizer.eos().or(ends.first().copied()));
    let mut gguf = GgufTokenizer {
        model: if byte_level { "gpt2" } else { "llama" }.into(),
        scores: (!byte_level).then(|| scores(&tokens, &merges)),
        tokens,
        token_types: Some(kinds),
        bos,
        eos,
        eot: ends.iter().copied().find(|id| Some(*id) != eos),
        unk: unknown,
        pad: tokenizer.pad(),
        add_bos: Some(bos.is_some() && prefix.first().copied() == bos),
        add_eos: Some(eos.is_some() && suffix.last().copied() == eos),
        ..GgufTokenizer::default()
    };
    let want = tokenizer.encode(CHECK, false)?;
    let agrees =
        |gguf: &GgufTokenizer| Ok::<_, Error>(Tokenizer::from_gguf(gguf.clone())?.encode(CHECK, false)? == want);
    if !byte_level {
        for prefix in [true, false] {
            gguf.add_space_prefix = Some(prefix);
            if agrees(&gguf)? {
                return Ok(gguf);
            }
        }
        return Err(Error::unsupported(
            "GGUF of this tokenizer.json: SentencePiece's rules cut text differently from what it says",
        ));
    }
    gguf.merges = Some(merges);
    for pre in PRE {
        gguf.pre = Some(pre.into());
        if agrees(&gguf)? {
            return Ok(gguf);
        }
    }
    let known = PRE.join(", ");
    Err(Error::unsupported(format!("GGUF of a tokenizer.json that cuts text like none of llama.cpp's {known}")))
}

/// `"a b"`, or `["a", "b"]` in newer files.
fn merge(entry: &Value) -> Option<String> {
    match entry {
        Value::String(text) => Some(text.clone()),
        Value::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        _ => None,
    }
}

/// SentencePiece merges the pair whose result scores best; BPE the first in its list. So a piece scores as its first merge.
fn scores(tokens: &[String], merges: &[String]) -> Vec<f32> {
    let mut rank: HashMap<String, usize> = HashMap::new();
    for (at, merge) in merges.iter().enumerate() {
        rank.entry(merge.replacen(' ', "", 1)).or_insert(at);
    }
    let last = merges.len();
    tokens.iter().map(|token| -(rank.get(token).copied().unwrap_or(last) as f32) - 1.0).collect()
}

fn keys(gguf: &GgufTokenizer) -> Vec<(String, GgufValue)> {
    let mut keys = Vec::new();
    let mut put = |name: &str, value: Option<GgufValue>| {
        keys.extend(value.map(|value| (format!("tokenizer.ggml.{name}"), value)));
    };
    put("model", Some(GgufValue::String(gguf.model.clone())));
    put("pre", Some(GgufValue::String(gguf.pre.clone().unwrap_or_else(|| "default".into()))));
    put("tokens", Some(GgufValue::Array(GgufArray::String(gguf.tokens.clone()))));
    put("scores", gguf.scores.clone().map(|all| GgufValue::Array(GgufArray::F32(all))));
    put("token_type", gguf.token_types.clone().map(|all| GgufValue::Array(GgufArray::I32(all))));
    put("merges", gguf.merges.clone().map(|all| GgufValue::Array(GgufArray::String(all))));
    let ids = [
        ("bos_token_id", gguf.bos),
        ("eos_token_id", gguf.eos),
        ("eot_token_id", gguf.eot),
        ("unknown_token_id", gguf.unk),
        ("padding_token_id", gguf.pad),
    ];
    ids.into_iter().for_each(|(name, id)| put(name, id.map(GgufValue::U32)));
    let flags =
        [("add_bos_token", gguf.add_bos), ("add_eos_token", gguf.add_eos), ("add_space_prefix", gguf.add_space_prefix)];
    flags.into_iter().for_each(|(name, flag)| put(name, flag.map(GgufValue::Bool)));
    keys
}
