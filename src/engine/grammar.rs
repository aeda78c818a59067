//! Answers of a given form: JSON, a JSON schema, a regular expression, a choice, a grammar. llguidance parses along and says
//! which tokens may come next.

use crate::error::{Error, Result};
use crate::token::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::sync::Arc;

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema(Value),
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in Lark's syntax, with llguidance's extensions; its start rule is `start`.
    Lark(String),
}

/// From where on an answer keeps to its grammar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GrammarStart {
    /// From its first token on.
    #[default]
    Begin,
    /// From its first token on, or after `</think>` where that token is `<think>`.
    MayThink,
    /// After `</think>`: the prompt ends within the reasoning.
    Thinking,
}

const OPEN: &str = "<think>";
const CLOSE: &[u8] = b"</think>";

/// A model's vocabulary, prepared for grammars.
pub struct Grammars {
    factory: ParserFactory,
    vocabulary: TokEnv,
    /// The token `<think>`.
    open: Option<u32>,
}

struct Vocabulary(TokTrie);

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(bytes)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

impl Grammars {
    /// Prepares a vocabulary; takes a fraction of a second for a large one.
    ///
    /// # Errors
    /// [`Error::Text`] where it cannot be used.
    pub fn new(tokenizer: &Tokenizer, ends: &[u32]) -> Result<Self> {
        let word = |id: u32| match tokenizer.is_special(id) {
            // Special tokens have no text that a grammar could match.
            true => [&[TokTrie::SPECIAL_TOKEN_MARKER], tokenizer.token_str(id).unwrap_or_default().as_bytes()].concat(),
            false => tokenizer.token_bytes(id).to_vec(),
        };
        let size = tokenizer.vocab_size() as u32;
        let words: Vec<Vec<u8>> = (0..size).map(word).collect();
        let Some(&end) = ends.first() else {
            return Err(Error::Text("grammars need a model with an end-of-text token".into()));
        };
        let trie = TokTrie::from(&TokRxInfo::new(size, end), &words).with_eos_tokens(ends);
        let environment: TokEnv = Arc::new(Vocabulary(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(|e| Error::Text(format!("grammars: {e}")))?;
        factory.quiet();
        Ok(Self { factory, vocabulary: environment, open: tokenizer.token_id(OPEN) })
    }

    /// A constraint for one answer.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the place in the grammar that is wrong.
    pub fn constraint(&self, grammar: &Grammar, start: GrammarStart) -> Result<Constraint> {
        let wrong = |e: &dyn std::fmt::Display| Error::invalid(format!("grammar: {}", e.to_string().trim()));
        let grammar = match grammar {
            Grammar::JsonObject => json_schema(json!({"type": "object"})),
            Grammar::JsonSchema(schema) => json_schema(schema.clone()),
            Grammar::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Grammar::Choice(texts) if texts.is_empty() => return Err(Error::invalid("grammar: an empty choice")),
            Grammar::Choice(texts) => {
                let quoted: Vec<String> = texts.iter().map(|text| json!(text).to_string()).collect();
                TopLevelGrammar::from_lark(format!("start: {}", quoted.join(" | ")))
            }
            Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        };
        let parser = self.factory.create_parser(grammar).map_err(|e| wrong(&e))?;
        let matcher = Matcher::new(Ok(parser));
        match matcher.get_error() {
            Some(error) => Err(wrong(&error)),
            None => {
                let at = match start {
                    GrammarStart::Thinking => At::Thinking(Vec::new()),
                    GrammarStart::MayThink => self.open.map_or(At::Grammar, At::MayThink),
                    GrammarStart::Begin => At::Grammar,
                };
                Ok(Constraint { matcher, mask: None, at, vocabulary: self.vocabulary.clone() })
            }
        }
    }
}

/// JSON with no more white space than indentation takes: a small model would otherwise go on with blank lines for ever.
fn json_schema(mut schema: Value) -> TopLevelGrammar {
    if let Value::Object(fields) = &mut schema {
        fields.entry("x-guidance").or_insert_with(|| json!({"whitespace_pattern": WHITE_SPACE}));
    }
    TopLevelGrammar::from_json_schema(schema)
}

/// White space between two parts of a JSON text.
const WHITE_SPACE: &str = r"[ \n]{1,16}";

/// Where an answer is in its grammar.
pub struct Constraint {
    matcher: Matcher,
    mask: Option<SimpleVob>,
    at: At,
    vocabulary: TokEnv,
}

enum At {
    Grammar,
    /// Before the first token, which may also be this one.
    MayThink(u32),
    /// In the reasoning, where everything is allowed; its newest bytes, in case `</think>` is several tokens.
    Thinking(Vec<u8>),
}

impl Constraint {
    /// Works out which tokens may come next.
    ///
    /// # Errors
    /// [`Error::Text`] where the grammar leads nowhere or grows beyond llguidance's limits.
    pub fn prepare(&mut self) -> Result<()> {
        if self.mask.is_none() && !matches!(self.at, At::Thinking(_)) {
            let mask = self.matcher.compute_mask_or_eos();
            let mut mask = mask.map_err(|e| Error::Text(format!("grammar: {e}")))?;
            if let At::MayThink(open) = self.at {
                mask.allow_token(open);
            }
            self.mask = Some(mask);
        }
        Ok(())
    }

    /// What the last [`Constraint::prepare`] found: a bit for each token, that of token 0 the lowest of the first word.
    /// `None`: anything may come.
    pub fn mask(&self) -> Option<&[u32]> {
        self.mask.as_ref().map(SimpleVob::as_slice)
    }

    /// Takes the next token; true when the answer is complete and nothing may follow.
    ///
    /// # Errors
    /// [`Error::Text`] for a token that may not come here.
    pub fn accept(&mut self, id: u32) -> Result<bool> {
        self.mask = None;
        match &mut self.at {
            At::MayThink(open) if *open == id => {
                self.at = At::Thinking(Vec::new());
                return Ok(false);
            }
            At::Thinking(newest) => {
                newest.extend_from_slice(self.vocabulary.tok_trie().token(id));
                // What follows the tag in its last token can only be white space, and belongs to it.
                if newest.windows(CLOSE.len()).any(|bytes| bytes == CLOSE) {
                    self.at = At::Grammar;
                } else {
                    newest.drain(..newest.len().saturating_sub(CLOSE.len() - 1));
                }
                return Ok(false);
            }
            At::MayThink(_) => self.at = At::Grammar,
            At::Grammar => {}
        }
        self.matcher.consume_token(id).map_err(|e| Error::Text(format!("grammar: {e}")))?;
        Ok(self.matcher.is_stopped())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        let json = std::fs::read("tests/golden/tiny/chat/tokenizer.json").unwrap();
        Tokenizer::from_json(&json, &Value::Null, &Value::Null).unwrap()
    }

    fn allows(constraint: &mut Constraint, id: u32) -> bool {
        constraint.prepare().unwrap();
        constraint.mask().is_none_or(|mask| mask[id as usize / 32] >> (id % 32) & 1 == 1)
    }

    #[test]
    fn reasoning_is_free_and_what_follows_is_not() {
        let tokenizer = tokenizer();
        let grammars = Grammars::new(&tokenizer, &[2]).unwrap();
        let id = |text: &str| tokenizer.encode(text, false).unwrap()[0];
        let choice = Grammar::Choice(vec!["yes".into()]);
        let mut at_once = grammars.constraint(&choice, GrammarStart::Begin).unwrap();
        assert!(!allows(&mut at_once, id("x")) && allows(&mut at_once, id("y")));
        // A tag of several tokens; this vocabulary has no `<think>`, so nothing but the grammar may begin.
        let mut may = grammars.constraint(&choice, GrammarStart::MayThink).unwrap();
        assert!(!allows(&mut may, id("x")));
        let mut thinking = grammars.constraint(&choice, GrammarStart::Thinking).unwrap();
        let reasoning = tokenizer.encode("so </thin, no: </think>\n", false).unwrap();
        let (end, before) = reasoning.split_last().unwrap();
        for id in before {
            assert!(allows(&mut thinking, *id));
            assert!(!thinking.accept(*id).unwrap());
        }
        if matches!(thinking.at, At::Thinking(_)) {
            thinking.accept(*end).unwrap();
        }
        assert!(!allows(&mut thinking, id("x")) && allows(&mut thinking, id("y")));
        let mut complete = false;
        for id in tokenizer.encode("yes", false).unwrap() {
            complete = thinking.accept(id).unwrap();
        }
        assert!(complete || allows(&mut thinking, 2), "the answer may end");
    }
}
