//! The seam between programs and devices: [`Device`], [`Executable`], [`Buffer`].
//!
//! Trait objects, not type parameters: the rest of the crate is compiled once, and a program chooses its
//! device at run time. Nothing above this module knows what a device is made of.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod foreign;
pub mod metered;
#[cfg(feature = "wgpu")]
mod pace;
pub mod planes;
mod select;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use foreign::{ForeignCuda, ForeignVulkan, open_cuda_context, open_vulkan};
pub use select::{BackendChoice, devices, open};

use crate::error::{Error, Result};
use crate::program::{Place, Program, TensorId};
use crate::tensor::{DType, HostTensor};
use metered::Charge;
use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a user needs to know to choose a device.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DeviceInfo {
    /// `cpu`, `wgpu` or `cuda`.
    pub backend: &'static str,
    /// Position among the backend's devices, as `--device` takes it.
    pub index: usize,
    /// The driver's name for it.
    pub name: String,
    /// Driver, graphics API, instruction sets: one line.
    pub detail: String,
    /// Bytes of device memory, where the driver says.
    pub memory_bytes: Option<u64>,
    /// A software rasteriser: chosen only when asked for by name.
    pub software: bool,
    /// Which device it is, whatever the API: Vulkan and CUDA report the same. Zeros where the driver does not say.
    #[serde(skip)]
    pub uuid: [u8; 16],
    /// What DirectX knows it by, on Windows; else zeros.
    #[serde(skip)]
    pub luid: [u8; 8],
}

/// What programs must respect on this device.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest number of rows of a training or prefill step that the device handles well.
    pub max_step_rows: usize,
    /// Largest single intermediate, in bytes (a buffer binding on GPUs).
    pub max_tensor_bytes: usize,
    /// [`Executable::run`] returns before the device is done, so that the host can do something else meanwhile.
    pub runs_ahead: bool,
    /// Type in which keys and values are cached unless the user says otherwise.
    pub kv_dtype: DType,
    /// Type of activations: what products are computed in, where the device stores it.
    pub activations: DType,
    /// Bytes of logits that the loss works on at a time.
    pub logits_chunk_bytes: usize,
    /// Training computes norms and gated activations again in the backward pass instead of keeping them: a third of the
    /// activations' memory, where that is dearer than reading it once more.
    pub recompute_cheap: bool,
}

/// The numeric type that products are computed in. Accumulation is always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ComputeType {
    /// The backend's own choice: f16 where the device has it and it is faster, else f32.
    #[default]
    Auto,
    /// f32 throughout.
    F32,
    /// f16 operands.
    F16,
    /// bf16 operands.
    BF16,
}

/// Shape and type of device storage.
#[derive(Clone, Debug)]
pub struct BufferDesc {
    /// For messages and profiles.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Rows.
    pub rows: usize,
    /// Elements in a row.
    pub cols: usize,
}

impl BufferDesc {
    /// Bytes of storage.
    pub fn bytes(&self) -> usize {
        self.rows * self.dtype.bytes_for(self.cols).unwrap_or(0)
    }
}

/// Storage on a device, shared by reference; freed when the last clone goes.
#[derive(Clone)]
pub struct Buffer {
    desc: Arc<BufferDesc>,
    inner: Arc<dyn Any + Send + Sync>,
    on_host: bool,
    _charge: Option<Arc<Charge>>,
}

impl Buffer {
    /// Wraps a backend's storage.
    pub(crate) fn new(desc: BufferDesc, inner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { desc: Arc::new(desc), inner, on_host: false, _charge: None }
    }

    /// The same storage, which is no part of the device's memory.
    pub(crate) fn in_host_memory(self) -> Self {
        Self { on_host: true, ..self }
    }

    /// Made by [`Device::allocate_on_host`] or [`Device::upload_on_host`].
    pub fn is_on_host(&self) -> bool {
        self.on_host
    }

