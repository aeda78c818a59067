//! The decoder that all families share, as programs: one for serving, one for scoring, one for training. The file is
//! long because they share each of their layers' parts.
//!
//! What differs between families is data in [`ModelConfig`]. What differs between the three uses is where keys
//! and values lie (cache pages or the step's own rows) and what follows the last norm (logits of some
//! rows, or the loss of all). The ops in between are the same.

pub mod buffers;
mod dora;
mod objective;

pub use dora::norms_program;
pub use objective::{BaseProgram, Objective, ObjectiveInputs, base_program};

use dora::Around;

use super::choice::logits;
use super::config::ModelConfig;
use super::lora::{LoraLayout, Projection};
use super::weights::{EMBED, HEAD};
use super::whole::{TrainLayout, WholeLayout};
use crate::backend::Limits;
use crate::error::Result;
use crate::program::cache::row_len;
use crate::program::{
    Builder, Geometry, KvLayout, Live, Op, Place, Program, TensorDecl, TensorId, Trainable, Unscale, differentiate,
    offload, recompute, recompute_cheap,
};
use crate::tensor::DType;

/// What the programs need to know about the weights and constant buffers.
pub struct ModelShape<'a> {
    /// The architecture.
    pub config: &'a ModelConfig,
    /// Element type of a weight, by canonical name.
    pub dtype: &'a dyn Fn(&str) -> DType,
    /// Positions in the rope buffer.
    pub max_len: usize,
    /// What the device asks of programs.
    pub limits: Limits,
}

/// Sizes of a serving program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServeShape {
    /// Tokens of one step.
    pub rows: usize,
    /// Rows whose next tokens are wanted; 0 asks for the loss of every row against `labels` instead.
    pub gathered: usize,
    /// Sequences that a step may mix.
    pub seqs: usize,
    /// Pages in a sequence's table.
    pub pages: usize,
    /// Positions in a page.
    pub page: usize,
    /// Rows of each cache.
    pub kv_rows: usize,
    /// Type of the caches.
    pub kv_dtype: DType,
    /// End with the gathered rows themselves, after the last norm.
    pub hidden: bool,
    /// No two rows of a step belong to one sequence.
    pub apart: bool,
}

/// A forward pass over paged keys and values, and the ids of its inputs and outputs.
pub struct ServeProgram {
    /// The ops.
    pub program: Program,
    /// u32 `[1, rows]`: tokens.
    pub ids: TensorId,
    /// u32 `[1, rows]`: their positions.
    pub positions: TensorId,
    /// u32 `[1, rows]`: which row of `table` belongs to each.
    pub seqs: TensorId,
    /// u32 `[1, rows]`: cache row that each token's key and value go to.
    pub slots: TensorId,
    /// u32 `[seqs, pages]`.
    pub table: TensorId,
    /// u32 `[1, rows]`: adapter slot of each row, where the program has adapters.
    pub adapters: Option<TensorId>,
    /// What comes out.
    pub head: ServeHead,
}

/// The end of a serving program.
#[derive(Clone, Copy, Debug)]
pub enum ServeHead {
    /// Chosen rows after the last norm.
    Hidden {
        /// u32 `[1, gathered]`: the rows.
        rows: TensorId,
        /// `[gathered, hidden]`, in the type of activations.
        hidden: TensorId,
    },
    /// Next tokens of chosen rows; the logits that they were chosen from are in [`buffers::LOGITS`].
    Tokens {
        /// u32 `[1, gathered]`: the rows.
        rows: TensorId,
        /// f32 `[gathered, 4]`: temperature, top-k, top-p, min-p.
        sampling: TensorId,
        /// f32 `[1, gathered]`, from [0, 1).
        uniforms: TensorId,
        /// u32 `[gathered, 1]`.
        tokens: TensorId,
    },
    /// Negative log-likelihood of every row's label.
    Loss {
        /// u32 `[1, rows]`; `u32::MAX` is not counted.
        labels: TensorId,
        /// f32 `[rows, 1]`, in nat.
        loss: TensorId,
    },
}

