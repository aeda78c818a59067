//! Times of single launches, from the device's own clock.

use super::context::{Context, device_error};
use super::graph::Graph;
use super::launch::Work;
use crate::backend::Timing;
use crate::error::Result;
use cudarc::driver::{result, sys};

/// Events on the device's clock.
struct Events(Vec<sys::CUevent>);

impl Events {
    fn new(count: usize) -> Result<Self> {
        let mut events = Self(Vec::with_capacity(count));
        for _ in 0..count {
            let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT);
            events.0.push(event.map_err(|e| device_error("making an event", e))?);
        }
        Ok(events)
    }

    /// Puts the event on the stream as a node of the graph that is being captured.
    fn record(&self, at: usize, stream: sys::CUstream) -> Result<()> {
        let external = sys::CUevent_record_flags_enum::CU_EVENT_RECORD_EXTERNAL as u32;
        // SAFETY: event and stream belong to the bound context.
        unsafe { sys::cuEventRecordWithFlags(self.0[at], stream, external) }
            .result()
            .map_err(|e| device_error("recording an event", e))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        for event in self.0.drain(..) {
            // SAFETY: the graph that records it is gone, and nobody else has it.
            let _ = unsafe { result::event::destroy(event) };
        }
    }
}

/// Runs `launches` with an event between any two. In a graph, so that the host is not what is timed; but
/// dependent launches are kept apart, so that the sum is more than a step takes.
pub fn profile(context: &Context, name: &str, launches: &[Work]) -> Result<Vec<Timing>> {
    let events = Events::new(launches.len() + 1)?;
    let graph = Graph::capture(context, name, |stream| {
        events.record(0, stream)?;
        launches.iter().enumerate().try_for_each(|(i, launch)| {
            launch.submit_apart(stream)?;
            events.record(i + 1, stream)
        })
    })?;
    graph.launch(context, name)?;
    context.wait()?;
    let timed = launches.iter().zip(events.0.windows(2)).map(|(launch, pair)| {
        // SAFETY: both events have come.
        let milliseconds = unsafe { result::event::elapsed(pair[0], pair[1]) };
        let milliseconds = milliseconds.map_err(|e| device_error("reading a clock", e))?;
        Ok(Timing { label: launch.label(), seconds: f64::from(milliseconds) / 1e3 })
    });
    timed.collect()
}
