//! Runs of ops that one dispatch does together, where rows are few: a dispatch behind a barrier costs 2 µs and more on the
//! fastest GPUs, whatever it does.

use super::context::Caps;
use super::launch_vec::{VEC_PARTS, VecPart, VecProduct, vec_fits};
use super::record::Recorder;
use super::storage::Storage;
use crate::backend::Bindings;
use crate::error::Result;
use crate::program::{NormProducts, Program, TensorId, norm_products, reads};

/// Ops that are recorded together.
pub struct Run {
    /// The first of them.
    pub at: usize,
    /// How many.
    pub nodes: usize,
    pub kind: Kind,
}

/// What a run is.
pub enum Kind {
    /// One op.
    Single,
    /// `matmul_vec` with a norm in front.
    NormProducts(NormProducts),
}

/// Cuts a program into runs.
pub fn runs(caps: Caps, program: &Program, bindings: &Bindings) -> Vec<Run> {
    let reads = reads(program);
    let mut runs = Vec::with_capacity(program.nodes.len());
    let mut at = 0;
    while at < program.nodes.len() {
        let fused = norm_products(program, &reads, at).filter(|run| takes(caps, program, bindings, run));
        let run = match fused {
            Some(run) => Run { at, nodes: run.nodes, kind: Kind::NormProducts(run) },
            None => Run { at, nodes: 1, kind: Kind::Single },
        };
        at += run.nodes;
        runs.push(run);
    }
    runs
}

/// For the memory plan: the run of each op.
pub fn groups(runs: &[Run]) -> Vec<usize> {
    runs.iter().enumerate().flat_map(|(i, run)| std::iter::repeat_n(i, run.nodes)).collect()
}

/// Whether the products of a run can do the norm themselves.
fn takes(caps: Caps, program: &Program, bindings: &Bindings, run: &NormProducts) -> bool {
    let x = program.decl(run.x);
    let uploaded = |weight: TensorId| {
        let buffer = bindings.get(&program.decl(weight).name);
        matches!(buffer.map(|buffer| buffer.inner::<Storage>()), Some(Ok(Storage::Planes { .. })))
    };
    let dtype = |weight: TensorId| program.decl(weight).dtype;
    run.products.iter().all(|p| uploaded(p.weight) && vec_fits(caps, x.rows, x.cols, dtype(p.weight)))
}

impl Recorder<'_> {
    /// Records the products of a run, as many as go together in a dispatch.
    pub fn norm_and_products(&mut self, run: &NormProducts) -> Result<()> {
        let (rows, k) = self.shape(run.x);
        let norm = Some((run.norm, run.eps));
        let mut parts = Vec::new();
        for product in &run.products {
            for weight in self.weight(product.weight)? {
                parts.push((VecPart { weight, bias: product.bias, out: product.out }, product.residual));
            }
        }
        // Gate and up in one only where each is one piece of one type.
        let [gate, up] = [0, 1].map(|i| parts.get(i).map(|(part, _)| part.weight.dtype));
        if let Some((act, out)) = run.glu
            && parts.len() == 2
            && gate == up
        {
            let parts: Vec<VecPart> = parts.into_iter().map(|(part, _)| VecPart { out, ..part }).collect();
            let head = self.vec_head(out, k);
            let (act, residual) = (Some(act), None);
            return self.matmul_vec(&VecProduct {
                x: run.x,
                x_row0: 0,
                rows,
                head,
                parts: &parts,
                residual,
                norm,
                act,
            });
        }
        let mut parts = parts.into_iter().peekable();
        while let Some((first, residual)) = parts.next() {
            let (dtype, head) = (first.weight.dtype, self.vec_head(first.out, k));
            let mut together = vec![first];
            let joins = |(part, other): &(VecPart, Option<TensorId>)| {
                part.weight.dtype == dtype && residual.is_none() && other.is_none()
            };
            while together.len() < self.vec_parts()
                && let Some((part, _)) = parts.next_if(joins)
            {
                together.push(part);
            }
            let x = run.x;
            self.matmul_vec(&VecProduct { x, x_row0: 0, rows, head, parts: &together, residual, norm, act: None })?;
        }
        match run.glu {
            Some((activation, out)) => self.glu(run.products[0].out, run.products[1].out, activation, out),
            None => Ok(()),
        }
    }

    fn vec_head(&self, out: TensorId, k: usize) -> [u32; 4] {
        let head = self.head(out, k);
        [head[0], head[1], head[2], head[3]]
    }

    /// Weights that one dispatch may bind here, each with its bias and its result.
    fn vec_parts(&self) -> usize {
        ((self.caps.max_bindings as usize).saturating_sub(4) / 3).clamp(1, VEC_PARTS)
    }
}
