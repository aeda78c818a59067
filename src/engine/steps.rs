//! Steps on the device: the serving program of each bucket of shapes, compiled once and replayed.

use super::choice::{ChoiceInput, Choices, Chosen, Running};
use super::kv::PAGE;
use crate::backend::{Bindings, Buffer, BufferDesc, Executable, Timing};
use crate::error::{Error, Result};
use crate::format::quant::dequantise_row;
use crate::model::LoadedModel;
use crate::model::decoder::{ServeHead, ServeProgram, ServeShape, buffers, serve_program};
use crate::model::lora::LoraLayout;
use crate::program::cache::row_len;
use crate::tensor::DType;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

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
    /// Rows whose next tokens are wanted.
    pub gather: Vec<u32>,
    /// How the next token of each of them is chosen: temperature, top-k, top-p, min-p.
    pub sampling: Vec<[f32; 4]>,
    /// The number from [0, 1) that it is drawn with.
    pub uniforms: Vec<f32>,
}

/// Sizes that all programs of an engine share.
#[derive(Clone, Copy)]
pub struct StepSizes {
    /// Most rows of a step.
    pub max_rows: usize,
    /// Most sequences in a step.
    pub max_seqs: usize,
    /// Most rows whose logits are computed in a step.
    pub max_gathered: usize,
    /// Longest context.
    pub max_len: usize,
    /// Positions that the cache holds.
    pub kv_rows: usize,
    /// Type of the cache.
    pub kv_dtype: DType,
}

/// What runs steps: the device, or in tests something that is easier to predict.
pub trait Runner {
    /// The sizes that steps must keep to.
    fn sizes(&self) -> &StepSizes;

    /// Begins a step whose next tokens are wanted.
    ///
    /// # Errors
    /// [`Error::Device`] and its like.
    fn launch(&mut self, input: &StepInput) -> Result<()>;

    /// As [`Runner::launch`], but may stop at the deadline: then false, and [`Runner::go_on`] is to be called until it says true.
    /// A step that was not completed may be dropped, and launched anew.
    ///
    /// # Errors
    /// As [`Runner::launch`].
    fn launch_part(&mut self, input: &StepInput, deadline: Instant) -> Result<bool> {
        let _ = deadline;
        self.launch(input).map(|()| true)
    }

    /// Goes on with a step that was begun; true when it is complete.
    ///
    /// # Errors
    /// As [`Runner::launch`].
    fn go_on(&mut self, deadline: Instant) -> Result<bool> {
        let _ = deadline;
        Ok(true)
    }

    /// Gives back what can be made again: compiled programs.
    fn trim(&mut self) {}

    /// Lets the tokens of the first gathered rows of the step that was launched be chosen in another way than by its own draw.
    ///
    /// # Errors
    /// As [`Runner::launch`].
    fn choose(&mut self, input: &StepInput, choice: &ChoiceInput) -> Result<()>;

    /// Waits for the step: the next token of each gathered row.
    ///
    /// # Errors
    /// As [`Runner::launch`].
    fn finish(&mut self) -> Result<Chosen>;

    /// Runs a step of a text; negative log-likelihood (nat) of `labels` (one a row, `u32::MAX`: 0). May stop at the deadline: then
    /// `None`, and the next call for a text goes on with it.
    ///
    /// # Errors
    /// As [`Runner::launch`].
    fn losses(&mut self, input: &StepInput, labels: &[u32], deadline: Option<Instant>) -> Result<Option<Vec<f32>>>;

    /// Runs a step of a text; the last layer's output, after the norm, of the gathered rows. May stop as [`Runner::losses`] does.
    ///
    /// # Errors
    /// As [`Runner::launch`].
    fn hidden(&mut self, input: &StepInput, deadline: Option<Instant>) -> Result<Option<Vec<f32>>>;

    /// Stands for how the cache stores keys and values; 0 where pages cannot be read.
    fn cache_format(&self) -> u64 {
        0
    }

    /// Keys and values of some pages.
    ///
    /// # Errors
    /// As [`Runner::launch`].
    fn read_pages(&self, pages: &[u32]) -> Result<Vec<u8>> {
        let _ = pages;
        Ok(Vec::new())
    }

    /// Puts what [`Runner::read_pages`] gave into other pages.
    ///
    /// # Errors
    /// As [`Runner::launch`]; [`Error::Invalid`] for another number of bytes.
    fn write_pages(&mut self, pages: &[u32], bytes: &[u8]) -> Result<()> {
        let _ = (pages, bytes);
        Ok(())
    }

