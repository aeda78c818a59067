//! NCCL, NVIDIA's library of sums over several GPUs, where it is installed: loaded at run time, needed only by runs of several
//! processes. Names, numbers and signatures are those of `nccl.h`, the same in all versions since 2.4.

use super::context::Context;
use super::storage;
use crate::backend::{Buffer, Communicator};
use crate::error::{Error, Result};
use crate::tensor::DType;
use cudarc::driver::{result, sys};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

type Status = c_int;
type Comm = *mut c_void;

/// `ncclUniqueId`: passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

/// `ncclFloat32` and `ncclSum`.
const FLOAT32: c_int = 7;
const SUM: c_int = 0;
/// `ncclInProgress`
const IN_PROGRESS: Status = 7;
/// How often a sum that is under way is looked at.
const LOOK: Duration = Duration::from_micros(100);

/// The functions that are used.
struct Api {
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> Status,
    init_rank: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int) -> Status,
    all_reduce: unsafe extern "C" fn(u64, u64, usize, c_int, c_int, Comm, sys::CUstream) -> Status,
    async_error: unsafe extern "C" fn(Comm, *mut Status) -> Status,
    abort: unsafe extern "C" fn(Comm) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
}

impl Api {
    /// The library, loaded once and for good: its threads outlive every communicator.
    fn get() -> Result<&'static Self> {
        static API: OnceLock<Option<Api>> = OnceLock::new();
        API.get_or_init(|| places().iter().find_map(|path| Self::load(path).ok())).as_ref().ok_or_else(|| {
            Error::unsupported("NCCL is not installed: no libnccl.so.2 is found (RUNTIME_NCCL names it)")
        })
    }

    fn load(path: &std::path::Path) -> std::result::Result<Self, libloading::Error> {
        // SAFETY: NVIDIA's library has no initialiser that could misbehave, and the signatures are those of nccl.h. It is
        // never unloaded, so the pointers stay valid.
        unsafe {
            let library = Library::new(path)?;
            let api = Self {
                unique_id: *library.get(b"ncclGetUniqueId\0")?,
                init_rank: *library.get(b"ncclCommInitRank\0")?,
                all_reduce: *library.get(b"ncclAllReduce\0")?,
                async_error: *library.get(b"ncclCommGetAsyncError\0")?,
                abort: *library.get(b"ncclCommAbort\0")?,
                error_string: *library.get(b"ncclGetErrorString\0")?,
            };
            std::mem::forget(library);
            Ok(api)
        }
    }

    fn check(&self, doing: &str, status: Status) -> Result<()> {
        if status == 0 || status == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: the library gives a constant text for every number.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)) };
        let text = text.to_string_lossy();
        Err(Error::Device { backend: "cuda", message: format!("NCCL, {doing}: {text} (NCCL_DEBUG=INFO says more)") })
    }
}

/// Where the library may lie: what RUNTIME_NCCL names, the system's loader, and Python environments in sight.
fn places() -> Vec<PathBuf> {
    if let Some(path) = std::env::var_os("RUNTIME_NCCL") {
        return vec![path.into()];
    }
    let mut list = vec![PathBuf::from("libnccl.so.2"), PathBuf::from("libnccl.so")];
    let roots = [std::env::var_os("VIRTUAL_ENV").map(PathBuf::from), Some(PathBuf::from(".venv"))];
    for root in roots.into_iter().flatten() {
        let versions = std::fs::read_dir(root.join("lib")).into_iter().flatten().flatten();
        list.extend(versions.map(|v| v.path().join("site-packages/nvidia/nccl/lib/libnccl.so.2")));
    }
    list
}

/// Whether the library is there.
pub fn present() -> Result<()> {
    Api::get().map(drop)
}

/// A number by which the processes of a run find each other.
pub fn unique_id() -> Result<Vec<u8>> {
    let api = Api::get()?;
    let mut id = UniqueId([0; 128]);
    // SAFETY: writes 128 bytes.
    api.check("making an id", unsafe { (api.unique_id)(&mut id) })?;
    Ok(id.0.to_vec())
}

/// One process's end of NCCL's connections.
pub struct Nccl {
    api: &'static Api,
    /// `None` once it has failed.
    comm: Mutex<Option<Handle>>,
    context: Arc<Context>,
}

struct Handle(Comm);

// SAFETY: NCCL lets any thread use a communicator, one at a time; it is behind a mutex.
unsafe impl Send for Handle {}

/// Connects with the other processes, all of which call this with the same id; waits for them.
pub fn connect(context: Arc<Context>, id: &[u8], rank: usize, world_size: usize) -> Result<Nccl> {
    let api = Api::get()?;
    let id = id.try_into().map_err(|_| Error::internal(format!("an id of NCCL's has 128 bytes, not {}", id.len())))?;
    context.bind()?;
    let mut comm = std::ptr::null_mut();
    // SAFETY: writes one pointer; the context of the device is current.
    let status = unsafe { (api.init_rank)(&mut comm, world_size as c_int, UniqueId(id), rank as c_int) };
    api.check("connecting (each process needs a GPU of its own)", status)?;
    Ok(Nccl { api, comm: Mutex::new(Some(Handle(comm))), context })
}

impl Nccl {
    /// Waits for what was submitted; an error where a process fails meanwhile, or it takes too long.
    fn wait(&self, comm: Comm, timeout: Duration) -> Result<()> {
        let began = Instant::now();
        loop {
            // SAFETY: the stream lives as long as the context.
            match unsafe { sys::cuStreamQuery(self.context.stream) } {
                sys::CUresult::CUDA_SUCCESS => return Ok(()),
                sys::CUresult::CUDA_ERROR_NOT_READY => {}
                error => return Err(super::device_error("a sum of NCCL's", result::DriverError(error))),
            }
            let mut status = 0;
            // SAFETY: the communicator is alive; writes one number.
            self.api.check("asking for errors", unsafe { (self.api.async_error)(comm, &mut status) })?;
            self.api.check("a sum", status)?;
            if began.elapsed() > timeout {
                let message = format!("NCCL: a sum has not ended within {} s", timeout.as_secs());
                return Err(Error::Device { backend: "cuda", message });
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Communicator for Nccl {
    fn all_reduce_sum(&self, buffer: &Buffer, timeout: Duration) -> Result<()> {
        let desc = buffer.desc();
        if desc.dtype != DType::F32 {
            return Err(Error::internal(format!("'{}' is {}, only f32 is summed", desc.name, desc.dtype)));
        }
        let address = storage::flat_range(buffer, 0, desc.bytes())?;
        let mut guard = self.comm.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Handle(comm)) = *guard else { return Err(Error::internal("a sum after NCCL has failed")) };
        self.context.bind()?;
        let count = desc.rows * desc.cols;
        // SAFETY: the buffer has `count` numbers, is alive until the wait below is over, and the stream orders the sum behind
        // everything submitted before.
        let status = unsafe { (self.api.all_reduce)(address, address, count, FLOAT32, SUM, comm, self.context.stream) };
        let done = self.api.check("a sum", status).and_then(|()| self.wait(comm, timeout));
        if done.is_err() {
            *guard = None;
            // SAFETY: nobody else has it; what it has on the stream ends with it.
            unsafe { (self.api.abort)(comm) };
        }
        done
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        let comm = self.comm.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(Handle(comm)), Ok(())) = (comm, self.context.bind()) {
            // SAFETY: nothing of it is on the stream: every sum was waited for.
            unsafe { (self.api.abort)(comm) };
        }
    }
}