/// Forward and backward pass over packed sequences, and the ids of its inputs and outputs.
pub struct TrainProgram {
    /// The ops.
    pub program: Program,
    /// u32 `[1, rows]`: tokens.
    pub ids: TensorId,
    /// u32 `[1, rows]`: positions, from 0 in each sequence.
    pub positions: TensorId,
    /// u32 `[1, rows]`: sequence of each row.
    pub seqs: TensorId,
    /// u32 `[1, seqs + 1]`: first row of each sequence, and one past the last.
    pub bounds: TensorId,
    /// u32 `[1, rows]`: the next token where it counts, `u32::MAX` where not.
    pub labels: TensorId,
    /// f32 `[1, 1]`: what each counted token's loss is multiplied by before it is differentiated.
    pub loss_scale: TensorId,
    /// `[rows, hidden]` in the type of activations: what is added to the embeddings (NEFTune), where it is wanted.
    pub noise: Option<TensorId>,
    /// What gradients of A and B are multiplied by where `loss_scale` is larger than it should be.
    pub unscale: Option<Unscale>,
    /// f32 `[rows, 1]`: negative log-likelihood of each row's label, unscaled.
    pub loss: TensorId,
    /// What the objective reads and writes besides.
    pub objective: ObjectiveInputs,
}

/// How a training program is shaped.
#[derive(Clone, Copy, Debug)]
pub struct TrainShape {
    /// Tokens of a micro-batch, all its sequences together.
    pub rows: usize,
    /// Most sequences in a micro-batch.
    pub seqs: usize,
    /// LoRA dropout probability.
    pub dropout: f32,
    /// Compute each layer's intermediates again in the backward pass instead of keeping them.
    pub recompute: bool,
    /// Keep the layers' inputs in host memory meanwhile ([`offload`]); of use with `recompute`.
    pub offload: bool,
    /// The loss is scaled up, and gradients of adapters down again: [`TrainProgram::unscale`].
    pub scaled_loss: bool,
    /// Something is added to the embeddings: [`TrainProgram::noise`].
    pub noise: bool,
    /// What share of a label's weight is spread over the vocabulary, see [`Op::HeadLoss`].
    pub smoothing: f32,
    /// Differentiate; else the program ends with the loss.
    pub gradients: bool,
    /// What is minimised.
    pub objective: Objective,
}

/// The forward pass over paged keys and values.
///
/// # Errors
/// A shape that does not fit together (a bug), naming op and operand.
pub fn serve_program(model: &ModelShape, shape: &ServeShape, lora: Option<&LoraLayout>) -> Result<ServeProgram> {
    let mut b = Builder::new("forward").with_activations(model.limits.activations);
    let rows = shape.rows;
    let ids = b.input("ids", DType::U32, 1, rows);
    let positions = b.input("positions", DType::U32, 1, rows);
    let seqs = b.input("seqs", DType::U32, 1, rows);
    let slots = b.input("slots", DType::U32, 1, rows);
    let table = b.input("table", DType::U32, shape.seqs, shape.pages);
    let adapters = lora.map(|_| b.input("adapters", DType::U32, 1, rows));
    let kv = KeyValues::Cache { slots, table, shape: *shape };
    let mut decoder = Decoder {
        b,
        model,
        rows,
        positions,
        seqs,
        kv,
        lora,
        adapters,
        noise: None,
        smoothing: 0.0,
        dropout: 0.0,
        salt: 0,
        whole: None,
    };
    let h = decoder.body(ids)?;
    let head = if shape.gathered == 0 {
        let labels = decoder.b.input("labels", DType::U32, 1, rows);
        let scale = decoder.b.input("loss_scale", DType::F32, 1, 1);
        let (loss, _) = decoder.objective(h, [labels, scale, labels], Objective::Tokens)?;
        ServeHead::Loss { labels, loss }
    } else {
        let gathered = shape.gathered;
        let rows = decoder.b.input("rows", DType::U32, 1, gathered);
        if shape.hidden {
            let (place, live, dtype) = (Place::Output, Live::Gathered, decoder.b.decl(h).dtype);
            let decl =
                TensorDecl { name: "hidden".into(), rows: gathered, cols: model.config.hidden, dtype, place, live };
            let hidden = decoder.b.tensor(decl);
            decoder.b.push(Op::GatherRows { x: h, rows, out: hidden })?;
            ServeHead::Hidden { rows, hidden }
        } else {
            decoder.tokens(h, rows, gathered)?
        }
    };
    Ok(ServeProgram { program: decoder.b.finish(), ids, positions, seqs, slots, table, adapters, head })
}