    /// Prepares one more of the shapes that steps will have; false when all are prepared.
    ///
    /// # Errors
    /// As [`Runner::launch`].
    fn prepare(&mut self) -> Result<bool>;
}

impl StepSizes {
    /// Pages in a sequence's row of the table.
    pub fn pages_per_seq(&self) -> usize {
        self.max_len.div_ceil(PAGE)
    }
}

/// What a step ends in.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Wanted {
    Tokens,
    Losses,
    Hidden,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    rows: usize,
    /// 0 for the program that ends in the loss.
    gathered: usize,
    wanted: Wanted,
    adapters: bool,
    /// Each row is the only one of its sequence.
    apart: bool,
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
    choices: Choices,
    /// The step that was launched, and its gathered rows.
    launched: Option<(Key, usize)>,
    /// Where it goes on.
    next: usize,
    /// Where the step of a text goes on that has stopped.
    text: Option<usize>,
    /// The choice that follows it.
    choosing: Option<Running>,
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
        let mut bindings = model.weights.clone();
        bindings.extend(adapters.iter().map(|(name, buffer)| (name.clone(), buffer.clone())));
        bindings.insert(buffers::ROPE.into(), model.rope_buffer(sizes.max_len)?);
        for layer in 0..c.layers {
            for name in [buffers::key_cache(layer), buffers::value_cache(layer)] {
                let (dtype, cols) = (sizes.kv_dtype, row_len(sizes.kv_dtype, c.kv_heads, c.head_dim));
                let desc = BufferDesc { name: name.clone(), dtype, rows: sizes.kv_rows, cols };
                bindings.insert(name, model.device.allocate(desc)?);
            }
        }
        for name in [buffers::LOGITS, buffers::ADJUSTED] {
            let desc = BufferDesc { name: name.into(), dtype: DType::F32, rows: sizes.max_gathered, cols: c.vocab };
            bindings.insert(name.into(), model.device.allocate(desc)?);
        }
        let (compiled, choices) = (HashMap::new(), Choices::default());
        Ok(Self {
            model,
            sizes,
            bindings,
            lora,
            compiled,
            choices,
            launched: None,
            next: 0,
            text: None,
            choosing: None,
        })
    }

    /// Each layer's keys, then its values, and the bytes of a page of them.
    fn caches(&self) -> Result<Vec<(&Buffer, usize)>> {
        let names = (0..self.model.config().layers).flat_map(|l| [buffers::key_cache(l), buffers::value_cache(l)]);
        names
            .map(|name| {
                let buffer = self.bindings.get(&name).ok_or_else(|| Error::internal(format!("'{name}' is lost")))?;
                let desc = buffer.desc();
                Ok((buffer, desc.bytes() / desc.rows.max(1) * PAGE))
            })
            .collect()
    }

    /// Runs a step that ends in tokens; what each launch took.
    pub fn profile(&mut self, input: &StepInput) -> Result<Vec<Timing>> {
        let key = self.key(input, Wanted::Tokens);
        self.run(key, input, None)?.executable.profile()
    }

    /// The bucket of a step. Rows are live up to a count that the device reads, so a larger bucket costs little; few of them
    /// mean few recordings.
    fn key(&self, input: &StepInput, wanted: Wanted) -> Key {
        let rows = input.ids.len().next_power_of_two().min(self.sizes.max_rows);
        let gathered = match (wanted, input.gather.len()) {
            (Wanted::Losses, _) => 0,
            (_, 0 | 1) => 1,
            // A step of answers alone, one row each.
            (_, n) if n == input.ids.len() => rows.min(self.sizes.max_gathered),
            _ => self.sizes.max_gathered,
        };
        let adapters = input.adapters.iter().any(|slot| *slot != u32::MAX);
        let apart = input.table.len() == input.ids.len() * self.sizes.pages_per_seq();
        Key { rows, gathered, wanted, adapters, apart }
    }

    fn get(&mut self, key: Key) -> Result<&mut Compiled> {
        match self.compiled.entry(key) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let lora = self.lora.as_ref().filter(|_| key.adapters);
                Ok(entry.insert(compile(&self.model, &self.sizes, key, lora, &self.bindings)?))
            }
        }
    }

    fn run(&mut self, key: Key, input: &StepInput, labels: Option<&[u32]>) -> Result<&mut Compiled> {
        let c = self.write(key, input, labels)?;
        c.executable.run()?;
        Ok(c)
    }

    /// Runs the step of a text, or goes on with it; `None` where the deadline came first.
    fn run_text(
        &mut self,
        key: Key,
        input: &StepInput,
        labels: Option<&[u32]>,
        deadline: Option<Instant>,
    ) -> Result<Option<&mut Compiled>> {
        let first = self.text.take();
        let Some(deadline) = deadline else { return self.run(key, input, labels).map(Some) };
        let c = match first {
            Some(_) => self.get(key)?,
            None => self.write(key, input, labels)?,
        };
        let next = c.executable.run_part(first.unwrap_or(0), deadline)?;
        self.text = next;
        match next {
            Some(_) => Ok(None),
            None => self.get(key).map(Some),
        }
    }

    /// The step's program with its inputs in place.
    fn write(&mut self, key: Key, input: &StepInput, labels: Option<&[u32]>) -> Result<&mut Compiled> {
        let seqs = input.table.len() / self.sizes.pages_per_seq();
        let c = self.get(key)?;
        let counts = [input.ids.len() as u32, input.gather.len() as u32, seqs as u32, 0];
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
            (ServeHead::Hidden { rows, .. }, None) => write(rows, &input.gather)?,
            (ServeHead::Tokens { rows, sampling, uniforms, .. }, None) => {
                write(rows, &input.gather)?;
                e.write(sampling, bytemuck::cast_slice(&input.sampling))?;
                e.write(uniforms, bytemuck::cast_slice(&input.uniforms))?;
            }
            (ServeHead::Loss { labels, .. }, Some(wanted)) => write(labels, wanted)?,
            _ => return Err(Error::internal("the head of the step does not fit what is asked for")),
        }
        Ok(c)
    }

    /// The shapes of steady serving: answers alone, and answers with prompts; with adapters, too, where there is room for them.
    fn usual(&self) -> impl Iterator<Item = Key> {
        let (max_rows, max_gathered) = (self.sizes.max_rows, self.sizes.max_gathered);
        // Of an answer whose next tokens are guessed several rows are gathered.
        let guesses = max_gathered > self.sizes.max_seqs;
        let powers = std::iter::successors(Some(1), move |n| (*n < max_rows).then(|| (n * 2).min(max_rows)));
        let with = [false, true].into_iter().take(1 + usize::from(self.lora.is_some()));
        let keys = with.flat_map(move |adapters| powers.clone().map(move |rows| (adapters, rows)));
        let keys = keys.flat_map(move |(adapters, rows)| {
            let answers = rows.min(max_gathered);
            let shapes =
                [(answers, answers == rows), (1, rows == 1), (max_gathered, max_gathered == rows), (answers, false)];
            let shapes = shapes.into_iter().take(if guesses { 4 } else { 3 });
            shapes.map(move |(gathered, apart)| Key { rows, gathered, wanted: Wanted::Tokens, adapters, apart })
        });
        keys.filter(|key| key.gathered <= key.rows)
    }
}

