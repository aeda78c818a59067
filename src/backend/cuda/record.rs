//! From ops to kernel launches. A program is walked twice: the first time finds out how much memory the launches need
//! beside the program's own tensors, the second records them with its addresses.

use super::context::{Caps, Context};
use super::launch::{Args, Launch, Work};
use super::places::{Places, WeightView, suffix};
use crate::error::{Error, Result};
use crate::program::{Access, Live, Op, Place, Program, TensorDecl, TensorId};
use crate::tensor::DType;
use std::sync::Arc;

/// Collects the launches of a program.
pub struct Recorder<'a> {
    pub context: &'a Arc<Context>,
    pub caps: Caps,
    pub program: &'a Program,
    pub places: &'a Places,
    pub launches: Vec<Work>,
    /// The group of each op: ops that one launch or a few do together share a number.
    pub groups: Vec<usize>,
    /// How many launches there are up to the end of each group: between two groups a run can stop.
    pub ends: Vec<usize>,
    /// How often each tensor is read.
    reads: Vec<usize>,
    /// Addresses of the memory that the launches share; zeros the first time.
    extra: Extra<u64>,
    /// Bytes of it that they need.
    pub needed: Extra<usize>,
    /// The trained matrices that are kept in the activations' type during a step.
    shadows: Vec<Shadow>,
}

/// Memory of an executable beside the program's tensors.
#[derive(Clone, Copy, Default)]
pub struct Extra<T> {
    /// Scratch of one op after another.
    pub scratch: T,
    /// Part sums of one product, whose operands may lie in the scratch.
    pub workspace: T,
    /// Zeros that kernels which count arrivals leave as zeros.
    pub counters: T,
    /// Words by which one kernel tells the next that those ahead have ended.
    pub flags: T,
    /// Copies of what is trained in the activations' type.
    pub shadows: T,
    /// The list of these copies, as `kernels/lora_expand_cast.cu` reads it.
    pub segments: T,
}

