//! Runs of ops that one kernel does together.
//!
//! - Few rows: an RMS norm and the products that alone read it (q, k, v; gate, up), and the gated activation after those.
//! - Many rows, on Hopper: products that share x, each with its adapter's low-rank term accumulated in the same registers.
//! - Between (17 to 128 rows, on Hopper): gate, up and the gated activation.
//! - The same where each row has an adapter of its own (`fuse_adapters.rs`).
//! - Elsewhere: a product goes to scratch in f32 before its adapter's term is added. Rounded to 16 bits it would swallow a
//!   small term whole: SmolLM2's loss after six steps from B = 0 was 8 % (bf16) and 1.7 % (f16) above PEFT's.
//! - Rows that are each alone in their sequence: norm, rotation, the cache's new rows, and the attention.
//! - Gradients, on Hopper: every term of one dx (the weights' and the adapters') in one product.
//!
//! The memory plan keeps everything that a group of fused ops touches alive through the group. What is fused reads and writes the same tensors as the ops one by one; intermediates that nobody else reads are not
//! written.

use super::launch_glu::GATED_ROWS;
use super::launch_lora::{Expand, MAX_RANK, Shrink};
use super::launch_matmul::{FEW_ROWS, Outputs, Product};
use super::record::{Recorder, Rows};
use super::tensor_map::{MatmulOutput, TensorMap};
use crate::error::Result;
use crate::model::config::Activation;
use crate::program::{Op, Place, TensorId};
use crate::tensor::DType;

/// Weights that one launch takes.
pub const MOST: usize = 3;

/// Terms of one dx.
const MOST_TERMS: usize = 6;

/// A product with the adapter that is added to it.
struct Adapted {
    product: Product,
    /// u, A, B, scales.
    adapter: Option<[TensorId; 4]>,
    rank: usize,
    nodes: usize,
}