impl Runner for Steps {
    fn sizes(&self) -> &StepSizes {
        &self.sizes
    }

    fn launch(&mut self, input: &StepInput) -> Result<()> {
        let key = self.key(input, Wanted::Tokens);
        (self.launched, self.choosing) = (None, None);
        self.run(key, input, None)?;
        self.launched = Some((key, input.gather.len()));
        Ok(())
    }

    fn launch_part(&mut self, input: &StepInput, deadline: Instant) -> Result<bool> {
        let key = self.key(input, Wanted::Tokens);
        self.choosing = None;
        self.write(key, input, None)?;
        self.launched = Some((key, input.gather.len()));
        self.next = 0;
        self.go_on(deadline)
    }

    fn go_on(&mut self, deadline: Instant) -> Result<bool> {
        let compiled = self.launched.and_then(|(key, _)| self.compiled.get_mut(&key));
        let Some(c) = compiled else { return Err(Error::internal("no step was launched")) };
        match c.executable.run_part(self.next, deadline)? {
            Some(next) => {
                self.next = next;
                Ok(false)
            }
            None => Ok(true),
        }
    }

    fn trim(&mut self) {
        (self.launched, self.text) = (None, None);
        self.compiled.clear();
        self.choices = Choices::default();
    }

    fn choose(&mut self, input: &StepInput, choice: &ChoiceInput) -> Result<()> {
        let draws = (&input.sampling[..], &input.uniforms[..]);
        let running = self.choices.run(&self.model, &self.bindings, self.sizes.max_gathered, choice, draws)?;
        self.choosing = Some(running);
        Ok(())
    }

