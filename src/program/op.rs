//! The fused ops. The same op has the same name everywhere: `Op::RmsNorm`, `kernels/rms_norm.cu`,
//! `shaders/rms_norm.wgsl`, a row in `tests/ops.rs`. The file is long because it is one list of all ops.
//!
//! Shapes: T = rows of the step, K = inputs, N = outputs, r = rank, H = query heads, G = key/value heads,
//! D = head width, V = vocabulary. Activations are f32 and row-major; a weight is `[N, K]` as in
//! `nn.Linear`, so a product is `x · Wᵀ`. Unless an op says otherwise its output overlaps no input.
//!
//! The file is long because it is one table of all ops.

use super::TensorId;
use crate::model::config::Activation;

/// How an op touches an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads it.
    Read,
    /// Overwrites every live row.
    Write,
    /// Reads and updates it in place.
    ReadWrite,
}

/// Shape and masking of an attention op.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// Query heads (H).
    pub heads: usize,
    /// Key/value heads (G); divides `heads`, query head h reads group `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of a head (D).
    pub head_dim: usize,
    /// Multiplier of q·k before the softmax, usually 1/√D.
    pub scale: f32,
    /// Row at position p sees keys at positions > p − window; all earlier ones where `None`.
    pub window: Option<u32>,
    /// Scores become `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
}

/// Where the keys and values of a sequence lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvLayout {
    /// In cache pages: position j of sequence s is row `table[s][j / page] · page + j % page` of k and v.
    Paged {
        /// u32 `[sequences, pages]`.
        table: TensorId,
        /// Positions in a page.
        page: usize,
        /// No two live rows belong to one sequence, as in a step of decoding.
        apart: bool,
    },
    /// In this step's own rows: sequence s has rows `bounds[s] .. bounds[s + 1]`, in order of position.
    Packed {
        /// u32 `[1, sequences + 1]`.
        bounds: TensorId,
    },
}

/// Where the gradient of the head's weight goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadDw {
    /// f32 `[V, K]`.
    pub dw: TensorId,
    /// f32 `[1, 1]`: what the gradient is multiplied by before it is added; 1 where absent.
    pub scale: Option<TensorId>,
}

