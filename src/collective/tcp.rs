//! All processes connected to that of rank 0, which adds and answers.
//!
//! A message is a header of 16 bytes (`rtc1`, what it is, the length of the rest in bytes; little-endian) and the rest. Rank 0
//! receives in the order of ranks and adds in that order, so that a sum has the same bits however fast the processes are.
//! Nothing is encrypted or authenticated, as in PyTorch's and NCCL's own connections: the network has to be trusted.

use super::{Collective, Launch};
use crate::backend::{Buffer, Device};
use crate::error::{Error, Result};
use crate::tensor::DType;
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Ports that are tried, from the given one on.
const PORTS: u16 = 16;
/// f32 numbers of a buffer that travel at once: while one process adds, the next piece is on its way.
const PIECE: usize = 1 << 18;
/// Longest message that is believed: a broadcast is far smaller.
const LONGEST: u64 = 1 << 30;
/// How long a stranger may take to introduce itself.
const INTRODUCTION: Duration = Duration::from_secs(10);
/// Between two attempts to reach rank 0.
const AGAIN: Duration = Duration::from_millis(50);

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    Hello = 1,
    Buffer = 2,
    Numbers = 3,
    Bytes = 4,
    Abort = 5,
}

/// What a process says first, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    job: String,
    rank: usize,
    world_size: usize,
    version: String,
}

/// See the module.
pub struct Tcp {
    rank: usize,
    world_size: usize,
    /// Of rank 0: those of ranks 1, 2, …; of the others: that of rank 0.
    peers: Mutex<Vec<TcpStream>>,
    timeout: Duration,
    /// The others have been told that this process ends.
    ended: AtomicBool,
}

impl Tcp {
    /// Connects all processes of a run; `timeout` is how long any of them may keep the others waiting, here and later.
    ///
    /// # Errors
    /// [`Error::Network`] where rank 0 cannot listen or is not reached, where some do not come (with their ranks), and where
    /// two say that they are the same or disagree about their number.
    pub fn join(launch: &Launch, timeout: Duration) -> Result<Self> {
        let deadline = Instant::now() + timeout;
        let peers = if launch.rank == 0 { listen(launch, deadline)? } else { vec![connect(launch, deadline)?] };
        for peer in &peers {
            let set = peer.set_nodelay(true).and_then(|()| peer.set_read_timeout(Some(timeout)));
            set.and_then(|()| peer.set_write_timeout(Some(timeout))).map_err(|e| network("a connection", &e))?;
        }
        let Launch { rank, world_size, .. } = *launch;
        let me = Self { rank, world_size, peers: Mutex::new(peers), timeout, ended: AtomicBool::new(false) };
        me.barrier()?;
        Ok(me)
    }

    /// How long a process may keep the others waiting.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    fn peers(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rank behind a connection.
    fn of(&self, at: usize) -> usize {
        if self.rank == 0 { at + 1 } else { 0 }
    }

    fn send(&self, peers: &mut [TcpStream], at: usize, kind: Kind, rest: &[u8]) -> Result<()> {
        let Err(error) = write_message(&mut peers[at], kind, rest) else { return Ok(()) };
        // It may have said why before it went away.
        match read_header(&mut peers[at]) {
            Ok((kind, length)) if kind == Kind::Abort as u32 => Err(self.aborted(&mut peers[at], at, length)),
            _ => Err(self.gone(at, &error)),
        }
    }

    /// Takes a message of a kind and a length, which the caller knows.
    fn receive(&self, peers: &mut [TcpStream], at: usize, kind: Kind, rest: &mut [u8]) -> Result<()> {
        let length = self.header(peers, at, kind)?;
        if length != rest.len() as u64 {
            return Err(self.apart(at, &format!("{length} bytes"), &format!("{} bytes", rest.len())));
        }
        peers[at].read_exact(rest).map_err(|e| self.gone(at, &e))
    }

    fn header(&self, peers: &mut [TcpStream], at: usize, kind: Kind) -> Result<u64> {
        let (found, length) = read_header(&mut peers[at]).map_err(|e| self.gone(at, &e))?;
        match found {
            _ if found == kind as u32 => Ok(length),
            _ if found == Kind::Abort as u32 => Err(self.aborted(&mut peers[at], at, length)),
            _ => Err(self.apart(at, &format!("a message of kind {found}"), &format!("{kind:?}"))),
        }
    }