/// The training step of one micro-batch: gradients are added to [`buffers::LORA_GRADS`].
///
/// # Errors
/// As [`serve_program`]; [`crate::Error::Invalid`] where nothing is trainable.
pub fn train_program(model: &ModelShape, shape: &TrainShape, layout: &TrainLayout) -> Result<TrainProgram> {
    let mut b = Builder::new("train").with_activations(model.limits.activations);
    let rows = shape.rows;
    let ids = b.input("ids", DType::U32, 1, rows);
    let positions = b.input("positions", DType::U32, 1, rows);
    let seqs = b.input("seqs", DType::U32, 1, rows);
    let bounds = b.input("bounds", DType::U32, 1, shape.seqs + 1);
    let labels = b.input("labels", DType::U32, 1, rows);
    let loss_scale = b.input("loss_scale", DType::F32, 1, 1);
    let noise = shape.noise.then(|| b.input("noise", model.limits.activations, rows, model.config.hidden));
    let unscale = (shape.scaled_loss && shape.gradients).then(|| Unscale {
        plain: b.input("unscale_a", DType::F32, 1, 1),
        scaled: b.input("unscale_b", DType::F32, 1, 1),
    });
    let kv = KeyValues::Own { bounds };
    let (dropout, smoothing) = (shape.dropout, shape.smoothing);
    let mut decoder = Decoder {
        b,
        model,
        rows,
        positions,
        seqs,
        kv,
        lora: Some(&layout.lora),
        adapters: None,
        noise,
        smoothing,
        dropout,
        salt: 0,
        whole: Some(&layout.whole),
    };
    let h = decoder.body(ids)?;
    let (loss, objective) = decoder.objective(h, [labels, loss_scale, bounds], shape.objective)?;
    let mut forward = decoder.b.finish();
    forward.cut = true;
    if !shape.gradients {
        let program = forward;
        return Ok(TrainProgram {
            program,
            ids,
            positions,
            seqs,
            bounds,
            labels,
            loss_scale,
            noise,
            unscale,
            loss,
            objective,
        });
    }
    let trainable: Vec<Trainable> = forward
        .ids()
        .filter(|id| matches!(&forward.decl(*id).place, Place::State { buffer, .. } if buffer == buffers::LORA))
        .map(|tensor| Trainable { tensor, grads: buffers::LORA_GRADS.into(), skip: layout.whole.padding })
        .collect();
    let mut program = differentiate(forward, &trainable, unscale)?;
    if shape.recompute {
        program = recompute(program);
    } else if model.limits.recompute_cheap {
        program = recompute_cheap(program);
    }
    if shape.offload {
        program = offload(program);
    }
    Ok(TrainProgram { program, ids, positions, seqs, bounds, labels, loss_scale, noise, unscale, loss, objective })
}

/// Where attention finds keys and values.
enum KeyValues {
    /// In the paged cache.
    Cache { slots: TensorId, table: TensorId, shape: ServeShape },
    /// In this step's own rows.
    Own { bounds: TensorId },
}

/// A projection before its adapter.
struct Projected {
    /// What the adapter reads.
    x: TensorId,
    /// What it adds to.
    y: TensorId,
    /// What comes out in the end.
    out: TensorId,
    /// The op that makes `out` of `y`, where they differ (DoRA).
    scale: Option<Op>,
}

