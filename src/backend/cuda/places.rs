//! Where each tensor of a program lies: arena, inputs, outputs, weights, State buffers.

use super::context::{Context, Shared};
use super::memory::Memory;
use super::storage::Storage;
use crate::backend::{Bindings, Buffer};
use crate::error::{Error, Result};
use crate::program::{MemoryPlan, Place, Program, TensorDecl, TensorId, plan, plan_groups};
use crate::tensor::DType;
use std::collections::HashMap;
use std::sync::Arc;

/// Alignment of every tensor: what TMA asks for, and whole cache lines.
const ALIGN: usize = 256;

/// A weight as kernels take it by value (`WeightView` in `kernels/decode.cuh`).
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub struct WeightView {
    /// Device address of the elements or of plane 0.
    pub data: u64,
    /// Where planes 1 to 3 start, in words.
    pub planes: [u32; 3],
    /// Rows.
    pub n: u32,
    /// Elements of a row.
    pub k: u32,
    /// Elements from row to row.
    pub stride: u32,
}

/// All storage of one executable.
pub struct Places {
    pub plan: MemoryPlan,
    /// Absent until [`Places::settle`]: addresses of intermediates are not real before.
    arena: Option<Arc<Memory>>,
    pub inputs: Memory,
    pub outputs: Memory,
    pub input_bytes: usize,
    /// Offset of each input and output in its memory.
    pub offsets: HashMap<TensorId, usize>,
    bound: HashMap<String, Buffer>,
}

impl Places {
    /// Allocates inputs and outputs; finds weights and State buffers in `bindings`.
    pub fn new(context: &Arc<Context>, program: &Program, bindings: &Bindings) -> Result<Self> {
        let plan = plan(program, ALIGN, usize::MAX)?;
        let mut offsets = HashMap::new();
        let mut sizes = [0usize; 2];
        let mut bound = HashMap::new();
        for id in program.ids() {
            let decl = program.decl(id);
            let name = match &decl.place {
                Place::Temp => continue,
                Place::Input | Place::Output => {
                    let size = &mut sizes[usize::from(decl.place == Place::Output)];
                    offsets.insert(id, *size);
                    *size += decl.bytes().next_multiple_of(ALIGN).max(ALIGN);
                    continue;
                }
                Place::Weight => &decl.name,
                Place::State { buffer, .. } => buffer,
            };
            let buffer = bindings
                .get(name)
                .ok_or_else(|| Error::internal(format!("{}: no buffer is bound to '{name}'", program.name)))?;
            fits(&program.name, decl, buffer)?;
            bound.insert(name.clone(), buffer.clone());
        }
        let inputs = context.allocate_zeroed(&format!("the inputs of '{}'", program.name), sizes[0])?;
        let outputs = context.allocate_zeroed(&format!("the outputs of '{}'", program.name), sizes[1])?;
        Ok(Self { plan, arena: None, inputs, outputs, input_bytes: sizes[0], offsets, bound })
    }

    /// Places and allocates the intermediates, for ops that run in these groups.
    pub fn settle(&mut self, context: &Arc<Context>, program: &Program, groups: &[usize]) -> Result<()> {
        self.plan = plan_groups(program, groups, ALIGN, usize::MAX)?;
        let what = format!("the intermediates of '{}'", program.name);
        self.arena = Some(context.shared(&what, Shared::Arena, self.plan.bytes())?);
        Ok(())
    }

    /// Gives the intermediates memory that no other program uses.
    pub fn keep_apart(&mut self, context: &Arc<Context>, program: &Program) -> Result<()> {
        // What is shared goes first, where nobody else needs it.
        self.arena = None;
        let what = format!("the intermediates of '{}', which runs in parts", program.name);
        self.arena = Some(Arc::new(context.allocate(&what, self.plan.bytes())?));
        Ok(())
    }

    /// Device address of a tensor with plain elements.
    pub fn address(&self, program: &Program, id: TensorId) -> Result<u64> {
        let decl = program.decl(id);
        let lost = || Error::internal(format!("'{}' has no storage", decl.name));
        let own = || self.offsets.get(&id).map(|offset| *offset as u64).ok_or_else(lost);
        match &decl.place {
            Place::Temp => {
                let start = self.arena.as_ref().map_or(ALIGN as u64, |arena| arena.address);
                Ok(start + self.plan.slot(id).ok_or_else(lost)?.offset as u64)
            }
            Place::Input => Ok(self.inputs.address + own()?),
            Place::Output => Ok(self.outputs.address + own()?),
            Place::State { buffer, offset } => {
                let start = decl.dtype.bytes_for(*offset).unwrap_or(0) as u64;
                Ok(self.bound.get(buffer).ok_or_else(lost)?.inner::<Storage>()?.address() + start)
            }
            Place::Weight => match self.bound.get(&decl.name).ok_or_else(lost)?.inner()? {
                Storage::Flat(memory) => Ok(memory.address),
                Storage::Host(memory) => Ok(memory.address),
                Storage::Planes(..) => Err(Error::unsupported(format!(
                    "weight '{}' ({}, [{}, {}]) where a plain tensor is needed",
                    decl.name, decl.dtype, decl.rows, decl.cols
                ))),
            },
        }
    }

    /// A weight of any type.
    pub fn weight(&self, program: &Program, id: TensorId) -> Result<WeightView> {
        let decl = program.decl(id);
        let (n, k) = (decl.rows as u32, decl.cols as u32);
        if let (Place::Weight, Some(buffer)) = (&decl.place, self.bound.get(&decl.name))
            && let Storage::Planes(memory, planes) = buffer.inner()?
        {
            let ([_, w1, w2, w3], _) = planes.offsets(decl.rows);
            let planes = [w1, w2, w3].map(|start| start as u32);
            return Ok(WeightView { data: memory.address, planes, n, k, stride: k });
        }
        Ok(WeightView { data: self.address(program, id)?, planes: [0; 3], n, k, stride: k })
    }
}

/// Refuses a buffer that does not hold what `decl` says.
fn fits(program: &str, decl: &TensorDecl, buffer: &Buffer) -> Result<()> {
    let desc = buffer.desc();
    let ok = match &decl.place {
        Place::State { offset, .. } => {
            let start = decl.dtype.bytes_for(*offset);
            decl.dtype == desc.dtype && start.is_some_and(|start| start + decl.bytes() <= desc.bytes())
        }
        _ => (decl.dtype, decl.rows, decl.cols) == (desc.dtype, desc.rows, desc.cols),
    };
    if ok && desc.rows * desc.cols / desc.dtype.block_len().max(1) <= u32::MAX as usize {
        return Ok(());
    }
    Err(Error::internal(format!(
        "{program}: '{}' is {} [{}, {}], the buffer bound to it is {} [{}, {}]",
        decl.name, decl.dtype, decl.rows, decl.cols, desc.dtype, desc.rows, desc.cols
    )))
}

/// The name of a type in kernels' names.
pub fn suffix(dtype: DType) -> &'static str {
    dtype.name()
}
