//! A program bound to a CUDA device: launches captured into a graph once, replayed every step.

use super::context::{Context, Shared, device_error};
use super::graph::Graph;
use super::launch::Work;
use super::memory::{Memory, Pinned};
use super::places::Places;
use super::profile::profile;
use super::record::{Extra, Recorder};
use crate::backend::{Bindings, Executable, Timing};
use crate::error::{Error, Result};
use crate::program::{Place, Program, TensorId};
use cudarc::driver::{result, sys};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Changed ranges of the inputs that lie closer than this travel in one copy: a copy of its own costs about 2 µs.
const GAP: usize = 4096;
/// Launches of a part of a program that may be cut: about a millisecond of a training step of 2 × 1024 tokens on an H100.
const PART: usize = 12;

pub struct CudaExecutable {
    // Drop before what they use.
    /// The program, in parts where it may be cut.
    graphs: Vec<Graph>,
    /// After the latest parts, in turns.
    ran: [sys::CUevent; 2],
    /// What the graphs replay.
    launches: Vec<Work>,
    program: Arc<Program>,
    places: Places,
    /// The host's copy of the inputs, from which the device copies.
    inputs: Pinned,
    /// After the last copy from `inputs`.
    copied: sys::CUevent,
    /// Changed byte ranges of the inputs, in order.
    dirty: Vec<(usize, usize)>,
    /// Used by the graphs' kernels, by address.
    _extra: Extra<Arc<Memory>>,
    extra_bytes: usize,
    context: Arc<Context>,
}

// SAFETY: driver handles may be used from any thread that has made the context current; one thread at a time owns the
// executable.
unsafe impl Send for CudaExecutable {}

impl CudaExecutable {
    /// Places the program, records its launches and captures them.
    pub fn new(context: Arc<Context>, program: Arc<Program>, bindings: &Bindings) -> Result<Self> {
        context.bind()?;
        let mut places = Places::new(&context, &program, bindings)?;
        let Recorder { needed, groups, .. } = Recorder::record(&context, &program, &places, Extra::default())?;
        places.settle(&context, &program, &groups)?;
        let scratch = context.shared(&format!("the scratch of '{}'", program.name), Shared::Scratch, needed.scratch)?;
        let what = format!("the part sums of '{}'", program.name);
        let extra = Extra {
            scratch,
            workspace: context.shared(&what, Shared::Workspace, needed.workspace)?,
            counters: Arc::new(context.allocate_zeroed("counters", needed.counters)?),
            // One more than launches, for the last one to lower.
            flags: Arc::new(context.allocate_zeroed("flags", needed.flags + size_of::<u32>())?),
            shadows: Arc::new(
                context.allocate(&format!("the adapters' copies of '{}'", program.name), needed.shadows)?,
            ),
            segments: Arc::new(context.allocate("the list of the adapters' copies", needed.segments)?),
        };
        let addresses = Extra {
            scratch: extra.scratch.address,
            workspace: extra.workspace.address,
            counters: extra.counters.address,
            flags: extra.flags.address,
            shadows: extra.shadows.address,
            segments: extra.segments.address,
        };
        let recorder = Recorder::record(&context, &program, &places, addresses)?;
        context.write(addresses.segments, bytemuck::cast_slice(&recorder.segments()?))?;
        let whole = std::iter::once(0..recorder.launches.len());
        let parts = if program.cut { parts(&recorder.ends) } else { whole.collect() };
        let launches = recorder.launches;
        let graphs = parts.into_iter().map(|part| {
            let submit = |stream| {
                launches[part.clone()].iter().enumerate().try_for_each(|(i, launch)| match i {
                    // What it would overlap with is in another graph.
                    0 => launch.submit_apart(stream),
                    _ => launch.submit(stream),
                })
            };
            Graph::capture(&context, &program.name, submit)
        });
        let graphs = graphs.collect::<Result<Vec<_>>>()?;
        let inputs = Pinned::new(places.input_bytes)?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let event = || result::event::create(flags).map_err(|e| device_error("making an event", e));
        let (copied, ran) = (event()?, [event()?, event()?]);
        Ok(Self {
            graphs,
            ran,
            launches,
            program,
            places,
            inputs,
            copied,
            dirty: Vec::new(),
            _extra: extra,
            extra_bytes: needed.scratch + needed.workspace + needed.shadows,
            context,
        })
    }

