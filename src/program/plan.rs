//! One memory plan, shared by all backends: every intermediate gets an offset in an arena from its lifetime.
//!
//! Greedy by size (Pisarchyk and Lee, <https://arxiv.org/abs/2001.03288>): largest tensors first, each at the lowest
//! offset where it overlaps nothing that lives at the same time.

use super::{Place, Program, TensorId};
use crate::error::{Error, Result};

/// Where an intermediate lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Which arena.
    pub arena: usize,
    /// Bytes from its start.
    pub offset: usize,
    /// Length in bytes, without padding.
    pub bytes: usize,
}

/// The placement of all intermediates of one program.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    /// Indexed by tensor; `None` for everything that is not a used intermediate.
    pub slots: Vec<Option<Slot>>,
    /// Bytes of each arena. One, unless a single buffer of the device is too small.
    pub arenas: Vec<usize>,
    /// Most bytes that are alive at one time: the floor for any placement.
    pub live_peak: usize,
}

impl MemoryPlan {
    /// Bytes of all arenas.
    pub fn bytes(&self) -> usize {
        self.arenas.iter().sum()
    }

    /// The slot of a tensor that is known to be an intermediate.
    pub fn slot(&self, id: TensorId) -> Option<Slot> {
        self.slots.get(id.index()).copied().flatten()
    }
}

struct Lifetime {
    id: TensorId,
    bytes: usize,
    first: usize,
    last: usize,
}

/// Places every intermediate of `program` at multiples of `align` bytes, in arenas of at most `max_arena` bytes.
///
/// # Errors
/// [`Error::OutOfMemory`] where one tensor alone is larger than an arena may be.
pub fn plan(program: &Program, align: usize, max_arena: usize) -> Result<MemoryPlan> {
    let one_by_one: Vec<usize> = (0..program.nodes.len()).collect();
    plan_groups(program, &one_by_one, align, max_arena)
}

/// [`plan`] for a device that runs some ops together: `groups[i]` is the group of op i, counted from 0 in order. What a group
/// touches lives through all of it, so its ops may run in any order.
///
/// # Errors
/// As [`plan`].
pub fn plan_groups(program: &Program, groups: &[usize], align: usize, max_arena: usize) -> Result<MemoryPlan> {
    let mut lifetimes = lifetimes(program, groups);
    let live_peak = live_peak(&lifetimes, program.nodes.len());
    lifetimes.sort_by_key(|l| (std::cmp::Reverse(l.bytes), l.first, l.id));
    let mut slots: Vec<Option<Slot>> = vec![None; program.tensors.len()];
    let mut arenas: Vec<usize> = Vec::new();
    let mut placed: Vec<(Slot, usize, usize)> = Vec::new();
    for l in &lifetimes {
        let padded = l.bytes.next_multiple_of(align);
        if padded > max_arena {
            return Err(Error::OutOfMemory {
                backend: "plan",
                message: format!(
                    "intermediate '{}' of {} needs {} bytes, a buffer of this device holds {max_arena}",
                    program.decl(l.id).name,
                    program.name,
                    l.bytes
                ),
            });
        }
        let overlaps = |a: usize| {
            let mut taken: Vec<(usize, usize)> = placed
                .iter()
                .filter(|(s, first, last)| s.arena == a && *first <= l.last && l.first <= *last)
                .map(|(s, ..)| (s.offset, s.offset + s.bytes.next_multiple_of(align)))
                .collect();
            taken.sort_unstable();
            taken
        };
        let fit = (0..=arenas.len()).find_map(|arena| {
            let mut offset = 0;
            for (start, end) in overlaps(arena) {
                if offset + padded <= start {
                    break;
                }
                offset = offset.max(end);
            }
            (offset + padded <= max_arena).then_some(Slot { arena, offset, bytes: l.bytes })
        });
        let Some(slot) = fit else { return Err(Error::internal("memory plan: no arena fits")) };
        if slot.arena == arenas.len() {
            arenas.push(0);
        }
        arenas[slot.arena] = arenas[slot.arena].max(slot.offset + padded);
        slots[l.id.index()] = Some(slot);
        placed.push((slot, l.first, l.last));
    }
    Ok(MemoryPlan { slots, arenas, live_peak })
}

/// First and last group that touches each intermediate.
fn lifetimes(program: &Program, groups: &[usize]) -> Vec<Lifetime> {
    let mut span: Vec<Option<(usize, usize)>> = vec![None; program.tensors.len()];
    for (i, node) in program.nodes.iter().enumerate() {
        for (id, _) in node.op.operands() {
            let s = span[id.index()].get_or_insert((groups[i], groups[i]));
            s.1 = groups[i];
        }
    }
    let temps = program.ids().filter(|id| program.decl(*id).place == Place::Temp);
    temps
        .filter_map(|id| {
            span[id.index()].map(|(first, last)| Lifetime { id, bytes: program.decl(id).bytes(), first, last })
        })
        .collect()
}

fn live_peak(lifetimes: &[Lifetime], ops: usize) -> usize {
    let mut change = vec![0i64; ops + 1];
    for l in lifetimes {
        change[l.first] += l.bytes as i64;
        change[l.last + 1] -= l.bytes as i64;
    }
    let mut now = 0;
    change
        .iter()
        .map(|c| {
            now += c;
            now
        })
        .max()
        .unwrap_or(0) as usize
}
