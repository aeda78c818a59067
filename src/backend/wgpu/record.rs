//! From ops to dispatches. A recorder is used once, when a program is compiled.

use super::context::Caps;
use super::fuse::{Kind, Run};
use super::library::Variant;
use super::places::{Places, View, WeightView};
use super::template::Defines;
use crate::error::{Error, Result};
use crate::program::{Live, Node, Op, Program, TensorId};

/// A binding: a range of a buffer, or of the executable's scratch.
pub enum Bind {
    /// A tensor.
    View(View),
    /// A range of bytes of the scratch, which lives for consecutive dispatches of one op.
    Scratch(std::ops::Range<u64>),
}

/// Words of parameters of a dispatch.
pub const PARAMS: usize = 32;

/// One dispatch.
pub struct Dispatch {
    /// For profiles: the shader, and of a product the size of its weight.
    pub label: String,
    pub variant: Variant,
    pub bindings: Vec<Bind>,
    pub params: [u32; PARAMS],
    pub grid: [u32; 2],
    /// Multiply-adds, roughly; long lists are cut by it.
    pub work: u64,
}

/// Collects the dispatches of a program.
pub struct Recorder<'a> {
    pub caps: Caps,
    pub program: &'a Program,
    pub places: &'a Places,
    pub dispatches: Vec<Dispatch>,
    /// Bytes of scratch that the list needs.
    pub scratch: u64,
}

