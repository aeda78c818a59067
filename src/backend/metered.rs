//! A device that counts what lies on it, by purpose, and refuses what would pass a limit.

use super::{Bindings, Buffer, BufferDesc, Communicator, Device, DeviceInfo, Executable, Limits, Timing};
use crate::error::{Error, Result};
use crate::program::{Program, TensorId};
use crate::tensor::HostTensor;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The model's tensors and adapters.
    Weights,
    /// Keys and values.
    Kv,
    /// What a step computes on the way, and its results.
    Activations,
    /// Gradients and the optimizer's state.
    Optimizer,
    /// Bytes of the host's memory that hold a model's file.
    Host,
}

/// How many purposes there are.
pub const PURPOSES: usize = 5;

/// Bytes in use, by purpose.
#[derive(Default)]
struct Book {
    used: [u64; PURPOSES],
    peak: [u64; PURPOSES],
    total_peak: u64,
    soft: u64,
    hard: u64,
}

/// The account that devices, buffers and jobs share.
#[derive(Default)]
pub struct Ledger {
    book: Mutex<Book>,
    /// For tests: this many more charges succeed, then one fails; 0: all do.
    fail_at: AtomicU64,
}

/// Bytes, by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Now, in the order of [`Purpose`].
    pub used: [u64; PURPOSES],
    /// The most so far.
    pub peak: [u64; PURPOSES],
    /// The most so far of the sum.
    pub total_peak: u64,
    /// Limits; 0: none.
    pub soft: u64,
    /// Beyond this nothing is given.
    pub hard: u64,
}

impl Usage {
    /// Bytes in use for all purposes together.
    pub fn total(&self) -> u64 {
        self.used.iter().sum()
    }
}

/// Bytes that are in use until this is dropped.
pub struct Charge {
    ledger: Arc<Ledger>,
    purpose: Purpose,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut book = self.ledger.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.used[self.purpose as usize] -= self.bytes;
    }
}

impl Ledger {
    /// Counts `bytes` as used.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where that would pass the hard limit.
    pub fn charge(self: &Arc<Self>, backend: &'static str, what: &str, purpose: Purpose, bytes: u64) -> Result<Charge> {
        let left = self.fail_at.load(Ordering::Relaxed);
        if left > 0 {
            self.fail_at.store(left - 1, Ordering::Relaxed);
            if left == 1 {
                let message = format!("{bytes} bytes for '{what}' (injected)");
                return Err(Error::OutOfMemory { backend, message });
            }
        }
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let total = book.used.iter().sum::<u64>() + bytes;
        if book.hard > 0 && total > book.hard {
            let message = format!(
                "{bytes} bytes for '{what}' on top of {} would pass the memory limit of {}",
                total - bytes,
                book.hard
            );
            return Err(Error::OutOfMemory { backend, message });
        }
        let at = purpose as usize;
        book.used[at] += bytes;
        book.peak[at] = book.peak[at].max(book.used[at]);
        book.total_peak = book.total_peak.max(total);
        Ok(Charge { ledger: self.clone(), purpose, bytes })
    }

    /// Sets the limits, in bytes; 0: none. What is in use already stays.
    pub fn limit(&self, soft: u64, hard: u64) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        (book.soft, book.hard) = (soft, hard);
    }

    /// What is in use.
    pub fn usage(&self) -> Usage {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let Book { used, peak, total_peak, soft, hard } = *book;
        Usage { used, peak, total_peak, soft, hard }
    }

    /// For tests of what follows when memory runs out: the `n`-th charge from now on fails, once. 0: none does.
    pub fn fail_at(&self, n: u64) {
        self.fail_at.store(n, Ordering::Relaxed);
    }

    /// Ends [`Ledger::fail_at`]; whether a charge has failed since.
    pub fn disarm(&self) -> bool {
        self.fail_at.swap(0, Ordering::Relaxed) == 0
    }
}

/// `device`, with everything on it charged to `ledger`; `purpose` says what a buffer is for.
pub fn metered(device: Arc<dyn Device>, ledger: Arc<Ledger>, purpose: fn(&str) -> Purpose) -> Arc<dyn Device> {
    Arc::new(Metered { device, ledger, purpose })
}

struct Metered {
    device: Arc<dyn Device>,
    ledger: Arc<Ledger>,
    purpose: fn(&str) -> Purpose,
}