impl Recorder<'_> {
    /// Records the ops from `at` on as one where a kernel does them together; returns how many.
    pub fn fused(&mut self, at: usize) -> Result<Option<usize>> {
        match self.program.nodes[at].op {
            Op::RmsNorm { .. } => match self.norm_and_many_adapters(at)? {
                None => self.norm_and_products(at),
                fused => Ok(fused),
            },
            Op::MatMul { weight, .. } if self.is_trained(weight) => Ok(None),
            Op::MatMul { .. } => match self.products_of_many_adapters(at)? {
                None => match self.products_of_one_input(at)? {
                    None => self.product_and_adapter(at),
                    fused => Ok(fused),
                },
                fused => Ok(fused),
            },
            Op::MatMulDw { .. } | Op::MatMulDx { .. } => self.terms_of_one_gradient(at),
            Op::LoraShrink { .. } => self.shrinks(at).map(Some),
            Op::LoraExpand { .. } => self.expands(at).map(Some),
            Op::QkNormRopeKv { .. } => self.turned_attention(at),
            _ => Ok(None),
        }
    }

    /// First halves of adapters, of one input.
    fn shrinks(&mut self, at: usize) -> Result<usize> {
        let mut parts = Vec::new();
        let mut shared = None;
        while let Some(Op::LoraShrink { x, a, slots, rank, out }) = self.op(at + parts.len())
            && parts.len() < MOST
            && *shared.get_or_insert((*x, *slots, *rank)) == (*x, *slots, *rank)
            && self.decl(*out).dtype == self.decl(*x).dtype
        {
            parts.push((*a, *out));
        }
        if let Some((x, slots, rank)) = shared {
            self.lora_shrink(&Shrink { x, parts: &parts, slots, rank, norm: None }, false)?;
        }
        Ok(parts.len())
    }

    /// Second halves of adapters, each added to a result of its own.
    fn expands(&mut self, at: usize) -> Result<usize> {
        let mut parts: Vec<[TensorId; 4]> = Vec::new();
        let mut shared = None;
        while let Some(Op::LoraExpand { u, b, slots, scales, rank, y }) = self.op(at + parts.len())
            && parts.len() < MOST
            && let Rows { rows, which, .. } = self.rows(*y)
            && *shared.get_or_insert((*slots, *rank, rows, which)) == (*slots, *rank, rows, which)
            && parts.iter().all(|[.., other]| other != y && self.decl(*other).dtype == self.decl(*y).dtype)
        {
            parts.push([*u, *b, *scales, *y]);
        }
        if let Some((slots, rank, ..)) = shared {
            self.lora_expand(&Expand { parts: &parts, slots, rank })?;
        }
        Ok(parts.len())
    }

    fn norm_and_products(&mut self, at: usize) -> Result<Option<usize>> {
        let nodes = &self.program.nodes[at..];
        let Op::RmsNorm { x, weight: norm, eps, out } = nodes[0].op else { return Ok(None) };
        let (r, t) = (self.rows(x), self.decl(x).dtype);
        if r.rows > FEW_ROWS || t == DType::F32 || !r.cols.is_multiple_of(8) {
            return Ok(None);
        }
        // Of one row, the gathered row is that row.
        let gathered = match nodes.get(1).map(|node| &node.op) {
            Some(Op::GatherRows { x, out: picked, .. }) if *x == out && r.rows == 1 && self.decl(*picked).rows == 1 => {
                Some(*picked)
            }
            _ => None,
        };
        let (seen, first) = gathered.map_or((out, 1), |picked| (picked, 2));
        let mut products = Vec::new();
        for node in &nodes[first..] {
            match node.op {
                Op::MatMul { x, weight, bias, residual, out: to } if x == seen => {
                    products.push((self.product(x, weight, bias, residual, to)?, to, bias.or(residual).is_none()));
                }
                _ => break,
            }
        }
        let alone = gathered.is_none_or(|_| self.read_by(out) == 1);
        if products.is_empty() || !alone || self.read_by(seen) != products.len() || self.decl(seen).place != Place::Temp
        {
            return Ok(None);
        }
        let (x, norm) = (self.at(x)?, Some((self.at(norm)?, eps)));
        for p in &mut products {
            p.0.x = x;
        }
        let same = products.iter().all(|p| p.0.dtype == products[0].0.dtype);
        if let ([(first, gate, true), (second, up, true)], true) = (&products[..], same)
            && gathered.is_none()
            && let Some(Op::Glu { gate: g, up: u, activation, out }) = nodes.get(3).map(|node| &node.op)
            && (g, u) == (gate, up)
            && [*gate, *up].iter().all(|id| self.read_by(*id) == 1 && self.decl(*id).place == Place::Temp)
        {
            let first = Product { out: self.at(*out)?, ..*first };
            self.matmul_rows(&[first, *second], t, norm, Some(*activation), None)?;
            return Ok(Some(4));
        }
        let count = products.len();
        let mut rest = &products[..];
        while let Some((first, ..)) = rest.first() {
            let run = rest.iter().take(MOST).take_while(|p| p.0.dtype == first.dtype).count();
            let together: Vec<Product> = rest[..run].iter().map(|p| p.0).collect();
            self.matmul_rows(&together, t, norm, None, None)?;
            rest = &rest[run..];
        }
        Ok(Some(first + count))
    }

    fn products_of_one_input(&mut self, at: usize) -> Result<Option<usize>> {
        let Op::MatMul { x, out, .. } = self.program.nodes[at].op else { return Ok(None) };
        let (r, t) = (self.rows(x), self.decl(x).dtype);
        let out_f32 = self.decl(out).dtype == DType::F32;
        if t == DType::F32 || out_f32 {
            return Ok(None);
        }
        let mut list: Vec<Adapted> = Vec::new();
        let mut nodes = 0;
        while list.len() < MOST {
            match self.adapted(at + nodes, x, t)? {
                Some(next) => {
                    nodes += next.nodes;
                    list.push(next);
                }
                None => break,
            }
        }
        let adapted = list.iter().any(|p| p.adapter.is_some());
        if r.rows <= FEW_ROWS {
            // Without a norm in front: products that share x still save launches.
            if list.len() < 2 || adapted || !r.cols.is_multiple_of(8) {
                return Ok(None);
            }
            let products: Vec<Product> = list.iter().map(|p| p.product).collect();
            if products.iter().any(|p| p.dtype != products[0].dtype) {
                return Ok(None);
            }
            self.matmul_rows(&products, t, None, None, None)?;
            return Ok(Some(nodes));
        }
        let fits = |p: &Adapted| {
            let w = &p.product.weight;
            let plain = p.product.dtype == t || (adapted && p.product.dtype.is_quantised());
            plain && w.k.is_multiple_of(8) && w.n.is_multiple_of(8)
        };
        if !self.caps.hopper() || list.is_empty() || !list.iter().all(fits) || (list.len() == 1 && !adapted) {
            return Ok(None);
        }
        if let Some((activation, out)) = self.gate(at + nodes, &list, r)? {
            let products = [list[0].product, list[1].product];
            self.sm90_glu(products, (activation, out), r, t, None)?;
            return Ok(Some(nodes + 1));
        }
        self.shrink_all(x, &list)?;
        let a_box = self.a_box(r.rows);
        let x_map = TensorMap::new(t, self.at(x)?, r.rows, r.cols, a_box)?;
        let mut outputs = [MatmulOutput::<2>::EMPTY; MOST];
        let mut decoded = 0;
        for (output, p) in outputs.iter_mut().zip(&list) {
            let (mut w, n) = (p.product.weight, p.product.weight.n as usize);
            if p.product.dtype != t {
                let bytes = self.decoded_bytes(w, p.product.dtype, t);
                w = self.decode(w, p.product.dtype, t, decoded)?;
                decoded += bytes;
            }
            output.push(x_map, TensorMap::new(t, w.data, n, r.cols, 64)?, r.cols);
            output.n = w.n;
            (output.out, output.bias, output.residual) = (p.product.out, p.product.bias, p.product.residual);
            if let Some([u, _, b, scales]) = p.adapter {
                let shadow = self.shadow(b, t, Some(scales))?;
                let u = TensorMap::new(t, self.at(u)?, r.rows, p.rank, a_box)?;
                output.push(u, TensorMap::new(t, shadow, n, p.rank, 64)?, p.rank);
            }
        }
        let count = list.len();
        self.sm90_outputs(&Outputs { list: outputs, count, out_f32: false, constant: !adapted, adapters: None }, r, t)?;
        Ok(Some(nodes))
    }

    /// The gated activation at `at`, where it alone reads what both products of `list` make: it and the address of its result.
    fn gate(&self, at: usize, list: &[Adapted], r: Rows) -> Result<Option<(Activation, u64)>> {
        let (Some(Op::Glu { gate, up, activation, out }), [first, second]) = (self.op(at), list) else {
            return Ok(None);
        };
        let bare = |p: &Adapted| p.adapter.is_none() && p.product.bias == 0 && p.product.residual == 0;
        let made = [at - 2, at - 1].map(|at| match self.op(at) {
            Some(Op::MatMul { out, .. }) => Some(*out),
            _ => None,
        });
        let alone = |id: &TensorId| self.read_by(*id) == 1 && self.decl(*id).place == Place::Temp;
        let fits = bare(first) && bare(second) && made == [Some(*gate), Some(*up)] && alone(gate) && alone(up);
        (fits && r.rows <= GATED_ROWS).then(|| Ok((*activation, self.at(*out)?))).transpose()
    }

    /// A product and the low-rank term after it (with its dropout), rounded once.
    fn product_and_adapter(&mut self, at: usize) -> Result<Option<usize>> {
        let Some(Op::MatMul { x, weight, bias, residual, out }) = self.op(at).cloned() else { return Ok(None) };
        let t = self.decl(x).dtype;
        let (dropout, first) = match self.op(at + 1).cloned() {
            Some(dropout @ Op::Dropout { .. }) => (Some(dropout), at + 2),
            _ => (None, at + 1),
        };
        // Where each row has an adapter of its own, the term is added to the rounded product: as PEFT does it, and faster.
        let (
            Some(shrink @ Op::LoraShrink { out: made, slots: None, .. }),
            Some(Op::LoraExpand { u, b, slots: None, scales, rank, y }),
        ) = (self.op(first).cloned(), self.op(first + 1).cloned())
        else {
            return Ok(None);
        };
        let reads_out = |op: &Op| op.operands().iter().any(|(id, _)| *id == out);
        let apart = !reads_out(&shrink) && !dropout.as_ref().is_some_and(reads_out);
        if t == DType::F32 || self.decl(out).dtype != t || (made, y) != (u, out) || !apart {
            return Ok(None);
        }
        if let Some(dropout) = dropout {
            self.row_ops(&dropout)?;
        }
        // The product comes after everything else that uses the scratch.
        self.products(&shrink)?;
        let product = self.product(x, weight, bias, residual, out)?;
        let decoded = self.decoded_bytes(product.weight, product.dtype, t);
        let base = self.scratch(decoded + self.decl(out).len() * 4) + decoded as u64;
        self.matmul(&Product { out: base, out_f32: true, ..product }, t)?;
        self.lora_expand_from_f32([u, b, scales, y], base, rank)?;
        Ok(Some(first + 2 - at))
    }

    /// The product at `at` with the adapter after it, where it reads `x`.
    fn adapted(&self, at: usize, x: TensorId, t: DType) -> Result<Option<Adapted>> {
        let Some(Op::MatMul { x: from, weight, bias, residual, out }) = self.op(at) else { return Ok(None) };
        if *from != x || self.decl(*out).dtype != t || self.is_trained(*weight) {
            return Ok(None);
        }
        let product = self.product(x, *weight, *bias, *residual, *out)?;
        if let (
            Some(Op::LoraShrink { x: seen, a, slots: None, rank, out: u }),
            Some(Op::LoraExpand { u: read, b, slots: None, scales, y, .. }),
        ) = (self.op(at + 1), self.op(at + 2))
            && (*seen, *read, *y) == (x, *u, *out)
            && rank.is_multiple_of(8)
        {
            return Ok(Some(Adapted { product, adapter: Some([*u, *a, *b, *scales]), rank: *rank, nodes: 3 }));
        }
        // An adapter that cannot be fused would add to a result that is not there yet if others came between.
        let own = matches!(self.op(at + 2), Some(Op::LoraExpand { y, .. }) if y == out);
        if own || matches!(self.op(at + 1), Some(Op::Dropout { .. })) {
            return Ok(None);
        }
        Ok(Some(Adapted { product, adapter: None, rank: 0, nodes: 1 }))
    }

    /// `u = x · Aᵀ` of all adapters in `list`.
    fn shrink_all(&mut self, x: TensorId, list: &[Adapted]) -> Result<()> {
        let mut rest: Vec<(TensorId, TensorId, usize)> =
            list.iter().filter_map(|p| p.adapter.map(|[u, a, ..]| (a, u, p.rank))).collect();
        while let Some((_, _, rank)) = rest.first().copied() {
            let run = rest.iter().take_while(|p| p.2 == rank).count();
            let parts: Vec<(TensorId, TensorId)> = rest.drain(..run).map(|(a, u, _)| (a, u)).collect();
            self.lora_shrink(&Shrink { x, parts: &parts, slots: None, rank, norm: None }, false)?;
        }
        Ok(())
    }

    /// Gradients of weights first, in order, then all terms of one dx together.
    fn terms_of_one_gradient(&mut self, at: usize) -> Result<Option<usize>> {
        if !self.caps.hopper() {
            return Ok(None);
        }
        let run: Vec<usize> = (at..self.program.nodes.len())
            .take_while(|i| matches!(self.op(*i), Some(Op::MatMulDw { .. } | Op::MatMulDx { .. })))
            .collect();
        // The first dense term decides whose gradient this is; the run ends with that gradient's last term.
        let target = run.iter().find_map(|i| match self.op(*i) {
            Some(Op::MatMulDx { weight, dx, .. }) if self.decl(*weight).place == Place::Weight => Some(*dx),
            _ => None,
        });
        let Some(target) = target else { return Ok(None) };
        let (r, t) = (self.rows(target), self.decl(target).dtype);
        let is_term = |i: &usize| matches!(self.op(*i), Some(Op::MatMulDx { dx, .. }) if *dx == target);
        let terms: Vec<usize> = run.iter().copied().filter(is_term).collect();
        let Some(last) = terms.last().copied() else { return Ok(None) };
        let others: Vec<usize> = (at..last).filter(|i| !is_term(i)).collect();
        let reads_target = |i: &usize| match self.op(*i) {
            Some(Op::MatMulDw { dy, x, .. }) => [dy, x].contains(&&target),
            Some(Op::MatMulDx { dy, .. }) => *dy == target,
            _ => true,
        };
        if t == DType::F32 || !r.cols.is_multiple_of(8) || terms.len() > MOST_TERMS || others.iter().any(reads_target) {
            return Ok(None);
        }
        if !terms.iter().all(|i| self.is_fusible_term(*i, t)) {
            return Ok(None);
        }
        for i in others {
            let op = self.program.nodes[i].op.clone();
            self.products(&op)?;
        }
        let mut output = MatmulOutput::<MOST_TERMS>::EMPTY;
        (output.out, output.n) = (self.at(target)?, r.cols as u32);
        if let Some(Op::MatMulDx { accumulate: true, .. }) = self.op(terms[0]) {
            output.residual = output.out;
        }
        let mut decoded = 0;
        for i in terms {
            let Some(Op::MatMulDx { dy, weight, .. }) = self.op(i).cloned() else { continue };
            let Rows { rows, cols: n, .. } = self.rows(dy);
            let data = match (&self.decl(weight).place, self.decl(weight).dtype) {
                (Place::Weight, dtype) if dtype != t => {
                    let view = self.weight(weight)?;
                    let offset = decoded;
                    decoded += self.decoded_bytes(view, dtype, t);
                    self.decode(view, dtype, t, offset)?.data
                }
                (Place::Weight, _) => self.at(weight)?,
                _ => self.shadow(weight, t, None)?,
            };
            let dy = TensorMap::new(t, self.at(dy)?, rows, n, 64)?;
            output.push(dy, TensorMap::new(t, data, n, r.cols, 64)?, n);
        }
        self.sm90_matmul_dx(output, r, t)?;
        Ok(Some(last + 1 - at))
    }

    fn is_fusible_term(&self, at: usize, t: DType) -> bool {
        let Some(Op::MatMulDx { dy, weight, scale: None, .. }) = self.op(at) else { return false };
        let (decl, dy) = (self.decl(*weight), self.decl(*dy));
        let adapter = matches!(decl.place, Place::State { .. }) && decl.dtype == DType::F32 && decl.rows <= MAX_RANK;
        dy.dtype == t && decl.rows.is_multiple_of(8) && (decl.dtype == t || decl.dtype.is_quantised() || adapter)
    }

    /// The op at `at`.
    pub fn op(&self, at: usize) -> Option<&Op> {
        self.program.nodes.get(at).map(|node| &node.op)
    }
}
