//! Steps on the device: the serving program of each bucket of shapes, compiled once and replayed.

use super::kv::PAGE;
use crate::backend::{Bindings, BufferDesc, Executable};
use crate::error::{Error, Result};
use crate::model::LoadedModel;
use crate::model::decoder::{ServeHead, ServeProgram, ServeShape, buffers, serve_program};
use crate::model::lora::LoraLayout;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// The rows of one step.
#[derive(Default)]
pub struct StepInput {
    /// Token of each row.
    pub ids: Vec<u32>,
    /// Its position.
    pub positions: Vec<u32>,
    /// Which of the step's sequences it belongs to.
    pub seqs: Vec<u32>,
    /// Cache row of its key and value.
    pub slots: Vec<u32>,
    /// Adapter slot of each row; `u32::MAX` for none.
    pub adapters: Vec<u32>,
    /// Page numbers, `pages_per_seq` for each sequence of the step.
    pub table: Vec<u32>,
    /// Rows whose logits or next tokens are wanted.
    pub gather: Vec<u32>,
    /// How the next token of each of them is chosen: temperature, top-k, top-p, min-p.
    pub sampling: Vec<[f32; 4]>,
    /// The number from [0, 1) that it is drawn with.
    pub uniforms: Vec<f32>,
}

/// Sizes that all programs of an engine share.
pub struct StepSizes {
    /// Most rows of a step.
    pub max_rows: usize,
    /// Most sequences in a step.
    pub max_seqs: usize,
    /// Longest context.
    pub max_len: usize,
    /// Positions that the cache holds.
    pub kv_rows: usize,
}

/// What a step ends in.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Wanted {
    Logits,
    Tokens,
    Losses,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    rows: usize,
    /// 0 for the program that ends in the loss.
    gathered: usize,
    wanted: Wanted,
    adapters: bool,
}

struct Compiled {
    ids: ServeProgram,
    executable: Box<dyn Executable>,
}

/// Compiled programs and the buffers that they share.
pub struct Steps {
    model: Arc<LoadedModel>,
    sizes: StepSizes,
    bindings: Bindings,
    lora: Option<LoraLayout>,
    compiled: HashMap<Key, Compiled>,
    logits: Vec<f32>,
}

impl Steps {
    /// Allocates the cache. `lora` and the buffers in `adapters` are those of the adapter bank.
    pub fn new(
        model: Arc<LoadedModel>,
        sizes: StepSizes,
        lora: Option<LoraLayout>,
        adapters: &Bindings,
    ) -> Result<Self> {
        let c = model.config();
        let dtype = model.device.limits().kv_dtype;
        let mut bindings = model.weights.clone();
        bindings.extend(adapters.iter().map(|(name, buffer)| (name.clone(), buffer.clone())));
        bindings.insert(buffers::ROPE.into(), model.rope_buffer(sizes.max_len)?);
        for layer in 0..c.layers {
            for name in [buffers::key_cache(layer), buffers::value_cache(layer)] {
                let desc = BufferDesc { name: name.clone(), dtype, rows: sizes.kv_rows, cols: c.kv_heads * c.head_dim };
                bindings.insert(name, model.device.allocate(desc)?);
            }
        }
        Ok(Self { model, sizes, bindings, lora, compiled: HashMap::new(), logits: Vec::new() })
    }

    /// Pages in a sequence's row of the table.
    pub fn pages_per_seq(&self) -> usize {
        self.sizes.max_len.div_ceil(PAGE)
    }

    /// Most rows of a step.
    pub fn max_rows(&self) -> usize {
        self.sizes.max_rows
    }

    /// Runs a step; logits of the gathered rows, `vocab` numbers each, ready to be changed in place.
    pub fn logits(&mut self, input: &StepInput) -> Result<&mut [f32]> {
        let mut numbers = std::mem::take(&mut self.logits);
        numbers.resize(input.gather.len() * self.model.config().vocab, 0.0);
        let c = self.run(input, Wanted::Logits, None)?;
        let ServeHead::Logits { logits, .. } = c.ids.head else {
            return Err(Error::internal("a step without logits"));
        };
        if !numbers.is_empty() {
            c.executable.read(logits, bytemuck::cast_slice_mut(&mut numbers))?;
        }
        self.logits = numbers;
        Ok(&mut self.logits)
    }

