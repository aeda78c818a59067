//! From ops to kernel launches. A recorder is used once for each pass over a program: the first pass finds out how much
//! scratch the launches share, the second records them with its address.

use super::context::{Caps, Context};
use super::launch::{Args, Launch};
use super::places::{Places, WeightView};
use crate::error::{Error, Result};
use crate::program::{Live, Node, Op, Program, TensorDecl, TensorId};
use crate::tensor::DType;
use std::sync::Arc;

/// Collects the launches of a program.
pub struct Recorder<'a> {
    pub context: &'a Arc<Context>,
    pub caps: Caps,
    pub program: &'a Program,
    pub places: &'a Places,
    pub launches: Vec<Launch>,
    /// Address of the scratch; 0 in the first pass.
    pub scratch: u64,
    /// Bytes of scratch that the launches need so far.
    pub scratch_bytes: usize,
    /// Zeros that kernels which count arrivals leave as zeros.
    pub counters: u64,
    /// Bytes of counters needed.
    pub counter_bytes: usize,
}

/// What a kernel needs to know about the rows of a tensor.
#[derive(Clone, Copy)]
pub struct Rows {
    /// Rows of the bucket.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Which of the counts says how many rows are live: 0, 1, or 2 for all.
    pub which: usize,
}

impl<'a> Recorder<'a> {
    /// Records every op of `program`.
    pub fn record(
        context: &'a Arc<Context>,
        program: &'a Program,
        places: &'a Places,
        scratch: u64,
        counters: u64,
    ) -> Result<Self> {
        let mut recorder = Self {
            context,
            caps: context.caps,
            program,
            places,
            launches: Vec::new(),
            scratch,
            scratch_bytes: 0,
            counters,
            counter_bytes: 0,
        };
        let mut at = 0;
        while at < program.nodes.len() {
            at += recorder.nodes(&program.nodes[at..])?;
        }
        Ok(recorder)
    }

    /// Records the first of `nodes`, with those that follow where one kernel does several; returns how many.
    fn nodes(&mut self, nodes: &[Node]) -> Result<usize> {
        if let Some(count) = self.fused(nodes)? {
            return Ok(count);
        }
        let op = &nodes[0].op;
        match op {
            Op::MatMul { .. }
            | Op::MatMulDx { .. }
            | Op::MatMulDw { .. }
            | Op::LoraShrink { .. }
            | Op::LoraExpand { .. }
            | Op::HeadLoss { .. } => self.products(op),
            Op::QkNormRopeKv { .. }
            | Op::QkNormRopeBackward { .. }
            | Op::Attention { .. }
            | Op::AttentionBackward { .. } => self.attention_ops(op),
            Op::Fill { .. } | Op::GradNorm { .. } | Op::AdamW { .. } => self.flat_ops(op),
            _ => self.row_ops(op),
        }?;
        Ok(1)
    }

    /// A tensor's declaration.
    pub fn decl(&self, id: TensorId) -> &'a TensorDecl {
        self.program.decl(id)
    }

    /// Address of a tensor with plain elements.
    pub fn at(&self, id: TensorId) -> Result<u64> {
        self.places.address(self.program, id)
    }

    /// Address of a tensor that may be absent: 0 then.
    pub fn maybe(&self, id: Option<TensorId>) -> Result<u64> {
        id.map_or(Ok(0), |id| self.at(id))
    }

    /// Address of `counts`.
    pub fn counts(&self) -> Result<u64> {
        self.at(self.program.counts)
    }

    /// A weight of any type.
    pub fn weight(&self, id: TensorId) -> Result<WeightView> {
        self.places.weight(self.program, id)
    }

    /// The rows of a tensor.
    pub fn rows(&self, id: TensorId) -> Rows {
        let decl = self.decl(id);
        let which = match decl.live {
            Live::Tokens => 0,
            Live::Gathered => 1,
            Live::All => 2,
        };
        Rows { rows: decl.rows, cols: decl.cols, which }
    }

    /// The activations' type of an op, from one of its operands, after checking that all `ids` have it.
    pub fn activation(&self, ids: &[TensorId]) -> Result<DType> {
        let dtype = self.decl(ids[0]).dtype;
        match ids.iter().find(|id| self.decl(**id).dtype != dtype) {
            None if matches!(dtype, DType::F32 | DType::BF16 | DType::F16) => Ok(dtype),
            None => Err(Error::internal(format!("activation '{}' is {dtype}", self.decl(ids[0]).name))),
            Some(id) => Err(Error::internal(format!(
                "'{}' is {dtype} and '{}' is {}: the CUDA kernels take one type of activations",
                self.decl(ids[0]).name,
                self.decl(*id).name,
                self.decl(*id).dtype
            ))),
        }
    }

    /// Reserves scratch of one launch (or of consecutive ones of one op): its address.
    pub fn scratch(&mut self, bytes: usize) -> u64 {
        self.scratch_bytes = self.scratch_bytes.max(bytes);
        self.scratch
    }

    /// Reserves counters that are zero before and after every launch.
    pub fn counters(&mut self, count: usize) -> u64 {
        self.counter_bytes = self.counter_bytes.max(4 * count);
        self.counters
    }

    /// Blocks of a kernel that one multiprocessor holds at a time.
    pub fn blocks_at_once(&self, file: &str, name: &str, block: usize, shared: usize) -> Result<usize> {
        self.context.library.function(file, name)?.blocks_at_once(block, shared)
    }

    /// Appends a launch of the kernel `name` of `kernels/FILE.cu`.
    pub fn launch(
        &mut self,
        file: &str,
        name: &str,
        grid: [usize; 3],
        block: usize,
        shared: usize,
        args: Args,
    ) -> Result<&mut Launch> {
        let limits = [i32::MAX as usize, 65_535, 65_535];
        if grid.iter().zip(limits).any(|(blocks, most)| *blocks > most) {
            return Err(Error::unsupported(format!("{name}: a grid of {grid:?} blocks")));
        }
        if shared > self.caps.max_shared as usize {
            let most = self.caps.max_shared;
            return Err(Error::unsupported(format!("{name}: {shared} bytes of shared memory, a block has {most}")));
        }
        let function = self.context.library.function(file, name)?;
        let launch = Launch {
            name: name.to_owned(),
            function,
            grid: grid.map(|blocks| blocks as u32),
            block: block as u32,
            shared: shared as u32,
            cluster: 1,
            overlaps: false,
            args,
        };
        function.allow_shared(shared)?;
        self.launches.push(launch);
        let last = self.launches.len() - 1;
        Ok(&mut self.launches[last])
    }
}
