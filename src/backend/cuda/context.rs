//! One NVIDIA device: its context, its stream, and copies between it and the host.

use super::candidates::Candidates;
use super::library::Library;
use super::memory::{Memory, Pinned};
use crate::backend::DeviceInfo;
use crate::error::{Error, Result};
use cudarc::driver::{CudaContext, result, sys};
use rayon::prelude::*;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// An error of the driver, in its own words.
pub fn device_error(doing: &str, error: result::DriverError) -> Error {
    let text = error.error_string().map_or_else(|_| format!("{error:?}"), |text| text.to_string_lossy().into_owned());
    let name = error.error_name().map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned());
    let message = format!("{doing}: {text} ({name})");
    match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { backend: "cuda", message },
        _ => Error::Device { backend: "cuda", message },
    }
}

/// What kernels are chosen by.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Compute capability, as 10 · major + minor.
    pub arch: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Most dynamic shared memory of a block.
    pub max_shared: u32,
}

impl Caps {
    /// Has wgmma, TMA and `setmaxnreg`: kernels named `sm90_…` run.
    pub fn hopper(&self) -> bool {
        self.arch == 90
    }
}

/// Bytes of each staging buffer; two of them overlap the host's copy with the device's.
const STAGING: usize = 32 << 20;

/// What executables share memory for.
#[derive(Clone, Copy)]
pub enum Shared {
    /// Intermediates of programs.
    Arena,
    /// Scratch of kernels.
    Scratch,
    /// Part sums of products.
    Workspace,
}

/// Memory that several executables use, and its size.
#[derive(Default)]
struct Common {
    memory: Weak<Memory>,
    bytes: usize,
}

/// A staging buffer and the event after its last use.
struct Stage {
    pinned: Pinned,
    event: sys::CUevent,
}

/// Shared by the device, its buffers and its executables.
pub struct Context {
    // Fields drop in order: everything that needs the context comes before it.
    pub library: Library,
    pub candidates: Candidates,
    staging: Mutex<Vec<Stage>>,
    /// The largest allocation of each use that is alive; executables own it.
    shared: Mutex<[Common; 3]>,
    pub stream: sys::CUstream,
    /// Context and stream are somebody else's.
    foreign: bool,
    pub info: DeviceInfo,
    pub caps: Caps,
    cuda: Arc<CudaContext>,
}