    /// The same storage; the charge ends with its last clone.
    fn charged(self, charge: Charge) -> Self {
        Self { _charge: Some(Arc::new(charge)), ..self }
    }

    /// Shape and type.
    pub fn desc(&self) -> &BufferDesc {
        &self.desc
    }

    /// The backend's own type; an error where the buffer belongs to another backend.
    pub(crate) fn inner<T: Any + Send + Sync>(&self) -> Result<&T> {
        self.inner
            .downcast_ref()
            .ok_or_else(|| Error::internal(format!("buffer '{}' belongs to another device", self.desc.name)))
    }
}

/// Weights and State buffers by name.
pub type Bindings = HashMap<String, Buffer>;

/// One device: makes storage, moves bytes, turns programs into executables.
///
/// Devices are cheap to share (`Arc<dyn Device>`) and safe to use from several threads, but executables run
/// one at a time, on whichever thread owns them.
pub trait Device: Send + Sync {
    /// Name, driver and memory.
    fn info(&self) -> &DeviceInfo;

    /// What programs must respect here.
    fn limits(&self) -> Limits;

    /// Zeroed storage.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with the bytes asked for; [`Error::Device`].
    fn allocate(&self, desc: BufferDesc) -> Result<Buffer>;

    /// Zeroed storage in the host's memory that programs on this device read and write.
    ///
    /// # Errors
    /// As [`Device::allocate`]; [`Error::Unsupported`] where programs reach the device's own memory only.
    fn allocate_on_host(&self, desc: BufferDesc) -> Result<Buffer> {
        let backend = self.info().backend;
        Err(Error::unsupported(format!(
            "'{}' in host memory: the {backend} backend reaches only its device's",
            desc.name
        )))
    }

    /// As [`Device::upload`], into the host's memory: for tables of which a step reads a few rows.
    ///
    /// # Errors
    /// As [`Device::upload`] and [`Device::allocate_on_host`].
    fn upload_on_host(&self, name: &str, tensor: &HostTensor) -> Result<Buffer> {
        let _ = tensor;
        let backend = self.info().backend;
        Err(Error::unsupported(format!("'{name}' in host memory: the {backend} backend reaches only its device's")))
    }

    /// A read-only weight in its file's type. The host backend borrows the bytes (a memory map costs no
    /// copy); GPUs upload them, split by rows where one binding would exceed the device's limit.
    ///
    /// # Errors
    /// As [`Device::allocate`].
    fn upload(&self, name: &str, tensor: &HostTensor) -> Result<Buffer>;

    /// Overwrites bytes of a buffer made by [`Device::allocate`]. Ordered before the next run.
    ///
    /// # Errors
    /// [`Error::Internal`] where the range lies outside the buffer; [`Error::Device`].
    fn write(&self, buffer: &Buffer, offset: usize, data: &[u8]) -> Result<()>;

    /// Copies bytes of a buffer to the host, after everything submitted so far.
    ///
    /// # Errors
    /// As [`Device::write`].
    fn read(&self, buffer: &Buffer, offset: usize, out: &mut [u8]) -> Result<()>;

    /// Places and records `program`, once; [`Executable::run`] replays it.
    ///
    /// # Errors
    /// A weight or State buffer that is not in `bindings` or has another shape; [`Error::OutOfMemory`] for the
    /// arena; [`Error::Device`] where a kernel does not compile.
    fn compile(&self, program: Arc<Program>, bindings: &Bindings) -> Result<Box<dyn Executable>>;

