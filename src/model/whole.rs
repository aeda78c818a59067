//! Weights that are trained themselves, in the flat buffer behind the adapters: all of them in full fine-tuning, those of
//! PEFT's `modules_to_save` beside LoRA. They are f32 there, whatever the checkpoint's type.

use super::config::ModelConfig;
use super::lora::LoraLayout;
use super::optimizer::{SPAN_ALIGN, Span};
use super::weights::{expected_tensors, saved_tensors};
use crate::error::{Error, Result};
use crate::program::STATE_ALIGN;

/// One weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeEntry {
    /// Its name in a Hugging Face checkpoint: `model.embed_tokens.weight`.
    pub name: String,
    /// As in the checkpoint: `[out, in]`, or `[n]`.
    pub shape: Vec<usize>,
    /// Where it starts in the flat buffer, in elements.
    pub at: usize,
}

impl WholeEntry {
    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True for a weight of no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where whole weights lie: matrices first, then norms and biases, which do not decay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WholeLayout {
    /// In the order of the buffer.
    pub entries: Vec<WholeEntry>,
    /// Of a model whose head is the embedding: the two are trained as one.
    pub tied_head: bool,
    /// The row of the embedding that lookups give no gradient: `padding_idx` of PyTorch's embedding, the model's
    /// `pad_token_id`.
    pub padding: Option<u32>,
    /// Where the matrices begin.
    start: usize,
    /// Where the vectors begin.
    vectors: usize,
    /// Behind the last one.
    end: usize,
}

impl WholeLayout {
    /// The weight called `name`, if it is trained.
    pub fn entry(&self, name: &str) -> Option<&WholeEntry> {
        self.entries.iter().find(|entry| entry.name == name)
    }
}

/// The flat buffer of a training run: adapters, then whole weights. Either may be none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainLayout {
    /// Adapters.
    pub lora: LoraLayout,
    /// Whole weights.
    pub whole: WholeLayout,
    /// Elements of the whole buffer.
    pub len: usize,
}

impl From<LoraLayout> for TrainLayout {
    fn from(lora: LoraLayout) -> Self {
        let len = lora.len;
        Self { lora, whole: WholeLayout::default(), len }
    }
}

impl TrainLayout {
    /// Every weight of the model and no adapter.
    pub fn full(config: &ModelConfig, padding: Option<u32>) -> Self {
        let lora = LoraLayout::new(config, 1, 1, &[]);
        Self::with(lora, expected_tensors(config).collect(), config.tied_head, padding)
    }

    /// Adapters, and the weights of the modules whose path ends in one of `names`, as PEFT selects `modules_to_save`. A head that
    /// is the embedding becomes a matrix of its own.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that selects nothing, or modules that have an adapter.
    pub fn saved(lora: LoraLayout, config: &ModelConfig, names: &[String], padding: Option<u32>) -> Result<Self> {
        let tensors = saved_tensors(config, names)?;
        let adapted = |name: &str| lora.entries.iter().find(|e| name.strip_suffix(".weight") == Some(&e.module));
        if let Some(entry) = tensors.iter().find_map(|(name, _)| adapted(name)) {
            return Err(Error::invalid(format!(
                "{} is among target_modules and modules_to_save: it is trained whole or gets an adapter",
                entry.projection.name()
            )));
        }
        Ok(Self::with(lora, tensors, false, padding))
    }

    fn with(lora: LoraLayout, tensors: Vec<(String, Vec<usize>)>, tied_head: bool, padding: Option<u32>) -> Self {
        let start = lora.len.next_multiple_of(SPAN_ALIGN);
        let (matrices, vectors): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|(_, shape)| shape.len() > 1);
        let (mut entries, mut end) = (Vec::with_capacity(matrices.len() + vectors.len()), start);
        let mut place = |tensors: Vec<(String, Vec<usize>)>, end: &mut usize| {
            for (name, shape) in tensors {
                let entry = WholeEntry { name, shape, at: *end };
                *end += entry.len().next_multiple_of(STATE_ALIGN);
                entries.push(entry);
            }
        };
        place(matrices, &mut end);
        end = end.next_multiple_of(SPAN_ALIGN);
        let vectors_start = end;
        place(vectors, &mut end);
        let whole = WholeLayout { entries, tied_head, padding, start, vectors: vectors_start, end };
        Self { lora, whole, len: end }
    }

    /// Trainable numbers, padding left out.
    pub fn parameters(&self) -> usize {
        self.lora.parameters() + self.whole.entries.iter().map(WholeEntry::len).sum::<usize>()
    }

    /// The spans of the optimizer: A; B with `b_lr_ratio` times the learning rate; matrices; norms and biases, without decay
    /// (transformers' `get_decay_parameter_names`).
    pub fn spans(&self, b_lr_ratio: Option<f64>) -> Vec<Span> {
        let (lora, whole) = (&self.lora, &self.whole);
        let adapters = match b_lr_ratio {
            Some(ratio) => vec![(0..lora.b_start, 1.0, true), (lora.b_start..lora.len, ratio, true)],
            None => vec![(0..lora.len, 1.0, true)],
        };
        let weights = [(whole.start..whole.vectors, 1.0, true), (whole.vectors..whole.end, 1.0, false)];
        let all = adapters.into_iter().chain(weights).filter(|(range, ..)| !range.is_empty());
        all.map(|(range, lr_ratio, decays)| Span { range, lr_ratio, decays }).collect()
    }
}
