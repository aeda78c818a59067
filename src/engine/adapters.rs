//! Adapters: all those that are known by name, and the bank of those that lie on the device.
//!
//! Any number of adapters can be loaded; their weights stay in the files that they were read from (memory-mapped, so the
//! system keeps in memory those that are used) until a request needs them on the device. There the least recently used one
//! that no running request holds makes room.
//!
//! A version that a trainer published lies on the device alone at first, and keeps its place until it is settled: until its
//! numbers are in a file, too.

use super::guest::DeviceAdapter;
use crate::backend::{Bindings, Buffer, BufferDesc, Executable};
use crate::error::{Error, Result};
use crate::format::peft::{Adapter, LoraWeights};
use crate::format::quant::dequantise_row;
use crate::model::LoadedModel;
use crate::model::decoder::{buffers, norms_program};
use crate::model::lora::{LoraEntry, LoraLayout, Projection};
use crate::program::{Builder, Op, STATE_ALIGN};
use crate::tensor::{DType, HostTensor};
use half::{bf16, f16};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// One version of an adapter; a request holds the one that it started with.
pub struct Version {
    /// Given to no other version in the life of the engine.
    pub number: u64,
    weights: Mutex<Weights>,
}

/// Where a version's numbers are.
enum Weights {
    /// In memory, or in a file that is mapped.
    Host(Adapter),
    /// In this place on the device, and nowhere else.
    Device { _place: Arc<Slot> },
}

/// The adapters that requests may name.
pub struct Registry {
    layout: Option<LoraLayout>,
    /// In which adapters lie on the device.
    dtype: DType,
    versions: BTreeMap<String, Arc<Version>>,
    /// Versions so far.
    loaded: u64,
}

impl Registry {
    /// No adapters yet; `layout` is that of the bank, `None` where there is none, `dtype` the type of its numbers.
    pub fn new(layout: Option<LoraLayout>, dtype: DType) -> Self {
        Self { layout, dtype, versions: BTreeMap::new(), loaded: 0 }
    }

    /// Makes an adapter available, in the place of an older one of that name. Gives the version's number.
    pub fn load(&mut self, name: &str, weights: &Adapter) -> Result<u64> {
        check(self.layout.as_ref().ok_or_else(no_room)?, self.dtype, name, weights)?;
        let number = self.number();
        self.insert(name, number, Weights::Host(weights.clone()));
        Ok(number)
    }

    /// Places on the device, and the largest rank.
    pub fn room(&self) -> (usize, usize) {
        self.layout.as_ref().map_or((0, 0), |layout| (layout.slots, layout.rank))
    }

    /// A number for the next version.
    fn number(&mut self) -> u64 {
        self.loaded += 1;
        self.loaded
    }

    fn insert(&mut self, name: &str, number: u64, weights: Weights) {
        self.versions.insert(name.into(), Arc::new(Version { number, weights: Mutex::new(weights) }));
    }

    /// As [`Registry::load`], for an adapter that lies on the device: `bank` gives it a place.
    pub fn publish(&mut self, name: &str, adapter: &mut DeviceAdapter, bank: &mut AdapterBank) -> Result<u64> {
        let number = self.number();
        let place = bank.copy(number, adapter)?;
        self.insert(name, number, Weights::Device { _place: place });
        Ok(number)
    }

    /// Tells that a published version's numbers are on the host, too: it then needs no place while nobody uses it. Nothing
    /// happens where another version has taken its place.
    pub fn settle(&mut self, name: &str, number: u64, weights: &Adapter) -> Result<()> {
        check(self.layout.as_ref().ok_or_else(no_room)?, self.dtype, name, weights)?;
        if let Some(version) = self.versions.get(name).filter(|version| version.number == number) {
            *version.weights.lock().unwrap_or_else(PoisonError::into_inner) = Weights::Host(weights.clone());
        }
        Ok(())
    }

    /// Forgets an adapter.
    pub fn unload(&mut self, name: &str) -> Result<()> {
        self.get(name)?;
        self.versions.remove(name);
        Ok(())
    }

