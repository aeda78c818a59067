//! Choosing tokens where requests want more than the four numbers of a step's own draw: a program over the logits that the step
//! has left on the device. It runs after the step, so that what it needs (a grammar's mask, above all) can be worked out
//! while the device is busy.

use super::decoder::buffers;
use crate::error::Result;
use crate::program::{Builder, Live, Op, Place, Program, TensorDecl, TensorId};
use crate::tensor::DType;

/// Sizes of a choice. Its rows are the first ones of the step's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChoiceShape {
    /// Rows.
    pub rows: usize,
    /// Entries of all rows together; 0: logits are taken as they are, without masks either.
    pub entries: usize,
    /// Masks.
    pub masks: usize,
    /// Likeliest tokens to report; 0: no log-probabilities.
    pub top: usize,
    /// Logits in a row.
    pub vocab: usize,
}

/// A choice, and the ids of its inputs and outputs.
pub struct ChoiceProgram {
    /// The ops.
    pub program: Program,
    /// f32 `[rows, 4]`: temperature, top-k, top-p, min-p.
    pub sampling: TensorId,
    /// f32 `[1, rows]`, from [0, 1).
    pub uniforms: TensorId,
    /// What changes the logits, where anything does.
    pub adjust: Option<AdjustInputs>,
    /// u32 `[rows, 1]`: the chosen tokens.
    pub tokens: TensorId,
    /// Where they are wanted.
    pub logprobs: Option<LogprobIds>,
}

/// The inputs of [`Op::AdjustLogits`].
#[derive(Clone, Copy, Debug)]
pub struct AdjustInputs {
    /// u32 `[entries, 2]`.
    pub entries: TensorId,
    /// u32 `[1, rows + 1]`.
    pub starts: TensorId,
    /// f32 `[1, rows]`.
    pub repetition: TensorId,
    /// u32 `[masks, ⌈vocab / 32⌉]`.
    pub masks: TensorId,
    /// u32 `[1, rows]`.
    pub mask_of: TensorId,
}

/// Input and outputs of [`Op::TopLogprobs`].
#[derive(Clone, Copy, Debug)]
pub struct LogprobIds {
    /// u32 `[1, rows]`.
    pub labels: TensorId,
    /// f32 `[rows, 1 + top]`.
    pub logprobs: TensorId,
    /// u32 `[rows, top]`.
    pub top: TensorId,
}

/// The program of a choice. It binds [`buffers::LOGITS`] and, where it changes logits, [`buffers::ADJUSTED`].
///
/// # Errors
/// A shape that does not fit together (a bug), naming op and operand.
pub fn choice_program(shape: &ChoiceShape) -> Result<ChoiceProgram> {
    let mut b = Builder::new("choice");
    let ChoiceShape { rows, vocab, .. } = *shape;
    let logits = logits(&mut b, buffers::LOGITS, rows, vocab);
    let sampling = b.input("sampling", DType::F32, rows, 4);
    let uniforms = b.input("uniforms", DType::F32, 1, rows);
    let (mut adjust, mut adjusted) = (None, logits);
    if shape.entries > 0 {
        let ids = AdjustInputs {
            entries: b.input("entries", DType::U32, shape.entries, 2),
            starts: b.input("starts", DType::U32, 1, rows + 1),
            repetition: b.input("repetition", DType::F32, 1, rows),
            masks: b.input("masks", DType::U32, shape.masks, vocab.div_ceil(32)),
            mask_of: b.input("mask_of", DType::U32, 1, rows),
        };
        adjusted = self::logits(&mut b, buffers::ADJUSTED, rows, vocab);
        let AdjustInputs { entries, starts, repetition, masks, mask_of } = ids;
        b.push(Op::AdjustLogits { logits, entries, starts, repetition, masks, mask_of, out: adjusted })?;
        adjust = Some(ids);
    }
    let tokens = output(&mut b, "tokens", rows, 1, DType::U32);
    b.push(Op::Sample { logits: adjusted, sampling, uniforms, tokens })?;
    let mut reported = None;
    if shape.top > 0 {
        let labels = b.input("labels", DType::U32, 1, rows);
        let logprobs = output(&mut b, "logprobs", rows, 1 + shape.top, DType::F32);
        let top = output(&mut b, "top", rows, shape.top, DType::U32);
        b.push(Op::TopLogprobs { logits, tokens, labels, logprobs, top })?;
        reported = Some(LogprobIds { labels, logprobs, top });
    }
    Ok(ChoiceProgram { program: b.finish(), sampling, uniforms, adjust, tokens, logprobs: reported })
}

/// The first `rows` rows of a buffer of logits, of which the gathered ones are live.
pub fn logits(b: &mut Builder, buffer: &str, rows: usize, vocab: usize) -> TensorId {
    let place = Place::State { buffer: buffer.into(), offset: 0 };
    b.tensor(TensorDecl { name: buffer.into(), rows, cols: vocab, dtype: DType::F32, place, live: Live::Gathered })
}

fn output(b: &mut Builder, name: &str, rows: usize, cols: usize, dtype: DType) -> TensorId {
    b.tensor(TensorDecl { name: name.into(), rows, cols, dtype, place: Place::Output, live: Live::Gathered })
}
