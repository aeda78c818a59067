//! Training is a transform: walk the list backwards, ask each op for its vector-Jacobian product.
//!
//! A frozen weight never gets a gradient: branches that reach no trainable tensor are dropped before
//! anything is emitted. An op without a backward is refused here, never skipped.

use super::{Access, Builder, HeadDw, KvLayout, Live, Op, Place, Program, TensorDecl, TensorId};
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};

/// A trainable tensor and the State buffer that its gradient is added to (same shape and offset).
pub struct Trainable {
    /// A State tensor of the forward program.
    pub tensor: TensorId,
    /// Name of the gradient buffer in the bindings.
    pub grads: String,
    /// Of an embedding's table: the row that lookups give no gradient (see [`Op::EmbedDw`]).
    pub skip: Option<u32>,
}

/// What gradients of parameters are multiplied by where the loss was scaled for the sake of small types: tensors f32 `[1, 1]`.
#[derive(Clone, Copy, Debug)]
pub struct Unscale {
    /// 1 / the loss's scale: of what is not scaled itself (A, whole weights).
    pub plain: TensorId,
    /// The adapter's scale / the loss's: of those whose product is (B).
    pub scaled: TensorId,
}

/// Appends the backward pass to `forward`, whose last op is the loss ([`Op::HeadLoss`]).
///
/// Gradients of `trainable` are *added* to their buffers, so micro-batches accumulate by running the
/// program again; the optimizer step clears them.
pub fn differentiate(forward: Program, trainable: &[Trainable], unscale: Option<Unscale>) -> Result<Program> {
    let forward_len = forward.nodes.len();
    let needed = reaches_trainable(&forward, trainable)?;
    let nodes = forward.nodes.clone();
    let mut walk =
        Walk { b: Builder::resume(Program { forward_len, ..forward }), grads: HashMap::new(), needed, unscale };
    let skips: HashMap<TensorId, u32> = trainable.iter().filter_map(|t| Some((t.tensor, t.skip?))).collect();
    for t in trainable {
        walk.declare_parameter_grad(t)?;
    }
    for (index, node) in nodes.iter().enumerate().rev() {
        walk.b.segment(node.segment);
        match &node.op {
            Op::HeadLoss { x, weight, .. } if index + 1 == nodes.len() => walk.seed_loss(index, *x, *weight)?,
            Op::Embed { table, ids, out } => walk.embed_vjp(*table, *ids, *out, skips.get(table).copied())?,
            op => walk.vjp(op)?,
        }
    }
    Ok(walk.b.finish())
}

/// Tensors whose gradient is wanted: the trainable ones and everything computed from them.
fn reaches_trainable(program: &Program, trainable: &[Trainable]) -> Result<HashSet<TensorId>> {
    let mut needed: HashSet<TensorId> = trainable.iter().map(|t| t.tensor).collect();
    for node in &program.nodes {
        let operands = node.op.operands();
        if operands.iter().any(|(id, access)| *access != Access::Write && needed.contains(id)) {
            needed.extend(operands.iter().filter(|(_, access)| *access != Access::Read).map(|(id, _)| *id));
        }
    }
    match program.nodes.last() {
        Some(node) if matches!(node.op, Op::HeadLoss { .. }) => Ok(needed),
        _ => Err(Error::internal("differentiate: the forward program must end with head_loss")),
    }
}

struct Grad {
    tensor: TensorId,
    /// False until something has been written: the first writer overwrites, the others add.
    started: bool,
}

struct Walk {
    b: Builder,
    grads: HashMap<TensorId, Grad>,
    needed: HashSet<TensorId>,
    unscale: Option<Unscale>,
}

impl Walk {
    fn declare_parameter_grad(&mut self, t: &Trainable) -> Result<()> {
        let decl = self.b.decl(t.tensor).clone();
        let Place::State { offset, .. } = decl.place else {
            return Err(Error::internal(format!("differentiate: trainable '{}' is not a State tensor", decl.name)));
        };
        let place = Place::State { buffer: t.grads.clone(), offset };
        let tensor = self.b.tensor(TensorDecl { name: format!("d.{}", decl.name), place, ..decl });
        self.grads.insert(t.tensor, Grad { tensor, started: true });
        Ok(())
    }

    /// The loss is the root: it writes the gradients of its input and of the head while it has the logits at hand.
    fn seed_loss(&mut self, index: usize, x: TensorId, weight: TensorId) -> Result<()> {
        let dx = self.wants(x).then(|| self.grad_of(x).0);
        let scale = self.weight_scale();
        let dw = self.wants(weight).then(|| HeadDw { dw: self.grad_of(weight).0, scale });
        if dx.is_none() && dw.is_none() {
            return Err(Error::invalid("nothing to train: no trainable tensor reaches the loss"));
        }
        self.b.set_loss_gradient(index, dx, dw)
    }

