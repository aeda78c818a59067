//! Products of rows that each have their own adapter.
//!
//! Few rows: the first halves of the adapters, then the products, which add the second halves to what they write; a norm in
//! front and a gated activation behind belong to them as they do without adapters.
//!
//! More rows, on Hopper: the first halves go to a matrix in which a row's numbers stand in the columns of its slot, beside
//! zeros, and the second halves are one more inner dimension of the product, over all slots that the rows of a tile have. The rank is a multiple of 16 there.
//!
//! In both the terms cost no pass over the results of their own, and are rounded with them, once.

use super::fuse::MOST;
use super::launch_few::FewAdapters;
use super::launch_glu::GATED_ROWS;
use super::launch_lora::{MAX_RANK, Shrink, Spread};
use super::launch_matmul::{FEW_ROWS, Outputs, Product, RowAdapters};
use super::record::Recorder;
use super::tensor_map::{MatmulOutput, TensorMap};
use crate::error::Result;
use crate::model::config::Activation;
use crate::program::{Op, Place, TensorId};
use crate::tensor::DType;

/// Most columns of the matrix of first halves: 1 KiB for each row of a step and each product.
const MOST_COLUMNS: usize = 512;

/// An adapter's share in a product.
#[derive(Clone, Copy)]
struct Term {
    a: TensorId,
    u: TensorId,
    b: TensorId,
    y: TensorId,
}

/// Consecutive ops that are done together: products of one x, then the first, then the second halves of adapters.
struct Run {
    products: Vec<(Product, TensorId)>,
    terms: Vec<Term>,
    x: TensorId,
    slots: TensorId,
    scales: TensorId,
    rank: usize,
}

impl Run {
    fn ops(&self) -> usize {
        self.products.len() + 2 * self.terms.len()
    }

    fn term(&self, y: TensorId) -> Option<usize> {
        self.terms.iter().position(|term| term.y == y)
    }
}