/// One fused op. See the module's note on shapes.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // each variant's formula names its fields
pub enum Op {
    /// `out[t] = table[ids[t]]`: table any weight dtype `[V, K]`, ids u32 `[1, T]`, out `[T, K]`.
    Embed { table: TensorId, ids: TensorId, out: TensorId },
    /// `dw[ids[t]] += scale · dy[t]`, in the order of t: the gradient of [`Op::Embed`]'s table. dy `[T, K]`, dw f32 `[V, K]`,
    /// scale f32 `[1, 1]`. Rows whose id is `skip` are left out (`padding_idx` of PyTorch's embedding).
    EmbedDw { ids: TensorId, dy: TensorId, skip: Option<u32>, scale: Option<TensorId>, dw: TensorId },
    /// `out = x / sqrt(mean(x²) + eps) · weight`: x, out `[T, K]`, weight f32 `[1, K]`.
    RmsNorm { x: TensorId, weight: TensorId, eps: f32, out: TensorId },
    /// `dx (+)= ∂/∂x of RmsNorm`, given dy; dx is added to where `accumulate`.
    RmsNormBackward { x: TensorId, weight: TensorId, eps: f32, dy: TensorId, dx: TensorId, accumulate: bool },
    /// `dw += scale · Σ_t dy[t] · x[t] / sqrt(mean(x[t]²) + eps)`: the gradient of RmsNorm's weight, f32 `[1, K]`.
    RmsNormDw { x: TensorId, eps: f32, dy: TensorId, scale: Option<TensorId>, dw: TensorId },
    /// `out = x · weightᵀ (+ bias) (+ residual)`: x `[T, K]`, weight any dtype `[N, K]`, bias f32 `[1, N]`.
    MatMul { x: TensorId, weight: TensorId, bias: Option<TensorId>, residual: Option<TensorId>, out: TensorId },
    /// `dx (+)= scale · dy · weight`: dy `[T, N]`, weight any dtype `[N, K]`, dx `[T, K]`, scale f32 `[1, 1]`.
    MatMulDx { dy: TensorId, weight: TensorId, scale: Option<TensorId>, dx: TensorId, accumulate: bool },
    /// `dw += scale · dyᵀ · x`: dy `[T, N]`, x `[T, K]`, dw f32 `[N, K]`. Always accumulates.
    MatMulDw { dy: TensorId, x: TensorId, scale: Option<TensorId>, dw: TensorId },
    /// `out += scale · Σ_t x[t]`: x `[T, K]`, out f32 `[1, K]`, scale f32 `[1, 1]`. The gradient of a bias.
    ColumnSum { x: TensorId, scale: Option<TensorId>, out: TensorId },
    /// `out[t] = x[t] · A[slot(t)]ᵀ`: a f32 or as x `[slots · rank, K]`, out `[T, rank]`. `slots` u32 `[1, T]` names the
    /// adapter of each row, `u32::MAX` for none (the row becomes 0); without it every row has slot 0.
    LoraShrink { x: TensorId, a: TensorId, slots: Option<TensorId>, rank: usize, out: TensorId },
    /// `y[t] += scales[slot(t)] · u[t] · B[slot(t)]ᵀ`: u `[T, rank]`, b f32 or as y `[slots · N, rank]`, scales f32
    /// `[1, slots]`, y `[T, N]`.
    LoraExpand { u: TensorId, b: TensorId, slots: Option<TensorId>, scales: TensorId, rank: usize, y: TensorId },
    /// `out (+)= x · keep(t, c) / (1 − p)` where keep is 1 with probability 1 − p: bit `hash(counts[3], salt,
    /// t · cols + c)` (see `dropout_keeps`). With `complement` the factor is 1 minus that: what dropout takes away from x.
    /// The same salt gives the same mask: it is its own backward.
    Dropout { x: TensorId, p: f32, salt: u32, complement: bool, out: TensorId, accumulate: bool },
    /// `norms[n] = max(‖W[n] + scales[0] · B[n] · A‖, 1e-15)`, the length of each row of an adapted weight (DoRA,
    /// <https://arxiv.org/abs/2402.09353>; a row of zeros has one, too, so that it can be divided by): weight any dtype `[N, K]`, a f32 `[rank, K]`, b f32 `[N, rank]`, scales f32
    /// `[1, 1]`, norms f32 `[1, N]`.
    DoraNorm { weight: TensorId, a: TensorId, b: TensorId, scales: TensorId, norms: TensorId },
    /// `out[t] = x[t] · magnitude[slot(t)] / norms[slot(t)] (+ bias) (+ residual[t])`: x, residual, out `[T, N]`, bias f32
    /// `[1, N]`, magnitude and norms f32 `[slots, N]`; slots as in [`Op::LoraShrink`], rows without one are multiplied by 1.
    /// Without slots it is the backward of itself with respect to x (without bias and residual).
    DoraScale {
        x: TensorId,
        magnitude: TensorId,
        norms: TensorId,
        slots: Option<TensorId>,
        bias: Option<TensorId>,
        residual: Option<TensorId>,
        out: TensorId,
    },
    /// `dm[n] += scale · Σ_t dy[t, n] · x[t, n] / norms[n]`: dy, x `[T, N]`, norms and dm f32 `[1, N]`, scale f32 `[1, 1]`.
    /// The norm counts as a constant, as in PEFT and section 4.3 of the paper.
    DoraScaleBackward { dy: TensorId, x: TensorId, norms: TensorId, scale: Option<TensorId>, dm: TensorId },
    /// Norm of each head of q and k (where the model has it), rotary embedding in half-split order, and
    /// scatter of k and v to the cache, in one pass. q `[T, H·D]`, k, v `[T, G·D]`; norms f32 `[1, D]`;
    /// positions u32 `[1, T]`; rope f32 `[positions, rope_dim]` of (cos, sin) pairs; q_out `[T, H·D]`.
    /// With `slots` (u32 `[1, T]`) row t of k and v goes to row `slots[t]` of k_out and v_out (caches, of plain numbers or
    /// of 8-bit codes: `program::cache`); without, k_out is `[T, G·D]` and v_out absent.
    QkNormRopeKv {
        q: TensorId,
        k: TensorId,
        v: TensorId,
        q_norm: Option<TensorId>,
        k_norm: Option<TensorId>,
        eps: f32,
        head_dim: usize,
        positions: TensorId,
        rope: TensorId,
        slots: Option<TensorId>,
        q_out: TensorId,
        k_out: TensorId,
        v_out: Option<TensorId>,
    },
    /// Gradients of q and k from those of q_out and k_out (training layout, no slots). Overwrites.
    QkNormRopeBackward {
        q: TensorId,
        k: TensorId,
        q_norm: Option<TensorId>,
        k_norm: Option<TensorId>,
        eps: f32,
        head_dim: usize,
        positions: TensorId,
        rope: TensorId,
        dq_out: TensorId,
        dk_out: TensorId,
        dq: TensorId,
        dk: TensorId,
    },
    /// The gradient of one of QkNormRopeKv's norms, f32 `[1, D]`: x `[T, heads · D]` is q or k, dout the gradient of q_out or
    /// k_out. `dw += scale · Σ back(dout[t, h]) · x[t, h] / sqrt(mean(x[t, h]²) + eps)`, where back undoes the rotation.
    QkNormDw {
        x: TensorId,
        eps: f32,
        head_dim: usize,
        positions: TensorId,
        rope: TensorId,
        dout: TensorId,
        scale: Option<TensorId>,
        dw: TensorId,
    },
    /// Causal softmax attention of variable length: q, out `[T, H·D]`; k, v rows of `[·, G·D]` (or of a cache of 8-bit
    /// codes, `program::cache`) found through `layout`; seqs u32 `[1, T]` is each row's sequence, positions u32 `[1, T]` its position (with a packed
    /// layout the position is the row's distance from its sequence's first row and `positions` is not read).
    /// `lse` f32 `[T, H]`: log of the sum of the exponentials, kept for the backward pass.
    Attention {
        q: TensorId,
        k: TensorId,
        v: TensorId,
        seqs: TensorId,
        positions: TensorId,
        layout: KvLayout,
        geometry: Geometry,
        out: TensorId,
        lse: Option<TensorId>,
    },
    /// Gradients of q, k, v (packed layout). `delta` f32 `[T, H]` is scratch: Σ out·dout of each head. Overwrites.
    AttentionBackward {
        q: TensorId,
        k: TensorId,
        v: TensorId,
        seqs: TensorId,
        bounds: TensorId,
        geometry: Geometry,
        out: TensorId,
        lse: TensorId,
        dout: TensorId,
        delta: TensorId,
        dq: TensorId,
        dk: TensorId,
        dv: TensorId,
    },
    /// `out = activation(gate) · up`, all `[T, F]`.
    Glu { gate: TensorId, up: TensorId, activation: Activation, out: TensorId },
    /// Gradients of gate and up from that of out. Overwrites.
    GluBackward { gate: TensorId, up: TensorId, activation: Activation, dout: TensorId, dgate: TensorId, dup: TensorId },
    /// `out[i] = x[rows[i]]`: rows u32 `[1, R]`, out `[R, K]` with live rows `counts[1]`.
    GatherRows { x: TensorId, rows: TensorId, out: TensorId },
    /// Cross-entropy of `softmax(x · weightᵀ)` against labels u32 `[1, T]` (`u32::MAX`: not counted, loss 0), in
    /// row chunks so that the logits never exist whole: `logits` `[chunk, V]` is scratch. `loss` f32 `[T, 1]` in
    /// nat. Where `dx` is there, `dx = scale · weights[t] · (softmax − onehot) · weight`, scale f32 `[1, 1]`, weights f32
    /// `[1, T]` (all 1 where absent).
    /// Where `dw` is there, its tensor (f32, of weight's shape) gains the gradient of weight, times its own scale.
    /// With `smoothing` ε the label is `(1 − ε) · onehot + ε / V` instead, in loss and gradient (transformers' `LabelSmoother`).
    HeadLoss {
        x: TensorId,
        weight: TensorId,
        labels: TensorId,
        scale: TensorId,
        smoothing: f32,
        weights: Option<TensorId>,
        logits: TensorId,
        loss: TensorId,
        dx: Option<TensorId>,
        dw: Option<HeadDw>,
    },
    /// The loss of pairs of sequences, a preferred one c and a rejected one r after it, and its derivative with respect to
    /// each token's cross-entropy. Sequence s has the rows `bounds[s] .. bounds[s + 1]` (u32 `[1, 2 · pairs + 1]`) of
    /// `loss` f32 `[T, 1]`; kinds u32 `[1, T]`: bit 0 counts a token in its sequence's log-probability `p(s) = −Σ loss`, bit 1 in
    /// the likelihood that is kept up beside the preference; `n(s)`: tokens with bit 0. hyper f32 `[1, 4]`: which loss,
    /// β, ν, ε; `reference[s]` f32 `[1, 2 · pairs]` is p(s) of the model that is not trained. With
    /// `m = (p(c) − reference(c)) − (p(r) − reference(r))`:
    ///
    /// | 0 | sigmoid | `−(1 − ε) log σ(β m) − ε log σ(−β m)` | <https://arxiv.org/abs/2305.18290>; ε: <https://ericmitchell.ai/cdpo.pdf> |
    /// | 1 | hinge | `max(0, 1 − β m)` | <https://arxiv.org/abs/2305.10425> |
    /// | 2 | ipo | `(m − 1/2β)²`, p and reference divided by n | <https://arxiv.org/abs/2310.12036> |
    /// | 3 | orpo | `−β log σ(o(p(c)/n(c)) − o(p(r)/n(r)))`, `o(l) = l − log(1 − eˡ)` | <https://arxiv.org/abs/2403.07691> |
    ///
    /// `weights[t]` f32 `[1, T]` is the derivative, and ν more for tokens with bit 1. `pairs` f32 `[pairs, 4]`: the loss, p(c),
    /// p(r), and Σ loss of the tokens with bit 1. Live are `counts[2] / 2` pairs.
    PreferenceLoss {
        loss: TensorId,
        kinds: TensorId,
        bounds: TensorId,
        reference: TensorId,
        hyper: TensorId,
        weights: TensorId,
        pairs: TensorId,
    },
    /// `tokens[i]` drawn from row i of logits (f32 `[R, V]`): sampling f32 `[R, 4]` holds temperature, top-k, top-p and
    /// min-p, uniforms f32 `[1, R]` a number u of [0, 1), tokens u32 `[R, 1]`. Temperature 0 takes the first of the
    /// largest logits. Else a token weighs `w = exp((l − max) / temperature)`, and kept are those whose logit is
    /// at least the k-th largest (k from 1 to V − 1; else all), then at least the largest logit above which, itself
    /// included, lies `top_p` of the weight of what top-k kept (top_p < 1; else all), and whose `w ≥ min_p`. Equal logits
    /// are kept or dropped together. The token is the first, in order of id, where the sum of the kept weights
    /// exceeds u times their total.
    Sample { logits: TensorId, sampling: TensorId, uniforms: TensorId, tokens: TensorId },
    /// Logits with what a request wants changed in them, f32 `[R, V]` to `[R, V]`. `out = logits`, but [`IMPOSSIBLE`] for
    /// tokens whose bit is 0 in the row's mask: row `mask_of[i]` (u32 `[1, R]`; `u32::MAX`: no mask) of masks u32
    /// `[M, ⌈V / 32⌉]`, token 0 in the lowest bit of the first word. Entries `starts[i] .. starts[i + 1]` (u32 `[1, R + 1]`)
    /// of entries u32 `[E, 2]` belong to row i, each to another token, and change its logit l where the mask lets it
    /// pass: word 0 is the token, and in the highest bit whether the repetition penalty r = `repetition[i]` (f32 `[1, R]`)
    /// applies: l becomes l / r where l > 0, else l · r. Then word 1, as f32, is added to it.
    AdjustLogits {
        logits: TensorId,
        entries: TensorId,
        starts: TensorId,
        repetition: TensorId,
        masks: TensorId,
        mask_of: TensorId,
        out: TensorId,
    },
    /// Log-probabilities (nat) under softmax of f32 logits `[R, V]`: `logprobs[i][0]` (f32 `[R, 1 + n]`) of token
    /// `labels[i]` (u32 `[1, R]`), or of `tokens[i]` (u32 `[R, 1]`) where that is `u32::MAX`; the rest of the n likeliest
    /// tokens, best first and of equals the smaller id first, which are `top[i]` (u32 `[R, n]`). n is at most V.
    TopLogprobs { logits: TensorId, tokens: TensorId, labels: TensorId, logprobs: TensorId, top: TensorId },
    /// `out = x`. One of the two may be a State buffer in host memory ([`super::offload`]).
    Copy { x: TensorId, out: TensorId },
    /// `y += x`.
    Accumulate { x: TensorId, y: TensorId },
    /// `x = value` in every element of every row.
    Fill { x: TensorId, value: f32 },
    /// Copies matrices from one flat buffer to another: each row of `table` (u32 `[M, 8]`) is the first element, rows and
    /// columns of a matrix in `from` (f32 `[1, n]`), the first element, rows and columns of its place in `to` (f32, bf16 or f16
    /// `[1, m]`), and the bits of an f32 that it is multiplied by. Where the place is larger the rest becomes zero.
    PlaceAdapter { from: TensorId, table: TensorId, to: TensorId },
    /// `out[0] = sqrt(Σ x²)`: x any shape, out f32 `[1, 1]`.
    GradNorm { x: TensorId, out: TensorId },
    /// AdamW (decoupled decay, <https://arxiv.org/abs/1711.05101>) over flat f32 buffers of one shape. `hyper` f32
    /// `[1, 8]`: lr, beta1, beta2, eps, weight decay, 1 − beta1ᵗ, 1 − beta2ᵗ, clip norm (0: no clipping).
    /// The gradient is first multiplied by `min(1, clip / (norm + 1e-6))`, as `clip_grad_norm_` does.
    AdamW { params: TensorId, grads: TensorId, m: TensorId, v: TensorId, norm: TensorId, hyper: TensorId },
    /// Lion (<https://arxiv.org/abs/2302.06675>): `p = p · (1 − lr · decay) − lr · sign(beta1 · m + (1 − beta1) · g)`, then
    /// `m = beta2 · m + (1 − beta2) · g`. Buffers, `hyper` and clipping as in [`Op::AdamW`]; eps and corrections are not read.
    Lion { params: TensorId, grads: TensorId, m: TensorId, norm: TensorId, hyper: TensorId },
    /// SGD as `torch.optim.SGD`: `m = momentum · m + g + decay · p`, then `p = p − lr · m`. Buffers, `hyper` (beta1 is the
    /// momentum) and clipping as in [`Op::AdamW`].
    Sgd { params: TensorId, grads: TensorId, m: TensorId, norm: TensorId, hyper: TensorId },
    /// [`Op::AdamW`] with moments of 8 bits (<https://arxiv.org/abs/2110.02861>): a moment is `map[code] · max` of its block of
    /// 256 elements. params, grads f32 `[1, n]`, n a multiple of 4; m, v u32 `[1, n / 4]`, four codes a word, the first
    /// lowest; m_max, v_max f32 `[1, ⌈n / 256⌉]`; hyper f32 `[1, 520]`: AdamW's eight numbers, the map of m and the map of v
    /// (256 ascending numbers each, see `dynamic_map`). The step uses the moments before they are rounded to the nearest
    /// code of `moment / max` (between two: the number of means of neighbours below it); a negative m that would round to 0
    /// takes the code before 0's.
    AdamW8bit {
        params: TensorId,
        grads: TensorId,
        m: TensorId,
        v: TensorId,
        m_max: TensorId,
        v_max: TensorId,
        norm: TensorId,
        hyper: TensorId,
    },
    /// [`Op::Lion`] with its moment in 8 bits, as in [`Op::AdamW8bit`]: hyper f32 `[1, 264]` holds the eight numbers and the map
    /// of m.
    Lion8bit { params: TensorId, grads: TensorId, m: TensorId, m_max: TensorId, norm: TensorId, hyper: TensorId },
}

