//! Activation offloading as a transform: what lies between layers waits in host memory for the backward pass.
//!
//! After [`super::recompute`] the inputs of the layers are all that is kept from the forward pass, and all that grows with
//! the number of layers times the length of the text (what Unsloth calls `use_gradient_checkpointing = "unsloth"`, and TRL
//! `activation_offloading`).

use super::{Access, Live, Node, Op, Place, Program, TensorDecl, TensorId};
use std::collections::{BTreeMap, HashMap};

/// Begins the names of the State buffers that the program writes to and reads from; they lie in host memory.
pub const OFFLOADED: &str = "offload.";

/// Copies each intermediate that one layer makes and another one's backward pass reads into a State buffer `offload.N` when its
/// layer's forward pass is over, and back into a fresh intermediate before the backward pass of the layer that reads it.
/// Segment 0, which is outside the layers, keeps what it reads.
pub fn offload(program: Program) -> Program {
    let Program { name, mut tensors, nodes, counts, forward_len, cut } = program;
    let (forward, backward) = nodes.split_at(forward_len);
    let written: HashMap<TensorId, u32> = forward
        .iter()
        .flat_map(|node| node.op.operands().into_iter().map(move |(id, access)| (id, access, node.segment)))
        .filter(|(id, access, _)| *access == Access::Write && tensors[id.index()].place == Place::Temp)
        .map(|(id, _, segment)| (id, segment))
        .collect();
    // What each layer's backward pass reads of another's results.
    let mut wanted: BTreeMap<TensorId, Vec<u32>> = BTreeMap::new();
    for node in backward {
        for (id, access) in node.op.operands() {
            if access != Access::Write && written.get(&id).is_some_and(|from| *from != node.segment) {
                let readers = wanted.entry(id).or_default();
                if !readers.contains(&node.segment) {
                    readers.push(node.segment);
                }
            }
        }
    }
    wanted.retain(|id, readers| !readers.contains(&0) && tensors[id.index()].live != Live::Gathered);
    let mut hosts = HashMap::new();
    for (i, id) in wanted.keys().enumerate() {
        let buffer = format!("{OFFLOADED}{i}");
        let decl = tensors[id.index()].clone();
        hosts.insert(*id, TensorId(tensors.len() as u32));
        tensors.push(TensorDecl { name: buffer.clone(), place: Place::State { buffer, offset: 0 }, ..decl });
    }
    // Away once the layer that reads it last has run: between layers, where no backend does two ops together.
    let mut out: Vec<Node> = Vec::with_capacity(nodes.len() + 2 * hosts.len());
    let last_read = |id: TensorId| {
        let reads = |node: &Node| node.op.operands().iter().any(|(operand, _)| *operand == id);
        forward.iter().rfind(|node| reads(node)).map_or(0, |node| node.segment)
    };
    let mut stores: HashMap<u32, Vec<TensorId>> = HashMap::new();
    wanted.keys().for_each(|id| stores.entry(last_read(*id)).or_default().push(*id));
    for (i, node) in forward.iter().enumerate() {
        out.push(node.clone());
        let segment = node.segment;
        let ends = forward[i + 1..].iter().all(|later| later.segment != segment);
        for x in stores.get(&segment).filter(|_| ends).into_iter().flatten() {
            out.push(Node { op: Op::Copy { x: *x, out: hosts[x] }, segment });
        }
    }
    let forward_len = out.len();
    let mut at = 0;
    while at < backward.len() {
        let segment = backward[at].segment;
        let end = backward[at..].iter().position(|n| n.segment != segment).map_or(backward.len(), |n| at + n);
        let mut back: HashMap<TensorId, TensorId> = HashMap::new();
        for node in &backward[at..end] {
            for (id, _) in node.op.operands() {
                if let (Some(host), false) = (hosts.get(&id), back.contains_key(&id)) {
                    let fresh = TensorId(tensors.len() as u32);
                    let decl = tensors[id.index()].clone();
                    tensors.push(TensorDecl { name: format!("back.{}", decl.name), ..decl });
                    out.push(Node { op: Op::Copy { x: *host, out: fresh }, segment });
                    back.insert(id, fresh);
                }
            }
        }
        out.extend(backward[at..end].iter().map(|node| {
            let mut node = node.clone();
            node.op.visit(&mut |id, _| *id = back.get(id).copied().unwrap_or(*id));
            node
        }));
        at = end;
    }
    Program { name, tensors, nodes: out, counts, forward_len, cut }
}

#[cfg(test)]
mod tests {
    use super::super::{Builder, Live, recompute};
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn layer_inputs_go_and_come_back() {
        // Two layers, each y = x + x²-like: what matters is who reads what.
        let mut b = Builder::new("t");
        let first = b.temp("first", 4, 8, Live::Tokens);
        b.push(Op::Fill { x: first, value: 1.0 }).unwrap();
        b.segment(1);
        let second = b.temp("second", 4, 8, Live::Tokens);
        b.push(Op::Copy { x: first, out: second }).unwrap();
        b.segment(2);
        let third = b.temp("third", 4, 8, Live::Tokens);
        b.push(Op::Copy { x: second, out: third }).unwrap();
        let mut program = b.finish();
        // A backward pass that reads each layer's input.
        for (segment, input) in [(2, second), (1, first)] {
            let decl = TensorDecl { name: format!("d.{segment}"), ..program.decl(first).clone() };
            let out = TensorId(program.tensors.len() as u32);
            program.tensors.push(decl);
            program.nodes.push(Node { op: Op::Copy { x: input, out }, segment });
        }
        let program = offload(recompute(program));
        let text = program.nodes.iter().map(|n| format!("{} {:?}", n.segment, n.op.operands())).collect::<Vec<_>>();
        let name = |id: TensorId| program.decl(id).name.as_str();
        let copies: Vec<(u32, &str, &str)> = program
            .nodes
            .iter()
            .filter_map(|n| match n.op {
                Op::Copy { x, out } => Some((n.segment, name(x), name(out))),
                _ => None,
            })
            .collect();
        let expected = [
            (1, "first", "second"),
            (1, "first", "offload.0"),
            (2, "second", "third"),
            (2, "second", "offload.1"),
            (2, "offload.1", "back.second"),
            (2, "back.second", "d.2"),
            (1, "offload.0", "back.first"),
            (1, "back.first", "d.1"),
        ];
        assert_eq!(copies, expected, "{text:?}");
        assert_eq!(program.forward_len, 5);
        let host = &program.tensors[program.find("offload.0").unwrap().index()];
        assert_eq!((host.rows, host.cols, host.dtype), (4, 8, DType::F32));
    }
}
