//! Sums that the devices do among themselves (NCCL).

use super::{Collective, CollectiveChoice, Tcp};
use crate::backend::{Buffer, Communicator, Device};
use crate::error::{Error, Result};
use std::sync::Arc;
use std::time::Duration;

/// Longest that a sum may take once all processes have come to it.
const LONGEST_SUM: Duration = Duration::from_secs(300);

/// Sums on the devices; everything else over TCP, which also notices who is gone.
struct OnDevice {
    tcp: Arc<Tcp>,
    communicator: Box<dyn Communicator>,
}

/// What sums buffers of `device`: its own way where every process has one, else TCP. All processes call it together.
///
/// # Errors
/// [`Error::Unsupported`] where `choice` asks for what some process does not have, with its rank; [`Error::Device`];
/// [`Error::Network`].
pub fn on_device(tcp: Arc<Tcp>, device: &dyn Device, choice: CollectiveChoice) -> Result<Arc<dyn Collective>> {
    if choice == CollectiveChoice::Tcp {
        return Ok(tcp);
    }
    let here = device.communicates();
    let mut without = [f64::from(u8::from(here.is_err()))];
    if let (Err(why), CollectiveChoice::Nccl) = (&here, choice) {
        let error = Error::unsupported(format!("ddp_backend nccl: {why}"));
        tcp.abort(&error.to_string());
        return Err(error);
    }
    tcp.sum(&mut without)?;
    if without[0] > 0.0 {
        return Ok(tcp);
    }
    let connect = || {
        let id = if tcp.rank() == 0 { device.communicator_id()? } else { Vec::new() };
        device.communicator(&tcp.broadcast(&id)?, tcp.rank(), tcp.world_size())
    };
    match connect() {
        Ok(communicator) => Ok(Arc::new(OnDevice { tcp, communicator })),
        Err(error) => {
            tcp.abort(&error.to_string());
            Err(error)
        }
    }
}

impl Collective for OnDevice {
    fn rank(&self) -> usize {
        self.tcp.rank()
    }

    fn world_size(&self) -> usize {
        self.tcp.world_size()
    }

    fn name(&self) -> &'static str {
        "nccl"
    }

    fn all_reduce_sum(&self, _: &dyn Device, buffer: &Buffer) -> Result<()> {
        // Whoever is gone would be waited for on the device, where nobody can be told so.
        self.tcp.barrier()?;
        let result = self.communicator.all_reduce_sum(buffer, self.tcp.timeout().min(LONGEST_SUM));
        if let Err(error) = &result {
            self.tcp.abort(&error.to_string());
        }
        result
    }

    fn sum(&self, numbers: &mut [f64]) -> Result<()> {
        self.tcp.sum(numbers)
    }

    fn broadcast(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.tcp.broadcast(bytes)
    }

    fn abort(&self, why: &str) {
        self.tcp.abort(why);
    }
}