    fn embed_vjp(&mut self, table: TensorId, ids: TensorId, out: TensorId, skip: Option<u32>) -> Result<()> {
        let Some(dy) = self.incoming(out).filter(|_| self.wants(table)) else { return Ok(()) };
        let (dw, _) = self.grad_of(table);
        self.b.push(Op::EmbedDw { ids, dy, skip, scale: self.weight_scale(), dw })
    }

    /// What the gradient of a whole weight is multiplied by.
    fn weight_scale(&self) -> Option<TensorId> {
        self.unscale.map(|u| u.plain)
    }

    fn wants(&self, id: TensorId) -> bool {
        self.needed.contains(&id)
    }

    /// The gradient that flows into an op's output, or `None` where none does.
    fn incoming(&self, out: TensorId) -> Option<TensorId> {
        self.grads.get(&out).filter(|g| g.started).map(|g| g.tensor)
    }

    /// Where to write the gradient of `id`, and whether something is there already.
    fn grad_of(&mut self, id: TensorId) -> (TensorId, bool) {
        if let Some(grad) = self.grads.get_mut(&id) {
            let accumulate = grad.started;
            grad.started = true;
            return (grad.tensor, accumulate);
        }
        let decl = self.b.decl(id);
        let decl = TensorDecl { name: format!("d.{}", decl.name), place: Place::Temp, ..decl.clone() };
        let tensor = self.b.tensor(decl);
        self.grads.insert(id, Grad { tensor, started: true });
        (tensor, false)
    }

    /// Like [`Self::grad_of`] for backward ops that can only overwrite: where something is there already,
    /// the op writes to a temporary that is then added.
    fn overwriting(&mut self, id: TensorId) -> (TensorId, Option<Op>) {
        let (grad, accumulate) = self.grad_of(id);
        if !accumulate {
            return (grad, None);
        }
        let decl = self.b.decl(id);
        let decl = TensorDecl { name: format!("part.{}", decl.name), place: Place::Temp, ..decl.clone() };
        let part = self.b.tensor(decl);
        (part, Some(Op::Accumulate { x: part, y: grad }))
    }

    /// `id`'s gradient gains `dy` unchanged (a residual branch): the two share storage where `dy` is all
    /// there is so far, since nobody reads `dy` again.
    fn pass_through(&mut self, id: TensorId, dy: TensorId) -> Result<()> {
        if self.grads.contains_key(&id) {
            let (grad, _) = self.grad_of(id);
            return self.b.push(Op::Accumulate { x: dy, y: grad });
        }
        self.grads.insert(id, Grad { tensor: dy, started: true });
        Ok(())
    }

    fn refuse(&self, op: &Op, operand: TensorId) -> Result<()> {
        if !self.wants(operand) {
            return Ok(());
        }
        let name = &self.b.decl(operand).name;
        Err(Error::unsupported(format!("{} has no gradient with respect to '{name}'", op.name())))
    }

