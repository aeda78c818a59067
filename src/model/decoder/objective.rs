//! What a training program minimises, and the program of the model that is not trained.

use super::{Decoder, KeyValues, ModelShape};
use crate::error::Result;
use crate::program::{Builder, Live, Op, Place, Program, TensorDecl, TensorId};
use crate::tensor::DType;

/// What is minimised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Objective {
    /// The cross-entropy of the counted tokens.
    #[default]
    Tokens,
    /// The same, each token's multiplied by a weight of its own.
    Weighted,
    /// The loss of pairs of sequences ([`Op::PreferenceLoss`]).
    Pairs,
}

/// The inputs and outputs that an objective adds to a training program.
#[derive(Clone, Copy, Debug)]
pub enum ObjectiveInputs {
    /// None.
    Tokens,
    /// A weight for each row.
    Weighted {
        /// f32 `[1, rows]`.
        weights: TensorId,
    },
    /// Sequences in pairs, the preferred one first.
    Pairs {
        /// u32 `[1, rows]`: which sums a row's label counts in.
        kinds: TensorId,
        /// f32 `[1, 2 · pairs]`: log-probabilities under the model that is not trained.
        reference: TensorId,
        /// f32 `[1, 4]`: which loss, β, ν.
        hyper: TensorId,
        /// f32 `[pairs, 4]`: loss, both log-probabilities, sum of the cross-entropies that are kept up.
        pairs: TensorId,
    },
}

impl Decoder<'_> {
    /// Ends a program with its loss: f32 `[rows, 1]`, the cross-entropy of each row's label.
    pub(super) fn objective(
        &mut self,
        h: TensorId,
        [labels, scale, bounds]: [TensorId; 3],
        objective: Objective,
    ) -> Result<(TensorId, ObjectiveInputs)> {
        let rows = self.rows;
        let logits = self.logits_chunk();
        Ok(match objective {
            Objective::Tokens => (self.loss_with(h, labels, scale, None, logits)?, ObjectiveInputs::Tokens),
            Objective::Weighted => {
                let weights = self.b.input("token_weights", DType::F32, 1, rows);
                let inputs = ObjectiveInputs::Weighted { weights };
                (self.loss_with(h, labels, scale, Some(weights), logits)?, inputs)
            }
            Objective::Pairs => {
                let count = self.b.decl(bounds).cols / 2;
                let kinds = self.b.input("kinds", DType::U32, 1, rows);
                let reference = self.b.input("reference", DType::F32, 1, 2 * count);
                let hyper = self.b.input("preference", DType::F32, 1, 4);
                // A token's weight is known only once all of its pair's are scored: the head's product is made twice, which
                // costs less than keeping all logits, and nothing beside a second pass through the layers.
                let first = self.b.temp("token_loss", rows, 1, Live::Tokens);
                let weight = self.head_weight();
                self.b.push(Op::HeadLoss {
                    x: h,
                    weight,
                    labels,
                    scale,
                    weights: None,
                    smoothing: 0.0,
                    logits,
                    loss: first,
                    dx: None,
                    dw: None,
                })?;
                let place = Place::Temp;
                let (name, dtype, live) = ("token_weights".into(), DType::F32, Live::All);
                let weights = self.b.tensor(TensorDecl { name, rows: 1, cols: rows, dtype, place, live });
                let pairs = self.b.output("pairs", count, 4, Live::All);
                self.b.push(Op::PreferenceLoss { loss: first, kinds, bounds, reference, hyper, weights, pairs })?;
                let inputs = ObjectiveInputs::Pairs { kinds, reference, hyper, pairs };
                (self.loss_with(h, labels, scale, Some(weights), logits)?, inputs)
            }
        })
    }

    fn loss_with(
        &mut self,
        h: TensorId,
        labels: TensorId,
        scale: TensorId,
        weights: Option<TensorId>,
        logits: TensorId,
    ) -> Result<TensorId> {
        let weight = self.head_weight();
        let loss = self.b.output("loss", self.rows, 1, Live::Tokens);
        let smoothing = self.smoothing;
        let (dx, dw) = (None, None);
        self.b.push(Op::HeadLoss { x: h, weight, labels, scale, weights, smoothing, logits, loss, dx, dw })?;
        Ok(loss)
    }

    /// Scratch of [`Op::HeadLoss`].
    fn logits_chunk(&mut self) -> TensorId {
        let vocab = self.model.config.vocab;
        let limits = &self.model.limits;
        let bytes = limits.logits_chunk_bytes.min(limits.max_tensor_bytes);
        let chunk = (bytes / (vocab * 4)).clamp(1, self.rows);
        // Whole tiles of the GPUs' large products.
        let chunk = if chunk < 256 { chunk } else { chunk / 128 * 128 };
        self.b.temp("logits_chunk", chunk, vocab, Live::All)
    }
}

/// A forward pass over packed sequences without adapters: what the base model says of each label.
pub struct BaseProgram {
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
    /// f32 `[rows, 1]`: negative log-likelihood of each row's label.
    pub loss: TensorId,
}

/// The program of the base model over `rows` tokens of up to `seqs` sequences: the same ops and kernels as in training.
///
/// # Errors
/// As [`super::serve_program`].
pub fn base_program(model: &ModelShape, rows: usize, seqs: usize) -> Result<BaseProgram> {
    let mut b = Builder::new("base").with_activations(model.limits.activations);
    let ids = b.input("ids", DType::U32, 1, rows);
    let positions = b.input("positions", DType::U32, 1, rows);
    let seqs_of = b.input("seqs", DType::U32, 1, rows);
    let bounds = b.input("bounds", DType::U32, 1, seqs + 1);
    let labels = b.input("labels", DType::U32, 1, rows);
    let scale = b.input("loss_scale", DType::F32, 1, 1);
    let kv = KeyValues::Own { bounds };
    let mut decoder = Decoder {
        b,
        model,
        rows,
        positions,
        seqs: seqs_of,
        kv,
        lora: None,
        adapters: None,
        noise: None,
        smoothing: 0.0,
        dropout: 0.0,
        salt: 0,
        whole: None,
    };
    let h = decoder.body(ids)?;
    let (loss, _) = decoder.objective(h, [labels, scale, bounds], Objective::Tokens)?;
    let program = decoder.b.finish();
    Ok(BaseProgram { program, ids, positions, seqs: seqs_of, bounds, labels, loss })
}
