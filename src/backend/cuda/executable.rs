//! A program bound to a CUDA device: launches captured into a graph once, replayed every step.

use super::context::{Context, Shared, device_error};
use super::graph::Graph;
use super::launch::Work;
use super::memory::{Memory, Pinned};
use super::places::Places;
use super::profile::profile;
use super::record::{Extra, Recorder};
use crate::backend::pace::Pace;
use crate::backend::{Bindings, Executable, Timing};
use crate::error::{Error, Result};
use crate::program::{Place, Program, TensorId};
use cudarc::driver::{result, sys};
use std::sync::Arc;
use std::time::Instant;

/// Changed ranges of the inputs that lie closer than this travel in one copy: a copy of its own costs about 2 µs.
const GAP: usize = 4096;

pub struct CudaExecutable {
    // Drops before what it uses.
    graph: Option<Graph>,
    /// What the graph replays.
    launches: Vec<Work>,
    /// How many launches there are up to the end of each group of ops.
    ends: Vec<usize>,
    /// How long the groups take, where a run is in parts.
    pace: Pace,
    /// The intermediates lie in memory of their own: other programs may run between two parts.
    apart: bool,
    program: Arc<Program>,
    places: Places,
    /// The host's copy of the inputs, from which the device copies.
    inputs: Pinned,
    /// After the last copy from `inputs`.
    copied: sys::CUevent,
    /// Changed byte ranges of the inputs, in order.
    dirty: Vec<(usize, usize)>,
    /// Used by the graph's kernels, by address.
    extra: Extra<Arc<Memory>>,
    extra_bytes: usize,
    context: Arc<Context>,
}

// SAFETY: driver handles may be used from any thread that has made the context current; one thread at a time owns the
// executable.
unsafe impl Send for CudaExecutable {}

/// A first guess of a launch's time, in seconds.
const GUESS: f32 = 20e-6;

/// Records a program's launches, and where its groups of ops end among them.
fn record(
    context: &Arc<Context>,
    program: &Program,
    places: &Places,
    extra: &Extra<Arc<Memory>>,
) -> Result<(Vec<Work>, Vec<usize>)> {
    let addresses = Extra {
        scratch: extra.scratch.address,
        workspace: extra.workspace.address,
        counters: extra.counters.address,
        flags: extra.flags.address,
        shadows: extra.shadows.address,
        segments: extra.segments.address,
    };
    let recorder = Recorder::record(context, program, places, addresses)?;
    context.write(addresses.segments, bytemuck::cast_slice(&recorder.segments()?))?;
    Ok((recorder.launches, recorder.ends))
}

fn capture(context: &Context, program: &Program, launches: &[Work]) -> Result<Graph> {
    let submit = |stream| launches.iter().try_for_each(|launch| launch.submit(stream));
    Graph::capture(context, &program.name, submit)
}

/// Launches of each group.
fn lengths(ends: &[usize]) -> impl Iterator<Item = usize> {
    ends.iter().scan(0, |before, end| Some(end - std::mem::replace(before, *end)))
}

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
        let (launches, ends) = record(&context, &program, &places, &extra)?;
        let graph = capture(&context, &program, &launches)?;
        let pace = Pace::new(lengths(&ends).map(|launches| launches as f32 * GUESS));
        let inputs = Pinned::new(places.input_bytes)?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let copied = result::event::create(flags).map_err(|e| device_error("making an event", e))?;
        Ok(Self {
            graph: Some(graph),
            launches,
            ends,
            pace,
            apart: false,
            program,
            places,
            inputs,
            copied,
            dirty: Vec::new(),
            extra,
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

    /// Moves the intermediates to memory of their own. Nothing of the program is running.
    fn keep_apart(&mut self) -> Result<()> {
        self.context.wait()?;
        self.graph = None;
        self.places.keep_apart(&self.context, &self.program)?;
        (self.launches, self.ends) = record(&self.context, &self.program, &self.places, &self.extra)?;
        if self.ends.len() != self.pace.units() {
            return Err(Error::internal(format!("'{}' was recorded in another way", self.program.name)));
        }
        self.apart = true;
        Ok(())
    }

    fn replay(&mut self) -> Result<()> {
        if self.graph.is_none() {
            self.graph = Some(capture(&self.context, &self.program, &self.launches)?);
        }
        let Some(graph) = &self.graph else { return Err(Error::internal("no graph")) };
        // What the graph's kernels use, `self` and the bindings in `places` keep alive.
        graph.launch(&self.context, &self.program.name)
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
        self.replay()
    }

    /// Stops between two groups of ops. The first run is replayed as a whole, as [`Executable::run`] does it, and tells how long the
    /// program takes; so are later ones where that fits. A program that does not fit gets memory of its own for its intermediates.
    fn run_part(&mut self, first: usize, deadline: Instant) -> Result<Option<usize>> {
        self.context.bind()?;
        if first == 0 {
            self.copy_inputs()?;
        } else if !self.apart {
            return Err(Error::internal(format!("'{}' cannot go on with number {first}", self.program.name)));
        }
        let mut at = first;
        while at < self.ends.len() {
            let began = Instant::now();
            let end = match self.pace.is_known() || self.apart {
                true => self.pace.end(at, deadline.saturating_duration_since(began)),
                false => self.ends.len(),
            };
            if at == 0 && end == self.ends.len() {
                self.replay()?;
            } else {
                if !self.apart {
                    self.keep_apart()?;
                }
                let start = if at == 0 { 0 } else { self.ends[at - 1] };
                let launches = &self.launches[start..self.ends[end - 1]];
                launches.iter().try_for_each(|launch| launch.submit(self.context.stream))?;
            }
            self.context.wait()?;
            let now = Instant::now();
            self.pace.took(at..end, now - began);
            at = end;
            if at < self.ends.len() && self.pace.is_over(deadline.saturating_duration_since(now)) {
                return Ok(Some(at));
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
        // The graph goes before what its kernels use.
        self.graph = None;
        // SAFETY: nothing runs any more, and nobody else has the event.
        let _ = unsafe { result::event::destroy(self.copied) };
    }
}