/// Constants of a variant from a list.
pub fn defines(list: &[(&'static str, i64)]) -> Defines {
    list.iter().copied().collect()
}

impl<'a> Recorder<'a> {
    /// Records every op of `program`, which `runs` cuts.
    pub fn record(caps: Caps, program: &'a Program, places: &'a Places, runs: &[Run]) -> Result<Self> {
        let mut recorder = Self { caps, program, places, dispatches: Vec::new(), scratch: 0 };
        for run in runs {
            match &run.kind {
                Kind::Single => recorder.node(&program.nodes[run.at])?,
                Kind::NormProducts(products) => recorder.norm_and_products(products)?,
            }
        }
        Ok(recorder)
    }

    fn node(&mut self, node: &Node) -> Result<()> {
        let op = &node.op;
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
        }
    }

    /// A binding of a plain tensor.
    pub fn bind(&self, id: TensorId) -> Result<Bind> {
        let view = self.places.view(self.program, id)?;
        if view.size > self.caps.max_binding {
            let decl = self.program.decl(id);
            return Err(Error::unsupported(format!(
                "tensor '{}' of {} bytes: one binding of this adapter holds {}",
                decl.name, view.size, self.caps.max_binding
            )));
        }
        Ok(Bind::View(view))
    }

    /// Bindings of several plain tensors.
    pub fn binds(&self, ids: &[TensorId]) -> Result<Vec<Bind>> {
        ids.iter().map(|id| self.bind(*id)).collect()
    }

    /// The parts of a weight. One that lies in a State buffer (it is trained) is cut where it is larger than a binding.
    pub fn weight(&self, id: TensorId) -> Result<Vec<WeightView>> {
        let list = self.places.weight(self.program, id)?;
        let [whole] = &list[..] else { return Ok(list) };
        if whole.view.size <= self.caps.max_binding || whole.view.read_only {
            return Ok(list);
        }
        let row = self.program.decl(id).bytes() as u64 / whole.rows.max(1) as u64;
        // 64 rows of 4-byte elements keep parts aligned, whatever their width.
        let step = usize::try_from(self.caps.max_binding / row.max(1)).unwrap_or(0) / 64 * 64;
        if step == 0 {
            return self.bind(id).map(|_| list);
        }
        let part = |first: usize| {
            let rows = step.min(whole.rows - first);
            let (offset, size) = (whole.view.offset + first as u64 * row, rows as u64 * row);
            let view = View { buffer: whole.view.buffer.clone(), offset, size, read_only: false };
            WeightView { view, dtype: whole.dtype, first, rows, layout: whole.layout }
        };
        Ok((0..whole.rows).step_by(step).map(part).collect())
    }

    /// Rows and columns of a tensor.
    pub fn shape(&self, id: TensorId) -> (usize, usize) {
        let decl = self.program.decl(id);
        (decl.rows, decl.cols)
    }

    /// The first four parameters of most shaders: rows, live, row0, and one more.
    pub fn head(&self, id: TensorId, fourth: usize) -> Vec<u32> {
        let decl = self.program.decl(id);
        let live = match decl.live {
            Live::Tokens => 0,
            Live::Gathered => 1,
            Live::All => 2,
        };
        vec![decl.rows as u32, live, 0, fourth as u32]
    }

    /// Constants of a shader that reduces over a workgroup of about `wanted` invocations.
    pub fn reducing(&self, wanted: u32) -> Defines {
        let wanted = wanted.min(self.caps.max_group);
        match self.caps.subgroup {
            // One subgroup needs no barrier, which is what costs on a software adapter.
            Some(width) if self.caps.software => {
                defines(&[("WG", width.into()), ("SUBGROUPS", 1), ("ONE_SUBGROUP", 1)])
            }
            Some(_) => defines(&[("WG", wanted.into()), ("SUBGROUPS", 1)]),
            None => defines(&[("WG", wanted.into())]),
        }
    }

    /// Workgroup size of element-wise shaders.
    pub fn flat_group(&self) -> i64 {
        if self.caps.software { 64 } else { 256.min(i64::from(self.caps.max_group)) }
    }

    /// Appends a dispatch of `groups` workgroups, folded to two dimensions.
    pub fn dispatch(
        &mut self,
        shader: &'static str,
        defines: Defines,
        bindings: Vec<Bind>,
        params: &[u32],
        groups: u64,
        work: u64,
    ) -> Result<()> {
        let mut read_only = 0;
        for (i, bind) in bindings.iter().enumerate() {
            match bind {
                Bind::View(view) if view.read_only => read_only |= 2 << i,
                Bind::View(_) => {}
                Bind::Scratch(range) => self.scratch = self.scratch.max(range.end),
            }
        }
        let mut all = [0; PARAMS];
        all.get_mut(..params.len()).ok_or_else(|| Error::internal("too many parameters"))?.copy_from_slice(params);
        if groups == 0 {
            return Ok(());
        }
        let y = groups.div_ceil(MAX_GRID);
        let x = groups.div_ceil(y);
        if y > MAX_GRID || groups > u64::from(u32::MAX) {
            return Err(Error::unsupported(format!("{shader}: a grid of {groups} workgroups")));
        }
        let variant = Variant { shader, defines, read_only, bindings: bindings.len() as u32 };
        let label = shader.to_string();
        self.dispatches.push(Dispatch { label, variant, bindings, params: all, grid: [x as u32, y as u32], work });
        Ok(())
    }

    /// Adds to the label of the last dispatch.
    pub fn label_last(&mut self, more: impl std::fmt::Display) {
        if let Some(last) = self.dispatches.last_mut() {
            last.label = format!("{} {more}", last.label);
        }
    }

    /// A dispatch with one invocation for each of `elements`.
    pub fn elementwise(
        &mut self,
        shader: &'static str,
        mut defines: Defines,
        bindings: Vec<Bind>,
        params: &[u32],
        elements: usize,
    ) -> Result<()> {
        let group = self.flat_group();
        if elements as u64 > u64::from(u32::MAX) - 65_536 {
            return Err(Error::unsupported(format!("{shader}: {elements} elements in one dispatch")));
        }
        defines.insert("WG", group);
        self.dispatch(shader, defines, bindings, params, (elements as u64).div_ceil(group as u64), elements as u64)
    }
}

/// Workgroups in one dimension (WebGPU's limit, and Vulkan's usual one).
const MAX_GRID: u64 = 65_535;
