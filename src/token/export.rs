//! A tokenizer as Hugging Face's files, for models that came as GGUF.

use super::tokenizer::{Engine, Tokenizer};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

impl Tokenizer {
    /// The contents of a tokenizer.json with which transformers makes the same ids.
    ///
    /// For a SentencePiece vocabulary the merges follow from the pieces' scores, as transformers derives them; where two
    /// pieces have equal scores, long runs of one character may be cut differently.
    ///
    /// # Errors
    /// [`Error::Internal`] where the tokenizer cannot be written.
    pub fn to_json(&self) -> Result<Value> {
        let internal = |error: serde_json::Error| Error::internal(format!("cannot write the tokenizer: {error}"));
        let mut json = match self.engine() {
            Engine::Json(tokenizer) => {
                let mut json = serde_json::to_value(tokenizer).map_err(internal)?;
                if json["decoder"].is_null() {
                    json["decoder"] = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
                }
                json
            }
            Engine::SentencePiece(tokenizer) => {
                let normalizer = serde_json::to_value(tokenizer.get_normalizer()).map_err(internal)?;
                let added = serde_json::to_value(tokenizer.get_added_vocabulary()).map_err(internal)?;
                let (pieces, scores) = tokenizer.get_model().pieces();
                sentencepiece(pieces, scores, normalizer, added, self.strips_space())
            }
        };
        let (prefix, suffix) = self.around(true);
        if json["post_processor"].is_null() && !(prefix.is_empty() && suffix.is_empty()) {
            json["post_processor"] = self.template(prefix, suffix);
        }
        Ok(json)
    }

    /// The contents of a tokenizer_config.json that goes with [`Tokenizer::to_json`].
    pub fn config_json(&self, max_positions: usize) -> Value {
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        config.insert("model_max_length".into(), max_positions.into());
        for (name, id) in [("bos_token", self.bos()), ("eos_token", self.eos()), ("pad_token", self.pad())] {
            if let Some(token) = id.and_then(|id| self.token_str(id)) {
                config.insert(name.into(), token.into());
            }
        }
        Value::Object(config)
    }

    /// What stands around a text, in the words of the `tokenizers` crate.
    fn template(&self, prefix: &[u32], suffix: &[u32]) -> Value {
        let mut special = Map::new();
        let mut piece = |id: &u32| {
            let token = self.token_str(*id).unwrap_or_default();
            special.insert(token.clone(), json!({ "id": token, "ids": [id], "tokens": [token] }));
            json!({ "SpecialToken": { "id": token, "type_id": 0 } })
        };
        let before: Vec<Value> = prefix.iter().map(&mut piece).collect();
        let after: Vec<Value> = suffix.iter().map(&mut piece).collect();
        let text = |name: &str| {
            let sequence = json!({ "Sequence": { "id": name, "type_id": 0 } });
            [before.as_slice(), &[sequence], after.as_slice()].concat()
        };
        let (single, pair) = (text("A"), [text("A"), text("B")].concat());
        json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special })
    }
}

fn sentencepiece(pieces: &[String], scores: &[f32], normalizer: Value, added: Value, strip: bool) -> Value {
    let vocab: Map<String, Value> = pieces.iter().cloned().zip((0..pieces.len()).map(Value::from)).collect();
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if strip {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown(pieces),
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges(pieces, scores),
        },
    })
}

fn unknown(pieces: &[String]) -> Option<&'static str> {
    ["<unk>", "<|unk|>"].into_iter().find(|token| pieces.iter().any(|piece| piece == token))
}

/// Every way to put a piece together from two others; the best score first, and of one piece the ways in the order
/// of their parts' ids (transformers' `SentencePieceExtractor`).
fn merges(pieces: &[String], scores: &[f32]) -> Vec<[String; 2]> {
    let ids: HashMap<&str, usize> = pieces.iter().map(String::as_str).zip(0..).collect();
    let mut ways = Vec::new();
    for (piece, score) in pieces.iter().zip(scores) {
        let mut cuts: Vec<(usize, usize)> = piece
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| Some((*ids.get(&piece[..at])?, *ids.get(&piece[at..])?)))
            .collect();
        cuts.sort_unstable();
        ways.extend(cuts.into_iter().map(|cut| (*score, cut)));
    }
    // Stable: pieces of equal score keep their order.
    ways.sort_by(|a, b| b.0.total_cmp(&a.0));
    ways.into_iter().map(|(_, (left, right))| [pieces[left].clone(), pieces[right].clone()]).collect()
}