// SAFETY: driver handles may be used from every thread that has made the context current, which every public
// function does first; the staging buffers are behind a mutex.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Opens the `index`-th device. The driver is known to be there.
    pub fn open(index: usize, info: DeviceInfo) -> Result<Arc<Self>> {
        let cuda = CudaContext::new(index).map_err(|e| device_error(&format!("opening device {index}"), e))?;
        Self::on(cuda, info, None)
    }

    /// In a context that is open; `stream`: one that stays its owner's, as does the context then.
    pub fn on(cuda: Arc<CudaContext>, info: DeviceInfo, stream: Option<sys::CUstream>) -> Result<Arc<Self>> {
        if stream.is_some() {
            // cudarc destroys a context with its last reference, and this one is not ours to destroy.
            std::mem::forget(cuda.clone());
        }
        let fail = |e| device_error(&format!("opening device {}", info.index), e);
        let attribute = |which| cuda.attribute(which).map(|v| v as u32).map_err(fail);
        use sys::CUdevice_attribute as A;
        let caps = Caps {
            arch: 10 * attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
                + attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            max_shared: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        };
        if caps.arch < 80 {
            let (major, minor) = (caps.arch / 10, caps.arch % 10);
            return Err(Error::unsupported(format!(
                "{} has compute capability {major}.{minor}: the CUDA backend needs 8.0 (Ampere) or newer; \
                 --backend wgpu runs on it",
                info.name
            )));
        }
        let foreign = stream.is_some();
        let stream = match stream {
            Some(stream) => stream,
            None => result::stream::create(result::stream::StreamKind::NonBlocking).map_err(fail)?,
        };
        let library = Library::new(caps.arch, caps.max_shared as usize);
        Ok(Arc::new(Self {
            library,
            candidates: Candidates::new()?,
            staging: Mutex::new(Vec::new()),
            shared: Mutex::default(),
            stream,
            foreign,
            info,
            caps,
            cuda,
        }))
    }

    /// Makes the context current on this thread; the first thing that every public function does.
    pub fn bind(&self) -> Result<()> {
        self.cuda.bind_to_thread().map_err(|e| device_error("binding the context", e))
    }

    /// Waits for everything submitted so far.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(|e| device_error("waiting for the device", e))
    }

    /// Plain device memory, not cleared.
    pub fn allocate(self: &Arc<Self>, what: &str, bytes: usize) -> Result<Memory> {
        self.bind()?;
        Memory::new(self.clone(), bytes).map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = result::mem_get_info().unwrap_or((0, 0));
                let message = format!("{what} needs {bytes} bytes, {free} of {total} are free on {}", self.info.name);
                Error::OutOfMemory { backend: "cuda", message }
            }
            _ => device_error(&format!("allocating {bytes} bytes for {what}"), e),
        })
    }

    /// Plain device memory, all zeros.
    pub fn allocate_zeroed(self: &Arc<Self>, what: &str, bytes: usize) -> Result<Memory> {
        let memory = self.allocate(what, bytes)?;
        self.clear(memory.address, bytes)?;
        Ok(memory)
    }

    /// At least `bytes` of memory that all executables share: they run one after another on one stream, and what lies here is
    /// needed during a run only.
    pub fn shared(self: &Arc<Self>, what: &str, use_of: Shared, bytes: usize) -> Result<Arc<Memory>> {
        let mut all = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let common = &mut all[use_of as usize];
        if let Some(memory) = common.memory.upgrade()
            && common.bytes >= bytes
        {
            return Ok(memory);
        }
        let memory = Arc::new(self.allocate(what, bytes)?);
        *common = Common { memory: Arc::downgrade(&memory), bytes };
        Ok(memory)
    }

    /// Zeroes a range; ordered with runs.
    pub fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        self.fill(address, 0, bytes)
    }

    /// Sets each byte of a range; ordered with runs.
    pub fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: the range lies in a live allocation (callers check), and the stream orders it before later use.
        unsafe { sys::cuMemsetD8Async(address, byte, bytes, self.stream) }
            .result()
            .map_err(|e| device_error("filling memory", e))
    }

    /// Copies from the host, through pinned staging; ordered before the next run. Returns when `data` may be reused.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        self.write_with(address, data.len(), |offset, chunk| {
            let source = &data[offset..offset + chunk.len()];
            // One core copies about 10 GB/s, the bus takes 25 to 50.
            chunk
                .par_chunks_mut(1 << 20)
                .zip(source.par_chunks(1 << 20))
                .for_each(|(to, from)| to.copy_from_slice(from));
        })
    }

    /// Copies `bytes` that `fill(offset, chunk)` writes chunk by chunk straight into pinned memory.
    pub fn write_with(&self, address: u64, bytes: usize, fill: impl Fn(usize, &mut [u8])) -> Result<()> {
        self.bind()?;
        let fail = |e| device_error("copying to the device", e);
        let mut stages = self.stages()?;
        for (turn, offset) in (0..bytes).step_by(STAGING).enumerate() {
            let count = STAGING.min(bytes - offset);
            let stage = &mut stages[turn % 2];
            // SAFETY: the event belongs to this context; the copy reads `count` bytes of pinned memory that stays until
            // the event after it has come, and writes a live allocation (callers check the range).
            unsafe {
                sys::cuEventSynchronize(stage.event).result().map_err(fail)?;
                fill(offset, &mut stage.pinned.bytes()[..count]);
                sys::cuMemcpyHtoDAsync_v2(address + offset as u64, stage.pinned.pointer(), count, self.stream)
                    .result()
                    .map_err(fail)?;
                sys::cuEventRecord(stage.event, self.stream).result().map_err(fail)?;
            }
        }
        Ok(())
    }

    /// Copies to the host, after everything submitted so far.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<()> {
        self.bind()?;
        let fail = |e| device_error("copying from the device", e);
        let mut stages = self.stages()?;
        let stage = &mut stages[0];
        for (i, chunk) in out.chunks_mut(STAGING).enumerate() {
            // SAFETY: an earlier use of the stage is over before this copy starts (one stream); the copy is awaited
            // before its bytes are read.
            unsafe {
                sys::cuMemcpyDtoHAsync_v2(
                    stage.pinned.pointer().cast_mut(),
                    address + (i * STAGING) as u64,
                    chunk.len(),
                    self.stream,
                )
                .result()
                .map_err(fail)?;
            }
            self.wait()?;
            chunk.copy_from_slice(&stage.pinned.bytes()[..chunk.len()]);
        }
        Ok(())
    }

    /// Seconds that `work` takes on the device, by its own clock.
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.bind()?;
        let fail = |e| device_error("timing", e);
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let (start, end) = (result::event::create(flags).map_err(fail)?, result::event::create(flags).map_err(fail)?);
        // SAFETY: both events were just made; both are destroyed below, after the second has come.
        let seconds = unsafe {
            result::event::record(start, self.stream).map_err(fail)?;
            work()?;
            result::event::record(end, self.stream).map_err(fail)?;
            result::event::synchronize(end).map_err(fail)?;
            let milliseconds = result::event::elapsed(start, end).map_err(fail)?;
            result::event::destroy(start).map_err(fail)?;
            result::event::destroy(end).map_err(fail)?;
            f64::from(milliseconds) / 1e3
        };
        Ok(seconds)
    }

    fn stages(&self) -> Result<std::sync::MutexGuard<'_, Vec<Stage>>> {
        let mut stages = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        while stages.len() < 2 {
            let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
            let event = result::event::create(flags).map_err(|e| device_error("making an event", e))?;
            stages.push(Stage { pinned: Pinned::new(STAGING)?, event });
        }
        Ok(stages)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        let _ = self.wait();
        let stages = self.staging.get_mut().unwrap_or_else(PoisonError::into_inner);
        for stage in stages.drain(..) {
            // SAFETY: the stream is idle and nobody else has the event.
            let _ = unsafe { result::event::destroy(stage.event) };
        }
        if !self.foreign {
            // SAFETY: nothing runs on it any more, and executables, which use it, keep the context alive.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}
