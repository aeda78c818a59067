//! Several processes that train one adapter: sums over all of them, and one answer for all.
//!
//! A run of several processes is started by torchrun, mpirun, srun or Kubernetes, which tell each process its place in
//! environment variables ([`Launch`]). The processes find each other over TCP ([`Tcp::join`]); gradients on NVIDIA GPUs are
//! then summed by NCCL where every process has it ([`on_device`]), else over TCP through the host's memory, on any backend.
//!
//! - `launch`: the variables
//! - `tcp`: all processes connected to that of rank 0
//! - `gpu`: the device's own sums, with TCP beside them to notice who is gone

mod gpu;
mod launch;
mod tcp;

pub use gpu::on_device;
pub use launch::Launch;
pub use tcp::Tcp;

use crate::backend::{Buffer, Device};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// What sums the gradients of several processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", rename_all = "lowercase")]
pub enum CollectiveChoice {
    /// NCCL where every process has a GPU of NVIDIA's and the library, else TCP.
    #[default]
    Auto,
    /// NCCL; an error where it is not to be had.
    Nccl,
    /// TCP through the host's memory. (`gloo`, PyTorch's word for that, is understood, too.)
    Tcp,
}

impl FromStr for CollectiveChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "nccl" => Ok(Self::Nccl),
            "tcp" | "gloo" => Ok(Self::Tcp),
            other => Err(Error::invalid(format!("unknown ddp_backend '{other}': use auto, nccl or tcp (gloo)"))),
        }
    }
}

impl TryFrom<String> for CollectiveChoice {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// The processes of a run. Every one calls the same functions in the same order; each call waits for the others.
///
/// Errors are [`Error::Network`] where another process failed or is gone (then with its rank, and its own message where it
/// could still send it), or where one does not come within the timeout.
pub trait Collective: Send + Sync {
    /// This process's number, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn world_size(&self) -> usize;

    /// What carries the sums of buffers: `none`, `tcp` or `nccl`.
    fn name(&self) -> &'static str;

    /// Replaces a flat f32 buffer by its sum over all processes. All get the same bits.
    ///
    /// # Errors
    /// [`Error::Network`]; [`Error::Device`].
    fn all_reduce_sum(&self, device: &dyn Device, buffer: &Buffer) -> Result<()>;

    /// Replaces some numbers by their sums over all processes, added in the order of ranks.
    ///
    /// # Errors
    /// [`Error::Network`].
    fn sum(&self, numbers: &mut [f64]) -> Result<()>;

    /// The bytes of rank 0; those of the others are not read.
    ///
    /// # Errors
    /// [`Error::Network`].
    fn broadcast(&self, bytes: &[u8]) -> Result<Vec<u8>>;

    /// Returns when all have called it.
    ///
    /// # Errors
    /// [`Error::Network`].
    fn barrier(&self) -> Result<()> {
        self.sum(&mut [])
    }

    /// Tells the others, which may be waiting, why this process ends. Their next call fails with it.
    fn abort(&self, why: &str);
}

/// One process alone: nothing to wait for.
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn name(&self) -> &'static str {
        "none"
    }

    fn all_reduce_sum(&self, _: &dyn Device, _: &Buffer) -> Result<()> {
        Ok(())
    }

    fn sum(&self, _: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn broadcast(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        Ok(bytes.to_vec())
    }

    fn abort(&self, _: &str) {}
}