    /// The present version.
    pub fn get(&self, name: &str) -> Result<Arc<Version>> {
        self.versions.get(name).cloned().ok_or_else(|| {
            let loaded = self.names().join(", ");
            Error::invalid(format!("no adapter '{name}' is loaded; loaded: [{loaded}]"))
        })
    }

    /// All names, in alphabetical order.
    pub fn names(&self) -> Vec<String> {
        self.versions.keys().cloned().collect()
    }
}

/// The flat buffer on the device and what lies in its slots.
pub struct AdapterBank {
    model: Arc<LoadedModel>,
    layout: LoraLayout,
    bindings: Bindings,
    /// Made for the first adapter with magnitudes.
    lengths: Option<Lengths>,
    slots: Vec<Option<Arc<Slot>>>,
    /// When each slot was last asked for.
    used: Vec<u64>,
    clock: u64,
}

/// A version in its place on the device, which it keeps while anybody holds this.
pub struct Slot {
    /// Position in the bank.
    pub index: u32,
    version: u64,
}

/// DoRA: works out the lengths of the rows of adapted weights, which the magnitudes of an adapter are divided by.
struct Lengths {
    layout: LoraLayout,
    lora: Buffer,
    norms: Buffer,
    executable: Box<dyn Executable>,
}

impl Lengths {
    fn new(model: &LoadedModel, rank: usize) -> Result<Self> {
        let layout = LoraLayout::new(model.config(), rank, 1, &Projection::ALL);
        let allocate = |name: &str, cols: usize| {
            model.device.allocate(BufferDesc { name: name.into(), dtype: DType::F32, rows: 1, cols })
        };
        let (lora, norms) =
            (allocate(buffers::LORA, layout.len)?, allocate(buffers::LORA_NORMS, layout.magnitudes_len)?);
        let scales = allocate(buffers::LORA_SCALES, 1)?;
        // What a module's product is multiplied by is in its B.
        model.device.write(&scales, 0, bytemuck::bytes_of(&1f32))?;
        let mut bindings = model.weights.clone();
        for (name, buffer) in [(buffers::LORA, &lora), (buffers::LORA_NORMS, &norms), (buffers::LORA_SCALES, &scales)] {
            bindings.insert(name.into(), buffer.clone());
        }
        let program = model.with_shape(1, |shape| norms_program(shape, &layout))?;
        let executable = model.device.compile(Arc::new(program), &bindings)?;
        Ok(Self { layout, lora, norms, executable })
    }

    /// Of every entry of the layout, one after the other as the layout says.
    fn of(&mut self, model: &LoadedModel, adapter: &Adapter) -> Result<Vec<f32>> {
        let mut flat = vec![0f32; self.layout.len];
        for entry in &self.layout.entries {
            let (a, b) = matrices(entry, self.layout.rank, adapter.modules.get(&entry.module))?;
            flat[entry.a..entry.a + a.len()].copy_from_slice(&a);
            flat[entry.b..entry.b + b.len()].copy_from_slice(&b);
        }
        model.device.write(&self.lora, 0, bytemuck::cast_slice(&flat))?;
        self.executable.run()?;
        let mut lengths = vec![0f32; self.layout.magnitudes_len];
        model.device.read(&self.norms, 0, bytemuck::cast_slice_mut(&mut lengths))?;
        Ok(lengths)
    }
}

impl AdapterBank {
    /// A bank of `slots` adapters of rank up to `rank` on all projections; with `dora` they may have magnitudes.
    pub fn new(model: Arc<LoadedModel>, slots: usize, rank: usize, dora: bool) -> Result<Self> {
        let mut layout = LoraLayout::new(model.config(), rank, slots, &Projection::ALL);
        let mut bindings = Bindings::new();
        let dtype = model.device.limits().activations;
        let mut sizes = vec![(buffers::LORA, dtype, layout.len), (buffers::LORA_SCALES, DType::F32, slots)];
        if dora {
            layout = layout.with_magnitudes_apart();
            sizes.extend(
                [buffers::LORA_MAGNITUDES, buffers::LORA_NORMS].map(|name| (name, DType::F32, layout.magnitudes_len)),
            );
        }
        for (name, dtype, cols) in sizes {
            let desc = BufferDesc { name: name.into(), dtype, rows: 1, cols };
            bindings.insert(name.into(), model.device.allocate(desc)?);
        }
        let (used, slots) = (vec![0; slots], vec![None; slots]);
        Ok(Self { model, layout, bindings, lengths: None, slots, used, clock: 0 })
    }

