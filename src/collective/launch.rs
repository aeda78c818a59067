//! What the starter of several processes says to each of them.

use crate::error::{Error, Result};
use std::fmt;

/// PyTorch's port where none is given.
const DEFAULT_PORT: u16 = 29500;

/// A process's place among those of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// This process's number, from 0.
    pub rank: usize,
    /// How many there are.
    pub world_size: usize,
    /// Its number on its machine: which device it takes.
    pub local_rank: usize,
    /// The machine of rank 0.
    pub addr: String,
    /// Where rank 0 listens: here, or at one of the next few ports where this one is taken.
    pub port: u16,
    /// The port is taken by the starter itself: torchrun's own store listens there.
    pub port_in_use: bool,
    /// Tells runs on one machine apart.
    pub job: String,
    /// Which variable gave the rank.
    pub source: &'static str,
}

/// Variables of a starter: of rank, number of processes, and rank on the machine.
const STARTERS: [(&str, &str, &str); 4] = [
    // torchrun, Kubernetes' PyTorchJob, or by hand.
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    // Open MPI.
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    // MPICH and Intel MPI.
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    // Slurm. Its batch script has these, too, without being one of several processes: `from` asks for the step's number.
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
];

impl Launch {
    /// From the environment; `None` where this process was started alone.
    ///
    /// # Errors
    /// As [`Launch::from`].
    pub fn from_env() -> Result<Option<Self>> {
        Self::from(&|name| std::env::var(name).ok())
    }

    /// From variables that `get` looks up; `None` where none says that there are several processes.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the variable that is missing or wrong, and its value.
    pub fn from(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let found = STARTERS.into_iter().find(|(rank, size, _)| match *rank {
            "SLURM_PROCID" => (get("SLURM_STEP_ID").is_some() || get("SLURM_STEPID").is_some()) && get(rank).is_some(),
            _ => get(rank).is_some() || (*size == "WORLD_SIZE" && get(size).is_some_and(|n| n.trim() != "1")),
        });
        let Some((rank_name, size_name, local_name)) = found else { return Ok(None) };
        let number = |name: &str, text: String| {
            text.trim().parse::<usize>().map_err(|_| Error::invalid(format!("{name} is '{text}', expected a number")))
        };
        let needed = |name: &str| {
            let text = get(name).ok_or_else(|| {
                Error::invalid(format!(
                    "{name} is not set, but {} is: start all processes with torchrun, mpirun, srun or the like",
                    if name == rank_name { size_name } else { rank_name }
                ))
            })?;
            number(name, text)
        };
        // A step may have fewer tasks than its job.
        let world_size = match get("SLURM_STEP_NUM_TASKS") {
            Some(text) if rank_name == "SLURM_PROCID" => number("SLURM_STEP_NUM_TASKS", text)?,
            _ => needed(size_name)?,
        };
        let rank = needed(rank_name)?;
        if world_size == 0 || rank >= world_size {
            let message = format!("{rank_name} is {rank} and {size_name} is {world_size}: ranks are counted from 0");
            return Err(Error::invalid(message));
        }
        if world_size == 1 {
            return Ok(None);
        }
        let local_rank = match get(local_name) {
            Some(text) => number(local_name, text)?,
            // One process a machine: Kubernetes gives each a pod.
            None => 0,
        };
        let port = match get("MASTER_PORT") {
            Some(text) => text.trim().parse().map_err(|_| {
                Error::invalid(format!("MASTER_PORT is '{text}', expected a port number from 1 to 65535"))
            })?,
            None => DEFAULT_PORT,
        };
        let hosts = get("SLURM_STEP_NODELIST").or_else(|| get("SLURM_JOB_NODELIST"));
        let addr = match (get("MASTER_ADDR"), hosts) {
            (Some(addr), _) if !addr.trim().is_empty() => addr.trim().to_owned(),
            (_, Some(hosts)) if rank_name == "SLURM_PROCID" => first_host(&hosts),
            // All on this machine, as far as one can tell.
            _ if get("OMPI_COMM_WORLD_LOCAL_SIZE").and_then(|n| n.parse().ok()) == Some(world_size) => {
                "127.0.0.1".into()
            }
            _ => {
                return Err(Error::invalid(format!(
                    "MASTER_ADDR is not set, but {size_name} is {world_size}: set it to the machine of rank 0 \
                     (127.0.0.1 where all processes are on one machine)"
                )));
            }
        };
        let ids = ["TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "PMIX_NAMESPACE", "RUNTIME_JOB_ID"];
        let job = ids.iter().filter_map(|name| get(name)).collect::<Vec<_>>().join("/");
        let port_in_use = get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|text| text.eq_ignore_ascii_case("true"));
        let job = format!("{job}:{port}");
        Ok(Some(Self { rank, world_size, local_rank, addr, port, port_in_use, job, source: rank_name }))
    }
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, world_size, addr, port, source, .. } = self;
        write!(f, "rank {rank} of {world_size} (from {source}), rank 0 at {addr}:{port}")
    }
}