impl Op {
    /// The op's name in snake case: also the name of its kernel and shader files.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed { .. } => "embed",
            Op::EmbedDw { .. } => "embed_dw",
            Op::RmsNorm { .. } => "rms_norm",
            Op::RmsNormBackward { .. } => "rms_norm_backward",
            Op::RmsNormDw { .. } => "rms_norm_dw",
            Op::MatMul { .. } => "matmul",
            Op::MatMulDx { .. } => "matmul_dx",
            Op::MatMulDw { .. } => "matmul_dw",
            Op::ColumnSum { .. } => "column_sum",
            Op::LoraShrink { .. } => "lora_shrink",
            Op::LoraExpand { .. } => "lora_expand",
            Op::Dropout { .. } => "dropout",
            Op::DoraNorm { .. } => "dora_norm",
            Op::DoraScale { .. } => "dora_scale",
            Op::DoraScaleBackward { .. } => "dora_scale_backward",
            Op::QkNormRopeKv { .. } => "qk_norm_rope_kv",
            Op::QkNormRopeBackward { .. } => "qk_norm_rope_backward",
            Op::QkNormDw { .. } => "qk_norm_dw",
            Op::Attention { .. } => "attention",
            Op::AttentionBackward { .. } => "attention_backward",
            Op::Glu { .. } => "glu",
            Op::GluBackward { .. } => "glu_backward",
            Op::GatherRows { .. } => "gather_rows",
            Op::HeadLoss { .. } => "head_loss",
            Op::PreferenceLoss { .. } => "preference_loss",
            Op::Sample { .. } => "sample",
            Op::AdjustLogits { .. } => "adjust_logits",
            Op::TopLogprobs { .. } => "top_logprobs",
            Op::Copy { .. } => "copy",
            Op::Accumulate { .. } => "accumulate",
            Op::Fill { .. } => "fill",
            Op::PlaceAdapter { .. } => "place_adapter",
            Op::GradNorm { .. } => "grad_norm",
            Op::AdamW { .. } => "adamw",
            Op::Lion { .. } => "lion",
            Op::Sgd { .. } => "sgd",
            Op::AdamW8bit { .. } => "adamw_8bit",
            Op::Lion8bit { .. } => "lion_8bit",
        }
    }

    /// Calls `f` with every operand in a fixed order and how it is accessed; `f` may rename it. This one
    /// list serves printing, lifetimes, differentiation and binding.
    pub fn visit(&mut self, f: &mut dyn FnMut(&mut TensorId, Access)) {
        use Access::{Read, ReadWrite, Write};
        let grown = |accumulate: &bool| if *accumulate { ReadWrite } else { Write };
        match self {
            Op::Embed { table, ids, out } => {
                f(table, Read);
                f(ids, Read);
                f(out, Write);
            }
            Op::EmbedDw { ids, dy, scale, dw, .. } => {
                f(ids, Read);
                f(dy, Read);
                visit_all([scale], f);
                f(dw, ReadWrite);
            }
            Op::RmsNorm { x, weight, out, .. } => {
                f(x, Read);
                f(weight, Read);
                f(out, Write);
            }
            Op::RmsNormBackward { x, weight, dy, dx, accumulate, .. } => {
                f(x, Read);
                f(weight, Read);
                f(dy, Read);
                f(dx, grown(accumulate));
            }
            Op::RmsNormDw { x, dy, scale, dw, .. } => {
                f(x, Read);
                f(dy, Read);
                visit_all([scale], f);
                f(dw, ReadWrite);
            }
            Op::MatMul { x, weight, bias, residual, out } => {
                f(x, Read);
                f(weight, Read);
                visit_all([bias, residual], f);
                f(out, Write);
            }
            Op::MatMulDx { dy, weight, scale, dx, accumulate } => {
                f(dy, Read);
                f(weight, Read);
                visit_all([scale], f);
                f(dx, grown(accumulate));
            }
            Op::MatMulDw { dy, x, scale, dw } => {
                f(dy, Read);
                f(x, Read);
                visit_all([scale], f);
                f(dw, ReadWrite);
            }
            Op::ColumnSum { x, scale, out } => {
                f(x, Read);
                visit_all([scale], f);
                f(out, ReadWrite);
            }
            Op::LoraShrink { x, a, slots, out, .. } => {
                f(x, Read);
                f(a, Read);
                visit_all([slots], f);
                f(out, Write);
            }
            Op::LoraExpand { u, b, slots, scales, y, .. } => {
                f(u, Read);
                f(b, Read);
                visit_all([slots], f);
                f(scales, Read);
                f(y, ReadWrite);
            }
            Op::Dropout { x, out, accumulate, .. } => {
                f(x, Read);
                f(out, grown(accumulate));
            }
            Op::DoraNorm { weight, a, b, scales, norms } => {
                for id in [weight, a, b, scales] {
                    f(id, Read);
                }
                f(norms, Write);
            }
            Op::DoraScale { x, magnitude, norms, slots, bias, residual, out } => {
                for id in [x, magnitude, norms] {
                    f(id, Read);
                }
                visit_all([slots, bias, residual], f);
                f(out, Write);
            }
            Op::DoraScaleBackward { dy, x, norms, scale, dm } => {
                for id in [dy, x, norms] {
                    f(id, Read);
                }
                visit_all([scale], f);
                f(dm, ReadWrite);
            }
            Op::QkNormRopeKv { q, k, v, q_norm, k_norm, positions, rope, slots, q_out, k_out, v_out, .. } => {
                // With slots only some rows of the caches change, so they are updated, not overwritten.
                let cache = if slots.is_some() { ReadWrite } else { Write };
                f(q, Read);
                f(k, Read);
                f(v, Read);
                visit_all([q_norm, k_norm], f);
                f(positions, Read);
                f(rope, Read);
                visit_all([slots], f);
                f(q_out, Write);
                f(k_out, cache);
                if let Some(v_out) = v_out {
                    f(v_out, cache);
                }
            }
            Op::QkNormRopeBackward { q, k, q_norm, k_norm, positions, rope, dq_out, dk_out, dq, dk, .. } => {
                f(q, Read);
                f(k, Read);
                visit_all([q_norm, k_norm], f);
                f(positions, Read);
                f(rope, Read);
                f(dq_out, Read);
                f(dk_out, Read);
                f(dq, Write);
                f(dk, Write);
            }
            Op::QkNormDw { x, positions, rope, dout, scale, dw, .. } => {
                for id in [x, positions, rope, dout] {
                    f(id, Read);
                }
                visit_all([scale], f);
                f(dw, ReadWrite);
            }
            Op::Attention { q, k, v, seqs, positions, layout, out, lse, .. } => {
                f(q, Read);
                f(k, Read);
                f(v, Read);
                f(seqs, Read);
                f(positions, Read);
                match layout {
                    KvLayout::Paged { table, .. } => f(table, Read),
                    KvLayout::Packed { bounds } => f(bounds, Read),
                }
                f(out, Write);
                if let Some(lse) = lse {
                    f(lse, Write);
                }
            }
            Op::AttentionBackward { q, k, v, seqs, bounds, out, lse, dout, delta, dq, dk, dv, .. } => {
                for id in [q, k, v, seqs, bounds, out, lse, dout] {
                    f(id, Read);
                }
                for id in [delta, dq, dk, dv] {
                    f(id, Write);
                }
            }
            Op::Glu { gate, up, out, .. } => {
                f(gate, Read);
                f(up, Read);
                f(out, Write);
            }
            Op::GluBackward { gate, up, dout, dgate, dup, .. } => {
                for id in [gate, up, dout] {
                    f(id, Read);
                }
                f(dgate, Write);
                f(dup, Write);
            }
            Op::GatherRows { x, rows, out } => {
                f(x, Read);
                f(rows, Read);
                f(out, Write);
            }
            Op::HeadLoss { x, weight, labels, scale, weights, logits, loss, dx, dw, .. } => {
                for id in [x, weight, labels, scale] {
                    f(id, Read);
                }
                visit_all([weights], f);
                f(logits, Write);
                f(loss, Write);
                if let Some(dx) = dx {
                    f(dx, Write);
                }
                if let Some(HeadDw { dw, scale }) = dw {
                    visit_all([scale], f);
                    f(dw, ReadWrite);
                }
            }
            Op::PreferenceLoss { loss, kinds, bounds, reference, hyper, weights, pairs } => {
                for id in [loss, kinds, bounds, reference, hyper] {
                    f(id, Read);
                }
                f(weights, Write);
                f(pairs, Write);
            }
            Op::Sample { logits, sampling, uniforms, tokens } => {
                for id in [logits, sampling, uniforms] {
                    f(id, Read);
                }
                f(tokens, Write);
            }
            Op::AdjustLogits { logits, entries, starts, repetition, masks, mask_of, out } => {
                for id in [logits, entries, starts, repetition, masks, mask_of] {
                    f(id, Read);
                }
                f(out, Write);
            }
            Op::TopLogprobs { logits, tokens, labels, logprobs, top } => {
                for id in [logits, tokens, labels] {
                    f(id, Read);
                }
                f(logprobs, Write);
                f(top, Write);
            }
            Op::Copy { x, out } => {
                f(x, Read);
                f(out, Write);
            }
            Op::Accumulate { x, y } => {
                f(x, Read);
                f(y, ReadWrite);
            }
            Op::Fill { x, .. } => f(x, Write),
            Op::PlaceAdapter { from, table, to } => {
                f(from, Read);
                f(table, Read);
                f(to, ReadWrite);
            }
            Op::GradNorm { x, out } => {
                f(x, Read);
                f(out, Write);
            }
            Op::AdamW { params, grads, m, v, norm, hyper } => {
                f(params, ReadWrite);
                f(grads, Read);
                f(m, ReadWrite);
                f(v, ReadWrite);
                f(norm, Read);
                f(hyper, Read);
            }
            Op::Lion { params, grads, m, norm, hyper } | Op::Sgd { params, grads, m, norm, hyper } => {
                f(params, ReadWrite);
                f(grads, Read);
                f(m, ReadWrite);
                f(norm, Read);
                f(hyper, Read);
            }
            Op::Lion8bit { params, grads, m, m_max, norm, hyper } => {
                f(params, ReadWrite);
                f(grads, Read);
                f(m, ReadWrite);
                f(m_max, ReadWrite);
                f(norm, Read);
                f(hyper, Read);
            }
            Op::AdamW8bit { params, grads, m, v, m_max, v_max, norm, hyper } => {
                f(params, ReadWrite);
                f(grads, Read);
                for id in [m, v, m_max, v_max] {
                    f(id, ReadWrite);
                }
                f(norm, Read);
                f(hyper, Read);
            }
        }
    }

    /// Operands in [`Op::visit`]'s order.
    pub fn operands(&self) -> Vec<(TensorId, Access)> {
        let mut list = Vec::with_capacity(12);
        self.clone().visit(&mut |id, access| list.push((*id, access)));
        list
    }
}

