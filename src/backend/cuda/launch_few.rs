//! Products of up to 16 rows, at the speed of memory (`kernels/matmul_rows.cu`).

use super::launch::Args;
use super::launch_matmul::Product;
use super::places::{WeightView, suffix};
use super::record::Recorder;
use crate::error::Result;
use crate::model::config::Activation;
use crate::tensor::DType;

/// One weight of a launch (`RowsPart`).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Part {
    weight: WeightView,
    bias: u64,
    residual: u64,
    out: u64,
    ldo: u32,
    pad: u32,
}

/// The kernel's one argument (`RowsArgs`).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RowsArgs {
    parts: [Part; 3],
    x: u64,
    norm: u64,
    counts: u64,
    which: u32,
    rows: u32,
    ldx: u32,
    count: u32,
    eps: f32,
    act: u32,
    out_f32: u32,
    chunk: u32,
}

impl Recorder<'_> {
    /// Up to three products that share x. With `norm` (address of the weight, eps) x is normalised first; with `act` the
    /// two products are gate and up, and `act(gate) · up` goes to the first one's `out`.
    pub fn matmul_rows(
        &mut self,
        products: &[Product],
        t: DType,
        norm: Option<(u64, f32)>,
        act: Option<Activation>,
    ) -> Result<()> {
        let first = &products[0];
        let k = first.weight.k as usize;
        let mut args = RowsArgs {
            parts: bytemuck::Zeroable::zeroed(),
            x: first.x,
            norm: norm.map_or(0, |n| n.0),
            counts: self.counts()?,
            which: first.which as u32,
            rows: first.rows as u32,
            ldx: first.weight.k,
            count: products.len() as u32,
            eps: norm.map_or(0.0, |n| n.1),
            act: match act {
                None => 0,
                Some(Activation::Silu) => 1,
                Some(Activation::GeluTanh) => 2,
            },
            out_f32: u32::from(first.out_f32),
            chunk: k.next_multiple_of(128) as u32,
        };
        for (part, p) in args.parts.iter_mut().zip(products) {
            *part = Part { weight: p.weight, bias: p.bias, residual: p.residual, out: p.out, ldo: p.weight.n, pad: 0 };
        }
        let (multiprocessors, rows) = (self.caps.multiprocessors as usize, first.rows);
        let plan =
            plan(&products.iter().map(|p| p.weight.n as usize).collect::<Vec<_>>(), k, rows, first.dtype, act, {
                (multiprocessors, self.caps.max_shared as usize)
            });
        let (file, name) = match plan {
            Some(ref plan) if t != DType::F32 && k.is_multiple_of(8) => {
                args.chunk = plan.chunk as u32;
                ("matmul_rows", format!("matmul_rows{}_{}_{}", plan.most, suffix(first.dtype), suffix(t)))
            }
            _ => ("matmul_rows_any", format!("matmul_rows_any_{}_{}", suffix(first.dtype), suffix(t))),
        };
        let (grid, block, shared) = match (file, plan) {
            ("matmul_rows", Some(plan)) => (plan.grid, plan.block, plan.shared),
            _ => any_launch(&args),
        };
        let file = format!("{file}/{}", suffix(first.dtype));
        let args = Args::new().bytes(bytemuck::bytes_of(&args));
        self.launch(&file, &name, [grid, 1, 1], block, shared, args).map(drop)
    }
}

/// How a launch of `matmul_rows` is cut.
struct Plan {
    most: usize,
    grid: usize,
    block: usize,
    shared: usize,
    chunk: usize,
}

fn plan(
    widths: &[usize],
    k: usize,
    rows: usize,
    dtype: DType,
    act: Option<Activation>,
    (multiprocessors, max_shared): (usize, usize),
) -> Option<Plan> {
    let most = [2, 4, 8, 16].into_iter().find(|most| *most >= rows)?;
    let (x_rows, chunk, block) = (if rows == 1 { 1 } else { most }, k.next_multiple_of(128), 256);
    let sums = match dtype {
        DType::F32 | DType::BF16 | DType::F16 | DType::Q8_0 => 0,
        DType::Q6_K => 2,
        _ => 1,
    };
    let tiles: usize = widths.iter().map(|n| n.div_ceil(if act.is_some() { 8 } else { 16 })).sum();
    let tiles = if act.is_some() { tiles / 2 } else { tiles };
    let shared = x_rows * (2 * chunk + 64) + 256 + x_rows * chunk / 32 * sums * 4 + 2 * block / 32 * x_rows * 80;
    (shared <= max_shared).then_some(Plan { most, grid: tiles.min(2 * multiprocessors), block, shared, chunk })
}

/// Grid, threads and shared memory of `matmul_rows_any`.
fn any_launch(args: &RowsArgs) -> (usize, usize, usize) {
    let rows: usize = args.parts[..args.count as usize].iter().map(|p| p.weight.n as usize).sum();
    (rows.div_ceil(8), 256, 0)
}