    fn aborted(&self, peer: &mut TcpStream, at: usize, length: u64) -> Error {
        let mut text = vec![0; length.min(1 << 16) as usize];
        match peer.read_exact(&mut text) {
            Ok(()) => Error::Network(String::from_utf8_lossy(&text).into_owned()),
            Err(e) => self.gone(at, &e),
        }
    }

    fn gone(&self, at: usize, error: &std::io::Error) -> Error {
        let rank = self.of(at);
        Error::Network(match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                format!("rank {rank} has not answered for {} s (ddp_timeout)", self.timeout.as_secs())
            }
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                format!("rank {rank} is gone: its connection is closed")
            }
            _ => format!("rank {rank}: {error}"),
        })
    }

    fn apart(&self, at: usize, found: &str, expected: &str) -> Error {
        Error::Network(format!(
            "rank {} is at another place of the run: it sent {found}, expected {expected}",
            self.of(at)
        ))
    }

    /// Does something with the others; where it fails they hear of it.
    fn with_peers<T>(&self, work: impl FnOnce(&mut [TcpStream]) -> Result<T>) -> Result<T> {
        let result = work(&mut self.peers());
        if let Err(error) = &result {
            // Rank 0 passes on what it heard; the others have told nobody anything new.
            self.tell(&error.to_string());
        }
        result
    }

    /// Sends everyone a last message, once.
    fn tell(&self, text: &str) {
        if self.ended.swap(true, Ordering::Relaxed) {
            return;
        }
        for peer in self.peers().iter_mut() {
            let _ = peer.set_write_timeout(Some(Duration::from_secs(1)));
            let _ = write_message(peer, Kind::Abort, text.as_bytes());
        }
    }

    /// Sums over all processes, piece by piece; `add` adds bytes to bytes.
    fn reduce(&self, kind: Kind, bytes: &mut [u8], piece: usize, add: impl Fn(&mut [u8], &[u8])) -> Result<()> {
        self.with_peers(|peers| {
            let mut other = vec![0; piece.min(bytes.len())];
            let pieces = bytes.len().div_ceil(piece.max(1)).max(1);
            for i in 0..pieces {
                let (start, end) = (i * piece, ((i + 1) * piece).min(bytes.len()));
                let part = &mut bytes[start..end];
                let other = &mut other[..end - start];
                if self.rank > 0 {
                    self.send(peers, 0, kind, part)?;
                    self.receive(peers, 0, kind, part)?;
                    continue;
                }
                for at in 0..peers.len() {
                    self.receive(peers, at, kind, other)?;
                    add(part, other);
                }
                (0..peers.len()).try_for_each(|at| self.send(peers, at, kind, part))?;
            }
            Ok(())
        })
    }

    /// Replaces f32 numbers in host memory by their sums over all processes.
    ///
    /// # Errors
    /// [`Error::Network`].
    pub fn sum_f32(&self, numbers: &mut [f32]) -> Result<()> {
        self.reduce(Kind::Buffer, bytemuck::cast_slice_mut(numbers), 4 * PIECE, |sum, other| {
            for (a, b) in sum.chunks_exact_mut(4).zip(other.chunks_exact(4)) {
                let total = f32::from_le_bytes([a[0], a[1], a[2], a[3]]) + f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                a.copy_from_slice(&total.to_le_bytes());
            }
        })
    }
}