    fn finish(&mut self) -> Result<Chosen> {
        let launched = self.launched.take().and_then(|(key, gathered)| Some((self.compiled.get_mut(&key)?, gathered)));
        let Some((c, gathered)) = launched else { return Err(Error::internal("no step was launched")) };
        let ServeHead::Tokens { tokens, .. } = c.ids.head else {
            return Err(Error::internal("a step without tokens"));
        };
        let mut chosen = Chosen::tokens(vec![0; gathered]);
        let choosing = self.choosing.take();
        if gathered > choosing.as_ref().map_or(0, Running::rows) {
            c.executable.read(tokens, bytemuck::cast_slice_mut(&mut chosen.tokens))?;
        }
        if let Some(choosing) = choosing {
            self.choices.read(&choosing, &mut chosen)?;
        }
        Ok(chosen)
    }

    fn losses(&mut self, input: &StepInput, labels: &[u32], deadline: Option<Instant>) -> Result<Option<Vec<f32>>> {
        let key = self.key(input, Wanted::Losses);
        let Some(c) = self.run_text(key, input, Some(labels), deadline)? else { return Ok(None) };
        let ServeHead::Loss { loss, .. } = c.ids.head else { return Err(Error::internal("a step without loss")) };
        let mut numbers = vec![0f32; labels.len()];
        c.executable.read(loss, bytemuck::cast_slice_mut(&mut numbers))?;
        Ok(Some(numbers))
    }

    fn hidden(&mut self, input: &StepInput, deadline: Option<Instant>) -> Result<Option<Vec<f32>>> {
        let key = self.key(input, Wanted::Hidden);
        let mut numbers = vec![0f32; input.gather.len() * self.model.config().hidden];
        let Some(c) = self.run_text(key, input, None, deadline)? else { return Ok(None) };
        let ServeHead::Hidden { hidden, .. } = c.ids.head else { return Err(Error::internal("a step without end")) };
        let dtype = c.executable.program().decl(hidden).dtype;
        let mut bytes = vec![0; dtype.bytes_for(numbers.len()).unwrap_or(0)];
        c.executable.read(hidden, &mut bytes)?;
        dequantise_row(dtype, &bytes, &mut numbers)?;
        Ok(Some(numbers))
    }

    fn cache_format(&self) -> u64 {
        let c = self.model.config();
        let mut hash = DefaultHasher::new();
        (PAGE, c.layers, c.kv_heads, c.head_dim, self.sizes.kv_dtype.to_string()).hash(&mut hash);
        hash.finish() | 1
    }

    fn read_pages(&self, pages: &[u32]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for (buffer, size) in self.caches()? {
            for page in pages {
                let start = bytes.len();
                bytes.resize(start + size, 0);
                self.model.device.read(buffer, *page as usize * size, &mut bytes[start..])?;
            }
        }
        Ok(bytes)
    }

    fn write_pages(&mut self, pages: &[u32], bytes: &[u8]) -> Result<()> {
        let caches = self.caches()?;
        let wanted: usize = caches.iter().map(|(_, size)| size * pages.len()).sum();
        if wanted != bytes.len() {
            return Err(Error::invalid(format!("{} bytes of keys and values, expected {wanted}", bytes.len())));
        }
        let mut rest = bytes;
        for (buffer, size) in caches {
            for page in pages {
                let (own, others) = rest.split_at(size);
                self.model.device.write(buffer, *page as usize * size, own)?;
                rest = others;
            }
        }
        Ok(())
    }

    fn prepare(&mut self) -> Result<bool> {
        let Some(key) = self.usual().find(|key| !self.compiled.contains_key(key)) else { return Ok(false) };
        self.get(key)?;
        Ok(true)
    }
}

fn compile(
    model: &LoadedModel,
    sizes: &StepSizes,
    key: Key,
    lora: Option<&LoraLayout>,
    bindings: &Bindings,
) -> Result<Compiled> {
    let shape = ServeShape {
        rows: key.rows,
        gathered: key.gathered,
        seqs: sizes.max_seqs,
        pages: sizes.pages_per_seq(),
        page: PAGE,
        kv_rows: sizes.kv_rows,
        kv_dtype: sizes.kv_dtype,
        hidden: key.wanted == Wanted::Hidden,
        apart: key.apart,
    };
    let mut ids = model.with_shape(sizes.max_len, |m| serve_program(m, &shape, lora))?;
    let program = Arc::new(std::mem::replace(&mut ids.program, crate::program::Builder::new("").finish()));
    let executable = model.device.compile(program, bindings)?;
    Ok(Compiled { ids, executable })
}