    /// How adapters lie in the buffer.
    pub fn layout(&self) -> &LoraLayout {
        &self.layout
    }

    /// The buffers that programs bind.
    pub fn bindings(&self) -> &Bindings {
        &self.bindings
    }

    /// The version's place on the device, written there if need be; `None` while running requests hold all slots.
    pub fn place(&mut self, version: &Version) -> Result<Option<Arc<Slot>>> {
        self.clock += 1;
        let holds = |slot: &Option<Arc<Slot>>| slot.as_ref().is_some_and(|slot| slot.version == version.number);
        if let Some(index) = self.slots.iter().position(holds) {
            self.used[index] = self.clock;
            return Ok(self.slots[index].clone());
        }
        let Some(index) = self.idle() else { return Ok(None) };
        self.slots[index] = None;
        match &*version.weights.lock().unwrap_or_else(PoisonError::into_inner) {
            Weights::Host(adapter) => self.write(index, adapter)?,
            Weights::Device { .. } => return Err(Error::internal("a published adapter has lost its place")),
        }
        Ok(Some(self.take(index, version.number)))
    }

    /// A place that no request and no version holds, the one that was not used for the longest time.
    fn idle(&self) -> Option<usize> {
        let idle = |index: &usize| self.slots[*index].as_ref().is_none_or(|slot| Arc::strong_count(slot) == 1);
        (0..self.slots.len()).filter(idle).min_by_key(|index| self.used[*index])
    }

    fn take(&mut self, index: usize, version: u64) -> Arc<Slot> {
        let slot = Arc::new(Slot { index: index as u32, version });
        self.slots[index] = Some(slot.clone());
        self.used[index] = self.clock;
        slot
    }

    /// Gives a version a place and copies its numbers from where they lie on the device.
    fn copy(&mut self, version: u64, adapter: &mut DeviceAdapter) -> Result<Arc<Slot>> {
        self.clock += 1;
        if adapter.layout.magnitudes.is_some() {
            return Err(Error::unsupported(
                "publishing an adapter with magnitudes (use_dora) from where it is trained",
            ));
        }
        let (rank, most) = (adapter.layout.rank, self.layout.rank);
        if rank > most {
            return Err(Error::invalid(format!(
                "an adapter of rank {rank}: the largest rank of this engine is {most}"
            )));
        }
        let Some(index) = self.idle() else {
            let places = self.slots.len();
            return Err(Error::Busy(format!("the {places} places for adapters on the device are all in use")));
        };
        let table: Vec<[u32; 8]> = self.layout.entries.iter().flat_map(|e| self.matrices(index, e, adapter)).collect();
        if adapter.placer.is_none() {
            adapter.placer = Some(self.placer(&adapter.params)?);
        }
        let Some(placer) = &mut adapter.placer else { return Err(Error::internal("no placer")) };
        self.slots[index] = None;
        let id = placer.program().find("table").ok_or_else(|| Error::internal("the placer has no table"))?;
        placer.write(id, bytemuck::cast_slice(&table))?;
        placer.run()?;
        self.write_scale(index)?;
        if self.layout.magnitudes.is_some() {
            self.write_magnitudes(index, None)?;
        }
        Ok(self.take(index, version))
    }

