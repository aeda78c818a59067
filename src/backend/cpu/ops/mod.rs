//! One function an op, grouped by subject. Operands come as slices of live rows.

mod attention;
mod dora;
mod elementwise;
mod logits;
mod lora;
mod loss;
mod matmul;
mod norm;
mod optim;
mod preference;
mod rope;
mod sample;
mod weights;

use super::args::Args;
use super::cut::Cut;
use super::executable::Step;
use crate::error::Result;
use crate::program::Op;

/// Rows of a step from which work is spread over threads: below, handing it over costs more than it saves.
const PARALLEL_ROWS: usize = 16;

/// Runs one op from the unit on that `cut` names, until it is done or has stopped.
pub(super) fn run(op: &Op, args: Args, step: &Step, cut: &mut Cut) -> Result<()> {
    match op {
        Op::Embed { table, .. } => matmul::embed(cut, args, step.cols(*table)),
        Op::EmbedDw { dy, skip, scale, .. } => weights::embed_dw(args, step.cols(*dy), *skip, scale.is_some()),
        Op::ColumnSum { scale, .. } => weights::column_sum(args, scale.is_some()),
        Op::MatMul { x, bias, residual, .. } => {
            matmul::forward(cut, args, step.cols(*x), bias.is_some(), residual.is_some())
        }
        Op::MatMulDx { weight, scale, accumulate, .. } => {
            matmul::dx(cut, args, step.cols(*weight), scale.is_some(), *accumulate)
        }
        Op::MatMulDw { dy, x, scale, .. } => matmul::dw(cut, args, step.cols(*dy), step.cols(*x), scale.is_some()),
        Op::GatherRows { x, .. } => matmul::gather_rows(cut, args, step.cols(*x)),
        Op::RmsNorm { eps, .. } => norm::forward(cut, args, *eps),
        Op::RmsNormBackward { eps, accumulate, .. } => norm::backward(cut, args, *eps, *accumulate),
        Op::RmsNormDw { eps, scale, .. } => weights::rms_norm_dw(args, *eps, scale.is_some()),
        Op::LoraShrink { x, slots, rank, .. } => lora::shrink(cut, args, step.cols(*x), *rank, slots.is_some()),
        Op::LoraExpand { y, slots, rank, .. } => lora::expand(cut, args, step.cols(*y), *rank, slots.is_some()),
        Op::Dropout { p, salt, complement, accumulate, .. } => {
            elementwise::dropout(cut, args, *p, (*salt, step.seed), *complement, *accumulate)
        }
        Op::DoraNorm { a, .. } => dora::norm(args, step.program.decl(*a).rows),
        Op::DoraScale { x, slots, bias, residual, .. } => {
            dora::scale(args, step.cols(*x), slots.is_some(), bias.is_some(), residual.is_some())
        }
        Op::DoraScaleBackward { scale, .. } => dora::scale_backward(args, scale.is_some()),
        Op::Glu { activation, .. } => elementwise::glu(cut, args, *activation),
        Op::GluBackward { activation, .. } => elementwise::glu_backward(cut, args, *activation),
        Op::Copy { .. } => elementwise::copy(cut, args),
        Op::Accumulate { .. } => elementwise::accumulate(cut, args),
        Op::Fill { value, .. } => elementwise::fill(args, *value),
        Op::PlaceAdapter { .. } => elementwise::place_adapter(args),
        Op::QkNormRopeKv { q, k, q_norm, k_norm, eps, head_dim, rope, slots, k_out, v_out, .. } => {
            let heads =
                rope::Heads { q: step.cols(*q), k: step.cols(*k), dim: *head_dim, rope: step.cols(*rope), eps: *eps };
            let cache = rope::Cache { dtype: step.dtype(*k_out), slots: slots.is_some(), values: v_out.is_some() };
            rope::forward(cut, args, &heads, (q_norm.is_some(), k_norm.is_some()), &cache)
        }
        Op::QkNormRopeBackward { q, k, q_norm, k_norm, eps, head_dim, rope, .. } => {
            let heads =
                rope::Heads { q: step.cols(*q), k: step.cols(*k), dim: *head_dim, rope: step.cols(*rope), eps: *eps };
            rope::backward(cut, args, &heads, (q_norm.is_some(), k_norm.is_some()))
        }
        Op::QkNormDw { x, eps, rope, scale, .. } => {
            weights::qk_norm_dw(args, [step.cols(*x), step.cols(*rope)], *eps, scale.is_some())
        }
        Op::Attention { k, layout, geometry, lse, .. } => {
            let stored = attention::Stored { dtype: step.dtype(*k), layout };
            attention::forward(cut, args, &stored, geometry, lse.is_some(), step)
        }
        Op::AttentionBackward { geometry, .. } => attention::backward(cut, args, geometry),
        Op::HeadLoss { x, logits, weights, dx, dw, smoothing, .. } => {
            let parts = loss::Parts {
                vocab: step.cols(*logits),
                inputs: step.cols(*x),
                weights: weights.is_some(),
                dx: dx.is_some(),
                dw: dw.map(|head| head.scale.is_some()),
            };
            loss::head_loss(cut, args, &parts, *smoothing)
        }
        Op::PreferenceLoss { .. } => preference::forward(args, step.sequences),
        Op::Sample { logits, .. } => sample::forward(cut, args, step.cols(*logits)),
        Op::AdjustLogits { logits, .. } => logits::adjust(cut, args, step.cols(*logits)),
        Op::TopLogprobs { logits, top, .. } => logits::top_logprobs(cut, args, step.cols(*logits), step.cols(*top)),
        Op::GradNorm { .. } => optim::grad_norm(cut, args),
        Op::AdamW { .. } => optim::adamw(cut, args),
        Op::Lion { .. } => optim::lion(cut, args),
        Op::Sgd { .. } => optim::sgd(cut, args),
        Op::AdamW8bit { .. } => optim::adamw_8bit(cut, args),
        Op::Lion8bit { .. } => optim::lion_8bit(cut, args),
    }
}