/// The first machine of a Slurm list: `gpu[07-09,12],login` is `gpu07`.
fn first_host(list: &str) -> String {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (name, rest) = list.split_at(end);
    match rest.strip_prefix('[') {
        Some(numbers) => {
            let end = numbers.find([',', '-', ']']).unwrap_or(numbers.len());
            let after = numbers.split_once(']').map_or("", |(_, after)| after);
            let suffix = after.split(',').next().unwrap_or_default();
            format!("{name}{}{suffix}", &numbers[..end])
        }
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        Launch::from(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    fn places(variables: &[(&str, &str)]) -> (usize, usize, usize, String, u16) {
        let l = launch(variables).unwrap().unwrap();
        (l.rank, l.world_size, l.local_rank, l.addr, l.port)
    }

    #[test]
    fn every_starter_is_understood() {
        assert_eq!(launch(&[]).unwrap(), None);
        assert_eq!(launch(&[("WORLD_SIZE", "1"), ("RANK", "0")]).unwrap(), None);
        let torchrun = [
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "node0"),
            ("MASTER_PORT", "29400"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("SLURM_PROCID", "0"),
        ];
        assert_eq!(places(&torchrun), (5, 8, 1, "node0".into(), 29400));
        assert!(launch(&torchrun).unwrap().unwrap().port_in_use);
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        assert_eq!(places(&mpi), (1, 2, 1, "127.0.0.1".into(), 29500));
        let hydra = [("PMI_RANK", "3"), ("PMI_SIZE", "4"), ("MPI_LOCALRANKID", "1"), ("MASTER_ADDR", "a")];
        assert_eq!(places(&hydra), (3, 4, 1, "a".into(), 29500));
        let srun = [
            ("SLURM_PROCID", "2"),
            ("SLURM_NTASKS", "8"),
            ("SLURM_STEP_NUM_TASKS", "4"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_STEP_NODELIST", "gpu[07-09,12],login"),
        ];
        assert_eq!(places(&srun), (2, 4, 0, "gpu07".into(), 29500));
    }

    #[test]
    fn a_batch_script_is_one_process() {
        assert_eq!(launch(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]).unwrap(), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |variables: &[(&str, &str)]| launch(variables).map_err(|e| e.to_string()).err().unwrap_or_default();
        assert!(error(&[("WORLD_SIZE", "2"), ("MASTER_ADDR", "a")]).starts_with("RANK is not set, but WORLD_SIZE is"));
        assert!(error(&[("RANK", "0")]).starts_with("WORLD_SIZE is not set, but RANK is"));
        assert!(error(&[("RANK", "2"), ("WORLD_SIZE", "2")]).contains("RANK is 2 and WORLD_SIZE is 2"));
        assert!(error(&[("RANK", "x"), ("WORLD_SIZE", "2")]).contains("RANK is 'x'"));
        assert!(error(&[("RANK", "0"), ("WORLD_SIZE", "2")]).starts_with("MASTER_ADDR is not set"));
        let port = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "70000")];
        assert!(error(&port).contains("MASTER_PORT is '70000'"));
    }

    #[test]
    fn slurm_lists_begin_with_a_host() {
        assert_eq!(first_host("node3"), "node3");
        assert_eq!(first_host("node3,node4"), "node3");
        assert_eq!(first_host("r[1-2]n5,x"), "r1n5");
    }
}
