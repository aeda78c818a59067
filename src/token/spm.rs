//! SentencePiece's BPE (Kudo and Richardson 2018), driven by piece scores, as GGUF files carry it.
//!
//! A merge is any adjacent pair whose text is a piece; the pair with the best score goes first, the
//! leftmost of equals. A merge list with ranks cannot say "equals", which is why the BPE model of the
//! `tokenizers` crate is not used: it differs on runs of one character.

use std::collections::{BinaryHeap, HashMap};
use std::path::{Path, PathBuf};

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{Model, Token};

/// Pieces with their scores; a token's id is its position.
pub(super) struct SpmModel {
    pieces: Vec<String>,
    scores: Vec<f32>,
    ids: HashMap<String, u32>,
    /// Ids of the byte pieces `<0x00>` … `<0xFF>`; `unk` where one is missing.
    bytes: Vec<u32>,
}

/// Two neighbours that could become one piece. Ordered so that the heap's greatest goes first.
struct Bigram {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl PartialEq for Bigram {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Bigram {}
impl PartialOrd for Bigram {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Bigram {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

/// A span of the text in a doubly linked list; `len` 0 once it is merged into its left neighbour.
struct Symbol {
    start: usize,
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

impl SpmModel {
    /// `unk` stands for a byte that has no piece of its own.
    pub(super) fn new(pieces: Vec<String>, scores: Vec<f32>, unk: u32) -> Self {
        let ids: HashMap<String, u32> = pieces.iter().cloned().zip(0..).collect();
        let bytes = (0..=255u8).map(|byte| ids.get(&format!("<0x{byte:02X}>")).copied().unwrap_or(unk)).collect();
        Self { pieces, scores, ids, bytes }
    }

    /// The vocabulary and its scores, by id.
    pub(super) fn pieces(&self) -> (&[String], &[f32]) {
        (&self.pieces, &self.scores)
    }

    fn bigram(&self, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Bigram> {
        let (a, b) = (symbols.get(left)?, symbols.get(right)?);
        let len = a.len + b.len;
        let id = *self.ids.get(text.get(a.start..a.start + len)?)?;
        let score = self.scores.get(id as usize).copied().unwrap_or(0.0);
        Some(Bigram { score, left, right, len })
    }

    fn merge(&self, text: &str) -> Vec<Symbol> {
        let count = text.chars().count();
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, character))| Symbol {
                start,
                len: character.len_utf8(),
                previous: i.checked_sub(1),
                next: (i + 1 < count).then_some(i + 1),
            })
            .collect();
        let mut queue: BinaryHeap<Bigram> =
            (1..symbols.len()).filter_map(|i| self.bigram(text, &symbols, i - 1, i)).collect();
        while let Some(Bigram { left, right, len, .. }) = queue.pop() {
            // Either side may have been merged since this pair was queued.
            if symbols[left].len == 0 || symbols[right].len == 0 || symbols[left].len + symbols[right].len != len {
                continue;
            }
            let after = symbols[right].next;
            symbols[right].len = 0;
            symbols[left].len = len;
            symbols[left].next = after;
            if let Some(after) = after {
                symbols[after].previous = Some(left);
                queue.extend(self.bigram(text, &symbols, left, after));
            }
            if let Some(before) = symbols[left].previous {
                queue.extend(self.bigram(text, &symbols, before, left));
            }
        }
        symbols.retain(|symbol| symbol.len > 0);
        symbols
    }
}

impl Model for SpmModel {
    // Never trained: the crate's own BPE trainer stands in for the type.
    type Trainer = TrainerWrapper;

    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<Token>> {
        let mut tokens = Vec::new();
        for Symbol { start, len, .. } in self.merge(sequence) {
            let offsets = (start, start + len);
            let Some(piece) = sequence.get(start..start + len) else { continue };
            if let Some(&id) = self.ids.get(piece) {
                tokens.push(Token::new(id, piece.to_owned(), offsets));
            } else {
                // Byte fallback; every byte of a character covers the whole of it.
                let ids = piece.bytes().filter_map(|byte| self.bytes.get(usize::from(byte)));
                tokens.extend(ids.map(|&id| Token::new(id, self.id_to_token(id).unwrap_or_default(), offsets)));
            }
        }
        Ok(tokens)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.pieces.get(id as usize).cloned()
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.ids.clone()
    }

    fn get_vocab_size(&self) -> usize {
        self.pieces.len()
    }

    fn save(&self, _folder: &Path, _prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("a vocabulary from GGUF metadata is not saved".into())
    }

    fn get_trainer(&self) -> TrainerWrapper {
        TrainerWrapper::BpeTrainer(BpeTrainer::default())
    }
}
