//! Runs of ops that a device may do in one kernel. What is fused reads and writes the same tensors as the ops one by one, but
//! for intermediates that nobody else reads, which are never written.

use super::{Access, Op, Place, Program, TensorId};
use crate::model::config::Activation;

/// An op `MatMul` of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunProduct {
    /// `[N, K]`.
    pub weight: TensorId,
    /// `[1, N]`.
    pub bias: Option<TensorId>,
    /// `[T, N]`.
    pub residual: Option<TensorId>,
    /// `[T, N]`.
    pub out: TensorId,
}

/// An RMS norm and the products that alone read it.
#[derive(Clone, Debug, PartialEq)]
pub struct NormProducts {
    /// What is normalised.
    pub x: TensorId,
    /// The norm's weight.
    pub norm: TensorId,
    /// Added to the mean of the squares.
    pub eps: f32,
    /// At least one.
    pub products: Vec<RunProduct>,
    /// Where the products are gate and up and alone read by a gated activation: it, and its result.
    pub glu: Option<(Activation, TensorId)>,
    /// Ops of the run.
    pub nodes: usize,
}

/// How often each tensor is read.
pub fn reads(program: &Program) -> Vec<usize> {
    let mut reads = vec![0; program.tensors.len()];
    for node in &program.nodes {
        for (id, access) in node.op.operands() {
            reads[id.index()] += usize::from(access != Access::Write);
        }
    }
    reads
}

/// The run that starts at op `at` of `program`, given [`reads`].
pub fn norm_products(program: &Program, reads: &[usize], at: usize) -> Option<NormProducts> {
    let nodes = &program.nodes[at..];
    let Op::RmsNorm { x, weight: norm, eps, out } = nodes.first()?.op else { return None };
    let temp_read = |id: TensorId, times: usize| program.decl(id).place == Place::Temp && reads[id.index()] == times;
    // Of one row, the gathered row is that row.
    let gathered = match nodes.get(1).map(|node| &node.op) {
        Some(Op::GatherRows { x: seen, out: picked, .. })
            if *seen == out && program.decl(out).rows == 1 && program.decl(*picked).rows == 1 =>
        {
            Some(*picked)
        }
        _ => None,
    };
    let (seen, first) = gathered.map_or((out, 1), |picked| (picked, 2));
    let products: Vec<RunProduct> = nodes[first..]
        .iter()
        .map_while(|node| match node.op {
            Op::MatMul { x, weight, bias, residual, out } if x == seen => {
                Some(RunProduct { weight, bias, residual, out })
            }
            _ => None,
        })
        .collect();
    if products.is_empty() || !temp_read(seen, products.len()) || (gathered.is_some() && !temp_read(out, 1)) {
        return None;
    }
    let mut run = NormProducts { x, norm, eps, products, glu: None, nodes: 0 };
    run.nodes = first + run.products.len();
    if let [gate, up] = run.products[..]
        && let Some(Op::Glu { gate: g, up: u, activation, out }) = nodes.get(run.nodes).map(|node| &node.op)
        && (*g, *u) == (gate.out, up.out)
        && [gate, up].iter().all(|p| temp_read(p.out, 1) && p.bias.or(p.residual).is_none())
    {
        run.glu = Some((*activation, *out));
        run.nodes += 1;
    }
    Some(run)
}