    /// Runs a step; next tokens of the gathered rows.
    pub fn tokens(&mut self, input: &StepInput) -> Result<Vec<u32>> {
        let mut ids = vec![0; input.gather.len()];
        let c = self.run(input, Wanted::Tokens, None)?;
        let ServeHead::Tokens { tokens, .. } = c.ids.head else {
            return Err(Error::internal("a step without tokens"));
        };
        if !ids.is_empty() {
            c.executable.read(tokens, bytemuck::cast_slice_mut(&mut ids))?;
        }
        Ok(ids)
    }

    /// Runs a step; negative log-likelihood (nat) of `labels` (one a row, `u32::MAX`: 0).
    pub fn losses(&mut self, input: &StepInput, labels: &[u32]) -> Result<Vec<f32>> {
        let c = self.run(input, Wanted::Losses, Some(labels))?;
        let ServeHead::Loss { loss, .. } = c.ids.head else { return Err(Error::internal("a step without loss")) };
        let mut numbers = vec![0f32; labels.len()];
        c.executable.read(loss, bytemuck::cast_slice_mut(&mut numbers))?;
        Ok(numbers)
    }

    fn key(&self, input: &StepInput, wanted: Wanted) -> Key {
        let rows = input.ids.len().next_power_of_two().min(self.sizes.max_rows);
        let gathered = match wanted {
            Wanted::Losses => 0,
            _ => input.gather.len().next_power_of_two().min(self.sizes.max_seqs.next_power_of_two()),
        };
        Key { rows, gathered, wanted, adapters: input.adapters.iter().any(|slot| *slot != u32::MAX) }
    }

    fn run(&mut self, input: &StepInput, wanted: Wanted, labels: Option<&[u32]>) -> Result<&mut Compiled> {
        let key = self.key(input, wanted);
        let pages = self.pages_per_seq();
        let c = match self.compiled.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let lora = self.lora.as_ref().filter(|_| key.adapters);
                entry.insert(compile(&self.model, &self.sizes, pages, key, lora, &self.bindings)?)
            }
        };
        let counts = [input.ids.len() as u32, input.gather.len() as u32, (input.table.len() / pages) as u32, 0];
        let e = &mut c.executable;
        let counts_id = e.program().counts;
        let mut write = |id, data: &[u32]| e.write(id, bytemuck::cast_slice(data));
        write(counts_id, &counts)?;
        write(c.ids.ids, &input.ids)?;
        write(c.ids.positions, &input.positions)?;
        write(c.ids.seqs, &input.seqs)?;
        write(c.ids.slots, &input.slots)?;
        write(c.ids.table, &input.table)?;
        if let Some(adapters) = c.ids.adapters {
            write(adapters, &input.adapters)?;
        }
        match (c.ids.head, labels) {
            (ServeHead::Logits { rows, .. }, None) => write(rows, &input.gather)?,
            (ServeHead::Tokens { rows, sampling, uniforms, .. }, None) => {
                write(rows, &input.gather)?;
                e.write(sampling, bytemuck::cast_slice(&input.sampling))?;
                e.write(uniforms, bytemuck::cast_slice(&input.uniforms))?;
            }
            (ServeHead::Loss { labels, .. }, Some(wanted)) => write(labels, wanted)?,
            _ => return Err(Error::internal("the head of the step does not fit what is asked for")),
        }
        e.run()?;
        Ok(c)
    }
}

fn compile(
    model: &LoadedModel,
    sizes: &StepSizes,
    pages: usize,
    key: Key,
    lora: Option<&LoraLayout>,
    bindings: &Bindings,
) -> Result<Compiled> {
    let shape = ServeShape {
        rows: key.rows,
        gathered: key.gathered,
        seqs: sizes.max_seqs,
        pages,
        page: PAGE,
        kv_rows: sizes.kv_rows,
        kv_dtype: model.device.limits().kv_dtype,
        sample: key.wanted == Wanted::Tokens,
    };
    let mut ids = model.with_shape(sizes.max_len, |m| serve_program(m, &shape, lora))?;
    let program = Arc::new(std::mem::replace(&mut ids.program, crate::program::Builder::new("").finish()));
    let executable = model.device.compile(program, bindings)?;
    Ok(Compiled { ids, executable })
}
