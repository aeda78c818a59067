//! A program bound to the host: operands resolved once, ops run in order.

use super::args::{Args, Operand, split};
use super::cut::Cut;
use super::device::{Storage, poisoned, zeroed};
use super::ops;
use super::weight::Weight;
use crate::backend::{Bindings, Buffer, Executable, only_f32_activations};
use crate::error::{Error, Result};
use crate::program::{Live, MemoryPlan, Place, Program, TensorId, plan};
use crate::tensor::DType;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Where the numbers of an operand are.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Pool {
    Arena(usize),
    State(usize),
    Own(usize),
    Weight(usize),
}

pub(super) struct CpuExecutable {
    program: Arc<Program>,
    plan: MemoryPlan,
    arenas: Vec<Vec<f32>>,
    /// Inputs and outputs, indexed by tensor; empty for all others.
    own: Vec<Vec<f32>>,
    /// Where the op that was begun goes on.
    cut: Cut,
    /// Its number.
    begun: usize,
    states: Vec<Buffer>,
    state_index: HashMap<String, usize>,
    weights: HashMap<usize, Buffer>,
}

/// What an op knows about its step besides its operands.
pub(super) struct Step<'a> {
    pub program: &'a Program,
    /// Dropout seed of this step.
    pub seed: u32,
    /// Sequences of this step.
    pub sequences: usize,
}

impl Step<'_> {
    /// Type of a tensor.
    pub fn dtype(&self, id: TensorId) -> DType {
        self.program.decl(id).dtype
    }

    /// Elements in a row of a tensor.
    pub fn cols(&self, id: TensorId) -> usize {
        self.program.decl(id).cols
    }
}

/// Alignment of intermediates in the arena, in bytes: a cache line.
const ALIGN: usize = 64;

impl CpuExecutable {
    pub(super) fn new(program: Arc<Program>, bindings: &Bindings) -> Result<Self> {
        only_f32_activations("cpu", &program)?;
        let plan = plan(&program, ALIGN, usize::MAX)?;
        let arenas = plan.arenas.iter().map(|bytes| zeroed("the arena", bytes / 4)).collect::<Result<_>>()?;
        let mut me = Self {
            plan,
            arenas,
            own: vec![Vec::new(); program.tensors.len()],
            cut: Cut::default(),
            begun: 0,
            states: Vec::new(),
            state_index: HashMap::new(),
            weights: HashMap::new(),
            program: program.clone(),
        };
        for id in program.ids() {
            me.bind(id, bindings)?;
        }
        Ok(me)
    }

    fn bind(&mut self, id: TensorId, bindings: &Bindings) -> Result<()> {
        let decl = self.program.decl(id);
        let find = |name: &str| {
            bindings.get(name).cloned().ok_or_else(|| Error::internal(format!("no buffer is bound to '{name}'")))
        };
        match &decl.place {
            Place::Temp => {}
            Place::Input | Place::Output => self.own[id.index()] = zeroed(&decl.name, decl.len())?,
            Place::Weight => {
                let buffer = find(&decl.name)?;
                let desc = buffer.desc();
                if (desc.rows, desc.cols, desc.dtype) != (decl.rows, decl.cols, decl.dtype) {
                    return Err(Error::internal(format!("weight '{}' does not match the program", decl.name)));
                }
                self.weights.insert(id.index(), buffer);
            }
            Place::State { buffer: name, offset } => {
                let buffer = find(name)?;
                let desc = buffer.desc();
                if decl.dtype.is_code() != desc.dtype.is_code() || offset + decl.len() > desc.rows * desc.cols {
                    return Err(Error::internal(format!("'{}' lies outside buffer '{name}'", decl.name)));
                }
                if !self.state_index.contains_key(name) {
                    self.state_index.insert(name.clone(), self.states.len());
                    self.states.push(buffer);
                }
            }
        }
        Ok(())
    }

    fn counts(&self) -> Result<[usize; 4]> {
        let counts: &[u32] = bytemuck::cast_slice(&self.own[self.program.counts.index()]);
        match counts {
            [tokens, gathered, seqs, seed] => {
                Ok([*tokens as usize, *gathered as usize, *seqs as usize, *seed as usize])
            }
            _ => Err(Error::internal("counts must hold four numbers")),
        }
    }

    /// The pool of a tensor and its live elements in it, counted in f32s.
    fn locate(&self, id: TensorId, counts: [usize; 4]) -> Result<(Pool, Range<usize>)> {
        let decl = self.program.decl(id);
        let rows = match decl.live {
            Live::All => decl.rows,
            Live::Tokens => counts[0],
            Live::Gathered => counts[1],
        };
        if rows > decl.rows {
            return Err(Error::internal(format!("{rows} rows do not fit the {} of '{}'", decl.rows, decl.name)));
        }
        // Four codes of a cache lie in an f32.
        let per = if decl.dtype.is_code() { 4 } else { 1 };
        let len = rows * decl.cols / per;
        match &decl.place {
            Place::Weight => Ok((Pool::Weight(id.index()), 0..0)),
            Place::Input | Place::Output => Ok((Pool::Own(id.index()), 0..len)),
            Place::State { buffer, offset } => {
                let index = self.state_index.get(buffer).copied();
                let index = index.ok_or_else(|| Error::internal(format!("'{buffer}' is not bound")))?;
                Ok((Pool::State(index), offset / per..offset / per + len))
            }
            Place::Temp => {
                let slot = self.plan.slot(id);
                let slot = slot.ok_or_else(|| Error::internal(format!("'{}' has no place", decl.name)))?;
                Ok((Pool::Arena(slot.arena), slot.offset / 4..slot.offset / 4 + len))
            }
        }
    }

