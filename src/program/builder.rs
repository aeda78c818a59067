//! Builds a [`Program`] op by op, checking shapes as it goes.

use super::cache::row_len;
use super::{HeadDw, Live, MOMENT_BLOCK, Node, Op, Place, Program, STATE_ALIGN, TensorDecl, TensorId};
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Collects tensors and ops. Shape errors are reported when the op is pushed, with the names involved.
pub struct Builder {
    program: Program,
    segment: u32,
    activations: DType,
}

impl Builder {
    /// An empty program with its `counts` input.
    pub fn new(name: impl Into<String>) -> Self {
        let counts = TensorDecl {
            name: "counts".into(),
            rows: 1,
            cols: 4,
            dtype: DType::U32,
            place: Place::Input,
            live: Live::All,
        };
        let program =
            Program { name: name.into(), tensors: vec![counts], nodes: vec![], counts: TensorId(0), forward_len: 0 };
        Self { program, segment: 0, activations: DType::F32 }
    }

    /// Activations from here on are of type `dtype`: f32, or what the device computes in ([`crate::backend::Limits`]).
    pub fn with_activations(self, dtype: DType) -> Self {
        Self { activations: dtype, ..self }
    }

    /// Goes on from an existing program (transforms use this).
    pub(super) fn resume(program: Program) -> Self {
        Self { program, segment: 0, activations: DType::F32 }
    }

    /// Tags the ops that follow with a segment.
    pub fn segment(&mut self, segment: u32) {
        self.segment = segment;
    }

    /// Declares a tensor.
    pub fn tensor(&mut self, decl: TensorDecl) -> TensorId {
        let id = TensorId(self.program.tensors.len() as u32);
        self.program.tensors.push(decl);
        id
    }

    /// The weight called `name`; declared once however often it is asked for.
    pub fn weight(&mut self, name: &str, dtype: DType, rows: usize, cols: usize) -> TensorId {
        if let Some(id) = self.program.find(name) {
            return id;
        }
        self.tensor(TensorDecl { name: name.into(), rows, cols, dtype, place: Place::Weight, live: Live::All })
    }

    /// A part of the State buffer `buffer`, starting `offset` elements in.
    pub fn state(
        &mut self,
        name: &str,
        buffer: &str,
        offset: usize,
        dtype: DType,
        rows: usize,
        cols: usize,
    ) -> TensorId {
        let place = Place::State { buffer: buffer.into(), offset };
        self.tensor(TensorDecl { name: name.into(), rows, cols, dtype, place, live: Live::All })
    }

    /// An input that the host writes.
    pub fn input(&mut self, name: &str, dtype: DType, rows: usize, cols: usize) -> TensorId {
        self.tensor(TensorDecl { name: name.into(), rows, cols, dtype, place: Place::Input, live: Live::All })
    }

    /// An intermediate of the activations' type.
    pub fn activation(&mut self, name: impl Into<String>, rows: usize, cols: usize, live: Live) -> TensorId {
        let dtype = self.activations;
        self.tensor(TensorDecl { name: name.into(), rows, cols, dtype, place: Place::Temp, live })
    }

    /// An intermediate that is f32 whatever the activations are: statistics, logits.
    pub fn temp(&mut self, name: impl Into<String>, rows: usize, cols: usize, live: Live) -> TensorId {
        self.tensor(TensorDecl { name: name.into(), rows, cols, dtype: DType::F32, place: Place::Temp, live })
    }

    /// An f32 result that the host reads.
    pub fn output(&mut self, name: &str, rows: usize, cols: usize, live: Live) -> TensorId {
        self.tensor(TensorDecl { name: name.into(), rows, cols, dtype: DType::F32, place: Place::Output, live })
    }

    /// The tensor called `name`, if it has been declared.
    pub fn find(&self, name: &str) -> Option<TensorId> {
        self.program.find(name)
    }

    /// The declaration behind an id.
    pub fn decl(&self, id: TensorId) -> &TensorDecl {
        self.program.decl(id)
    }

