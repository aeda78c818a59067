//! attention, attention_backward: plain softmax attention, block of rows by block of rows.
//!
//! Work is split into (block of consecutive rows of one sequence) × (key/value head); each task gathers its keys and values once
//! and serves all query heads of the group from them, or some of them where they are many.

use super::elementwise::exp;
use crate::backend::cpu::args::Args;
use crate::backend::cpu::cut::{Cut, products_of_a_thread};
use crate::backend::cpu::executable::Step;
use crate::backend::cpu::gemm::{Mat, gemm};
use crate::backend::cpu::simd::{axpy, dispatch, dot};
use crate::error::{Error, Result};
use crate::program::cache::{decode, row_len};
use crate::program::{Geometry, KvLayout};
use crate::tensor::DType;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// Query rows whose scores are held at a time.
const BLOCK: usize = 64;

/// Consecutive rows of one sequence.
#[derive(Clone, Debug)]
struct Run {
    rows: Range<usize>,
    seq: usize,
    /// Position of the first row.
    first: usize,
}

/// How keys and values are stored.
pub struct Stored<'a> {
    pub dtype: DType,
    pub layout: &'a KvLayout,
}

/// Finds keys and values of a position.
struct Keys<'a> {
    k: &'a [f32],
    v: &'a [f32],
    layout: Rows<'a>,
    /// From row to row, in f32s.
    cols: usize,
    codes: Option<Codes>,
}

/// Of a cache of 8-bit codes: what each code stands for, and where a row's scales begin, in f32s.
struct Codes {
    values: [f32; 256],
    scales: usize,
}

enum Rows<'a> {
    Paged { table: &'a [u32], pages: usize, page: usize },
    Packed { bounds: &'a [u32] },
}

impl Keys<'_> {
    fn row(&self, seq: usize, position: usize) -> usize {
        match &self.layout {
            Rows::Paged { table, pages, page } => {
                table[seq * pages + position / page] as usize * page + position % page
            }
            Rows::Packed { bounds } => bounds[seq] as usize + position,
        }
    }

    /// One head's rows for the positions, side by side.
    fn gather(&self, from: &[f32], seq: usize, positions: Range<usize>, columns: &Range<usize>) -> Vec<f32> {
        let mut out = Vec::with_capacity(positions.len() * columns.len());
        for position in positions {
            let at = self.row(seq, position) * self.cols;
            let row = &from[at..at + self.cols];
            match &self.codes {
                None => out.extend_from_slice(&row[columns.clone()]),
                Some(codes) => {
                    let scale = row[codes.scales + columns.start / columns.len()];
                    let head = &bytemuck::cast_slice::<f32, u8>(row)[columns.clone()];
                    out.extend(head.iter().map(|code| codes.values[usize::from(*code)] * scale));
                }
            }
        }
        out
    }
}

/// Splits live rows into runs. Rows of a sequence are consecutive, in order of position.
fn runs(seqs: &[u32], first: impl Fn(usize) -> usize) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::new();
    for (t, seq) in seqs.iter().enumerate() {
        match out.last_mut() {
            Some(run) if run.seq == *seq as usize => run.rows.end = t + 1,
            _ => out.push(Run { rows: t..t + 1, seq: *seq as usize, first: first(t) }),
        }
    }
    out
}

/// First position that the row at `position` sees.
fn lowest(g: &Geometry, position: usize) -> usize {
    g.window.map_or(0, |w| (position + 1).saturating_sub(w as usize))
}

/// Scaled and capped score.
#[inline(always)]
fn score(g: &Geometry, product: f32) -> f32 {
    let s = product * g.scale;
    g.softcap.map_or(s, |cap| cap * (s / cap).tanh())
}