    fn run_node(&mut self, index: usize, counts: [usize; 4], cut: &mut Cut) -> Result<()> {
        let program = self.program.clone();
        let op = &program.nodes[index].op;
        let located: Vec<(Pool, Range<usize>)> =
            op.operands().iter().map(|(id, _)| self.locate(*id, counts)).collect::<Result<_>>()?;
        let weights: Vec<Option<&Weight>> = located
            .iter()
            .map(|(pool, _)| match pool {
                Pool::Weight(tensor) => weight(&self.weights[tensor]).map(Some),
                _ => Ok(None),
            })
            .collect::<Result<_>>()?;
        let mut operands: Vec<Option<Operand>> = weights.into_iter().map(|w| w.map(Operand::Weight)).collect();
        let ranges = |pool: Pool| -> Vec<(usize, Range<usize>)> {
            let of_pool = located.iter().enumerate().filter(|(_, (p, _))| *p == pool);
            of_pool.map(|(i, (_, range))| (i, range.clone())).collect()
        };
        let mut pieces = Vec::with_capacity(operands.len());
        for (arena, numbers) in self.arenas.iter_mut().enumerate() {
            pieces.extend(split(numbers, ranges(Pool::Arena(arena)))?);
        }
        for (tensor, numbers) in self.own.iter_mut().enumerate() {
            if located.iter().any(|(p, _)| *p == Pool::Own(tensor)) {
                pieces.extend(split(numbers, ranges(Pool::Own(tensor)))?);
            }
        }
        let mut guards = Vec::new();
        for (state, buffer) in self.states.iter().enumerate() {
            if located.iter().any(|(p, _)| *p == Pool::State(state)) {
                let Storage::Numbers(numbers) = buffer.inner::<Storage>()? else {
                    return Err(Error::internal(format!("State buffer '{}' is a weight", buffer.desc().name)));
                };
                guards.push((state, numbers.write().map_err(poisoned)?));
            }
        }
        for (state, guard) in &mut guards {
            pieces.extend(split(guard, ranges(Pool::State(*state)))?);
        }
        for (position, piece) in pieces {
            operands[position] = Some(Operand::Numbers(piece));
        }
        let args = Args::new(op.name(), operands.into_iter().flatten().collect());
        let step = Step { program: &program, seed: counts[3] as u32, sequences: counts[2] };
        ops::run(op, args, &step, cut)
    }

    /// Runs from a number on, as [`Executable::run_part`] counts: ops first, then units of an op.
    fn run_from(&mut self, first: usize, deadline: Option<Instant>) -> Result<Option<usize>> {
        let counts = self.counts()?;
        let nodes = self.program.nodes.len().max(1);
        let (index, unit) = (first % nodes, first / nodes);
        if unit == 0 {
            self.cut = Cut::default();
        } else if (self.begun, self.cut.next()) != (index, unit) {
            return Err(Error::internal(format!("'{}' cannot go on with number {first}", self.program.name)));
        }
        // On a pool thread from the start: handing each op over from outside costs two thread switches, 300 times a
        // token.
        let mut cut = std::mem::take(&mut self.cut);
        rayon::scope(|_| {
            for index in index..self.program.nodes.len() {
                cut.go_on(deadline);
                self.run_node(index, counts, &mut cut)?;
                if let Some(unit) = cut.end() {
                    (self.cut, self.begun) = (cut, index);
                    return Ok(Some(index + nodes * unit));
                }
                if index + 1 < self.program.nodes.len() && deadline.is_some_and(|at| Instant::now() >= at) {
                    return Ok(Some(index + 1));
                }
            }
            Ok(None)
        })
    }
}

fn weight(buffer: &Buffer) -> Result<&Weight> {
    match buffer.inner::<Storage>()? {
        Storage::Weight(weight) => Ok(weight),
        Storage::Numbers(_) => Err(Error::internal(format!("'{}' is not a weight", buffer.desc().name))),
    }
}

impl Executable for CpuExecutable {
    fn program(&self) -> &Program {
        &self.program
    }

    fn arena_bytes(&self) -> usize {
        self.plan.bytes()
    }

    fn write(&mut self, id: TensorId, data: &[u8]) -> Result<()> {
        let decl = self.program.decl(id);
        let own = bytemuck::cast_slice_mut::<f32, u8>(&mut self.own[id.index()]);
        if decl.place != Place::Input || data.len() > own.len() {
            return Err(Error::internal(format!("{} bytes do not fit input '{}'", data.len(), decl.name)));
        }
        own[..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        self.run_from(0, None).map(|_| ())
    }

    fn run_part(&mut self, first: usize, deadline: Instant) -> Result<Option<usize>> {
        self.run_from(first, Some(deadline))
    }

    fn read(&mut self, id: TensorId, out: &mut [u8]) -> Result<()> {
        let decl = self.program.decl(id);
        let own = bytemuck::cast_slice::<f32, u8>(&self.own[id.index()]);
        if decl.place != Place::Output || out.len() > own.len() {
            return Err(Error::internal(format!("{} bytes do not fit output '{}'", out.len(), decl.name)));
        }
        out.copy_from_slice(&own[..out.len()]);
        Ok(())
    }
}