fn visit_all<const N: usize>(ids: [&mut Option<TensorId>; N], f: &mut dyn FnMut(&mut TensorId, Access)) {
    for id in ids.into_iter().flatten() {
        f(id, Access::Read);
    }
}

/// Whether dropout keeps element `index` of the tensor with this `salt` at a step with this `seed`:
/// a 32-bit mix (the finaliser of MurmurHash3) whose upper 24 bits, as a fraction, are at least `p`.
/// Every backend computes exactly this.
pub fn dropout_keeps(seed: u32, salt: u32, index: u32, p: f32) -> bool {
    let mut h = index.wrapping_mul(0x9E37_79B1) ^ seed ^ salt.wrapping_mul(0x85EB_CA77);
    h = (h ^ (h >> 16)).wrapping_mul(0x85EB_CA6B);
    h = (h ^ (h >> 13)).wrapping_mul(0xC2B2_AE35);
    h ^= h >> 16;
    (h >> 8) as f32 * (1.0 / 16_777_216.0) >= p
}

/// The logit of a token that must not be chosen. Finite, because shaders may assume that all numbers are: its distance from any
/// other logit is so large that the token's weight is 0.
pub const IMPOSSIBLE: f32 = f32::MIN;

/// In word 0 of an entry of [`Op::AdjustLogits`]: the repetition penalty applies.
pub const SEEN: u32 = 1 << 31;