    /// Emits the backward ops of one forward op.
    fn vjp(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::RmsNorm { x, weight, eps, out } => {
                let Some(dy) = self.incoming(*out) else { return Ok(()) };
                if self.wants(*weight) {
                    let (dw, _) = self.grad_of(*weight);
                    self.b.push(Op::RmsNormDw { x: *x, eps: *eps, dy, scale: self.weight_scale(), dw })?;
                }
                if !self.wants(*x) {
                    return Ok(());
                }
                let (dx, accumulate) = self.grad_of(*x);
                self.b.push(Op::RmsNormBackward { x: *x, weight: *weight, eps: *eps, dy, dx, accumulate })
            }
            Op::MatMul { x, weight, bias, residual, out } => {
                let Some(dy) = self.incoming(*out) else { return Ok(()) };
                if let Some(bias) = bias.filter(|bias| self.wants(*bias)) {
                    let (db, _) = self.grad_of(bias);
                    self.b.push(Op::ColumnSum { x: dy, scale: self.weight_scale(), out: db })?;
                }
                self.product_vjp(dy, *x, *weight, None)?;
                match residual {
                    Some(r) if self.wants(*r) => self.pass_through(*r, dy),
                    _ => Ok(()),
                }
            }
            Op::LoraShrink { x, a, slots: None, out, .. } => {
                let Some(dy) = self.incoming(*out) else { return Ok(()) };
                self.product_vjp(dy, *x, *a, None)
            }
            Op::LoraExpand { u, b, slots: None, scales, y, .. } => {
                let Some(dy) = self.incoming(*y) else { return Ok(()) };
                self.product_vjp(dy, *u, *b, Some(*scales))
            }
            Op::Dropout { x, p, salt, complement, out, .. } => {
                let Some(dy) = self.incoming(*out).filter(|_| self.wants(*x)) else { return Ok(()) };
                let (dx, accumulate) = self.grad_of(*x);
                self.b.push(Op::Dropout { x: dy, p: *p, salt: *salt, complement: *complement, out: dx, accumulate })
            }
            Op::DoraScale { x, magnitude, norms, slots: None, bias, residual, out } => {
                if let Some(bias) = bias {
                    self.refuse(op, *bias)?;
                }
                let Some(dy) = self.incoming(*out) else { return Ok(()) };
                if self.wants(*magnitude) {
                    let (dm, _) = self.grad_of(*magnitude);
                    let scale = self.unscale.map(|u| u.plain);
                    self.b.push(Op::DoraScaleBackward { dy, x: *x, norms: *norms, scale, dm })?;
                }
                if self.wants(*x) {
                    let (dx, add) = self.overwriting(*x);
                    let (slots, bias, residual) = (None, None, None);
                    let (magnitude, norms) = (*magnitude, *norms);
                    self.b.push(Op::DoraScale { x: dy, magnitude, norms, slots, bias, residual, out: dx })?;
                    self.push_all([add])?;
                }
                match residual {
                    Some(r) if self.wants(*r) => self.pass_through(*r, dy),
                    _ => Ok(()),
                }
            }
            Op::QkNormRopeKv {
                q,
                k,
                q_norm,
                k_norm,
                eps,
                head_dim,
                positions,
                rope,
                slots: None,
                q_out,
                k_out,
                v_out: None,
                ..
            } => {
                let (Some(dq_out), Some(dk_out)) = (self.incoming(*q_out), self.incoming(*k_out)) else {
                    return Ok(());
                };
                for (x, norm, dout) in [(*q, *q_norm, dq_out), (*k, *k_norm, dk_out)] {
                    let Some(norm) = norm.filter(|norm| self.wants(*norm)) else { continue };
                    let (dw, _) = self.grad_of(norm);
                    let (eps, head_dim, positions, rope) = (*eps, *head_dim, *positions, *rope);
                    let scale = self.weight_scale();
                    self.b.push(Op::QkNormDw { x, eps, head_dim, positions, rope, dout, scale, dw })?;
                }
                if !self.wants(*q) && !self.wants(*k) {
                    return Ok(());
                }
                let (dq, add_q) = self.overwriting(*q);
                let (dk, add_k) = self.overwriting(*k);
                self.b.push(Op::QkNormRopeBackward {
                    q: *q,
                    k: *k,
                    q_norm: *q_norm,
                    k_norm: *k_norm,
                    eps: *eps,
                    head_dim: *head_dim,
                    positions: *positions,
                    rope: *rope,
                    dq_out,
                    dk_out,
                    dq,
                    dk,
                })?;
                self.push_all([add_q, add_k])
            }
            Op::Attention {
                q, k, v, seqs, layout: KvLayout::Packed { bounds }, geometry, out, lse: Some(lse), ..
            } => {
                let Some(dout) = self.incoming(*out) else { return Ok(()) };
                let rows = self.b.decl(*q).rows;
                let delta = self.b.temp("delta", rows, geometry.heads, Live::Tokens);
                let (dq, add_q) = self.overwriting(*q);
                let (dk, add_k) = self.overwriting(*k);
                let (dv, add_v) = self.overwriting(*v);
                self.b.push(Op::AttentionBackward {
                    q: *q,
                    k: *k,
                    v: *v,
                    seqs: *seqs,
                    bounds: *bounds,
                    geometry: *geometry,
                    out: *out,
                    lse: *lse,
                    dout,
                    delta,
                    dq,
                    dk,
                    dv,
                })?;
                self.push_all([add_q, add_k, add_v])
            }
            Op::Glu { gate, up, activation, out } => {
                let Some(dout) = self.incoming(*out) else { return Ok(()) };
                let (dgate, add_gate) = self.overwriting(*gate);
                let (dup, add_up) = self.overwriting(*up);
                self.b.push(Op::GluBackward { gate: *gate, up: *up, activation: *activation, dout, dgate, dup })?;
                self.push_all([add_gate, add_up])
            }
            // Noise on the embeddings: what is added is not trained, and the sum's gradient is the embeddings'.
            Op::Accumulate { x, .. } => self.refuse(op, *x),
            // What works out the last loss's weights: that is its derivative already.
            Op::HeadLoss { .. } | Op::PreferenceLoss { .. } => Ok(()),
            other => {
                let reached = other.operands().iter().any(|(id, _)| self.wants(*id));
                if reached {
                    return Err(Error::unsupported(format!("{} has no backward in this form", other.name())));
                }
                Ok(())
            }
        }
    }

    /// Gradients of `out = x · weightᵀ` (times `scale`).
    fn product_vjp(&mut self, dy: TensorId, x: TensorId, weight: TensorId, scale: Option<TensorId>) -> Result<()> {
        if self.wants(weight) {
            let (dw, _) = self.grad_of(weight);
            let scale = self.unscale.map(|u| if scale.is_some() { u.scaled } else { u.plain }).or(scale);
            self.b.push(Op::MatMulDw { dy, x, scale, dw })?;
        }
        if self.wants(x) {
            let (dx, accumulate) = self.grad_of(x);
            self.b.push(Op::MatMulDx { dy, weight, scale, dx, accumulate })?;
        }
        Ok(())
    }

    fn push_all<const N: usize>(&mut self, ops: [Option<Op>; N]) -> Result<()> {
        ops.into_iter().flatten().try_for_each(|op| self.b.push(op))
    }
}