impl Collective for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn name(&self) -> &'static str {
        "tcp"
    }

    fn all_reduce_sum(&self, device: &dyn Device, buffer: &Buffer) -> Result<()> {
        let desc = buffer.desc();
        if desc.dtype != DType::F32 {
            return Err(Error::internal(format!("'{}' is {}, only f32 is summed", desc.name, desc.dtype)));
        }
        let mut numbers = vec![0f32; desc.rows * desc.cols];
        device.read(buffer, 0, bytemuck::cast_slice_mut(&mut numbers))?;
        self.sum_f32(&mut numbers)?;
        device.write(buffer, 0, bytemuck::cast_slice(&numbers))
    }

    fn sum(&self, numbers: &mut [f64]) -> Result<()> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(numbers);
        let all = bytes.len().max(1);
        self.reduce(Kind::Numbers, bytes, all, |sum, other| {
            for (a, b) in sum.chunks_exact_mut(8).zip(other.chunks_exact(8)) {
                let number = |x: &[u8]| x.iter().rev().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
                a.copy_from_slice(&(f64::from_bits(number(a)) + f64::from_bits(number(b))).to_le_bytes());
            }
        })
    }

    fn broadcast(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.with_peers(|peers| {
            if self.rank == 0 {
                (0..peers.len()).try_for_each(|at| self.send(peers, at, Kind::Bytes, bytes))?;
                return Ok(bytes.to_vec());
            }
            let length = self.header(peers, 0, Kind::Bytes)?;
            if length > LONGEST {
                return Err(self.apart(0, &format!("{length} bytes"), &format!("at most {LONGEST}")));
            }
            let mut bytes = vec![0; length as usize];
            peers[0].read_exact(&mut bytes).map_err(|e| self.gone(0, &e))?;
            Ok(bytes)
        })
    }

    fn abort(&self, why: &str) {
        self.tell(&format!("rank {} failed: {why}", self.rank));
    }
}

fn network(what: &str, error: &std::io::Error) -> Error {
    Error::Network(format!("{what}: {error}"))
}

fn write_message(stream: &mut TcpStream, kind: Kind, rest: &[u8]) -> std::io::Result<()> {
    let mut header = [0; 16];
    header[..4].copy_from_slice(b"rtc1");
    header[4..8].copy_from_slice(&(kind as u32).to_le_bytes());
    header[8..].copy_from_slice(&(rest.len() as u64).to_le_bytes());
    if rest.len() <= 1 << 12 {
        // Small ones in one packet.
        return stream.write_all(&[&header[..], rest].concat());
    }
    stream.write_all(&header)?;
    stream.write_all(rest)
}

fn read_header(stream: &mut TcpStream) -> std::io::Result<(u32, u64)> {
    let mut header = [0; 16];
    stream.read_exact(&mut header)?;
    if &header[..4] != b"rtc1" {
        return Err(std::io::Error::new(ErrorKind::InvalidData, "something else speaks at this port"));
    }
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    Ok((word(4), u64::from(word(8)) | u64::from(word(12)) << 32))
}

