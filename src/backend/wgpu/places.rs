//! Where each tensor of a program lies: arena, inputs, outputs, weights, State buffers.

use super::context::Context;
use super::storage::Storage;
use crate::backend::{Bindings, Buffer, only_f32_activations};
use crate::error::{Error, Result};
use crate::program::{MemoryPlan, Place, Program, TensorDecl, TensorId, plan_groups};
use crate::tensor::DType;
use std::collections::HashMap;

/// A range of a buffer as a shader binding.
#[derive(Clone)]
pub struct View {
    pub buffer: wgpu::Buffer,
    pub offset: u64,
    pub size: u64,
    /// Bound `read`: frozen weights only. Everything else is `read_write`, because ranges of one buffer may be
    /// bound together only with one usage.
    pub read_only: bool,
}

/// One part of a weight as the matrix shaders take it.
pub struct WeightView {
    pub view: View,
    pub dtype: DType,
    /// First row and number of rows.
    pub first: usize,
    pub rows: usize,
    /// `stride`, `groups`, `w1`, `w2`, `w3` of the parameters.
    pub layout: [u32; 5],
}

/// All storage of one executable.
pub struct Places {
    pub plan: MemoryPlan,
    arenas: Vec<wgpu::Buffer>,
    pub inputs: wgpu::Buffer,
    pub outputs: wgpu::Buffer,
    /// Offset of each input and output in its buffer.
    pub offsets: HashMap<TensorId, u64>,
    pub input_bytes: u64,
    bound: HashMap<String, Buffer>,
}

impl Places {
    /// Allocates arenas, inputs and outputs (`groups` as in [`plan_groups`]); finds weights and State buffers in `bindings`.
    pub fn new(context: &Context, program: &Program, bindings: &Bindings, groups: &[usize]) -> Result<Self> {
        only_f32_activations("wgpu", program)?;
        let align = context.caps.align.max(256);
        // Ranges are bound, not arenas, so an arena may be larger than a binding.
        let max_arena = usize::try_from(context.caps.max_buffer).unwrap_or(usize::MAX);
        let plan = plan_groups(program, groups, align as usize, max_arena)?;
        let arena =
            |(i, bytes): (usize, &usize)| context.storage(&format!("{} arena {i}", program.name), *bytes as u64);
        let arenas = plan.arenas.iter().enumerate().map(arena).collect::<Result<Vec<_>>>()?;
        let mut offsets = HashMap::new();
        let mut sizes = [0u64; 2];
        let mut bound = HashMap::new();
        for id in program.ids() {
            let decl = program.decl(id);
            let name = match &decl.place {
                Place::Temp => continue,
                Place::Input | Place::Output => {
                    let size = &mut sizes[usize::from(decl.place == Place::Output)];
                    offsets.insert(id, *size);
                    *size += (decl.bytes() as u64).next_multiple_of(align).max(align);
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
        let inputs = context.storage(&format!("{} inputs", program.name), sizes[0])?;
        let outputs = context.storage(&format!("{} outputs", program.name), sizes[1])?;
        Ok(Self { plan, arenas, inputs, outputs, offsets, input_bytes: sizes[0].max(4).next_multiple_of(256), bound })
    }

    /// A tensor with plain elements.
    pub fn view(&self, program: &Program, id: TensorId) -> Result<View> {
        let decl = program.decl(id);
        let size = (decl.bytes() as u64).max(4).next_multiple_of(4);
        let lost = || Error::internal(format!("'{}' has no storage", decl.name));
        let (buffer, offset, read_only) = match &decl.place {
            Place::Temp => {
                let slot = self.plan.slot(id).ok_or_else(lost)?;
                (&self.arenas[slot.arena], slot.offset as u64, false)
            }
            Place::Input => (&self.inputs, *self.offsets.get(&id).ok_or_else(lost)?, false),
            Place::Output => (&self.outputs, *self.offsets.get(&id).ok_or_else(lost)?, false),
            Place::State { buffer, offset } => match self.bound.get(buffer).ok_or_else(lost)?.inner()? {
                Storage::Flat(inner) => (inner, decl.dtype.bytes_for(*offset).unwrap_or(0) as u64, false),
                Storage::Planes { .. } => {
                    return Err(Error::internal(format!("State buffer '{buffer}' was uploaded, not allocated")));
                }
            },
            Place::Weight => match self.bound.get(&decl.name).ok_or_else(lost)?.inner()? {
                Storage::Flat(inner) => (inner, 0, true),
                Storage::Planes { planes, parts } => {
                    let dense = decl.rows == 1 || decl.cols.is_multiple_of(crate::backend::planes::GROUP);
                    if parts.len() != 1 || !dense || planes.dtype.is_quantised() {
                        return Err(Error::unsupported(format!(
                            "weight '{}' ({}, [{}, {}]) where a dense f32 tensor is needed",
                            decl.name, decl.dtype, decl.rows, decl.cols
                        )));
                    }
                    (&parts[0].buffer, 0, true)
                }
            },
        };
        Ok(View { buffer: buffer.clone(), offset, size, read_only })
    }

    /// A weight of any type, part by part.
    pub fn weight(&self, program: &Program, id: TensorId) -> Result<Vec<WeightView>> {
        let decl = program.decl(id);
        if let (Place::Weight, Some(buffer)) = (&decl.place, self.bound.get(&decl.name))
            && let Storage::Planes { planes, parts } = buffer.inner()?
        {
            let stride = planes.groups * crate::backend::planes::GROUP;
            return Ok(parts
                .iter()
                .map(|part| {
                    let (starts, words) = planes.offsets(part.rows);
                    let [_, w1, w2, w3] = starts.map(|s| s as u32);
                    let view = View { buffer: part.buffer.clone(), offset: 0, size: words as u64 * 4, read_only: true };
                    let layout = [stride as u32, planes.groups as u32, w1, w2, w3];
                    WeightView { view, dtype: planes.dtype, first: part.first, rows: part.rows, layout }
                })
                .collect());
        }
        if decl.dtype.is_quantised() {
            return Err(Error::internal(format!("'{}' is {} but was not uploaded", decl.name, decl.dtype)));
        }
        let mut view = self.view(program, id)?;
        // Bound as vec4 words: a length that is no multiple of 16 grows into the padding behind it (buffers are
        // padded to 256 bytes, State tensors start at multiples of 256, so nothing else is ever written there).
        view.size = view.size.next_multiple_of(16);
        let layout = [decl.cols as u32, decl.cols.div_ceil(crate::backend::planes::GROUP) as u32, 0, 0, 0];
        Ok(vec![WeightView { view, dtype: decl.dtype, first: 0, rows: decl.rows, layout }])
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
    if ok {
        return Ok(());
    }
    Err(Error::internal(format!(
        "{program}: '{}' is {} [{}, {}], the buffer bound to it is {} [{}, {}]",
        decl.name, decl.dtype, decl.rows, decl.cols, desc.dtype, desc.rows, desc.cols
    )))
}