    /// The rows of [`Op::PlaceAdapter`]'s table for A and B of one module.
    fn matrices(&self, slot: usize, entry: &LoraEntry, adapter: &DeviceAdapter) -> [[u32; 8]; 2] {
        let (rank, own) = (self.layout.rank, adapter.layout.rank);
        let (inputs, outputs) = (entry.inputs, entry.outputs);
        let found = adapter.layout.entry(entry.layer, entry.projection);
        // Without the module all becomes zero.
        let [a, b] = match found {
            Some(found) => [[found.a, own, inputs], [found.b, outputs, own]],
            None => [[0; 3]; 2],
        };
        let row = |from: [usize; 3], to: [usize; 3], scale: f32| {
            let [f, t] = [from, to].map(|numbers| numbers.map(|n| n as u32));
            [f[0], f[1], f[2], t[0], t[1], t[2], scale.to_bits(), 0]
        };
        let a = row(a, [entry.a + slot * rank * inputs, rank, inputs], 1.0);
        [a, row(b, [entry.b + slot * outputs * rank, outputs, rank], adapter.scale)]
    }

    /// A program that copies matrices from `params` into the bank.
    fn placer(&self, params: &Buffer) -> Result<Box<dyn Executable>> {
        const FROM: &str = "adapter.from";
        let bank = &self.bindings[buffers::LORA];
        let mut b = Builder::new("place_adapter");
        let from = b.state("from", FROM, 0, DType::F32, 1, params.desc().cols);
        let to = b.state("to", buffers::LORA, 0, bank.desc().dtype, 1, self.layout.len);
        let table = b.input("table", DType::U32, 2 * self.layout.entries.len(), 8);
        b.push(Op::PlaceAdapter { from, table, to })?;
        let mut bindings = self.bindings.clone();
        bindings.insert(FROM.into(), params.clone());
        self.model.device.compile(Arc::new(b.finish()), &bindings)
    }

    fn write_scale(&self, slot: usize) -> Result<()> {
        self.model.device.write(&self.bindings[buffers::LORA_SCALES], slot * 4, bytemuck::bytes_of(&1f32))
    }

    fn write(&mut self, slot: usize, adapter: &Adapter) -> Result<()> {
        for entry in &self.layout.entries {
            self.write_module(slot, entry, adapter.modules.get(&entry.module))?;
        }
        if self.layout.magnitudes.is_some() {
            self.write_magnitudes(slot, Some(adapter))?;
        }
        Ok(())
    }

    /// Writes one module's A and B, padded with zeros to the bank's rank; all zeros where the adapter lacks it.
    fn write_module(&self, slot: usize, entry: &LoraEntry, weights: Option<&LoraWeights>) -> Result<()> {
        let (a, b) = matrices(entry, self.layout.rank, weights)?;
        let bank = &self.bindings[buffers::LORA];
        let device = &self.model.device;
        let dtype = device.limits().activations;
        for (start, numbers) in [(entry.a, &a), (entry.b, &b)] {
            let at = start + slot * numbers.len();
            device.write(bank, at * dtype.block_bytes(), &encode(dtype, numbers)?)?;
        }
        self.write_scale(slot)
    }

    /// Writes all magnitudes of an adapter and the lengths that they are divided by: 1 and 1 where it has none.
    fn write_magnitudes(&mut self, slot: usize, adapter: Option<&Adapter>) -> Result<()> {
        let adapter = adapter.filter(|adapter| adapter.config.use_dora);
        if adapter.is_some() && self.lengths.is_none() {
            self.lengths = Some(Lengths::new(&self.model, self.layout.rank)?);
        }
        let lengths = match (adapter, &mut self.lengths) {
            (Some(adapter), Some(lengths)) => Some(lengths.of(&self.model, adapter)?),
            _ => None,
        };
        // The lengths of one adapter lie as those of a bank with one slot: in the same order.
        let mut at = 0;
        for entry in &self.layout.entries {
            let (mut m, mut norms) = (vec![1f32; entry.outputs], vec![1f32; entry.outputs]);
            let weights = adapter.and_then(|adapter| adapter.modules.get(&entry.module));
            let own = weights.and_then(|weights| weights.magnitude.as_ref());
            if let (Some(magnitude), Some(lengths)) = (own, &lengths) {
                numbers(magnitude, &mut m)?;
                norms.copy_from_slice(&lengths[at..at + entry.outputs]);
            }
            at += entry.outputs.next_multiple_of(STATE_ALIGN);
            let place = (entry.magnitude + slot * entry.outputs) * size_of::<f32>();
            for (name, values) in [(buffers::LORA_MAGNITUDES, &m), (buffers::LORA_NORMS, &norms)] {
                self.model.device.write(&self.bindings[name], place, bytemuck::cast_slice(values))?;
            }
        }
        Ok(())
    }
}