/// One copy: which tensor, in which type, times which factor, where.
struct Shadow {
    of: TensorId,
    dtype: DType,
    scale: Option<TensorId>,
    offset: usize,
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
        extra: Extra<u64>,
    ) -> Result<Self> {
        let mut reads = vec![0; program.tensors.len()];
        for node in &program.nodes {
            for (id, access) in node.op.operands() {
                reads[id.index()] += usize::from(access != Access::Write);
            }
        }
        let mut recorder = Self {
            context,
            caps: context.caps,
            program,
            places,
            launches: Vec::new(),
            groups: Vec::with_capacity(program.nodes.len()),
            ends: Vec::new(),
            reads,
            extra,
            needed: Extra::default(),
            shadows: Vec::new(),
        };
        let (mut at, mut group) = (0, 0);
        while at < program.nodes.len() {
            at += recorder.nodes(at)?;
            recorder.groups.resize(at, group);
            recorder.ends.push(recorder.launches.len());
            group += 1;
        }
        recorder.cast_shadows()?;
        Ok(recorder)
    }

    /// Records the op at `at`, with those that follow where one kernel does several; returns how many.
    fn nodes(&mut self, at: usize) -> Result<usize> {
        if let Some(count) = self.fused(at)? {
            return Ok(count);
        }
        let op = &self.program.nodes[at].op;
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
            Op::Fill { .. }
            | Op::PlaceAdapter { .. }
            | Op::GradNorm { .. }
            | Op::AdamW { .. }
            | Op::AdamW8bit { .. }
            | Op::Lion { .. }
            | Op::Lion8bit { .. }
            | Op::Sgd { .. } => self.flat_ops(op),
            Op::EmbedDw { .. } | Op::RmsNormDw { .. } | Op::ColumnSum { .. } | Op::QkNormDw { .. } => {
                self.weight_gradients(op)
            }
            Op::DoraNorm { .. } | Op::DoraScale { .. } | Op::DoraScaleBackward { .. } => self.dora_ops(op),
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

    /// Whether a weight is trained itself: f32, in a State buffer.
    pub fn is_trained(&self, id: TensorId) -> bool {
        let decl = self.decl(id);
        decl.dtype == DType::F32 && matches!(decl.place, Place::State { .. })
    }

    /// A weight as products of activations of type `t` take it, with its type: beside 16-bit ones a trained weight is read as
    /// its copy in their type, which follows it from step to step.
    pub fn product_weight(&mut self, id: TensorId, t: DType) -> Result<(WeightView, DType)> {
        let (view, dtype) = (self.weight(id)?, self.decl(id).dtype);
        if t == DType::F32 || !self.is_trained(id) {
            return Ok((view, dtype));
        }
        let data = self.shadow(id, t, None)?;
        Ok((WeightView { data, ..view }, t))
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

    /// How many ops read a tensor.
    pub fn read_by(&self, id: TensorId) -> usize {
        self.reads[id.index()]
    }

    /// Reserves scratch of one launch (or of consecutive ones of one op): its address.
    pub fn scratch(&mut self, bytes: usize) -> u64 {
        self.needed.scratch = self.needed.scratch.max(bytes);
        self.extra.scratch
    }

    /// Reserves room for the part sums of one product: its address.
    pub fn workspace(&mut self, bytes: usize) -> u64 {
        self.needed.workspace = self.needed.workspace.max(bytes);
        self.extra.workspace
    }

    /// Whether an address is that of the scratch or of a copy of what is trained, which kernels of the step write.
    pub fn is_scratch(&self, address: u64) -> bool {
        let copies = self.extra.shadows..self.extra.shadows + self.needed.shadows as u64;
        address == self.extra.scratch || copies.contains(&address)
    }

    /// Reserves counters that are zero before and after every launch.
    pub fn counters(&mut self, count: usize) -> u64 {
        self.needed.counters = self.needed.counters.max(4 * count);
        self.extra.counters
    }

    /// For a launch that tells the next one when all ahead of itself have ended: the flag that it raises and that of the next
    /// such launch, which it lowers. A step's first has none (0), as nobody would lower it.
    pub fn flags(&mut self) -> [u64; 2] {
        let at = self.needed.flags;
        self.needed.flags += size_of::<u32>();
        let next = self.extra.flags + self.needed.flags as u64;
        [if at == 0 { 0 } else { self.extra.flags + at as u64 }, next]
    }

    /// Address of a copy of the f32 matrix `of` in the type `dtype`, times the number that `scale` holds; made at the start
    /// of every step.
    pub fn shadow(&mut self, of: TensorId, dtype: DType, scale: Option<TensorId>) -> Result<u64> {
        let known = self.shadows.iter().find(|s| (s.of, s.dtype, s.scale) == (of, dtype, scale));
        if let Some(known) = known {
            return Ok(self.extra.shadows + known.offset as u64);
        }
        let offset = self.needed.shadows;
        self.needed.shadows += (self.decl(of).len() * dtype.block_bytes()).next_multiple_of(256);
        self.shadows.push(Shadow { of, dtype, scale, offset });
        self.needed.segments = self.shadows.len() * size_of::<[u64; 4]>();
        Ok(self.extra.shadows + offset as u64)
    }

    /// What the list of copies holds.
    pub fn segments(&self) -> Result<Vec<[u64; 4]>> {
        let segment = |s: &Shadow| {
            let to = self.extra.shadows + s.offset as u64;
            Ok([self.at(s.of)?, to, self.maybe(s.scale)?, self.decl(s.of).len() as u64])
        };
        self.shadows.iter().map(segment).collect()
    }

    /// Puts the launch that makes all copies in front.
    fn cast_shadows(&mut self) -> Result<()> {
        let Some(first) = self.shadows.first() else { return Ok(()) };
        let name = format!("lora_expand_cast_{}", suffix(first.dtype));
        let longest = self.shadows.iter().map(|s| self.decl(s.of).len()).max().unwrap_or(0);
        let most = 4 * self.caps.multiprocessors as usize;
        let grid = [longest.div_ceil(4 * 2048).min(most), self.shadows.len(), 1];
        let args = Args::new().ptr(self.extra.segments);
        self.launch("lora_expand_cast", &name, grid, 256, 0, args)?;
        self.launches.rotate_right(1);
        self.ends.iter_mut().for_each(|end| *end += 1);
        Ok(())
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
            cluster: None,
            overlaps: false,
            args,
        };
        self.launches.push(Work::Kernel(launch));
        match self.launches.last_mut() {
            Some(Work::Kernel(launch)) => Ok(launch),
            _ => Err(Error::internal("a launch was lost")),
        }
    }
}