fn hello(launch: &Launch) -> Hello {
    Hello {
        job: launch.job.clone(),
        rank: launch.rank,
        world_size: launch.world_size,
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

fn ports(launch: &Launch) -> impl Iterator<Item = u16> {
    let first = launch.port.saturating_add(u16::from(launch.port_in_use));
    first..=first.saturating_add(PORTS - 1)
}

/// The address at one port: where the name stands for several, those that are asked for first come first.
fn addresses(launch: &Launch, port: u16) -> Result<Vec<SocketAddr>> {
    let found = (launch.addr.as_str(), port).to_socket_addrs();
    Ok(found.map_err(|e| network(&format!("MASTER_ADDR {}", launch.addr), &e))?.collect())
}

/// Rank 0: waits for all others.
fn listen(launch: &Launch, deadline: Instant) -> Result<Vec<TcpStream>> {
    let mut refused = String::new();
    let listener = ports(launch).find_map(|port| {
        // Only at the address that the others use, where it is one of this machine's: behind a service or another name it is not.
        let own = addresses(launch, port).unwrap_or_default();
        let any = [SocketAddr::from(([0, 0, 0, 0], port)), SocketAddr::from(([0u16; 8], port))];
        own.into_iter()
            .chain(any)
            .find_map(|address| TcpListener::bind(address).map_err(|e| refused = format!("{address}: {e}")).ok())
    });
    let listener = listener.ok_or_else(|| {
        Error::Network(format!("rank 0 finds no free port from {} on: {refused}; set MASTER_PORT", launch.port))
    })?;
    listener.set_nonblocking(true).map_err(|e| network("rank 0's port", &e))?;
    let mut found: Vec<Option<TcpStream>> = (1..launch.world_size).map(|_| None).collect();
    while found.iter().any(Option::is_none) {
        match listener.accept() {
            Ok((stream, _)) => {
                if let Some((rank, stream)) = welcome(launch, stream, &found)? {
                    found[rank - 1] = Some(stream);
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    let missing = (1..launch.world_size).filter(|rank| found[rank - 1].is_none());
                    let missing = missing.map(|rank| rank.to_string()).collect::<Vec<_>>().join(", ");
                    let text = format!("these ranks have not come in time (ddp_timeout): {missing}");
                    found.iter_mut().flatten().for_each(|peer| {
                        let _ = write_message(peer, Kind::Abort, text.as_bytes());
                    });
                    return Err(Error::Network(text));
                }
                std::thread::sleep(AGAIN);
            }
            Err(e) => return Err(network("rank 0's port", &e)),
        }
    }
    Ok(found.into_iter().flatten().collect())
}

/// Takes a process in; `None` for strangers.
fn welcome(launch: &Launch, mut stream: TcpStream, found: &[Option<TcpStream>]) -> Result<Option<(usize, TcpStream)>> {
    let set = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(INTRODUCTION)));
    if set.is_err() {
        return Ok(None);
    }
    let Ok((kind, length)) = read_header(&mut stream) else { return Ok(None) };
    if kind != Kind::Hello as u32 || length > 1 << 16 {
        return Ok(None);
    }
    let mut text = vec![0; length as usize];
    let read = stream.read_exact(&mut text).ok();
    let Some(theirs) = read.and_then(|()| serde_json::from_slice::<Hello>(&text).ok()) else { return Ok(None) };
    let mine = hello(launch);
    if theirs.job != mine.job {
        return Ok(None);
    }
    let wrong = if theirs.version != mine.version {
        Some(format!("rank {} is version {}, rank 0 is {}", theirs.rank, theirs.version, mine.version))
    } else if theirs.world_size != mine.world_size {
        let (w, m) = (theirs.world_size, mine.world_size);
        Some(format!("rank {} was told that there are {w} processes, rank 0 that there are {m}", theirs.rank))
    } else if found.get(theirs.rank.wrapping_sub(1)).is_none_or(Option::is_some) {
        Some(format!("two processes were told that they are rank {}", theirs.rank))
    } else {
        None
    };
    if let Some(text) = wrong {
        let _ = write_message(&mut stream, Kind::Abort, text.as_bytes());
        return Err(Error::Network(text));
    }
    Ok(write_message(&mut stream, Kind::Hello, &[]).ok().map(|()| (theirs.rank, stream)))
}