pub fn forward(cut: &mut Cut, mut args: Args, stored: &Stored, g: &Geometry, has_lse: bool, step: &Step) -> Result<()> {
    let (q, k, v) = (args.read()?, args.read()?, args.read()?);
    let (seqs, positions, map) = (args.read_u32()?, args.read_u32()?, args.read_u32()?);
    let (out, lse) = (args.write()?, args.write_if(has_lse)?);
    let (width, per_group) = (g.heads * g.head_dim, g.heads / g.kv_heads);
    let rows = out.len() / width;
    let layout = match stored.layout {
        KvLayout::Paged { table, page, .. } => Rows::Paged { table: map, pages: step.cols(*table), page: *page },
        KvLayout::Packed { .. } => Rows::Packed { bounds: map },
    };
    let first = |t: usize| match layout {
        Rows::Paged { .. } => positions[t] as usize,
        Rows::Packed { bounds } => t - bounds[seqs[t] as usize] as usize,
    };
    let runs = runs(&seqs[..rows], first);
    let numbers = g.kv_heads * g.head_dim;
    let codes = stored
        .dtype
        .is_code()
        .then(|| Codes { values: std::array::from_fn(|code| decode(stored.dtype, code as u8)), scales: numbers / 4 });
    let cols = if codes.is_some() { row_len(stored.dtype, g.kv_heads, g.head_dim) / 4 } else { numbers };
    let keys = Keys { k, v, layout, cols, codes };
    let tasks: Vec<Task> =
        runs.iter().flat_map(|run| (0..g.kv_heads).flat_map(move |group| tasks(run, g, group))).collect();
    let batches = batches(&tasks);
    let (mut lse, d) = (lse, g.head_dim);
    cut.units(batches.len(), |unit| {
        let tasks = &tasks[batches[unit].clone()];
        let one = |task: &Task| match task.run.rows.len() {
            1 => one_row(q, &keys, g, task.run, task.group),
            _ => many_rows(q, &keys, g, task),
        };
        let results: Vec<(Vec<f32>, Vec<f32>)> = tasks.par_iter().map(one).collect::<Result<_>>()?;
        for (task, (values, sums)) in tasks.iter().zip(&results) {
            let heads = task.heads.len();
            for (i, row) in task.block.clone().enumerate() {
                let at = (task.run.rows.start + row) * g.heads + task.group * per_group + task.heads.start;
                out[at * d..(at + heads) * d].copy_from_slice(&values[i * heads * d..(i + 1) * heads * d]);
                if let Some(lse) = lse.as_deref_mut() {
                    lse[at..at + heads].copy_from_slice(&sums[i * heads..(i + 1) * heads]);
                }
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Rows of a run for some query heads of a group.
struct Task<'a> {
    run: &'a Run,
    group: usize,
    /// Among the heads of the group.
    heads: Range<usize>,
    /// Among the rows of the run.
    block: Range<usize>,
    /// Positions that any of them sees.
    seen: Range<usize>,
    /// Multiply-adds.
    cost: usize,
}

/// Tasks of a group, each small enough for a unit where one head of one block is.
fn tasks<'a>(run: &'a Run, g: &Geometry, group: usize) -> Vec<Task<'a>> {
    let (per_group, one) = (g.heads / g.kv_heads, run.rows.len() == 1);
    let mut tasks = Vec::new();
    for (block, seen) in blocks(run, g) {
        // A row alone waits for memory.
        let cost = seen.len() * g.head_dim * 2 * if one { 4 } else { block.len() };
        let step = if one { per_group } else { (products_of_a_thread() / cost.max(1)).clamp(1, per_group) };
        for first in (0..per_group).step_by(step) {
            let heads = first..(first + step).min(per_group);
            let cost = cost * heads.len();
            tasks.push(Task { run, group, heads, block: block.clone(), seen: seen.clone(), cost });
        }
    }
    tasks
}

/// Neighbours that make a unit.
fn batches(tasks: &[Task]) -> Vec<Range<usize>> {
    let most = products_of_a_thread() * rayon::current_num_threads();
    let (mut batches, mut cost) = (Vec::<Range<usize>>::new(), usize::MAX);
    for (i, task) in tasks.iter().enumerate() {
        cost = cost.saturating_add(task.cost);
        match batches.last_mut() {
            Some(batch) if cost <= most => batch.end = i + 1,
            _ => {
                batches.push(i..i + 1);
                cost = task.cost;
            }
        }
    }
    batches
}

/// Query head `head` of row `t`.
fn query<'a>(q: &'a [f32], g: &Geometry, t: usize, head: usize) -> &'a [f32] {
    let at = (t * g.heads + head) * g.head_dim;
    &q[at..at + g.head_dim]
}