/// Elements of a block of [`Op::AdamW8bit`].
pub const MOMENT_BLOCK: usize = 256;

/// The numbers that 8-bit codes stand for: bitsandbytes' dynamic map, ascending. For each power of ten from 10⁻⁶ to 1, twice
/// as many numbers as for the one before lie evenly between a tenth of it and itself; besides, 0 and 1. `signed`: of
/// both signs, half as many.
pub fn dynamic_map(signed: bool) -> [f32; 256] {
    let mut map = [0.0; 256];
    map[255] = 1.0;
    let mut at = 1; // 0 has its place
    for (i, power) in [1e-6f32, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0].into_iter().enumerate() {
        let items = if signed { 1 << i } else { 2 << i };
        // As torch.linspace does it: from both ends.
        let step = (1.0f32 - 0.1) / items as f32;
        let boundary = |j: usize| {
            if j <= items / 2 { step.mul_add(j as f32, 0.1) } else { (-step).mul_add((items - j) as f32, 1.0) }
        };
        for j in 0..items {
            let value = power * ((boundary(j) + boundary(j + 1)) / 2.0);
            map[at] = value;
            at += 1;
            if signed {
                map[at] = -value;
                at += 1;
            }
        }
    }
    map.sort_by(f32::total_cmp);
    map
}