impl Metered {
    fn charge(&self, what: &str, purpose: Purpose, bytes: u64) -> Result<Charge> {
        self.ledger.charge(self.device.info().backend, what, purpose, bytes)
    }
}

impl Device for Metered {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    fn limits(&self) -> Limits {
        self.device.limits()
    }

    fn allocate(&self, desc: BufferDesc) -> Result<Buffer> {
        let charge = self.charge(&desc.name, (self.purpose)(&desc.name), desc.bytes() as u64)?;
        Ok(self.device.allocate(desc)?.charged(charge))
    }

    fn allocate_on_host(&self, desc: BufferDesc) -> Result<Buffer> {
        let charge = self.charge(&desc.name, Purpose::Host, desc.bytes() as u64)?;
        Ok(self.device.allocate_on_host(desc)?.charged(charge))
    }

    fn upload_on_host(&self, name: &str, tensor: &HostTensor) -> Result<Buffer> {
        let charge = self.charge(name, Purpose::Host, tensor.data.len() as u64)?;
        Ok(self.device.upload_on_host(name, tensor)?.charged(charge))
    }

    fn upload(&self, name: &str, tensor: &HostTensor) -> Result<Buffer> {
        let charge = self.charge(name, Purpose::Weights, tensor.data.len() as u64)?;
        Ok(self.device.upload(name, tensor)?.charged(charge))
    }

    fn write(&self, buffer: &Buffer, offset: usize, data: &[u8]) -> Result<()> {
        self.device.write(buffer, offset, data)
    }

    fn read(&self, buffer: &Buffer, offset: usize, out: &mut [u8]) -> Result<()> {
        self.device.read(buffer, offset, out)
    }

    fn compile(&self, program: Arc<Program>, bindings: &Bindings) -> Result<Box<dyn Executable>> {
        let name = program.name.clone();
        let inner = self.device.compile(program, bindings)?;
        // A plan is known once it is made: a program that passes the limit is dropped again.
        let charge = self.charge(&name, Purpose::Activations, inner.arena_bytes() as u64)?;
        Ok(Box::new(MeteredExecutable { inner, _charge: charge }))
    }

    fn free_memory(&self) -> Result<Option<(u64, u64)>> {
        self.device.free_memory()
    }

    fn copy_bandwidth(&self) -> Result<f64> {
        self.device.copy_bandwidth()
    }

    fn communicates(&self) -> Result<()> {
        self.device.communicates()
    }

    fn communicator_id(&self) -> Result<Vec<u8>> {
        self.device.communicator_id()
    }

    fn communicator(&self, id: &[u8], rank: usize, world_size: usize) -> Result<Box<dyn Communicator>> {
        self.device.communicator(id, rank, world_size)
    }
}

struct MeteredExecutable {
    inner: Box<dyn Executable>,
    _charge: Charge,
}

impl Executable for MeteredExecutable {
    fn program(&self) -> &Program {
        self.inner.program()
    }

    fn arena_bytes(&self) -> usize {
        self.inner.arena_bytes()
    }

    fn write(&mut self, id: TensorId, data: &[u8]) -> Result<()> {
        self.inner.write(id, data)
    }

    fn run(&mut self) -> Result<()> {
        self.inner.run()
    }

    fn run_part(&mut self, first: usize, deadline: Instant) -> Result<Option<usize>> {
        self.inner.run_part(first, deadline)
    }

    fn read(&mut self, id: TensorId, out: &mut [u8]) -> Result<()> {
        self.inner.read(id, out)
    }

    fn profile(&mut self) -> Result<Vec<Timing>> {
        self.inner.profile()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_end_and_limits_hold() {
        let ledger = Arc::new(Ledger::default());
        ledger.limit(0, 100);
        let first = ledger.charge("cpu", "a", Purpose::Kv, 60);
        assert!(first.is_ok());
        let refused = ledger.charge("cpu", "b", Purpose::Weights, 41).err().map(|e| e.to_string());
        let expected = "cpu: out of memory: 41 bytes for 'b' on top of 60 would pass the memory limit of 100";
        assert_eq!(refused.as_deref(), Some(expected));
        assert!(ledger.charge("cpu", "b", Purpose::Weights, 40).is_ok(), "dropped at once");
        let usage = ledger.usage();
        assert_eq!((usage.total(), usage.total_peak, usage.peak[Purpose::Weights as usize]), (60, 100, 40));
        drop(first);
        assert_eq!(ledger.usage().total(), 0);
    }
}