/// One module's A `[rank, inputs]` and B `[outputs, rank]`, padded with zeros; all zeros where the adapter lacks it. The module's
/// own scale goes into B, so that one bank serves adapters with differing scales a module.
fn matrices(entry: &LoraEntry, rank: usize, weights: Option<&LoraWeights>) -> Result<(Vec<f32>, Vec<f32>)> {
    let mut a = vec![0f32; rank * entry.inputs];
    let mut b = vec![0f32; entry.outputs * rank];
    if let Some(weights) = weights {
        let own = weights.a.rows();
        numbers(&weights.a, &mut a[..own * entry.inputs])?;
        let mut narrow = vec![0f32; entry.outputs * own];
        numbers(&weights.b, &mut narrow)?;
        for (wide, narrow) in b.chunks_exact_mut(rank).zip(narrow.chunks_exact(own)) {
            wide.iter_mut().zip(narrow).for_each(|(w, n)| *w = n * weights.scale);
        }
    }
    Ok((a, b))
}

fn no_room() -> Error {
    Error::invalid("this engine was started without room for adapters (max_adapters 0)")
}

fn numbers(tensor: &HostTensor, out: &mut [f32]) -> Result<()> {
    dequantise_row(tensor.dtype, &tensor.data, out)
}

/// `numbers` as bytes of a plain type.
fn encode(dtype: DType, numbers: &[f32]) -> Result<Cow<'_, [u8]>> {
    Ok(match dtype {
        DType::F32 => bytemuck::cast_slice(numbers).into(),
        DType::BF16 => numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        DType::F16 => numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        other => return Err(Error::internal(format!("no adapters of {other}"))),
    })
}

fn check(layout: &LoraLayout, dtype: DType, name: &str, adapter: &Adapter) -> Result<()> {
    adapter.only_low_rank(name)?;
    if adapter.config.use_dora && layout.magnitudes.is_none() {
        return Err(Error::invalid(format!(
            "adapter '{name}' has magnitudes (use_dora), and this engine was started without room for them: start it with the \
             adapter or with --enable-dora, or merge the adapter into the model (runtime merge)"
        )));
    }
    for (module, weights) in &adapter.modules {
        let entry = layout.entries.iter().find(|e| e.module == *module).ok_or_else(|| {
            Error::invalid(format!("adapter '{name}': module '{module}' is not a projection of this model"))
        })?;
        let (rank, inputs) = (weights.a.rows(), weights.a.cols());
        if rank > layout.rank {
            let max = layout.rank;
            return Err(Error::invalid(format!("adapter '{name}': rank {rank} is above the maximum of {max}")));
        }
        if inputs != entry.inputs || weights.b.rows() != entry.outputs || weights.b.cols() != rank {
            return Err(Error::invalid(format!(
                "adapter '{name}': '{module}' has A {:?} and B {:?}, this model needs [r, {}] and [{}, r]",
                weights.a.shape, weights.b.shape, entry.inputs, entry.outputs
            )));
        }
        // A row of another adapter in the same step multiplies them by zero, which must give zero.
        let most = if dtype == DType::F16 { f32::from(f16::MAX) } else { f32::MAX };
        for (half, tensor, scale) in [("A", &weights.a, 1.0), ("B", &weights.b, weights.scale)] {
            let mut values = vec![0f32; tensor.rows() * tensor.cols()];
            numbers(tensor, &mut values)?;
            if let Some(at) = values.iter().position(|v| (v * scale).is_nan() || (v * scale).abs() > most) {
                let (row, column) = (at / tensor.cols(), at % tensor.cols());
                return Err(Error::invalid(format!(
                    "adapter '{name}': lora_{half} of '{module}' has {} at [{row}, {column}], not a finite number in {dtype}",
                    values[at]
                )));
            }
        }
    }
    Ok(())
}
