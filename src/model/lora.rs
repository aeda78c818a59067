//! Where the adapter of each projection lies in one flat f32 buffer.
//!
//! One buffer for all A and B matrices makes the optimizer, the gradient norm and publishing single
//! launches and single copies, whatever the number of layers.

use super::config::ModelConfig;
use super::optimizer::SPAN_ALIGN;
use crate::error::{Error, Result};
use crate::program::STATE_ALIGN;

/// The seven dense projections of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Projection {
    /// Query.
    Q,
    /// Key.
    K,
    /// Value.
    V,
    /// Attention output.
    O,
    /// Gate of the feed-forward block.
    Gate,
    /// Up projection.
    Up,
    /// Down projection.
    Down,
}

impl Projection {
    /// All of them, in the order of the forward pass.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The module's name in Hugging Face checkpoints and PEFT's `target_modules`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The projection called `name`.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the accepted ones.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|p| p.name()).collect();
            Error::invalid(format!("unknown target module '{name}': use {}", known.join(", ")))
        })
    }

    /// Full module path: `model.layers.3.self_attn.q_proj`.
    pub fn module(self, layer: usize) -> String {
        let block = match self {
            Self::Q | Self::K | Self::V | Self::O => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        };
        format!("model.layers.{layer}.{block}.{}", self.name())
    }

    /// (outputs, inputs) of the projection.
    pub fn shape(self, c: &ModelConfig) -> (usize, usize) {
        match self {
            Self::Q => (c.heads * c.head_dim, c.hidden),
            Self::K | Self::V => (c.kv_heads * c.head_dim, c.hidden),
            Self::O => (c.hidden, c.heads * c.head_dim),
            Self::Gate | Self::Up => (c.intermediate, c.hidden),
            Self::Down => (c.hidden, c.intermediate),
        }
    }
}

/// The adapter of one projection of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraEntry {
    /// `model.layers.3.self_attn.q_proj`
    pub module: String,
    /// Which projection.
    pub projection: Projection,
    /// Of which layer, from 0.
    pub layer: usize,
    /// Inputs (K): A is `[slots · rank, inputs]`.
    pub inputs: usize,
    /// Outputs (N): B is `[slots · outputs, rank]`.
    pub outputs: usize,
    /// Where A starts in the flat buffer, in elements.
    pub a: usize,
    /// Where B starts.
    pub b: usize,
    /// DoRA: where the magnitudes `[slots, outputs]` start among all magnitudes, and the norms among all norms.
    pub magnitude: usize,
}

/// The layout of a flat adapter buffer: one adapter in training (`slots` = 1), a bank of them in serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraLayout {
    /// Rank of every slot; adapters of a lower rank are padded with zeros.
    pub rank: usize,
    /// Number of adapters.
    pub slots: usize,
    /// In the order of layers and projections.
    pub entries: Vec<LoraEntry>,
    /// Where the B matrices begin, behind all A: each half is one span of the optimizer. Trained magnitudes stand behind B,
    /// in its span, as `create_loraplus_optimizer` of PEFT groups them.
    pub b_start: usize,
    /// Elements of the whole buffer.
    pub len: usize,
    /// Where the magnitudes of DoRA are, for adapters that have them.
    pub magnitudes: Option<Magnitudes>,
    /// How many magnitudes there are, padding included.
    pub magnitudes_len: usize,
}

/// Where magnitudes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Magnitudes {
    /// In the flat buffer from this element on: they are trained.
    Behind(usize),
    /// In an f32 buffer of their own: they are served.
    Apart,
}

impl LoraLayout {
    /// Lays out the adapters of `targets` in every layer.
    pub fn new(config: &ModelConfig, rank: usize, slots: usize, targets: &[Projection]) -> Self {
        let mut entries = Vec::with_capacity(config.layers * targets.len());
        let mut len = 0;
        let mut place = |elements: usize| {
            let at = len;
            len += elements.next_multiple_of(STATE_ALIGN);
            at
        };
        for layer in 0..config.layers {
            for projection in Projection::ALL.into_iter().filter(|p| targets.contains(p)) {
                let (outputs, inputs) = projection.shape(config);
                let a = place(slots * rank * inputs);
                entries.push(LoraEntry {
                    module: projection.module(layer),
                    projection,
                    layer,
                    inputs,
                    outputs,
                    a,
                    b: 0,
                    magnitude: 0,
                });
            }
        }
        len = len.next_multiple_of(SPAN_ALIGN);
        let b_start = len;
        let mut magnitudes_len = 0;
        for entry in &mut entries {
            entry.b = len;
            len += (slots * entry.outputs * rank).next_multiple_of(STATE_ALIGN);
            entry.magnitude = magnitudes_len;
            magnitudes_len += (slots * entry.outputs).next_multiple_of(STATE_ALIGN);
        }
        Self { rank, slots, entries, b_start, len, magnitudes: None, magnitudes_len }
    }

    /// With magnitudes to train, behind the matrices.
    #[must_use]
    pub fn with_magnitudes(self) -> Self {
        let (magnitudes, len) = (Some(Magnitudes::Behind(self.len)), self.len + self.magnitudes_len);
        Self { magnitudes, len, ..self }
    }

    /// With magnitudes to serve, in a buffer of their own.
    #[must_use]
    pub fn with_magnitudes_apart(self) -> Self {
        Self { magnitudes: Some(Magnitudes::Apart), ..self }
    }

    /// The entry of one projection, if it is a target.
    pub fn entry(&self, layer: usize, projection: Projection) -> Option<&LoraEntry> {
        self.entries.iter().find(|e| e.layer == layer && e.projection == projection)
    }

    /// Trainable numbers, padding left out.
    pub fn parameters(&self) -> usize {
        let magnitudes = |e: &LoraEntry| if self.magnitudes.is_some() { e.outputs } else { 0 };
        self.entries.iter().map(|e| self.slots * (self.rank * (e.inputs + e.outputs) + magnitudes(e))).sum()
    }
}