    /// Offset of an input or output, after checking that it is one and holds `len` bytes.
    fn locate(&self, id: TensorId, place: &Place, len: usize) -> Result<usize> {
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

    fn copy_inputs(&mut self) -> Result<()> {
        if self.dirty.is_empty() {
            return Ok(());
        }
        let fail = |e| device_error("copying inputs", e);
        self.dirty.sort_unstable();
        let mut ranges: Vec<(usize, usize)> = Vec::with_capacity(self.dirty.len());
        for (start, end) in self.dirty.drain(..) {
            match ranges.last_mut() {
                Some(last) if start <= last.1 + GAP => last.1 = last.1.max(end),
                _ => ranges.push((start, end)),
            }
        }
        for (start, end) in ranges {
            // SAFETY: the range lies in both memories, and the pinned one stays as it is until `copied` has come.
            unsafe {
                let from = self.inputs.pointer().cast::<u8>().add(start).cast();
                let to = self.places.inputs.address + start as u64;
                sys::cuMemcpyHtoDAsync_v2(to, from, end - start, self.context.stream).result().map_err(fail)?;
            }
        }
        // SAFETY: event and stream belong to the bound context.
        unsafe { result::event::record(self.copied, self.context.stream) }.map_err(fail)
    }
}

impl Executable for CudaExecutable {
    fn program(&self) -> &Program {
        &self.program
    }

    fn arena_bytes(&self) -> usize {
        self.places.plan.bytes() + self.extra_bytes
    }

    fn write(&mut self, id: TensorId, data: &[u8]) -> Result<()> {
        let start = self.locate(id, &Place::Input, data.len())?;
        if self.dirty.is_empty() {
            self.context.bind()?;
            // The last step's inputs may still be on their way.
            // SAFETY: the event lives as long as `self`; before its first record it counts as complete.
            unsafe { result::event::synchronize(self.copied) }.map_err(|e| device_error("waiting for a copy", e))?;
        }
        self.inputs.bytes()[start..start + data.len()].copy_from_slice(data);
        self.dirty.push((start, start + data.len()));
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        self.context.bind()?;
        self.copy_inputs()?;
        // What the graphs' kernels use, `self` and the bindings in `places` keep alive.
        self.graphs.iter().try_for_each(|graph| graph.launch(&self.context, &self.program.name))
    }

    /// A part waits for the one before the last, so that the device always has the next one.
    fn run_part(&mut self, first: usize, deadline: Instant) -> Result<Option<usize>> {
        if self.graphs.len() < 2 {
            return self.run().map(|()| None);
        }
        self.context.bind()?;
        if first == 0 {
            self.copy_inputs()?;
        }
        let fail = |e| device_error("running a part of a program", e);
        for (at, graph) in self.graphs.iter().enumerate().skip(first) {
            graph.launch(&self.context, &self.program.name)?;
            // SAFETY: events and stream belong to the bound context.
            unsafe { result::event::record(self.ran[at % 2], self.context.stream) }.map_err(fail)?;
            if at > 0 {
                // SAFETY: as above.
                unsafe { result::event::synchronize(self.ran[(at - 1) % 2]) }.map_err(fail)?;
            }
            if at + 1 < self.graphs.len() && Instant::now() >= deadline {
                return Ok(Some(at + 1));
            }
        }
        Ok(None)
    }

    fn read(&mut self, id: TensorId, out: &mut [u8]) -> Result<()> {
        let offset = self.locate(id, &Place::Output, out.len())?;
        self.context.read(self.places.outputs.address + offset as u64, out)
    }

    fn profile(&mut self) -> Result<Vec<Timing>> {
        self.context.bind()?;
        self.copy_inputs()?;
        profile(&self.context, &self.program.name, &self.launches)
    }
}

impl Drop for CudaExecutable {
    fn drop(&mut self) {
        if self.context.bind().is_err() {
            return;
        }
        let _ = self.context.wait();
        // The graphs go before what their kernels use.
        self.graphs.clear();
        for event in [self.copied, self.ran[0], self.ran[1]] {
            // SAFETY: nothing runs any more, and nobody else has the event.
            let _ = unsafe { result::event::destroy(event) };
        }
    }
}

/// Cuts launches into parts of about [`PART`], where one group ends and the next begins: a kernel's scratch does not outlive
/// its group.
fn parts(ends: &[usize]) -> Vec<Range<usize>> {
    let (mut parts, mut start) = (Vec::new(), 0);
    for (i, end) in ends.iter().enumerate() {
        if *end > start && (*end - start >= PART || i + 1 == ends.len()) {
            parts.push(start..*end);
            start = *end;
        }
    }
    parts
}
