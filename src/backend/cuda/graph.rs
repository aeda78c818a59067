//! CUDA graphs: launches captured once, replayed with one call.

use super::context::{Context, device_error};
use crate::error::Result;
use cudarc::driver::{result, sys};

/// An instantiated graph. Drops while the context is current and nothing of the graph runs.
pub struct Graph {
    exec: sys::CUgraphExec,
    graph: sys::CUgraph,
}

/// A stream that ends with its owner.
struct Stream(sys::CUstream);

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        let _ = unsafe { result::stream::destroy(self.0) };
    }
}

impl Graph {
    /// Captures what `submit` puts on the stream that it is given; `name` is the program's, for messages. The stream is the
    /// capture's own: on the context's, work of other threads would be captured with it.
    pub fn capture(context: &Context, name: &str, submit: impl FnOnce(sys::CUstream) -> Result<()>) -> Result<Self> {
        let fail = |e| device_error(&format!("capturing '{name}'"), e);
        let own = Stream(result::stream::create(result::stream::StreamKind::NonBlocking).map_err(fail)?);
        // Relaxed: other threads may go on allocating while this one captures.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the streams belong to the bound context; capture ends in every case, and the handles are destroyed in
        // `drop`.
        unsafe {
            sys::cuStreamBeginCapture_v2(own.0, mode).result().map_err(fail)?;
            let submitted = submit(own.0);
            let ended = sys::cuStreamEndCapture(own.0, &mut graph).result();
            submitted?;
            ended.map_err(fail)?;
            let made = sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0).result();
            if let Err(error) = made {
                let _ = sys::cuGraphDestroy(graph);
                return Err(fail(error));
            }
            let me = Self { exec, graph };
            // The first replay would upload the graph otherwise.
            sys::cuGraphUpload(me.exec, context.stream).result().map_err(fail)?;
            Ok(me)
        }
    }

    /// Replays it on the context's stream.
    pub fn launch(&self, context: &Context, name: &str) -> Result<()> {
        // SAFETY: the graph is that of the bound context; whoever recorded its launches keeps what they use alive.
        unsafe { sys::cuGraphLaunch(self.exec, context.stream) }
            .result()
            .map_err(|e| device_error(&format!("running '{name}'"), e))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: nobody else has these handles, and nothing of the graph runs any more.
        unsafe {
            let _ = sys::cuGraphExecDestroy(self.exec);
            let _ = sys::cuGraphDestroy(self.graph);
        }
    }
}
