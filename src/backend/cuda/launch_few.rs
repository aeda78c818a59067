//! Products of up to 16 rows, at the speed of memory (`kernels/matmul_rows.cu`, `kernels/matmul_dots.cu`).

use super::context::Caps;
use super::launch::Args;
use super::launch_dots::{DOTS, dots};
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
    adapters: FewAdapters,
}

/// Adapters of rows of their own: `scales[slot] · u · B[slot]ᵀ` is added to each product that has a B.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct FewAdapters {
    /// u32 `[rows]`.
    pub slots: u64,
    /// f32 `[slots]`.
    pub scales: u64,
    /// First halves, `[rows, rank]`.
    pub u: [u64; 3],
    /// The bank's second halves, `[slots · n, rank]`, or 0.
    pub b: [u64; 3],
    /// The flag that says when x is there, or 0: when all kernels ahead have ended.
    pub ready: u64,
    /// A multiple of 8.
    pub rank: u32,
    /// Zero.
    pub pad: u32,
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
        adapters: Option<FewAdapters>,
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
            adapters: adapters.unwrap_or_else(bytemuck::Zeroable::zeroed),
        };
        for (part, p) in args.parts.iter_mut().zip(products) {
            *part = Part { weight: p.weight, bias: p.bias, residual: p.residual, out: p.out, ldo: p.weight.n, pad: 0 };
        }
        let multiprocessors = self.caps.multiprocessors as usize;
        let widths: Vec<usize> = products.iter().map(|p| p.weight.n as usize).collect();
        let few = Few { widths: &widths, k, rows: first.rows, dtype: first.dtype, gated: act.is_some() };
        let plan =
            dots(&few, self.caps).or_else(|| plan(&few, self.caps)).filter(|_| t != DType::F32 && k.is_multiple_of(8));
        let of_weight = suffix(first.dtype);
        let Some(plan) = plan else {
            let rows: usize = widths[..if act.is_some() { 1 } else { widths.len() }].iter().sum();
            let name = format!("matmul_rows_any_{of_weight}_{}", suffix(t));
            let grid = rows.div_ceil(8).min(8 * multiprocessors);
            let args = Args::new().bytes(bytemuck::bytes_of(&args));
            return self.launch(&format!("matmul_rows/{of_weight}"), &name, [grid, 1, 1], 256, 0, args).map(drop);
        };
        args.chunk = plan.chunk as u32;
        let name = format!("{}{}_{of_weight}_{}", plan.kernel, plan.most, suffix(t));
        let file = format!("{}/{of_weight}", plan.kernel);
        let hopper = self.caps.hopper();
        let blocks = match plan.kernel {
            DOTS => 1, // a second one is the next launch's
            _ => self.blocks_at_once(&file, &name, plan.block, plan.shared)?,
        };
        let grid = plan.tiles.min(blocks * multiprocessors);
        let args = Args::new().bytes(bytemuck::bytes_of(&args));
        let launch = self.launch(&file, &name, [grid, 1, 1], plan.block, plan.shared, args)?;
        // Weights are loaded before the kernel waits for the one ahead.
        launch.overlaps = hopper;
        Ok(())
    }
}

/// What decides how a launch is cut.
pub struct Few<'a> {
    /// Rows of each weight.
    pub widths: &'a [usize],
    pub k: usize,
    pub rows: usize,
    pub dtype: DType,
    /// Two weights, gate and up.
    pub gated: bool,
}

impl Few<'_> {
    /// Tiles of 16 rows of weights: with a gate, 8 of each.
    pub fn tiles(&self) -> usize {
        match self.gated {
            true => self.widths[0].div_ceil(8),
            false => self.widths.iter().map(|n| n.div_ceil(16)).sum(),
        }
    }
}

/// How a launch is cut.
pub struct Plan {
    /// The kernel's name and that of its file.
    pub kernel: &'static str,
    /// Most rows of x.
    pub most: usize,
    pub block: usize,
    pub shared: usize,
    pub chunk: usize,
    pub tiles: usize,
}

/// Shared memory that a block may use, beside what the kernel itself declares.
pub fn shared_limit(caps: Caps) -> usize {
    (caps.max_shared as usize).saturating_sub(2 << 10)
}

/// The plan in `kernels/matmul_rows.cu`; `None` where the tensor-core kernels cannot take the rows.
fn plan(few: &Few<'_>, caps: Caps) -> Option<Plan> {
    let Few { k, rows, dtype, .. } = *few;
    let tiles = few.tiles();
    let most = [2, 4, 8, 16].into_iter().find(|most| *most >= rows)?;
    let sums = match dtype {
        DType::F32 | DType::BF16 | DType::F16 | DType::Q8_0 => 0,
        DType::Q6_K => 2,
        _ => 1,
    };
    let x_rows = if rows == 1 { 1 } else { most };
    let whole = k.next_multiple_of(128);
    let multiprocessors = caps.multiprocessors as usize;
    let block = match (k < 2048, dtype.is_quantised() && most == 2 && tiles > multiprocessors) {
        (false, false) => 512,
        _ => 256,
    };
    // Partial sums of a tile are double-buffered, and of two tiles at a time where rows are few.
    let buffers = if most <= 4 { 4 } else { 2 };
    let per_block = tiles.div_ceil(multiprocessors);
    let shared = |c: usize| {
        let partial = if c < whole { per_block * x_rows * 64 } else { 0 };
        x_rows * (2 * c + 64) + 256 + x_rows * (c / 32) * sums * 4 + buffers * (block / 32) * x_rows * 80 + partial
    };
    // From three rows on, long rows leave too little L1 for the loads in flight: measured at 4,096 × 12,288.
    let most_chunk = if rows > 2 { 4096 } else { whole };
    let chunk = (1..=whole / 128)
        .map(|i| whole.div_ceil(i).next_multiple_of(128))
        .find(|c| *c <= most_chunk && shared(*c) <= shared_limit(caps))?;
    Some(Plan { kernel: "matmul_rows", most, block, shared: shared(chunk), chunk, tiles })
}