impl Recorder<'_> {
    /// Records the products at `at` with the adapters of each row that are added to them; returns how many ops these are.
    pub fn products_of_many_adapters(&mut self, at: usize) -> Result<Option<usize>> {
        let Some(Op::MatMul { x, .. }) = self.op(at) else { return Ok(None) };
        let rows = self.rows(*x).rows;
        let Some(run) = self.many_adapters(at, *x)? else { return Ok(None) };
        if rows <= FEW_ROWS {
            return self.few_rows(&run, at, None).map(Some);
        }
        let fits = |(p, _): &(Product, TensorId)| p.weight.n.is_multiple_of(8);
        let columns = self.decl(run.scales).len() * run.rank;
        let whole = run.rank.is_multiple_of(16) && columns <= MOST_COLUMNS;
        if !self.caps.hopper() || !whole || !run.products.iter().all(fits) {
            return Ok(None);
        }
        self.tiles_of_slots(&run, at).map(Some)
    }

    /// The same with the norm at `at` in front, for few rows.
    pub fn norm_and_many_adapters(&mut self, at: usize) -> Result<Option<usize>> {
        let Some(Op::RmsNorm { x, weight, eps, out }) = self.op(at).cloned() else { return Ok(None) };
        if self.rows(x).rows > FEW_ROWS {
            return Ok(None);
        }
        let Some(run) = self.many_adapters(at + 1, out)? else { return Ok(None) };
        if self.read_by(out) != run.products.len() + run.terms.len() || self.decl(out).place != Place::Temp {
            return Ok(None);
        }
        let norm = (x, self.at(weight)?, eps);
        Ok(Some(1 + self.few_rows(&run, at + 1, Some(norm))?))
    }

    /// Records a run of few rows that starts at `at`, with what follows it; returns how many ops these are.
    fn few_rows(&mut self, run: &Run, at: usize, norm: Option<(TensorId, u64, f32)>) -> Result<usize> {
        let x = norm.map_or(run.x, |(x, ..)| x);
        let (t, norm) = (self.decl(x).dtype, norm.map(|(_, weight, eps)| (weight, eps)));
        let parts: Vec<_> = run.terms.iter().map(|term| (term.a, term.u)).collect();
        let (slots, rank) = (run.slots, run.rank);
        let ready = self.lora_shrink(&Shrink { x, parts: &parts, slots: Some(slots), rank, norm }, true)?;
        let gated = self.gate_of(run, at)?;
        let mut rest = &run.products[..];
        while let Some((first, _)) = rest.first() {
            let count = rest.iter().take_while(|(p, _)| p.dtype == first.dtype).count();
            let mut adapters = FewAdapters {
                slots: self.at(slots)?,
                scales: self.at(run.scales)?,
                u: [0; 3],
                b: [0; 3],
                ready,
                rank: rank as u32,
                pad: 0,
            };
            let mut products = Vec::new();
            for (i, (p, y)) in rest[..count].iter().enumerate() {
                if let Some(term) = run.term(*y).map(|i| run.terms[i]) {
                    (adapters.u[i], adapters.b[i]) = (self.at(term.u)?, self.at(term.b)?);
                }
                products.push(Product { x: self.at(x)?, out: gated.map_or(p.out, |(_, out)| out), ..*p });
            }
            self.matmul_rows(&products, t, norm, gated.map(|(act, _)| act), Some(adapters))?;
            rest = &rest[count..];
        }
        Ok(run.ops() + usize::from(gated.is_some()))
    }

    /// The gated activation after a run at `at`, where it alone reads what the run makes: it and the address of its result.
    fn gate_of(&self, run: &Run, at: usize) -> Result<Option<(Activation, u64)>> {
        let (Some(Op::Glu { gate, up, activation, out }), [(first, y0), (second, y1)]) =
            (self.op(at + run.ops()), &run.products[..])
        else {
            return Ok(None);
        };
        // An adapter's term reads the result, too.
        let alone = |y: TensorId| {
            self.read_by(y) == 1 + usize::from(run.term(y).is_some()) && self.decl(y).place == Place::Temp
        };
        let bare = first.bias | first.residual | second.bias | second.residual == 0;
        let fits = (gate, up) == (y0, y1) && alone(*y0) && alone(*y1) && bare && first.dtype == second.dtype;
        fits.then(|| Ok((*activation, self.at(*out)?))).transpose()
    }

    /// Records a run of more rows that starts at `at`; returns how many ops these are.
    fn tiles_of_slots(&mut self, run: &Run, at: usize) -> Result<usize> {
        let Run { products, terms, x, slots, scales, rank } = run;
        let (r, t, rank) = (self.rows(*x), self.decl(*x).dtype, *rank);
        let (count, a_box) = (self.decl(*scales).len(), self.a_box(r.rows));
        let columns = count * rank;
        let bytes = (r.rows * columns * 2).next_multiple_of(256);
        let spread = self.workspace(bytes * terms.len());
        let at_half = |i: usize| spread + (i * bytes) as u64;
        let parts: Vec<_> = terms.iter().enumerate().map(|(i, term)| (term.a, at_half(i))).collect();
        let (x, slots, scales) = (*x, *slots, *scales);
        let ready = self.lora_spread(&Spread { x, parts: &parts, slots, scales, count, rank })?;

        let mut adapters = RowAdapters { slots: self.at(slots)?, banks: [0; MOST], count, rank, ready };
        let mut halves = [TensorMap::NONE; MOST];
        for (i, (_, y)) in products.iter().enumerate() {
            if let Some(term) = run.term(*y) {
                adapters.banks[i] = self.at(terms[term].b)?;
                halves[i] = TensorMap::new(t, at_half(term), r.rows, columns, a_box)?;
            }
        }
        if r.rows <= GATED_ROWS
            && terms.len() == 2
            && let [(gate, _), (up, _)] = products[..]
            && gate.dtype == t
            && let Some(act) = self.gate_of(run, at)?
        {
            self.sm90_glu([gate, up], act, r, t, Some(([halves[0], halves[1]], adapters)))?;
            return Ok(run.ops() + 1);
        }
        let x_map = TensorMap::new(t, self.at(x)?, r.rows, r.cols, a_box)?;
        let mut list = [MatmulOutput::<2>::EMPTY; MOST];
        let mut decoded = 0;
        for (i, (p, _)) in products.iter().enumerate() {
            let (mut w, n, output) = (p.weight, p.weight.n as usize, &mut list[i]);
            if p.dtype != t {
                w = self.decode(w, p.dtype, t, decoded)?;
                decoded += self.decoded_bytes(w, p.dtype, t);
            }
            output.push(x_map, TensorMap::new(t, w.data, n, r.cols, 64)?, r.cols);
            output.n = w.n;
            (output.out, output.bias, output.residual) = (p.out, p.bias, p.residual);
            if adapters.banks[i] != 0 {
                output.push(halves[i], TensorMap::NONE, rank);
            }
        }
        let (count, constant) = (products.len(), decoded == 0);
        self.sm90_outputs(&Outputs { list, count, out_f32: false, constant, adapters: Some(adapters) }, r, t)?;
        Ok(run.ops())
    }

    /// A run of products of `x` with adapters of each row, from `at` on, that the kernels can take.
    fn many_adapters(&self, at: usize, x: TensorId) -> Result<Option<Run>> {
        let (r, t) = (self.rows(x), self.decl(x).dtype);
        if t == DType::F32 || !r.cols.is_multiple_of(8) {
            return Ok(None);
        }
        let mut products = Vec::new();
        while let Some(Op::MatMul { x: from, weight, bias, residual, out }) = self.op(at + products.len())
            && *from == x
            && products.len() < MOST
        {
            products.push((self.product(x, *weight, *bias, *residual, *out)?, *out));
        }
        let mut halves = Vec::new();
        let mut shared = None;
        while let Some(Op::LoraShrink { x: from, a, slots: Some(slots), rank, out }) =
            self.op(at + products.len() + halves.len())
            && *from == x
            && *shared.get_or_insert((*slots, *rank)) == (*slots, *rank)
        {
            halves.push((*a, *out));
        }
        let Some((slots, rank)) = shared else { return Ok(None) };
        let (mut terms, mut scaled) = (Vec::<Term>::new(), None);
        for (i, (a, made)) in halves.iter().enumerate() {
            let Some(Op::LoraExpand { u, b, slots: Some(of), scales, rank: deep, y }) =
                self.op(at + products.len() + halves.len() + i)
            else {
                return Ok(None);
            };
            let shares = (*of, *deep) == (slots, rank) && *scaled.get_or_insert(*scales) == *scales;
            let alone = u == made && self.read_by(*u) == 1 && self.decl(*u).place == Place::Temp;
            let added = products.iter().any(|(_, out)| out == y) && terms.iter().all(|term| term.y != *y);
            let typed = [*a, *b].iter().all(|id| self.decl(*id).dtype == t);
            if !(shares && alone && added && typed) {
                return Ok(None);
            }
            terms.push(Term { a: *a, u: *u, b: *b, y: *y });
        }
        let Some(scales) = scaled else { return Ok(None) };
        let fits =
            |(p, out): &(Product, TensorId)| (p.dtype == t || p.dtype.is_quantised()) && self.decl(*out).dtype == t;
        let fits = rank.is_multiple_of(8) && rank <= MAX_RANK && products.iter().all(fits);
        Ok(fits.then_some(Run { products, terms, x, slots, scales, rank }))
    }
}
