//! Gradient checkpointing as a transform: keep what crosses a layer's boundary, compute the rest again.
//!
//! Chen et al., "Training Deep Nets with Sublinear Memory Cost" (<https://arxiv.org/abs/1604.06174>).

use super::{Access, Node, Op, Place, Program, TensorDecl, TensorId};
use std::collections::{HashMap, HashSet};

/// Puts, before the backward ops of each segment, a second copy of the forward ops whose results they read.
///
/// The copies write to fresh temporaries, so the originals die early and the memory plan reuses their
/// space. Only the layer's input and what the backward pass needs is computed again: ops whose results
/// nobody reads (the last product of a layer, say) are not copied. Segment 0 is left alone.
pub fn recompute(program: Program) -> Program {
    recompute_only(program, &|_| true)
}

/// [`recompute`] for ops that take hardly any time, norms, gated activations and DoRA's factors: only their results are
/// computed again, everything else is kept.
pub fn recompute_cheap(program: Program) -> Program {
    recompute_only(program, &|op| matches!(op, Op::RmsNorm { .. } | Op::Glu { .. } | Op::DoraScale { .. }))
}

fn recompute_only(program: Program, may: &dyn Fn(&Op) -> bool) -> Program {
    let Program { name, mut tensors, nodes, counts, forward_len, cut } = program;
    let (forward, backward) = nodes.split_at(forward_len);
    let mut out = forward.to_vec();
    let mut at = 0;
    while at < backward.len() {
        let segment = backward[at].segment;
        let end = backward[at..].iter().position(|n| n.segment != segment).map_or(backward.len(), |n| at + n);
        let group = &backward[at..end];
        if segment == 0 {
            out.extend_from_slice(group);
        } else {
            let again = needed_again(forward, group, segment, &tensors, may);
            let renamed = fresh_temporaries(&again, &mut tensors);
            let rename = |node: &Node| {
                let mut node = node.clone();
                node.op.visit(&mut |id, _| *id = renamed.get(id).copied().unwrap_or(*id));
                node
            };
            out.extend(again.iter().map(|n| rename(n)));
            out.extend(group.iter().map(rename));
        }
        at = end;
    }
    Program { name, tensors, nodes: out, counts, forward_len, cut }
}

/// The forward ops of `segment` whose temporaries the backward `group` reads, directly or through others.
fn needed_again<'a>(
    forward: &'a [Node],
    group: &[Node],
    segment: u32,
    tensors: &[TensorDecl],
    may: &dyn Fn(&Op) -> bool,
) -> Vec<&'a Node> {
    let is_temp = |id: &TensorId| tensors[id.index()].place == Place::Temp;
    // What another segment reads stays alive anyway (the boundary): no need to compute it again.
    let mut boundary = HashSet::new();
    for node in forward.iter().filter(|n| n.segment != segment) {
        boundary.extend(node.op.operands().into_iter().filter(|(_, a)| *a != Access::Write).map(|(id, _)| id));
    }
    let mut wanted: HashSet<TensorId> = HashSet::new();
    let want = |node: &Node, wanted: &mut HashSet<TensorId>| {
        let reads = node.op.operands().into_iter().filter(|(id, a)| *a != Access::Write && is_temp(id));
        wanted.extend(reads.map(|(id, _)| id).filter(|id| !boundary.contains(id)));
    };
    for node in group {
        want(node, &mut wanted);
    }
    let mut again = Vec::new();
    for node in forward.iter().rev().filter(|n| n.segment == segment) {
        let operands = node.op.operands();
        if may(&node.op) && operands.iter().any(|(id, a)| *a != Access::Read && wanted.contains(id)) {
            want(node, &mut wanted);
            again.push(node);
        }
    }
    again.reverse();
    again
}

/// One new temporary for each that the copied ops write.
fn fresh_temporaries(again: &[&Node], tensors: &mut Vec<TensorDecl>) -> HashMap<TensorId, TensorId> {
    let mut renamed = HashMap::new();
    for node in again {
        for (id, access) in node.op.operands() {
            if access == Access::Write && tensors[id.index()].place == Place::Temp && !renamed.contains_key(&id) {
                let copy =
                    TensorDecl { name: format!("again.{}", tensors[id.index()].name), ..tensors[id.index()].clone() };
                renamed.insert(id, TensorId(tensors.len() as u32));
                tensors.push(copy);
            }
        }
    }
    renamed
}