/// Decode: keys and values are read in place, but codes decoded first; heads spread over threads.
fn one_row(q: &[f32], keys: &Keys, g: &Geometry, run: &Run, group: usize) -> Result<(Vec<f32>, Vec<f32>)> {
    let (d, per_group) = (g.head_dim, g.heads / g.kv_heads);
    let seen = lowest(g, run.first)..run.first + 1;
    let columns = group * d..(group + 1) * d;
    let (k, v, starts): (Cow<[f32]>, Cow<[f32]>, Vec<usize>) = if keys.codes.is_some() {
        let gather = |from| Cow::Owned(keys.gather(from, run.seq, seen.clone(), &columns));
        (gather(keys.k), gather(keys.v), (0..seen.len()).map(|i| i * d).collect())
    } else {
        let start = |position| keys.row(run.seq, position) * keys.cols + columns.start;
        (keys.k.into(), keys.v.into(), seen.map(start).collect())
    };
    let mut values = vec![0.0; per_group * d];
    let mut sums = vec![0.0; per_group];
    values.par_chunks_mut(d).zip(&mut sums).enumerate().for_each(|(h, (out, sum))| {
        let q = query(q, g, run.rows.start, group * per_group + h);
        let mut scores = vec![0.0; starts.len()];
        *sum = dispatch(
            #[inline(always)]
            || one_head(q, (&k, &v), g, &starts, &mut scores, out),
        );
    });
    Ok((values, sums))
}

/// One query against the keys that begin at `starts`; adds the weighted values to `out` and gives the log of the
/// sum of the exponentials.
#[inline(always)]
fn one_head(
    q: &[f32],
    (k, v): (&[f32], &[f32]),
    g: &Geometry,
    starts: &[usize],
    scores: &mut [f32],
    out: &mut [f32],
) -> f32 {
    for (s, start) in scores.iter_mut().zip(starts) {
        *s = score(g, dot(q, &k[*start..*start + q.len()]));
    }
    let (max, sum) = softmax(scores);
    for (p, start) in scores.iter().zip(starts) {
        axpy(*p / sum, &v[*start..*start + q.len()], out);
    }
    max + sum.ln()
}

/// Exponentials of `scores` minus their maximum; gives maximum and sum.
#[inline(always)]
fn softmax(scores: &mut [f32]) -> (f32, f32) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for s in scores {
        *s = exp(*s - max);
        sum += *s;
    }
    (max, sum)
}

/// One head's query rows, in blocks: for each, the block's rows in the run and the positions that any of them sees.
fn blocks(run: &Run, g: &Geometry) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + use<> {
    let (len, first, g) = (run.rows.len(), run.first, *g);
    (0..len).step_by(BLOCK).map(move |start| {
        let end = (start + BLOCK).min(len);
        (start..end, lowest(&g, first + start)..first + end)
    })
}

/// Prefill and training.
fn many_rows(q: &[f32], keys: &Keys, g: &Geometry, task: &Task) -> Result<(Vec<f32>, Vec<f32>)> {
    let Task { run, group, heads, block, seen, .. } = task;
    let (d, per_group) = (g.head_dim, g.heads / g.kv_heads);
    let columns = group * d..(group + 1) * d;
    let k = keys.gather(keys.k, run.seq, seen.clone(), &columns);
    let v = keys.gather(keys.v, run.seq, seen.clone(), &columns);
    let (m, n) = (block.len(), seen.len());
    let mut values = vec![0.0; m * heads.len() * d];
    let mut sums = vec![0.0; m * heads.len()];
    let mut scores = vec![0.0; m * n];
    for (h, head) in heads.clone().enumerate() {
        let queries = Mat::rows(query_rows(q, g, run, block, group * per_group + head), g.heads * d);
        gemm((m, n, d), &mut scores, n, false, 1.0, queries, Mat::rows(&k, d).t(), false)?;
        dispatch(
            #[inline(always)]
            || {
                for (i, row) in scores.chunks_exact_mut(n).enumerate() {
                    let visible = visible(g, run.first + block.start + i, seen);
                    row[..visible.start].fill(0.0);
                    row[visible.end..].fill(0.0);
                    let row = &mut row[visible];
                    row.iter_mut().for_each(|s| *s = score(g, *s));
                    let (max, sum) = softmax(row);
                    row.iter_mut().for_each(|p| *p /= sum);
                    sums[i * heads.len() + h] = max + sum.ln();
                }
            },
        );
        let out = &mut values[h * d..];
        gemm((m, d, n), out, heads.len() * d, false, 1.0, Mat::rows(&scores, n), Mat::rows(&v, d), false)?;
    }
    Ok((values, sums))
}

