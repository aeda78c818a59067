//! A program recorded for one device: bind groups and pipelines made once, replayed by every run.

use super::context::{Context, Pipeline};
use super::places::Places;
use super::record::{Bind, PARAMS, Recorder};
use crate::backend::{Bindings, Executable};
use crate::error::{Error, Result};
use crate::program::{Place, Program, TensorId};
use std::sync::Arc;

struct Step {
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    grid: [u32; 2],
    /// A new submission starts after this step.
    cut: bool,
}

/// See [`Executable`].
pub struct WgpuExecutable {
    context: Arc<Context>,
    program: Arc<Program>,
    places: Places,
    steps: Vec<Step>,
    /// Host copy of the inputs and the ranges that changed since the last run.
    inputs: Vec<u8>,
    dirty: Vec<(usize, usize)>,
}

/// Multiply-adds in one submission. About half a second on a 2 TFLOP/s GPU: drivers reset a GPU whose
/// submission takes longer than about 2 s.
const WORK_BOUND: u64 = 500_000_000_000;
/// Bytes from one dispatch's parameters to the next (WebGPU's strictest uniform alignment).
const PARAM_STRIDE: u64 = 256;

impl WgpuExecutable {
    /// Plans, allocates, records.
    pub fn new(context: Arc<Context>, program: Arc<Program>, bindings: &Bindings) -> Result<Self> {
        let places = Places::new(&context, &program, bindings)?;
        let recorder = Recorder::record(context.caps, &program, &places)?;
        let scratch = context.storage(&format!("{} scratch", program.name), recorder.scratch)?;
        let params = parameters(&context, &recorder)?;
        let mut steps = Vec::with_capacity(recorder.dispatches.len());
        let mut work = 0;
        for (i, dispatch) in recorder.dispatches.iter().enumerate() {
            let pipeline = context.pipeline(&dispatch.variant)?;
            let mut entries = vec![entry(0, &params, i as u64 * PARAM_STRIDE, PARAMS as u64 * 4)];
            for (b, bind) in (1..).zip(&dispatch.bindings) {
                entries.push(match bind {
                    Bind::View(view) => entry(b, &view.buffer, view.offset, view.size),
                    Bind::Scratch(bytes) => entry(b, &scratch, 0, *bytes),
                });
            }
            let group = context.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(dispatch.variant.shader),
                layout: &pipeline.layout,
                entries: &entries,
            });
            work += dispatch.work;
            let cut = work > WORK_BOUND;
            if cut {
                work = 0;
            }
            steps.push(Step { pipeline, group, grid: dispatch.grid, cut });
        }
        context.check()?;
        let inputs = vec![0; usize::try_from(places.input_bytes).unwrap_or(0)];
        Ok(Self { context, program, places, steps, inputs, dirty: Vec::new() })
    }

    /// Offset of an input or output, after checking that it is one and holds `len` bytes.
    fn locate(&self, id: TensorId, place: &Place, len: usize) -> Result<u64> {
        let decl = self.program.tensors.get(id.index()).ok_or_else(|| Error::internal("no such tensor"))?;
        match self.places.offsets.get(&id) {
            Some(offset) if decl.place == *place && len <= decl.bytes() => Ok(*offset),
            _ => Err(Error::internal(format!(
                "'{}' ({:?}, {} bytes) accessed as {place:?} with {len} bytes",
                decl.name,
                decl.place,
                decl.bytes()
            ))),
        }
    }

    fn flush_inputs(&mut self) -> Result<()> {
        for (start, end) in self.dirty.drain(..) {
            self.context.write(&self.places.inputs, start as u64, &self.inputs[start..end])?;
        }
        Ok(())
    }
}

impl Executable for WgpuExecutable {
    fn program(&self) -> &Program {
        &self.program
    }

    fn arena_bytes(&self) -> usize {
        self.places.plan.bytes()
    }

    fn write(&mut self, id: TensorId, data: &[u8]) -> Result<()> {
        let start = self.locate(id, &Place::Input, data.len())? as usize;
        self.inputs[start..start + data.len()].copy_from_slice(data);
        let range = (start, (start + data.len()).next_multiple_of(4));
        // The same input written again, or one that follows: one range.
        match self.dirty.iter_mut().find(|d| d.0 <= range.0 && range.0 <= d.1) {
            Some(known) => known.1 = known.1.max(range.1),
            None => self.dirty.push(range),
        }
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        self.context.check()?;
        self.flush_inputs()?;
        let mut at = 0;
        while at < self.steps.len() {
            let end = self.steps[at..].iter().position(|s| s.cut).map_or(self.steps.len(), |n| at + n + 1);
            let mut encoder = self.context.device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                for step in &self.steps[at..end] {
                    pass.set_pipeline(&step.pipeline.pipeline);
                    pass.set_bind_group(0, &step.group, &[]);
                    pass.dispatch_workgroups(step.grid[0], step.grid[1], 1);
                }
            }
            self.context.queue.submit([encoder.finish()]);
            at = end;
        }
        self.context.check()
    }

    fn read(&mut self, id: TensorId, out: &mut [u8]) -> Result<()> {
        let offset = self.locate(id, &Place::Output, out.len())?;
        self.context.read(&self.places.outputs, offset, out)
    }
}

/// All parameters in one uniform buffer, written once.
fn parameters(context: &Context, recorder: &Recorder) -> Result<wgpu::Buffer> {
    use wgpu::BufferUsages as U;
    let mut words = vec![0u32; recorder.dispatches.len().max(1) * PARAM_STRIDE as usize / 4];
    for (slot, dispatch) in words.chunks_exact_mut(PARAM_STRIDE as usize / 4).zip(&recorder.dispatches) {
        slot[..PARAMS].copy_from_slice(&dispatch.params);
    }
    let buffer = context.buffer("parameters", words.len() as u64 * 4, U::UNIFORM | U::COPY_DST)?;
    context.write(&buffer, 0, bytemuck::cast_slice(&words))?;
    Ok(buffer)
}

fn entry(binding: u32, buffer: &wgpu::Buffer, offset: u64, size: u64) -> wgpu::BindGroupEntry<'_> {
    let size = std::num::NonZeroU64::new(size);
    wgpu::BindGroupEntry {
        binding,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size }),
    }
}
