//! A program recorded for one device: bind groups and pipelines made once, replayed by every run.

use super::context::{Context, Pipeline};
use super::fuse::{groups, runs};
use super::places::Places;
use super::profile::profile;
use super::record::{Bind, PARAMS, Recorder};
use crate::backend::pace::Pace;
use crate::backend::{Bindings, Executable, Timing};
use crate::error::{Error, Result};
use crate::program::{Place, Program, TensorId};
use std::sync::Arc;
use std::time::Instant;

/// One dispatch, ready to be encoded.
pub struct Step {
    pub label: String,
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    grid: [u32; 2],
    /// A new submission starts after this step.
    cut: bool,
}

impl Step {
    /// Appends the dispatch to a pass.
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups(self.grid[0], self.grid[1], 1);
    }
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
    /// Outputs that are small enough come with the run itself: a copy in memory that the host maps.
    copied: Option<Copied>,
    /// The last run, where `copied` waits for it.
    running: Option<wgpu::SubmissionIndex>,
    /// The commands of the next run, encoded while the device was busy with this one.
    prepared: Option<wgpu::CommandBuffer>,
    /// Runs so far.
    runs: u64,
    /// How long the steps take, where a run is in parts.
    pace: Pace,
}

/// The small outputs on the host's side, and where they lie among all outputs.
struct Copied {
    buffer: wgpu::Buffer,
    start: u64,
}

/// Multiply-adds in one submission. About half a second on a 2 TFLOP/s GPU: drivers reset a GPU whose
/// submission takes longer than about 2 s.
const WORK_BOUND: u64 = 500_000_000_000;
/// A first guess of a dispatch's time: so many seconds, and so many for each multiply-add.
const GUESS: (f32, f32) = (5e-6, 5e-13);
/// Bytes from one dispatch's parameters to the next (WebGPU's strictest uniform alignment).
const PARAM_STRIDE: u64 = 256;
/// Changed ranges of the inputs that lie closer than this travel together: each write has its own staging memory.
const GAP: usize = 4096;
/// Largest outputs that are copied to the host's side in every run.
const MAX_COPIED: u64 = 64 << 10;

impl WgpuExecutable {
    /// Plans, allocates, records.
    pub fn new(context: Arc<Context>, program: Arc<Program>, bindings: &Bindings) -> Result<Self> {
        let runs = runs(context.caps, &program, bindings);
        let places = Places::new(&context, &program, bindings, &groups(&runs))?;
        let recorder = Recorder::record(context.caps, &program, &places, &runs)?;
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
                    Bind::Scratch(range) => entry(b, &scratch, range.start, range.end - range.start),
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
            let label = dispatch.label.clone();
            steps.push(Step { label, pipeline, group, grid: dispatch.grid, cut });
        }
        context.check()?;
        let guess = |work: u64| GUESS.0 + GUESS.1 * work as f32;
        let pace = Pace::new(recorder.dispatches.iter().map(|dispatch| guess(dispatch.work)));
        let inputs = vec![0; usize::try_from(places.input_bytes).unwrap_or(0)];
        // A run in several submissions is long enough for a copy of its own not to count.
        let range = small_outputs(&program, &places).filter(|_| !steps.iter().any(|step| step.cut));
        let copied = match range {
            Some((start, end)) => {
                use wgpu::BufferUsages as U;
                let buffer = context.buffer("copied outputs", end - start, U::MAP_READ | U::COPY_DST)?;
                Some(Copied { buffer, start })
            }
            None => None,
        };
        Ok(Self {
            context,
            program,
            places,
            steps,
            inputs,
            dirty: Vec::new(),
            copied,
            running: None,
            prepared: None,
            runs: 0,
            pace,
        })
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
        self.dirty.sort_unstable();
        let mut ranges: Vec<(usize, usize)> = Vec::with_capacity(self.dirty.len());
        for (start, end) in self.dirty.drain(..) {
            match ranges.last_mut() {
                Some(last) if start <= last.1 + GAP => last.1 = last.1.max(end),
                _ => ranges.push((start, end)),
            }
        }
        for (start, end) in ranges {
            self.context.write(&self.places.inputs, start as u64, &self.inputs[start..end])?;
        }
        Ok(())
    }

    /// The commands of some steps, with the copy of the outputs at the end of the program.
    fn encode(&self, steps: &[Step]) -> wgpu::CommandBuffer {
        let mut encoder = self.context.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for step in steps {
                step.encode(&mut pass);
            }
        }
        if let Some(Copied { buffer, start }) = &self.copied {
            encoder.copy_buffer_to_buffer(&self.places.outputs, *start, buffer, 0, buffer.size());
        }
        encoder.finish()
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
        self.runs += 1;
        if self.copied.is_some() {
            let commands = self.prepared.take().unwrap_or_else(|| self.encode(&self.steps));
            self.running = Some(self.context.queue.submit([commands]));
            return self.context.check();
        }
        for steps in self.steps.split_inclusive(|step| step.cut) {
            self.context.queue.submit([self.encode(steps)]);
        }
        self.context.check()
    }

    fn run_part(&mut self, first: usize, deadline: Instant) -> Result<Option<usize>> {
        self.context.check()?;
        if first == 0 {
            self.flush_inputs()?;
            self.runs += 1;
        }
        let mut at = first;
        while at < self.steps.len() {
            let began = Instant::now();
            let end = self.pace.end(at, deadline.saturating_duration_since(began));
            // A driver gives up on a submission that takes too long.
            let end = (at..end).find(|i| self.steps[*i].cut).map_or(end, |i| i + 1);
            let index = self.context.queue.submit([self.encode(&self.steps[at..end])]);
            self.context.wait(index.clone())?;
            let now = Instant::now();
            self.pace.took(at..end, now - began);
            (at, self.running) = (end, Some(index));
            if at < self.steps.len() && self.pace.is_over(deadline.saturating_duration_since(now)) {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    fn read(&mut self, id: TensorId, out: &mut [u8]) -> Result<()> {
        let offset = self.locate(id, &Place::Output, out.len())?;
        let (Some(Copied { buffer, start }), Some(index)) = (&self.copied, &self.running) else {
            return self.context.read(&self.places.outputs, offset, out);
        };
        let range = offset.wrapping_sub(*start)..(offset + out.len() as u64).next_multiple_of(4).saturating_sub(*start);
        if offset < *start || range.end > buffer.size() {
            return self.context.read(&self.places.outputs, offset, out);
        }
        let mapped = self.context.map(buffer, range);
        // What runs more than once will run again: its commands are ready when the next inputs are.
        if self.runs > 1 && self.prepared.is_none() {
            self.prepared = Some(self.encode(&self.steps));
        }
        self.context.finish_map(mapped, index.clone(), |bytes| out.copy_from_slice(&bytes[..out.len()]))
    }

    fn profile(&mut self) -> Result<Vec<Timing>> {
        self.context.check()?;
        self.flush_inputs()?;
        profile(&self.context, &self.steps)
    }
}

/// The part of the outputs that holds all small ones, where it is small itself.
fn small_outputs(program: &Program, places: &Places) -> Option<(u64, u64)> {
    let outputs = program.ids().filter(|id| program.decl(*id).place == Place::Output);
    let ranges = outputs.filter_map(|id| {
        let start = *places.offsets.get(&id)?;
        Some((start, start + (program.decl(id).bytes() as u64).next_multiple_of(4)))
    });
    let small = ranges.filter(|(start, end)| end - start <= MAX_COPIED);
    let all = small.reduce(|all, range| (all.0.min(range.0), all.1.max(range.1)))?;
    (all.1 - all.0 <= MAX_COPIED).then_some(all)
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
