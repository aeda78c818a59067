//! The adapter bank: which adapter lies in which slot of the flat device buffer, and who is using it.

use crate::backend::{Bindings, BufferDesc};
use crate::error::{Error, Result};
use crate::format::peft::{Adapter, LoraWeights};
use crate::format::quant::dequantise_row;
use crate::model::LoadedModel;
use crate::model::decoder::buffers;
use crate::model::lora::{LoraEntry, LoraLayout, Projection};
use crate::tensor::{DType, HostTensor};
use std::sync::Arc;

/// Slots on the device. A request holds its slot by reference, so a replaced adapter stays until its last
/// request ends.
pub struct AdapterBank {
    model: Arc<LoadedModel>,
    layout: LoraLayout,
    bindings: Bindings,
    slots: Vec<Option<Arc<Slot>>>,
}

/// One loaded adapter.
pub struct Slot {
    /// Position in the bank.
    pub index: u32,
    name: String,
    /// False once replaced or unloaded: no new request gets it.
    current: std::sync::atomic::AtomicBool,
}

impl Slot {
    fn is_current(&self) -> bool {
        self.current.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn retire(&self) {
        self.current.store(false, std::sync::atomic::Ordering::Relaxed);
    }
}

impl AdapterBank {
    /// A bank of `slots` adapters of rank up to `rank` on all projections.
    pub fn new(model: Arc<LoadedModel>, slots: usize, rank: usize) -> Result<Self> {
        let layout = LoraLayout::new(model.config(), rank, slots, &Projection::ALL);
        let mut bindings = Bindings::new();
        for (name, cols) in [(buffers::LORA, layout.len), (buffers::LORA_SCALES, slots)] {
            let desc = BufferDesc { name: name.into(), dtype: DType::F32, rows: 1, cols };
            bindings.insert(name.into(), model.device.allocate(desc)?);
        }
        Ok(Self { model, layout, bindings, slots: vec![None; slots] })
    }

    /// How adapters lie in the buffer.
    pub fn layout(&self) -> &LoraLayout {
        &self.layout
    }

    /// The buffers that programs bind.
    pub fn bindings(&self) -> &Bindings {
        &self.bindings
    }

    /// The adapter of that name.
    pub fn get(&self, name: &str) -> Option<Arc<Slot>> {
        self.slots.iter().flatten().find(|slot| slot.name == name && slot.is_current()).cloned()
    }

    /// Puts an adapter in a free slot; an older one of that name is retired.
    pub fn load(&mut self, name: &str, adapter: &Adapter) -> Result<()> {
        self.check(name, adapter)?;
        self.sweep();
        let old = self.get(name);
        // An idle older version gives its slot to the new one even when the bank is full.
        let reusable = old.as_ref().filter(|slot| Arc::strong_count(slot) == 2).map(|slot| slot.index as usize);
        let index = self.slots.iter().position(Option::is_none).or(reusable).ok_or_else(|| {
            let n = self.slots.len();
            Error::invalid(format!(
                "adapter '{name}': all {n} adapter slots are in use: unload one or raise --max-loras"
            ))
        })?;
        self.write(index, adapter)?;
        if let Some(old) = old {
            old.retire();
        }
        let slot = Slot { index: index as u32, name: name.into(), current: true.into() };
        self.slots[index] = Some(Arc::new(slot));
        self.sweep();
        Ok(())
    }

    /// Retires an adapter.
    pub fn unload(&mut self, name: &str) -> Result<()> {
        let slot = self.get(name).ok_or_else(|| Error::invalid(format!("no adapter '{name}' is loaded")))?;
        slot.retire();
        drop(slot);
        self.sweep();
        Ok(())
    }

    /// Frees slots whose adapter is retired and unused.
    fn sweep(&mut self) {
        for slot in &mut self.slots {
            if slot.as_ref().is_some_and(|s| !s.is_current() && Arc::strong_count(s) == 1) {
                *slot = None;
            }
        }
    }

    fn check(&self, name: &str, adapter: &Adapter) -> Result<()> {
        for (module, weights) in &adapter.modules {
            let entry = self.layout.entries.iter().find(|e| e.module == *module).ok_or_else(|| {
                Error::invalid(format!("adapter '{name}': module '{module}' is not a projection of this model"))
            })?;
            let (rank, inputs) = (weights.a.rows(), weights.a.cols());
            if rank > self.layout.rank {
                let max = self.layout.rank;
                return Err(Error::invalid(format!("adapter '{name}': rank {rank} is above the maximum of {max}")));
            }
            if inputs != entry.inputs || weights.b.rows() != entry.outputs || weights.b.cols() != rank {
                return Err(Error::invalid(format!(
                    "adapter '{name}': '{module}' has A {:?} and B {:?}, this model needs [r, {}] and [{}, r]",
                    weights.a.shape, weights.b.shape, entry.inputs, entry.outputs
                )));
            }
        }
        Ok(())
    }

    fn write(&self, slot: usize, adapter: &Adapter) -> Result<()> {
        for entry in &self.layout.entries {
            self.write_module(slot, entry, adapter.modules.get(&entry.module))?;
        }
        Ok(())
    }

    /// Writes one module's A and B, padded with zeros to the bank's rank; all zeros where the adapter lacks it.
    /// The module's own scale goes into B, so that one bank serves adapters with differing scales a module.
    fn write_module(&self, slot: usize, entry: &LoraEntry, weights: Option<&LoraWeights>) -> Result<()> {
        let rank = self.layout.rank;
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
        let bank = &self.bindings[buffers::LORA];
        let device = &self.model.device;
        device.write(bank, (entry.a + slot * a.len()) * 4, bytemuck::cast_slice(&a))?;
        device.write(bank, (entry.b + slot * b.len()) * 4, bytemuck::cast_slice(&b))?;
        device.write(&self.bindings[buffers::LORA_SCALES], slot * 4, bytemuck::bytes_of(&1f32))
    }
}

fn numbers(tensor: &HostTensor, out: &mut [f32]) -> Result<()> {
    dequantise_row(tensor.dtype, &tensor.data, out)
}