/// Another rank: finds rank 0, which may not listen yet.
fn connect(launch: &Launch, deadline: Instant) -> Result<TcpStream> {
    let text = serde_json::to_vec(&hello(launch)).map_err(|e| Error::internal(e.to_string()))?;
    let mut last = String::new();
    loop {
        for port in ports(launch) {
            let addresses = match addresses(launch, port) {
                Ok(addresses) => addresses,
                // A pod's name is known only once the pod is there.
                Err(error) => {
                    last = error.to_string();
                    break;
                }
            };
            for address in addresses {
                let mut stream = match TcpStream::connect_timeout(&address, INTRODUCTION) {
                    Ok(stream) => stream,
                    Err(error) => {
                        last = format!("{address}: {error}");
                        continue;
                    }
                };
                let answer = stream
                    .set_read_timeout(Some(INTRODUCTION))
                    .and_then(|()| write_message(&mut stream, Kind::Hello, &text))
                    .and_then(|()| read_header(&mut stream));
                match answer {
                    Ok((kind, 0)) if kind == Kind::Hello as u32 => return Ok(stream),
                    Ok((kind, length)) if kind == Kind::Abort as u32 => {
                        let mut text = vec![0; length.min(1 << 16) as usize];
                        let read = stream.read_exact(&mut text).map_err(|e| network("rank 0", &e));
                        return read.and(Err(Error::Network(String::from_utf8_lossy(&text).into_owned())));
                    }
                    Ok(_) => last = format!("{address}: something else speaks there"),
                    Err(error) => last = format!("{address}: {error}"),
                }
            }
        }
        if Instant::now() >= deadline {
            let Launch { rank, addr, port, .. } = launch;
            return Err(Error::Network(format!("rank {rank} does not reach rank 0 at {addr}:{port}: {last}")));
        }
        std::thread::sleep(AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn launch(rank: usize, world_size: usize, port: u16) -> Launch {
        let job = format!("test:{port}");
        Launch {
            rank,
            world_size,
            local_rank: rank,
            addr: "127.0.0.1".into(),
            port,
            port_in_use: false,
            job,
            source: "",
        }
    }

    /// A port that was free a moment ago.
    fn port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().min(60000)
    }

    fn together<T: Send + 'static>(world_size: usize, work: fn(Tcp) -> T) -> Vec<T> {
        let port = port();
        let threads: Vec<_> = (0..world_size)
            .map(|rank| {
                thread::spawn(move || {
                    work(Tcp::join(&launch(rank, world_size, port), Duration::from_secs(20)).unwrap())
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    }

    #[test]
    fn sums_are_those_of_all_in_the_order_of_ranks() {
        let sums = together(3, |group| {
            let rank = group.rank() as f32;
            // More than one piece, and numbers whose sum depends on the order.
            let mut numbers: Vec<f32> = (0..PIECE + 5).map(|i| (i as f32 + 0.1) * 10f32.powf(rank * 3.0)).collect();
            group.sum_f32(&mut numbers).unwrap();
            let mut few = [f64::from(rank), 1.0];
            group.sum(&mut few).unwrap();
            group.barrier().unwrap();
            (numbers, few, group.broadcast(&[rank as u8, 7]).unwrap())
        });
        for (numbers, few, bytes) in &sums {
            assert_eq!((few, bytes.as_slice()), (&[3.0, 3.0], &[0, 7][..]));
            for (i, sum) in numbers.iter().enumerate() {
                let x = i as f32 + 0.1;
                let expected = x * 10f32.powf(0.0) + x * 10f32.powf(3.0) + x * 10f32.powf(6.0);
                assert_eq!(*sum, expected);
            }
        }
    }

    #[test]
    fn who_fails_or_goes_ends_the_others() {
        let ends = together(3, |group| match group.rank() {
            1 => {
                group.abort("no such file");
                String::new()
            }
            _ => group.barrier().unwrap_err().to_string(),
        });
        assert_eq!([&ends[0], &ends[2]], ["rank 1 failed: no such file"; 2]);
        let ends = together(3, |group| match group.rank() {
            2 => String::new(),
            _ => group.barrier().unwrap_err().to_string(),
        });
        assert_eq!([&ends[0], &ends[1]], ["rank 2 is gone: its connection is closed"; 2]);
        let ends = together(2, |group| match group.rank() {
            0 => String::new(),
            _ => group.barrier().unwrap_err().to_string(),
        });
        assert_eq!(ends[1], "rank 0 is gone: its connection is closed");
    }

    #[test]
    fn who_does_not_come_is_named() {
        let port = port();
        let waiting = thread::spawn(move || Tcp::join(&launch(0, 3, port), Duration::from_millis(800)).err());
        let other = Tcp::join(&launch(1, 3, port), Duration::from_secs(5)).err().map(|e| e.to_string());
        let expected = "these ranks have not come in time (ddp_timeout): 2";
        assert_eq!(waiting.join().unwrap().map(|e| e.to_string()).as_deref(), Some(expected));
        assert_eq!(other.as_deref(), Some(expected));
    }

    #[test]
    fn another_program_at_the_port_is_passed_over() {
        let port = port();
        // Takes connections and says nothing.
        let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
        thread::spawn(move || taken.incoming().for_each(drop));
        let threads: Vec<_> = (0..2)
            .map(|rank| thread::spawn(move || Tcp::join(&launch(rank, 2, port), Duration::from_secs(20)).is_ok()))
            .collect();
        assert!(threads.into_iter().all(|t| t.join().unwrap()));
    }
}
