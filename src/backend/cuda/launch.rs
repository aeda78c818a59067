//! What a step launches: recorded when a program is compiled, captured into a graph, replayed with it.

use super::context::device_error;
use super::cublaslt::Call;
use super::library::Function;
use crate::error::Result;
use cudarc::driver::sys;
use std::ffi::c_void;

/// Arguments of a kernel, each in storage of its own that is aligned as the driver's structs ask.
#[derive(Default)]
pub struct Args(Vec<Vec<Chunk>>);

/// 64 bytes, the alignment of a tensor map.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Chunk([u8; 64]);

impl Args {
    /// No arguments yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Any plain value, bytes as they are.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        let mut chunks = vec![Chunk([0; 64]); bytes.len().div_ceil(64)];
        for (to, from) in chunks.iter_mut().zip(bytes.chunks(64)) {
            to.0[..from.len()].copy_from_slice(from);
        }
        self.0.push(chunks);
        self
    }

    /// A device address.
    pub fn ptr(self, address: u64) -> Self {
        self.bytes(&address.to_ne_bytes())
    }

    /// Several device addresses.
    pub fn ptrs(self, addresses: &[u64]) -> Self {
        addresses.iter().fold(self, |args, address| args.ptr(*address))
    }

    /// A u32.
    pub fn u32(self, value: usize) -> Self {
        self.bytes(&(value as u32).to_ne_bytes())
    }

    /// A u64.
    pub fn u64(self, value: usize) -> Self {
        self.bytes(&(value as u64).to_ne_bytes())
    }

    /// An f32.
    pub fn f32(self, value: f32) -> Self {
        self.bytes(&value.to_ne_bytes())
    }
}

/// What a step puts on the stream.
pub enum Work {
    Kernel(Launch),
    /// cuBLASLt's.
    Product(Call),
}

impl Work {
    /// Puts it on the context's stream.
    pub fn submit(&self, stream: sys::CUstream) -> Result<()> {
        match self {
            Self::Kernel(launch) => launch.submit(stream, launch.overlaps),
            Self::Product(call) => call.submit(stream),
        }
    }

    /// The same, beginning only when everything ahead has ended.
    pub fn submit_apart(&self, stream: sys::CUstream) -> Result<()> {
        match self {
            Self::Kernel(launch) => launch.submit(stream, false),
            Self::Product(call) => call.submit(stream),
        }
    }

    /// For profiles: the kernel with its grid, or the library's product with its sizes.
    pub fn label(&self) -> String {
        match self {
            Self::Kernel(launch) => {
                let [x, y, z] = launch.grid;
                format!("{} [{x}, {y}, {z}]", launch.name)
            }
            Self::Product(call) => call.label(),
        }
    }
}

/// A kernel with everything that its launch needs.
pub struct Launch {
    /// Its name, for messages.
    pub name: String,
    /// What runs.
    pub function: Function,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory, in bytes.
    pub shared: u32,
    /// Blocks of a cluster along the grid's first dimension, where the kernel leaves that to the launch.
    pub cluster: Option<u32>,
    /// May start before the kernel ahead of it has ended: it waits by itself (`griddepcontrol.wait`).
    pub overlaps: bool,
    /// Arguments in order.
    pub args: Args,
}

impl Launch {
    /// Puts the kernel on the context's stream.
    fn submit(&self, stream: sys::CUstream, overlaps: bool) -> Result<()> {
        let mut pointers: Vec<*mut c_void> =
            self.args.0.iter().map(|chunks| chunks.as_ptr().cast_mut().cast()).collect();
        let mut attributes = Vec::with_capacity(2);
        if overlaps {
            attributes.push(sys::CUlaunchAttribute {
                id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                pad: [0; 4],
                value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            });
        }
        if let Some(x) = self.cluster {
            let size = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y: 1, z: 1 };
            attributes.push(sys::CUlaunchAttribute {
                id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                pad: [0; 4],
                value: sys::CUlaunchAttributeValue { clusterDim: size },
            });
        }
        let config = sys::CUlaunchConfig {
            gridDimX: self.grid[0],
            gridDimY: self.grid[1],
            gridDimZ: self.grid[2],
            blockDimX: self.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: the arguments are those of the kernel's signature (tests/ops.rs runs each), the driver copies them
        // during the call, and what they point to is kept alive by the executable.
        unsafe { sys::cuLaunchKernelEx(&config, self.function.handle, pointers.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(|e| {
                device_error(&format!("{} {:?} × {}, {} shared", self.name, self.grid, self.block, self.shared), e)
            })
    }
}