struct Decoder<'a> {
    b: Builder,
    model: &'a ModelShape<'a>,
    rows: usize,
    positions: TensorId,
    seqs: TensorId,
    kv: KeyValues,
    lora: Option<&'a LoraLayout>,
    adapters: Option<TensorId>,
    /// What is added to the embeddings.
    noise: Option<TensorId>,
    /// What share of a label's weight is spread over the vocabulary.
    smoothing: f32,
    dropout: f32,
    /// Counts dropout sites, so that each has its own mask.
    salt: u32,
    /// Weights that are trained themselves.
    whole: Option<&'a WholeLayout>,
}

impl Decoder<'_> {
    /// Embedding, all layers, final norm: `[rows, hidden]`.
    fn body(&mut self, ids: TensorId) -> Result<TensorId> {
        let c = self.model.config;
        let table = self.weight(EMBED, c.vocab, c.hidden);
        let mut h = self.temp("embedding", c.hidden);
        self.b.push(Op::Embed { table, ids, out: h })?;
        if let Some(noise) = self.noise {
            self.b.push(Op::Accumulate { x: noise, y: h })?;
        }
        for layer in 0..c.layers {
            self.b.segment(layer as u32 + 1);
            h = self.attention_block(layer, h)?;
            h = self.feed_forward(layer, h)?;
        }
        self.b.segment(0);
        self.norm("model.norm.weight", h)
    }

    fn attention_block(&mut self, layer: usize, h: TensorId) -> Result<TensorId> {
        let c = self.model.config;
        let prefix = format!("model.layers.{layer}");
        let x = self.norm(&format!("{prefix}.input_layernorm.weight"), h)?;
        let [q, k, v] = self.linears(layer, [Projection::Q, Projection::K, Projection::V], x)?;
        let head_norm = |me: &mut Self, which: &str| {
            c.qk_norm.then(|| me.vector(&format!("{prefix}.self_attn.{which}_norm.weight"), c.head_dim))
        };
        let (q_norm, k_norm) = (head_norm(self, "q"), head_norm(self, "k"));
        let rope = match self.b.find(buffers::ROPE) {
            Some(id) => id,
            None => self.b.state(buffers::ROPE, buffers::ROPE, 0, DType::F32, self.model.max_len, c.rope_dim),
        };
        let kv_cols = c.kv_heads * c.head_dim;
        let q_out = self.temp("q_rot", c.heads * c.head_dim);
        let (slots, k_out, v_out, v_seen, layout, lse) = match &self.kv {
            KeyValues::Cache { slots, table, shape } => {
                let (slots, table, shape) = (*slots, *table, *shape);
                let cols = row_len(shape.kv_dtype, c.kv_heads, c.head_dim);
                let mut cache = |name: String| self.b.state(&name, &name, 0, shape.kv_dtype, shape.kv_rows, cols);
                let (k, v) = (cache(buffers::key_cache(layer)), cache(buffers::value_cache(layer)));
                (Some(slots), k, Some(v), v, KvLayout::Paged { table, page: shape.page, apart: shape.apart }, None)
            }
            KeyValues::Own { bounds } => {
                let layout = KvLayout::Packed { bounds: *bounds };
                let (k_out, lse) = (self.temp("k_rot", kv_cols), self.b.temp("lse", self.rows, c.heads, Live::Tokens));
                (None, k_out, None, v, layout, Some(lse))
            }
        };
        self.b.push(Op::QkNormRopeKv {
            q,
            k,
            v,
            q_norm,
            k_norm,
            eps: c.rms_norm_eps,
            head_dim: c.head_dim,
            positions: self.positions,
            rope,
            slots,
            q_out,
            k_out,
            v_out,
        })?;
        let geometry = Geometry {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            scale: 1.0 / (c.head_dim as f32).sqrt(),
            window: c.windows.get(layer).copied().flatten().map(|w| w as u32),
            softcap: None,
        };
        let out = self.temp("attention", c.heads * c.head_dim);
        let (seqs, positions) = (self.seqs, self.positions);
        self.b.push(Op::Attention { q: q_out, k: k_out, v: v_seen, seqs, positions, layout, geometry, out, lse })?;
        self.linear(layer, Projection::O, out, Some(h))
    }

    fn feed_forward(&mut self, layer: usize, h: TensorId) -> Result<TensorId> {
        let c = self.model.config;
        let x = self.norm(&format!("model.layers.{layer}.post_attention_layernorm.weight"), h)?;
        let [gate, up] = self.linears(layer, [Projection::Gate, Projection::Up], x)?;
        let out = self.temp("glu", c.intermediate);
        self.b.push(Op::Glu { gate, up, activation: c.activation, out })?;
        self.linear(layer, Projection::Down, out, Some(h))
    }

    /// Projections of one input, with their biases and adapters. Where each row has an adapter of its own the products come
    /// first, then all the first halves of the adapters, then the second ones, then DoRA's factors: backends do what is alike
    /// together.
    fn linears<const N: usize>(&mut self, layer: usize, which: [Projection; N], x: TensorId) -> Result<[TensorId; N]> {
        let mut out = [x; N];
        if self.adapters.is_none() {
            for (out, which) in out.iter_mut().zip(which) {
                *out = self.linear(layer, which, x, None)?;
            }
            return Ok(out);
        }
        let mut products = Vec::with_capacity(N);
        for (out, which) in out.iter_mut().zip(which) {
            let product = self.product(layer, which, x, None)?;
            *out = product.out;
            products.push((which, product));
        }
        let mut ends = Vec::new();
        for (which, product) in &products {
            ends.extend(self.shrink(layer, *which, product)?);
        }
        ends.extend(products.into_iter().filter_map(|(_, product)| product.scale));
        ends.into_iter().try_for_each(|op| self.b.push(op))?;
        Ok(out)
    }

    /// A projection with its bias and adapter, added to `residual` where there is one.
    fn linear(&mut self, layer: usize, which: Projection, x: TensorId, residual: Option<TensorId>) -> Result<TensorId> {
        let product = self.product(layer, which, x, residual)?;
        let expand = self.shrink(layer, which, &product)?;
        expand.into_iter().chain(product.scale).try_for_each(|op| self.b.push(op))?;
        Ok(product.out)
    }

    fn product(
        &mut self,
        layer: usize,
        which: Projection,
        x: TensorId,
        residual: Option<TensorId>,
    ) -> Result<Projected> {
        let c = self.model.config;
        let (outputs, inputs) = which.shape(c);
        let module = which.module(layer);
        let weight = self.weight(&format!("{module}.weight"), outputs, inputs);
        let has_bias = match which {
            Projection::Q | Projection::K | Projection::V => c.qkv_bias,
            Projection::O => c.o_bias,
            Projection::Gate | Projection::Up | Projection::Down => c.mlp_bias,
        };
        let bias = has_bias.then(|| self.vector(&format!("{module}.bias"), outputs));
        let out = self.temp(which.name(), outputs);
        if let Some((lora, entry)) = self.dora_entry(layer, which) {
            return self.dora_product(lora, entry, x, Around { weight, bias, residual, out });
        }
        self.b.push(Op::MatMul { x, weight, bias, residual, out })?;
        Ok(Projected { x, y: out, out, scale: None })
    }

    /// The first half of the low-rank product of one projection, where it is a target; the op that adds the second.
    fn shrink(&mut self, layer: usize, which: Projection, product: &Projected) -> Result<Option<Op>> {
        let Some(lora) = self.lora else { return Ok(None) };
        let Some(entry) = lora.entry(layer, which) else { return Ok(None) };
        let (rank, n) = (lora.rank, lora.slots);
        // What is trained is f32; what is only served is stored as products take it.
        let dtype = if self.adapters.is_some() { self.model.limits.activations } else { DType::F32 };
        let state = |b: &mut Builder, name: String, at: usize, rows: usize, cols: usize| {
            b.state(&name, buffers::LORA, at, dtype, rows, cols)
        };
        let a = state(&mut self.b, format!("{}.lora_A", entry.module), entry.a, n * rank, entry.inputs);
        let b = state(&mut self.b, format!("{}.lora_B", entry.module), entry.b, n * entry.outputs, rank);
        let scales = match self.b.find(buffers::LORA_SCALES) {
            Some(id) => id,
            None => self.b.state(buffers::LORA_SCALES, buffers::LORA_SCALES, 0, DType::F32, 1, n),
        };
        let (mut seen, y) = (product.x, product.y);
        if self.dropout > 0.0 && lora.magnitudes.is_none() {
            self.salt += 1;
            seen = self.dropped(seen, false)?;
        }
        let u = self.temp("lora_u", rank);
        let slots = self.adapters;
        self.b.push(Op::LoraShrink { x: seen, a, slots, rank, out: u })?;
        Ok(Some(Op::LoraExpand { u, b, slots, scales, rank, y }))
    }

    /// `x` with some elements set to 0 and the others scaled up; with `complement` what that takes away from x.
    fn dropped(&mut self, x: TensorId, complement: bool) -> Result<TensorId> {
        let out = self.temp("dropout", self.b.decl(x).cols);
        self.b.push(Op::Dropout { x, p: self.dropout, salt: self.salt, complement, out, accumulate: false })?;
        Ok(out)
    }

    /// Logits of the chosen rows, and the tokens that are chosen from them.
    fn tokens(&mut self, h: TensorId, rows: TensorId, gathered: usize) -> Result<ServeHead> {
        let c = self.model.config;
        let picked = self.b.activation("picked", gathered, c.hidden, Live::Gathered);
        self.b.push(Op::GatherRows { x: h, rows, out: picked })?;
        let logits = logits(&mut self.b, buffers::LOGITS, gathered, c.vocab);
        let weight = self.head_weight();
        self.b.push(Op::MatMul { x: picked, weight, bias: None, residual: None, out: logits })?;
        let sampling = self.b.input("sampling", DType::F32, gathered, 4);
        let uniforms = self.b.input("uniforms", DType::F32, 1, gathered);
        let (place, live) = (Place::Output, Live::Gathered);
        let decl = TensorDecl { name: "tokens".into(), rows: gathered, cols: 1, dtype: DType::U32, place, live };
        let tokens = self.b.tensor(decl);
        self.b.push(Op::Sample { logits, sampling, uniforms, tokens })?;
        Ok(ServeHead::Tokens { rows, sampling, uniforms, tokens })
    }

    fn head_weight(&mut self) -> TensorId {
        let c = self.model.config;
        let name = if c.tied_head { EMBED } else { HEAD };
        match self.whole {
            // Beside an embedding that is trained alone, the head stays the file's table.
            Some(whole) if c.tied_head && !whole.tied_head => match self.trained(HEAD, c.vocab, c.hidden) {
                Some(own) => own,
                None => self.b.weight(EMBED, (self.model.dtype)(EMBED), c.vocab, c.hidden),
            },
            _ => self.weight(name, c.vocab, c.hidden),
        }
    }

    fn norm(&mut self, name: &str, x: TensorId) -> Result<TensorId> {
        let c = self.model.config;
        let weight = self.vector(name, c.hidden);
        let out = self.temp("norm", c.hidden);
        self.b.push(Op::RmsNorm { x, weight, eps: c.rms_norm_eps, out })?;
        Ok(out)
    }

    fn weight(&mut self, name: &str, rows: usize, cols: usize) -> TensorId {
        let trained = self.trained(name, rows, cols);
        trained.unwrap_or_else(|| self.b.weight(name, (self.model.dtype)(name), rows, cols))
    }

    /// Norm weights and biases: f32 on every device.
    fn vector(&mut self, name: &str, cols: usize) -> TensorId {
        self.trained(name, 1, cols).unwrap_or_else(|| self.b.weight(name, DType::F32, 1, cols))
    }

    /// A weight's place in the flat buffer, where it is trained itself.
    fn trained(&mut self, name: &str, rows: usize, cols: usize) -> Option<TensorId> {
        let at = self.whole?.entry(name)?.at;
        let own = format!("trained.{name}");
        Some(self.b.find(&own).unwrap_or_else(|| self.b.state(&own, buffers::LORA, at, DType::F32, rows, cols)))
    }

    fn temp(&mut self, name: &str, cols: usize) -> TensorId {
        self.b.activation(name, self.rows, cols, Live::Tokens)
    }
}
