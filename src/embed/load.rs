//! From a file, a buffer or a program's own reader to an engine, on a thread of its own.

use super::event::{Emitter, Event, EventKind};
use super::faults;
use super::model::ModelState;
use super::pump::Shared;
use crate::backend::Device;
use crate::backend::metered::{Charge, Purpose};
use crate::engine::{Driver, Engine, EngineOptions};
use crate::error::{Error, Result};
use crate::format::{Checkpoint, Source};
use crate::model::LoadedModel;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a program's own reader is asked for bytes.
pub trait ReadAt: Send {
    /// All bytes there are.
    fn size(&self) -> u64;

    /// Fills `out` from `offset` on.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<()>;
}

/// Where a model is.
pub enum ModelSource {
    /// A .gguf file or a folder with config.json and .safetensors files.
    Path(PathBuf),
    /// A GGUF file within an open file, by offset and length; 0: to its end.
    File(File, u64, u64),
    /// The bytes of a GGUF file.
    Bytes(Arc<dyn AsRef<[u8]> + Send + Sync>),
    /// A GGUF file behind a program's own reader.
    Reader(Box<dyn ReadAt>),
}

impl ModelSource {
    /// For messages.
    pub fn name(&self) -> String {
        match self {
            ModelSource::Path(path) => path.display().to_string(),
            ModelSource::File(..) => "descriptor".into(),
            ModelSource::Bytes(_) => "buffer".into(),
            ModelSource::Reader(_) => "reader".into(),
        }
    }
}

/// What loading gives.
pub struct Loaded {
    pub engine: Engine,
    pub driver: Driver,
    pub hash: u64,
}

/// Bytes of a model's file that lie in memory, counted as such.
struct Held<T> {
    bytes: T,
    _charge: Charge,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Held<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// Bytes that are asked of a reader at once: cancelling waits for no more.
const CHUNK: usize = 1 << 20;

/// Loads a model and prepares its steps.
pub fn load(
    source: ModelSource,
    device: Arc<dyn Device>,
    options: EngineOptions,
    shared: &Shared,
    state: &ModelState,
    emitter: &Emitter,
) -> Result<Loaded> {
    faults::point("load");
    let checkpoint = match source {
        ModelSource::Path(path) => Checkpoint::open(&path)?,
        ModelSource::File(file, offset, len) => gguf(&Source::map("descriptor", &file, offset, len)?)?,
        ModelSource::Bytes(bytes) => {
            let len = (*bytes).as_ref().len() as u64;
            let charge = shared.ledger.charge("host", "the model's file", Purpose::Host, len)?;
            gguf(&Source::from_owner("buffer", Arc::new(Held { bytes: Shareable(bytes), _charge: charge })))?
        }
        ModelSource::Reader(mut reader) => {
            let size = reader.size();
            let charge = shared.ledger.charge("host", "the model's file", Purpose::Host, size)?;
            let bytes = read_all(&mut *reader, size, state, emitter)?;
            gguf(&Source::from_owner("reader", Arc::new(Held { bytes, _charge: charge })))?
        }
    };
    let hash = hash(&checkpoint);
    let mut told = 0;
    let mut model = LoadedModel::load_with(checkpoint, device, None, &mut |done, total| {
        if state.is_cancelled() {
            return ControlFlow::Break(());
        }
        // A hundred events at most.
        if done == total || done - told >= total / 100 {
            told = done;
            emitter.post(Event { kind: EventKind::ModelProgress, done, total, ..Event::default() });
            emitter.events.announce();
        }
        ControlFlow::Continue(())
    })?;
    if let Some(tokenizer) = Arc::get_mut(&mut model).and_then(|model| model.tokenizer.as_mut()) {
        tokenizer.remember_no_words();
    }
    let (engine, mut driver) = Engine::hosted(model, options)?;
    // What is prepared now makes no slice late.
    while !state.is_cancelled() && driver.prepare()? {}
    Ok(Loaded { engine, driver, hash })
}

/// `Arc<dyn AsRef<[u8]>>` is no `AsRef<[u8]>` itself.
struct Shareable(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl AsRef<[u8]> for Shareable {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

fn gguf(source: &Source) -> Result<Checkpoint> {
    Checkpoint::from_gguf(Path::new(source.name()), source)
}

fn read_all(reader: &mut dyn ReadAt, size: u64, state: &ModelState, emitter: &Emitter) -> Result<Vec<u8>> {
    let len = usize::try_from(size).map_err(|_| Error::invalid(format!("a reader of {size} bytes")))?;
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(len)
        .map_err(|_| Error::OutOfMemory { backend: "host", message: format!("{len} bytes for the model's file") })?;
    bytes.resize(len, 0);
    let mut told = 0;
    for (index, chunk) in bytes.chunks_mut(CHUNK).enumerate() {
        if state.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let done = (index * CHUNK) as u64;
        reader.read_at(done, chunk)?;
        if done - told >= size / 100 {
            told = done;
            emitter.post(Event { kind: EventKind::ModelProgress, done, total: size, ..Event::default() });
        }
    }
    Ok(bytes)
}

/// FNV-1a, 64 bits.
pub(super) fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

/// FNV-1a's start.
pub(super) const FNV: u64 = 0xCBF2_9CE4_8422_2325;

/// Stands for a checkpoint: its configuration, and name, shape and first bytes of each tensor.
fn hash(checkpoint: &Checkpoint) -> u64 {
    let start = fnv(FNV, format!("{:?}", checkpoint.config).as_bytes());
    checkpoint.tensors.iter().fold(start, |hash, (name, tensor)| {
        let hash = fnv(fnv(hash, name.as_bytes()), format!("{:?} {}", tensor.shape, tensor.dtype).as_bytes());
        fnv(hash, &tensor.data[..tensor.data.len().min(256)])
    })
}