    /// The `counts` input.
    pub fn counts(&self) -> TensorId {
        self.program.counts
    }

    /// Appends an op after checking its operands' shapes and types.
    pub fn push(&mut self, op: Op) -> Result<()> {
        self.check(&op)?;
        self.program.nodes.push(Node { op, segment: self.segment });
        Ok(())
    }

    /// Makes the loss at node `index` write the gradients of its input and of its weight too.
    pub(super) fn set_loss_gradient(&mut self, index: usize, x: Option<TensorId>, w: Option<HeadDw>) -> Result<()> {
        match self.program.nodes.get_mut(index).map(|node| &mut node.op) {
            Some(Op::HeadLoss { dx, dw, .. }) => {
                (*dx, *dw) = (x, w);
                Ok(())
            }
            _ => Err(Error::internal("set_loss_gradient: not a head_loss")),
        }
    }

    /// The finished program.
    pub fn finish(mut self) -> Program {
        if self.program.forward_len == 0 {
            self.program.forward_len = self.program.nodes.len();
        }
        self.program
    }

    /// Checks one op: names the op and the operand whose shape or type is off.
    fn check(&self, op: &Op) -> Result<()> {
        let d = |id: TensorId| self.program.decl(id);
        let fail = |id: TensorId, want: String| {
            let t = d(id);
            Err(Error::internal(format!(
                "{}: operand '{}' is {} [{}, {}], expected {want}",
                op.name(),
                t.name,
                t.dtype,
                t.rows,
                t.cols
            )))
        };
        for (id, _) in op.operands() {
            let t = d(id);
            if t.dtype.bytes_for(t.cols).is_none() {
                return fail(id, format!("rows of whole {}-element blocks", t.dtype.block_len()));
            }
            if let Place::State { offset, .. } = &t.place
                && !offset.is_multiple_of(STATE_ALIGN)
            {
                return fail(id, format!("an offset aligned to {STATE_ALIGN} elements"));
            }
        }
        let shape = |id: TensorId, rows: usize, cols: usize| {
            if (d(id).rows, d(id).cols) == (rows, cols) { Ok(()) } else { fail(id, format!("[{rows}, {cols}]")) }
        };
        let same = |a: TensorId, b: TensorId| shape(a, d(b).rows, d(b).cols);
        match op {
            Op::Embed { table, ids, out } => {
                shape(*ids, 1, d(*out).rows)?;
                shape(*out, d(*ids).cols, d(*table).cols)
            }
            Op::EmbedDw { ids, dy, dw, .. } => {
                shape(*ids, 1, d(*dy).rows)?;
                shape(*dw, d(*dw).rows, d(*dy).cols)
            }
            Op::RmsNormDw { x, dy, dw, .. } => {
                same(*dy, *x)?;
                shape(*dw, 1, d(*x).cols)
            }
            Op::ColumnSum { x, out, .. } => shape(*out, 1, d(*x).cols),
            Op::QkNormDw { x, head_dim, dout, dw, .. } => {
                same(*dout, *x)?;
                shape(*x, d(*x).rows, d(*x).cols / head_dim * head_dim)?;
                shape(*dw, 1, *head_dim)
            }
            Op::RmsNorm { x, weight, out, .. } => {
                same(*out, *x)?;
                shape(*weight, 1, d(*x).cols)
            }
            Op::RmsNormBackward { x, weight, dy, dx, .. } => {
                same(*dy, *x)?;
                same(*dx, *x)?;
                shape(*weight, 1, d(*x).cols)
            }
            Op::MatMul { x, weight, bias, residual, out } => {
                shape(*out, d(*x).rows, d(*weight).rows)?;
                shape(*weight, d(*out).cols, d(*x).cols)?;
                bias.map_or(Ok(()), |b| shape(b, 1, d(*out).cols))?;
                residual.map_or(Ok(()), |r| same(r, *out))
            }
            Op::MatMulDx { dy, weight, dx, .. } => {
                shape(*dx, d(*dy).rows, d(*weight).cols)?;
                shape(*weight, d(*dy).cols, d(*dx).cols)
            }
            Op::MatMulDw { dy, x, dw, .. } => {
                shape(*dw, d(*dy).cols, d(*x).cols)?;
                shape(*x, d(*dy).rows, d(*dw).cols)
            }
            Op::LoraShrink { x, a, rank, out, .. } => {
                shape(*out, d(*x).rows, *rank)?;
                shape(*a, d(*a).rows / rank * rank, d(*x).cols)
            }
            Op::LoraExpand { u, b, rank, y, .. } => {
                shape(*u, d(*y).rows, *rank)?;
                shape(*b, d(*b).rows / d(*y).cols * d(*y).cols, *rank)
            }
            Op::Dropout { x, out, .. } => same(*out, *x),
            Op::DoraNorm { weight, a, b, scales, norms } => {
                let (n, rank) = (d(*weight).rows, d(*a).rows);
                shape(*a, rank, d(*weight).cols)?;
                shape(*b, n, rank)?;
                shape(*scales, 1, 1)?;
                shape(*norms, 1, n)
            }
            Op::DoraScale { x, magnitude, norms, slots, bias, residual, out } => {
                same(*out, *x)?;
                let adapters = if slots.is_some() { d(*magnitude).rows } else { 1 };
                shape(*magnitude, adapters, d(*x).cols)?;
                same(*norms, *magnitude)?;
                slots.map_or(Ok(()), |slots| shape(slots, 1, d(*x).rows))?;
                bias.map_or(Ok(()), |b| shape(b, 1, d(*x).cols))?;
                residual.map_or(Ok(()), |r| same(r, *x))
            }
            Op::DoraScaleBackward { dy, x, norms, dm, .. } => {
                same(*dy, *x)?;
                shape(*norms, 1, d(*x).cols)?;
                same(*dm, *norms)
            }
            Op::QkNormRopeKv { q, k, v, head_dim, q_out, k_out, v_out, q_norm, k_norm, .. } => {
                let cache = *k_out;
                shape(cache, d(cache).rows, row_len(d(cache).dtype, d(*k).cols / head_dim, *head_dim))?;
                v_out.map_or(Ok(()), |v_out| same(v_out, cache))?;
                same(*q_out, *q)?;
                same(*v, *k)?;
                shape(*k, d(*q).rows, d(*k).cols / head_dim * head_dim)?;
                for norm in [q_norm, k_norm].into_iter().flatten() {
                    shape(*norm, 1, *head_dim)?;
                }
                Ok(())
            }
            Op::QkNormRopeBackward { q, k, dq_out, dk_out, dq, dk, .. } => {
                same(*dq_out, *q)?;
                same(*dq, *q)?;
                same(*dk_out, *k)?;
                same(*dk, *k)
            }
            Op::Attention { q, k, v, geometry: g, out, lse, .. } => {
                shape(*q, d(*out).rows, g.heads * g.head_dim)?;
                same(*out, *q)?;
                shape(*k, d(*k).rows, row_len(d(*k).dtype, g.kv_heads, g.head_dim))?;
                same(*v, *k)?;
                lse.map_or(Ok(()), |l| shape(l, d(*q).rows, g.heads))
            }
            Op::AttentionBackward { q, k, v, geometry: g, out, lse, dout, delta, dq, dk, dv, .. } => {
                for id in [out, dout, dq] {
                    same(*id, *q)?;
                }
                for id in [v, dk, dv] {
                    same(*id, *k)?;
                }
                shape(*lse, d(*q).rows, g.heads)?;
                shape(*delta, d(*q).rows, g.heads)
            }
            Op::Glu { gate, up, out, .. } => {
                same(*up, *gate)?;
                same(*out, *gate)
            }
            Op::GluBackward { gate, up, dout, dgate, dup, .. } => {
                for id in [up, dout, dgate, dup] {
                    same(*id, *gate)?;
                }
                Ok(())
            }
            Op::GatherRows { x, rows, out } => shape(*out, d(*rows).cols, d(*x).cols),
            Op::HeadLoss { x, weight, labels, weights, logits, loss, dx, dw, .. } => {
                shape(*weight, d(*weight).rows, d(*x).cols)?;
                shape(*labels, 1, d(*x).rows)?;
                shape(*logits, d(*logits).rows, d(*weight).rows)?;
                shape(*loss, d(*x).rows, 1)?;
                weights.map_or(Ok(()), |weights| shape(weights, 1, d(*x).rows))?;
                dx.map_or(Ok(()), |dx| same(dx, *x))?;
                dw.map_or(Ok(()), |head| same(head.dw, *weight))
            }
            Op::PreferenceLoss { loss, kinds, bounds, reference, hyper, weights, pairs } => {
                let (rows, count) = (d(*loss).rows, d(*pairs).rows);
                shape(*loss, rows, 1)?;
                shape(*kinds, 1, rows)?;
                shape(*bounds, 1, 2 * count + 1)?;
                shape(*reference, 1, 2 * count)?;
                shape(*hyper, 1, 4)?;
                shape(*weights, 1, rows)?;
                shape(*pairs, count, 4)
            }
            Op::Sample { logits, sampling, uniforms, tokens } => {
                shape(*sampling, d(*logits).rows, 4)?;
                shape(*uniforms, 1, d(*logits).rows)?;
                shape(*tokens, d(*logits).rows, 1)
            }
            Op::AdjustLogits { logits, entries, starts, repetition, masks, mask_of, out } => {
                let rows = d(*logits).rows;
                same(*out, *logits)?;
                shape(*entries, d(*entries).rows, 2)?;
                shape(*starts, 1, rows + 1)?;
                shape(*repetition, 1, rows)?;
                shape(*masks, d(*masks).rows, d(*logits).cols.div_ceil(32))?;
                shape(*mask_of, 1, rows)
            }
            Op::TopLogprobs { logits, tokens, labels, logprobs, top } => {
                let (rows, n) = (d(*logits).rows, d(*top).cols);
                shape(*tokens, rows, 1)?;
                shape(*labels, 1, rows)?;
                shape(*logprobs, rows, 1 + n)?;
                shape(*top, rows, n.min(d(*logits).cols))
            }
            Op::Copy { x, out } => same(*x, *out),
            Op::Accumulate { x, y } => same(*x, *y),
            Op::Fill { .. } => Ok(()),
            Op::PlaceAdapter { from, table, to } => {
                shape(*table, d(*table).rows, 8)?;
                shape(*from, 1, d(*from).cols)?;
                shape(*to, 1, d(*to).cols)
            }
            Op::GradNorm { out, .. } => shape(*out, 1, 1),
            Op::AdamW8bit { params, grads, m, v, m_max, v_max, norm, hyper } => {
                let n = d(*params).len();
                same(*grads, *params)?;
                shape(*params, 1, n / 4 * 4)?;
                for id in [m, v] {
                    shape(*id, 1, n / 4)?;
                }
                for id in [m_max, v_max] {
                    shape(*id, 1, n.div_ceil(MOMENT_BLOCK))?;
                }
                shape(*norm, 1, 1)?;
                shape(*hyper, 1, 520)
            }
            Op::Lion8bit { params, grads, m, m_max, norm, hyper } => {
                let n = d(*params).len();
                same(*grads, *params)?;
                shape(*params, 1, n / 4 * 4)?;
                shape(*m, 1, n / 4)?;
                shape(*m_max, 1, n.div_ceil(MOMENT_BLOCK))?;
                shape(*norm, 1, 1)?;
                shape(*hyper, 1, 264)
            }
            Op::Lion { params, grads, m, norm, hyper } | Op::Sgd { params, grads, m, norm, hyper } => {
                for id in [grads, m] {
                    same(*id, *params)?;
                }
                shape(*norm, 1, 1)?;
                shape(*hyper, 1, 8)
            }
            Op::AdamW { params, grads, m, v, norm, hyper } => {
                for id in [grads, m, v] {
                    same(*id, *params)?;
                }
                shape(*norm, 1, 1)?;
                shape(*hyper, 1, 8)
            }
        }
    }
}