/// Columns of a block's score row that the row at `position` sees.
fn visible(g: &Geometry, position: usize, seen: &Range<usize>) -> Range<usize> {
    lowest(g, position) - seen.start..position + 1 - seen.start
}

/// The rows of `x` (`[T, H·D]`) of one head in a block, to be read with row stride H·D.
fn query_rows<'a>(x: &'a [f32], g: &Geometry, run: &Run, block: &Range<usize>, head: usize) -> &'a [f32] {
    &x[((run.rows.start + block.start) * g.heads + head) * g.head_dim..]
}

pub fn backward(cut: &mut Cut, mut args: Args, g: &Geometry) -> Result<()> {
    let (q, k, v) = (args.read()?, args.read()?, args.read()?);
    let (seqs, bounds) = (args.read_u32()?, args.read_u32()?);
    let (out, lse, dout) = (args.read()?, args.read()?, args.read()?);
    let (delta, dq, dk, dv) = (args.write()?, args.write()?, args.write()?, args.write()?);
    let (d, per_group) = (g.head_dim, g.heads / g.kv_heads);
    let rows = dq.len() / (g.heads * d);
    let runs = runs(&seqs[..rows], |t| t - bounds[seqs[t] as usize] as usize);
    if runs.iter().any(|run| run.first != 0) {
        return Err(Error::internal("attention_backward: a sequence must start at its first row"));
    }
    let cols = g.kv_heads * d;
    let keys = Keys { k, v, layout: Rows::Packed { bounds }, cols, codes: None };
    let groups: Vec<(&Run, usize)> =
        runs.iter().flat_map(|run| (0..g.kv_heads).map(move |group| (run, group))).collect();
    // Each unit takes a step of each of some groups, so that the order of a group's sums is always the same.
    let together = rayon::current_num_threads();
    let mut works = vec![Work::Delta];
    for first in (0..groups.len()).step_by(together) {
        let taken = first..(first + together).min(groups.len());
        works.push(Work::Gather(taken.clone()));
        let steps = groups[taken.clone()].iter().map(|(run, _)| steps(run, g).len()).max().unwrap_or(0);
        works.extend((0..steps).map(|step| Work::Step(taken.clone(), step)));
        works.push(Work::Place(taken));
    }
    let mut kept: Vec<Gradients> = cut.take();
    cut.units(works.len(), |unit| {
        match &works[unit] {
            Work::Delta => {
                delta.par_iter_mut().zip(out.par_chunks(d).zip(dout.par_chunks(d))).for_each(|(delta, (o, d))| {
                    *delta = dispatch(
                        #[inline(always)]
                        || dot(o, d),
                    )
                })
            }
            Work::Gather(taken) => {
                let gather = |(run, group): &(&Run, usize)| Gradients::new(&keys, g, run, *group);
                kept = groups[taken.clone()].par_iter().map(gather).collect();
            }
            Work::Step(taken, step) => {
                let forward = Forward { q, lse, dout, delta };
                let groups = groups[taken.clone()].par_iter().zip(&mut kept);
                groups.try_for_each(|((run, group), gradients)| match steps(run, g).get(*step) {
                    Some((head, block)) => gradients.step(&forward, g, run, group * per_group + head, (*head, block)),
                    None => Ok(()),
                })?;
            }
            Work::Place(taken) => {
                for ((run, group), gradients) in groups[taken.clone()].iter().zip(&kept) {
                    for (i, t) in run.rows.clone().enumerate() {
                        let (at, len) = ((t * g.heads + group * per_group) * d, per_group * d);
                        dq[at..at + len].copy_from_slice(&gradients.dq[i * len..(i + 1) * len]);
                        let at = t * cols + group * d;
                        dk[at..at + d].copy_from_slice(&gradients.dk[i * d..(i + 1) * d]);
                        dv[at..at + d].copy_from_slice(&gradients.dv[i * d..(i + 1) * d]);
                    }
                }
            }
        }
        Ok(())
    })?;
    cut.keep(kept);
    Ok(())
}

/// A unit of the backward pass, for some of the groups.
enum Work {
    Delta,
    Gather(Range<usize>),
    Step(Range<usize>, usize),
    Place(Range<usize>),
}

