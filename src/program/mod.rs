//! A Program is a flat list of fused ops over named tensors: no device, no allocation, printable.
//!
//! The forward step, the training step and the optimizer step are all Programs. Transforms take a
//! Program and give a Program ([`differentiate`], [`recompute`], [`offload`]); a backend turns one into an
//! executable with the placement that [`plan`] computed.

mod builder;
pub mod cache;
mod differentiate;
mod offload;
mod op;
mod plan;
mod recompute;
mod runs;

pub use builder::Builder;
pub use differentiate::{Trainable, Unscale, differentiate};
pub use offload::{OFFLOADED, offload};
pub use op::{Access, Geometry, HeadDw, IMPOSSIBLE, KvLayout, MOMENT_BLOCK, Op, SEEN, dropout_keeps, dynamic_map};
pub use plan::{MemoryPlan, Slot, plan, plan_groups};
pub use recompute::{recompute, recompute_cheap};
pub use runs::{NormProducts, RunProduct, norm_products, reads};

use crate::tensor::DType;
use std::fmt;

/// Names a tensor within one [`Program`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub(crate) u32);

impl TensorId {
    /// Position in [`Program::tensors`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a tensor lives and who writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A frozen weight, bound by the tensor's name; any dtype.
    Weight,
    /// Part of a buffer that outlives the run (KV cache, adapters, gradients, moments).
    State {
        /// Name in the bindings.
        buffer: String,
        /// Where the tensor starts, in elements; a multiple of [`STATE_ALIGN`].
        offset: usize,
    },
    /// A small buffer that the host may rewrite before each run.
    Input,
    /// An intermediate: gets an offset in the arena from its lifetime.
    Temp,
    /// Read back by the host after the run; keeps its own storage.
    Output,
}

/// Elements to which tensors inside a State buffer are aligned (256 bytes of f32: wgpu's strictest
/// `min_storage_buffer_offset_alignment`).
pub const STATE_ALIGN: usize = 64;

/// How many of a tensor's rows hold data in a given run. Programs are built for a bucket of rows; the
/// host says in the `counts` input how many of them are real, and kernels leave the others alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Live {
    /// All rows, always.
    All,
    /// The first `counts[0]` rows: one a token of this step.
    Tokens,
    /// The first `counts[1]` rows: one a token whose logits are wanted.
    Gathered,
}

/// Declares a row-major matrix `[rows, cols]`; a vector is one row.
#[derive(Clone, Debug)]
pub struct TensorDecl {
    /// Unique for weights (the checkpoint's name), descriptive for the rest.
    pub name: String,
    /// Rows of the bucket.
    pub rows: usize,
    /// Elements in a row.
    pub cols: usize,
    /// Element type; activations have the type that the device computes in, everything else that is written is f32 or u32.
    pub dtype: DType,
    /// Storage.
    pub place: Place,
    /// Which rows count.
    pub live: Live,
}

impl TensorDecl {
    /// Elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// True for an empty tensor.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of storage (rows are whole blocks: the builder checks it).
    pub fn bytes(&self) -> usize {
        self.rows * self.dtype.bytes_for(self.cols).unwrap_or(0)
    }
}

/// One op and the segment (decoder layer, counted from 1; 0 outside the layers) it belongs to.
#[derive(Clone, Debug)]
pub struct Node {
    /// What to compute.
    pub op: Op,
    /// Unit of recomputation and of slicing.
    pub segment: u32,
}

/// A list of ops in execution order and the tensors that they name.
#[derive(Clone, Debug)]
pub struct Program {
    /// For messages and profiles: `forward`, `train`, `adamw`.
    pub name: String,
    /// Indexed by [`TensorId`].
    pub tensors: Vec<TensorDecl>,
    /// In execution order.
    pub nodes: Vec<Node>,
    /// Input `[1, 4]` of u32: live token rows, live gathered rows, sequences, dropout seed of the step.
    pub counts: TensorId,
    /// How many of the nodes are the forward pass; the rest was added by [`differentiate`].
    pub forward_len: usize,
    /// May be run in parts, between which other programs run ([`crate::backend::Executable::run_part`]): its intermediates have
    /// memory of their own then.
    pub cut: bool,
}

impl Program {
    /// The declaration behind an id.
    pub fn decl(&self, id: TensorId) -> &TensorDecl {
        &self.tensors[id.index()]
    }

    /// The id of the tensor called `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<TensorId> {
        self.tensors.iter().position(|t| t.name == name).map(|i| TensorId(i as u32))
    }

    /// Ids of all tensors in order.
    pub fn ids(&self) -> impl Iterator<Item = TensorId> + use<> {
        (0..self.tensors.len() as u32).map(TensorId)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "program {} ({} ops, {} tensors)", self.name, self.nodes.len(), self.tensors.len())?;
        for (i, node) in self.nodes.iter().enumerate() {
            write!(f, "{i:5} [{:2}] {:22}", node.segment, node.op.name())?;
            let mut op = node.op.clone();
            op.visit(&mut |id, access| {
                let decl = self.decl(*id);
                let mark = match access {
                    Access::Read => "",
                    Access::Write => "=>",
                    Access::ReadWrite => "<=>",
                };
                let _ = write!(f, " {mark}{}:{}[{}x{}]", decl.name, decl.dtype, decl.rows, decl.cols);
            });
            writeln!(f)?;
        }
        Ok(())
    }
}