    /// Bytes of device memory that are free, and all there are, where the driver says so.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn free_memory(&self) -> Result<Option<(u64, u64)>> {
        Ok(None)
    }

    /// Bytes a second that a large copy on the device moves, read plus written: the ceiling that
    /// benchmarks are compared with.
    ///
    /// # Errors
    /// As [`Device::allocate`].
    fn copy_bandwidth(&self) -> Result<f64>;

    /// Whether [`Device::communicator`] has what it needs.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where devices of this backend have no connection of their own, with what is missing.
    fn communicates(&self) -> Result<()> {
        Err(Error::unsupported(format!("devices of the {} backend do not sum among themselves", self.info().backend)))
    }

    /// What [`Device::communicator`] of every process takes; one process makes it.
    ///
    /// # Errors
    /// As [`Device::communicates`]; [`Error::Device`].
    fn communicator_id(&self) -> Result<Vec<u8>> {
        self.communicates().map(|()| Vec::new())
    }

    /// Connects this device with those of other processes; waits for all of them.
    ///
    /// # Errors
    /// As [`Device::communicator_id`]; [`Error::Device`].
    fn communicator(&self, id: &[u8], rank: usize, world_size: usize) -> Result<Box<dyn Communicator>> {
        let _ = (id, rank, world_size);
        self.communicates().and(Err(Error::internal("a device that communicates and has no connection")))
    }
}

/// A device's connection with those of other processes.
pub trait Communicator: Send + Sync {
    /// Replaces a flat f32 buffer by its sum over all processes, and waits for it.
    ///
    /// # Errors
    /// [`Error::Device`] where another process fails, or it takes longer than `timeout`; then the connection is of no more use.
    fn all_reduce_sum(&self, buffer: &Buffer, timeout: Duration) -> Result<()>;
}

/// Refuses a program with activations that a device stores in no other type than f32.
pub(crate) fn only_f32_activations(backend: &str, program: &Program) -> Result<()> {
    let written = |place: &Place| matches!(place, Place::Temp | Place::Output);
    match program.tensors.iter().find(|t| written(&t.place) && !matches!(t.dtype, DType::F32 | DType::U32)) {
        Some(t) => {
            Err(Error::internal(format!("{backend}: activation '{}' is {}, it stores f32 only", t.name, t.dtype)))
        }
        None => Ok(()),
    }
}

/// What [`Executable::profile`] measured of one launch.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Timing {
    /// The kernel, and of a product the size of its weight.
    pub label: String,
    /// From the end of the launch before it to its own end, on the device's clock.
    pub seconds: f64,
}

/// A program bound to one device.
pub trait Executable: Send {
    /// The program behind it.
    fn program(&self) -> &Program;

    /// Bytes of the arena for intermediates.
    fn arena_bytes(&self) -> usize;

    /// Sets the first `data.len()` bytes of an input for the runs that follow. Inputs keep their contents
    /// from run to run.
    ///
    /// # Errors
    /// [`Error::Internal`] where `id` is no input or `data` is longer than it.
    fn write(&mut self, id: TensorId, data: &[u8]) -> Result<()>;

    /// Runs all ops once, in order. May return before the device is done; [`Executable::read`] and
    /// [`Device::read`] wait.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn run(&mut self) -> Result<()>;

    /// Runs the program from number `first` on (0: its beginning), some of it at least, until all has run (`None`) or `deadline` has
    /// passed: then the number to go on with. What numbers mean is the backend's affair. A program that is not gone on with has
    /// done no harm: its next run begins anew. Other programs may run between two parts. CUDA stops inside programs that may be cut
    /// only ([`Program::cut`]), and runs all of any other.
    ///
    /// # Errors
    /// As [`Executable::run`].
    fn run_part(&mut self, first: usize, deadline: Instant) -> Result<Option<usize>> {
        let _ = (first, deadline);
        self.run().map(|()| None)
    }

    /// Copies the first `out.len()` bytes of an output to the host, waiting for the run.
    ///
    /// # Errors
    /// [`Error::Internal`] where `id` is no output or `out` is longer than it; [`Error::Device`].
    fn read(&mut self, id: TensorId, out: &mut [u8]) -> Result<()>;

    /// Runs all ops once and says how long each launch took, in order.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the backend or the device cannot tell; [`Error::Device`].
    fn profile(&mut self) -> Result<Vec<Timing>> {
        Err(Error::unsupported("this backend does not time single ops: use the wgpu or the cuda backend"))
    }
}