/// Steps of a group: a head of it, and a block of the run's rows, of which all rows before the block's end are seen.
fn steps(run: &Run, g: &Geometry) -> Vec<(usize, Range<usize>)> {
    let len = run.rows.len();
    // Five products a step; of a long sequence fewer rows at a time.
    let rows = (products_of_a_thread() / (5 * len * g.head_dim).max(1)).clamp(16, BLOCK);
    let blocks = move || (0..len).step_by(rows).map(move |start| start..(start + rows).min(len));
    (0..g.heads / g.kv_heads).flat_map(|head| blocks().map(move |block| (head, block))).collect()
}

/// What the forward pass left, and the gradient that comes in.
struct Forward<'a> {
    q: &'a [f32],
    lse: &'a [f32],
    dout: &'a [f32],
    delta: &'a [f32],
}

/// Keys and values of a group's run, and the gradients of its queries `[len, per_group · D]`, keys and values `[len, D]`.
struct Gradients {
    k: Vec<f32>,
    v: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl Gradients {
    fn new(keys: &Keys, g: &Geometry, run: &Run, group: usize) -> Self {
        let (d, per_group, len) = (g.head_dim, g.heads / g.kv_heads, run.rows.len());
        let columns = group * d..(group + 1) * d;
        let gather = |from| keys.gather(from, run.seq, 0..len, &columns);
        let zeros = |cols: usize| vec![0.0; len * cols];
        Self { k: gather(keys.k), v: gather(keys.v), dq: zeros(per_group * d), dk: zeros(d), dv: zeros(d) }
    }

    /// Adds what a block of rows of one head gives.
    fn step(
        &mut self,
        f: &Forward,
        g: &Geometry,
        run: &Run,
        head: usize,
        (h, block): (usize, &Range<usize>),
    ) -> Result<()> {
        let (d, per_group) = (g.head_dim, g.heads / g.kv_heads);
        let seen = lowest(g, block.start)..block.end;
        let (m, n) = (block.len(), seen.len());
        let (mut p, mut ds) = (vec![0.0; m * n], vec![0.0; m * n]);
        let queries = Mat::rows(query_rows(f.q, g, run, block, head), g.heads * d);
        let douts = Mat::rows(query_rows(f.dout, g, run, block, head), g.heads * d);
        let (k, v) = (Mat::rows(&self.k[seen.start * d..], d), Mat::rows(&self.v[seen.start * d..], d));
        gemm((m, n, d), &mut p, n, false, 1.0, queries, k.t(), false)?;
        gemm((m, n, d), &mut ds, n, false, 1.0, douts, v.t(), false)?;
        dispatch(
            #[inline(always)]
            || {
                for (i, (p, ds)) in p.chunks_exact_mut(n).zip(ds.chunks_exact_mut(n)).enumerate() {
                    let at = (run.rows.start + block.start + i) * g.heads + head;
                    let visible = visible(g, block.start + i, &seen);
                    probabilities(g, p, ds, visible, f.lse[at], f.delta[at]);
                }
            },
        );
        let out = &mut self.dq[(block.start * per_group + h) * d..];
        gemm((m, d, n), out, per_group * d, false, g.scale, Mat::rows(&ds, n), k, false)?;
        gemm((n, d, m), &mut self.dk[seen.start * d..], d, true, g.scale, Mat::rows(&ds, n).t(), queries, false)?;
        gemm((n, d, m), &mut self.dv[seen.start * d..], d, true, 1.0, Mat::rows(&p, n).t(), douts, false)
    }
}

/// Turns a row of products into probabilities, and of dP into the gradient of the scaled products.
#[inline(always)]
fn probabilities(g: &Geometry, p: &mut [f32], ds: &mut [f32], visible: Range<usize>, lse: f32, delta: f32) {
    for row in [&mut *p, &mut *ds] {
        row[..visible.start].fill(0.0);
        row[visible.end..].fill(0.0);
    }
    let seen = p[visible.clone()].iter_mut().zip(&mut ds[visible]);
    // Two loops: without a cap there is no branch and no division in the way of vectorising.
    match g.softcap {
        None => {
            for (p, ds) in seen {
                *p = exp(*p * g.scale - lse);
                *ds = *p * (*ds - delta);
            }
        }
        Some(cap) => {
            for (p, ds) in seen {
                let s = score(g, *p);
                *p = exp(s - lse);
                *ds = *p * (*ds - delta) * (1.0 - (s / cap) * (s / cap));
            }
        }
    }
}
