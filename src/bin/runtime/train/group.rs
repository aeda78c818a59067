//! One process among those that torchrun, mpirun, srun or Kubernetes have started.

use crate::common::DeviceArgs;
use runtime::backend::{self, BackendChoice, Device};
use runtime::collective::{Alone, Collective, Launch, Tcp, on_device};
use runtime::train::{Observer, Recipe};
use runtime::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The processes of this run; `None`: this one alone.
pub struct Group(Option<(Launch, Arc<Tcp>)>);

impl Group {
    /// Finds the others, where the environment says that there are some.
    pub fn join(recipe: &Recipe) -> Result<Self> {
        let Some(launch) = Launch::from_env()? else { return Ok(Self(None)) };
        if launch.rank == 0 {
            eprintln!("{launch}: waiting for the others");
        }
        let tcp = Tcp::join(&launch, Duration::from_secs(recipe.ddp_timeout))?;
        Ok(Self(Some((launch, Arc::new(tcp)))))
    }

    /// Whether this process is the one that talks and writes.
    pub fn first(&self) -> bool {
        self.0.as_ref().is_none_or(|(launch, _)| launch.rank == 0)
    }

    /// Tells the others why this process ends.
    pub fn abort(&self, error: &Error) {
        if let Some((_, tcp)) = &self.0 {
            tcp.abort(&error.to_string());
        }
    }

    /// The device of this process: that of its rank on its machine, or the only one that it sees.
    pub fn device(&self, args: DeviceArgs) -> Result<DeviceArgs> {
        let Some((launch, _)) = &self.0 else { return Ok(args) };
        if args.device != 0 {
            let device = args.device;
            return Err(Error::invalid(format!(
                "--device {device} with several processes: each takes its LOCAL_RANK's"
            )));
        }
        let count = |name: &str| backend::devices().iter().filter(|d| d.backend == name && !d.software).count();
        let (name, seen) = match args.backend {
            BackendChoice::Cpu => ("cpu", 1),
            BackendChoice::Cuda => ("cuda", count("cuda")),
            BackendChoice::Wgpu => ("wgpu", count("wgpu")),
            // As `auto` chooses.
            BackendChoice::Auto => match (count("cuda"), count("wgpu")) {
                (0, 0) => ("cpu", 1),
                (0, wgpu) => ("wgpu", wgpu),
                (cuda, _) => ("cuda", cuda),
            },
        };
        let local = launch.local_rank;
        let device = match seen {
            // One on which all compute, or one that the starter has set apart for this process.
            0 | 1 => 0,
            _ if local < seen => local,
            _ => {
                return Err(Error::invalid(format!(
                    "LOCAL_RANK is {local}, but there are {seen} {name} devices: start one process for each"
                )));
            }
        };
        Ok(DeviceArgs { device, ..args })
    }

    /// What sums the gradients.
    pub fn on(&self, device: &dyn Device, recipe: &Recipe) -> Result<Arc<dyn Collective>> {
        match &self.0 {
            Some((_, tcp)) => on_device(tcp.clone(), device, recipe.ddp_backend),
            None => Ok(Arc::new(Alone)),
        }
    }

    /// For the line that names model and device.
    pub fn description(&self, all: &dyn Collective) -> String {
        match &self.0 {
            Some(_) => format!(", {} processes, gradients summed over {}", all.world_size(), all.name()),
            None => String::new(),
        }
    }
}

/// Watches for rank 0 alone to speak; asks to stop as the terminal does.
pub struct Quiet(pub Arc<AtomicBool>);

impl Observer for Quiet {
    fn should_stop(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
