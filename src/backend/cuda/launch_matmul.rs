//! Dense and quantised products, and the loss, which is two of them with a softmax between. Which kernel does a product:
//!
//! | rows | activations | weight | kernel |
//! |---|---|---|---|
//! | up to 16 | any | any | `matmul_rows` |
//! | more | f32 | any | `matmul`, `matmul_dx`: f32 arithmetic |
//! | more | 16 bit | the same type | Hopper: `sm90_matmul`, `sm90_matmul_dx`; else `matmul_tile`, `matmul_dx_tile` |
//! | more | 16 bit | quantised | `matmul_decode` to scratch, then as above |
//! | more | 16 bit | rows of no whole 16 bytes, or another plain type | `matmul`, `matmul_dx` |

use super::candidates::Dense;
use super::context::Caps;
use super::cublaslt::Shape;
use super::launch::Args;
use super::launch_lora::{DenseDw, Expand, MAX_RANK, Shrink};
use super::places::{WeightView, suffix};
use super::record::{Recorder, Rows};
use super::tensor_map::{MatmulArgs, MatmulOutput, TensorMap};
use crate::error::{Error, Result};
use crate::program::{HeadDw, Op, Place, TensorId};
use crate::tensor::DType;

/// A product that has its addresses: `out = x · Wᵀ (+ bias) (+ residual)`.
#[derive(Clone, Copy)]
pub struct Product {
    pub x: u64,
    pub weight: WeightView,
    pub dtype: DType,
    pub bias: u64,
    pub residual: u64,
    pub out: u64,
    pub out_f32: bool,
    pub rows: usize,
    pub which: usize,
}

/// `dx (+)= scale · dy · W`.
#[derive(Clone, Copy)]
struct ProductDx {
    dy: u64,
    /// Bytes from row to row of dy, where they are not its width.
    dy_pitch: Option<usize>,
    weight: WeightView,
    dtype: DType,
    scale: u64,
    dx: u64,
    accumulate: bool,
    rows: usize,
    which: usize,
}

/// Products of one launch on Hopper that are complete.
pub struct Outputs {
    pub list: [MatmulOutput<2>; 3],
    pub count: usize,
    pub out_f32: bool,
    /// No kernel of the step writes what x is multiplied by: loading it may begin before the kernel ahead has ended.
    pub constant: bool,
    /// Where the second products are those of each row's adapter.
    pub adapters: Option<RowAdapters>,
}

/// Adapters of each row. The products with them have their first halves as `a` of the second product, and no `b` yet.
#[derive(Clone, Copy)]
pub struct RowAdapters {
    /// u32 `[rows]`: which adapter.
    pub slots: u64,
    /// The second halves `[slots · n, rank]` of each product, 0 for none.
    pub banks: [u64; 3],
    /// Of the bank.
    pub count: usize,
    pub rank: usize,
    /// The flag that says when x is there, or 0: when all kernels ahead have ended.
    pub ready: u64,
}

impl RowAdapters {
    /// Completes products whose kernel reads second halves `box_rows` at a time.
    pub fn complete(&self, list: &mut [MatmulOutput<2>], t: DType, box_rows: usize) -> Result<()> {
        for (output, bank) in list.iter_mut().zip(self.banks).filter(|(_, bank)| *bank != 0) {
            output.b[1] = TensorMap::narrow(t, bank, self.count * output.n as usize, self.rank, box_rows)?;
        }
        Ok(())
    }
}

/// Most rows that `matmul_rows` takes.
pub const FEW_ROWS: usize = 16;

impl Recorder<'_> {
    /// Appends the launches of one op.
    pub fn products(&mut self, op: &Op) -> Result<()> {
        match *op {
            Op::MatMul { x, weight, bias, residual, out } => {
                let t = self.activation(&[x])?;
                let (view, dtype) = self.product_weight(weight, t)?;
                let product = Product { weight: view, dtype, ..self.product(x, weight, bias, residual, out)? };
                self.matmul(&product, t)
            }
            Op::MatMulDx { dy, weight, scale, dx, accumulate } => {
                let decl = self.decl(weight);
                let adapter = decl.dtype == DType::F32 && matches!(decl.place, Place::State { .. });
                if adapter && decl.cols <= MAX_RANK && decl.cols <= decl.rows && !accumulate {
                    return self.lora_du(dy, weight, scale, dx);
                }
                if adapter && decl.rows <= MAX_RANK {
                    return self.lora_dx(dy, weight, scale, dx, accumulate);
                }
                let (r, t) = (self.rows(dy), self.activation(&[dy, dx])?);
                let (view, dtype) = self.product_weight(weight, t)?;
                let product = ProductDx {
                    dy: self.at(dy)?,
                    dy_pitch: None,
                    weight: view,
                    dtype,
                    scale: self.maybe(scale)?,
                    dx: self.at(dx)?,
                    accumulate,
                    rows: r.rows,
                    which: r.which,
                };
                self.matmul_dx(&product, t)
            }
            Op::MatMulDw { dy, x, scale, dw } => self.matmul_dw(dy, x, scale, dw),
            Op::LoraShrink { x, a, slots, rank, out } => {
                self.lora_shrink(&Shrink { x, parts: &[(a, out)], slots, rank, norm: None }, false).map(drop)
            }
            Op::LoraExpand { u, b, slots, scales, rank, y } => {
                self.lora_expand(&Expand { parts: &[[u, b, scales, y]], slots, rank })
            }
            Op::HeadLoss { x, weight, labels, scale, weights, smoothing, logits, loss, dx, dw } => {
                self.head_loss(x, weight, [labels, scale, logits, loss], weights, smoothing, (dx, dw))
            }
            ref other => Err(Error::internal(format!("cuda: '{}' is no product", other.name()))),
        }
    }

    /// The addresses of a MatMul.
    pub fn product(
        &self,
        x: TensorId,
        weight: TensorId,
        bias: Option<TensorId>,
        residual: Option<TensorId>,
        out: TensorId,
    ) -> Result<Product> {
        let r = self.rows(x);
        Ok(Product {
            x: self.at(x)?,
            weight: self.weight(weight)?,
            dtype: self.decl(weight).dtype,
            bias: self.maybe(bias)?,
            residual: self.maybe(residual)?,
            out: self.at(out)?,
            out_f32: self.decl(out).dtype == DType::F32,
            rows: r.rows,
            which: r.which,
        })
    }

    pub fn matmul(&mut self, p: &Product, t: DType) -> Result<()> {
        if p.rows <= FEW_ROWS {
            return self.matmul_rows(&[*p], t, None, None, None);
        }
        match self.dense(p.weight, p.dtype, t)? {
            Some(weight) => self.dense_product(&Product { weight, ..*p }, t),
            None => {
                let (weight, dtype) = self.plain(p.weight, p.dtype, t)?;
                let p = &Product { weight, dtype, ..*p };
                let args = Args::new().ptr(p.x).bytes(bytemuck::bytes_of(&p.weight)).ptrs(&[p.bias, p.residual, p.out]);
                let args = args.u32(usize::from(p.out_f32)).u32(p.rows).ptr(self.counts()?).u32(p.which);
                let grid = [(p.weight.n as usize).div_ceil(64), p.rows.div_ceil(64), 1];
                let name = format!("matmul_{}_{}", suffix(p.dtype), suffix(t));
                self.launch("matmul", &name, grid, 256, 0, args).map(drop)
            }
        }
    }

    /// A product with a dense weight, by whoever is the fastest.
    fn dense_product(&mut self, p: &Product, t: DType) -> Result<()> {
        let constant = !self.is_scratch(p.weight.data);
        // cuBLASLt adds no f32 bias to a 16-bit result, and to an f32 result no 16-bit residual; what is decoded for one product
        // is not worth its time.
        if !constant || p.bias != 0 || (p.out_f32 && p.residual != 0) {
            return self.own_product(p, t, constant);
        }
        let (width, inner) = (p.weight.n as usize, p.weight.k as usize);
        let (pitch, transposed, out_f32, add) = (inner, true, p.out_f32, p.residual != 0);
        let shape = Shape { rows: p.rows, width, inner, pitch, transposed, dtype: t, out_f32, add };
        let dense = Dense { shape, x: p.x, weight: p.weight.data, add: p.residual, out: p.out, which: p.which };
        self.fastest(&dense, |me, d| {
            let weight = WeightView { data: d.weight, ..p.weight };
            let residual = if add { d.add } else { 0 };
            me.own_product(&Product { x: d.x, weight, residual, out: d.out, which: d.which, ..*p }, t, true)
        })
    }

    /// The same by the kernels of this crate. `constant`: no kernel of the step writes the weight.
    fn own_product(&mut self, p: &Product, t: DType, constant: bool) -> Result<()> {
        if self.caps.hopper() {
            return self.sm90_matmul(p, t, constant);
        }
        let (tile, rows, columns, threads, shared) = tile_of(true, p.rows, p.weight.n as usize, self.caps);
        let infix = if p.out_f32 { "_to_f32" } else { "" };
        let args = Args::new().ptrs(&[p.x, p.weight.data, p.bias, p.residual, p.out, self.counts()?]);
        let args = args.u32(p.which).u32(p.rows).u32(p.weight.k as usize).u32(p.weight.n as usize);
        let grid = [p.rows.div_ceil(rows), (p.weight.n as usize).div_ceil(columns), 1];
        let name = format!("matmul_tile_{tile}{infix}_{}", suffix(t));
        self.launch("matmul_tile", &name, grid, threads, shared, args).map(drop)
    }

    fn matmul_dx(&mut self, p: &ProductDx, t: DType) -> Result<()> {
        match self.dense(p.weight, p.dtype, t)? {
            Some(weight) => self.dense_dx(&ProductDx { weight, ..*p }, t),
            None => {
                let (weight, dtype) = self.plain(p.weight, p.dtype, t)?;
                let p = &ProductDx { weight, dtype, ..*p };
                let args = Args::new().ptr(p.dy).bytes(bytemuck::bytes_of(&p.weight)).ptrs(&[p.scale, p.dx]);
                let args = args.u32(usize::from(p.accumulate)).u32(p.rows).ptr(self.counts()?).u32(p.which);
                let grid = [(p.weight.k as usize).div_ceil(64), p.rows.div_ceil(64), 1];
                let name = format!("matmul_dx_{}_{}", suffix(p.dtype), suffix(t));
                self.launch("matmul_dx", &name, grid, 256, 0, args).map(drop)
            }
        }
    }

    /// A gradient through a dense weight, by whoever is the fastest.
    fn dense_dx(&mut self, p: &ProductDx, t: DType) -> Result<()> {
        if p.scale != 0 || self.is_scratch(p.weight.data) || self.is_scratch(p.dy) {
            return self.own_dx(p, t);
        }
        let (width, inner) = (p.weight.k as usize, p.weight.n as usize);
        let (pitch, transposed) = (p.dy_pitch.map_or(inner, |bytes| bytes / 2), false);
        let (out_f32, add) = (false, p.accumulate);
        let shape = Shape { rows: p.rows, width, inner, pitch, transposed, dtype: t, out_f32, add };
        let dense = Dense { shape, x: p.dy, weight: p.weight.data, add: p.dx, out: p.dx, which: p.which };
        self.fastest(&dense, |me, d| {
            let weight = WeightView { data: d.weight, ..p.weight };
            me.own_dx(&ProductDx { dy: d.x, weight, dx: d.out, which: d.which, ..*p }, t)
        })
    }

    /// The same by the kernels of this crate.
    fn own_dx(&mut self, p: &ProductDx, t: DType) -> Result<()> {
        let (n, k) = (p.weight.n as usize, p.weight.k as usize);
        if self.caps.hopper() {
            let mut output = MatmulOutput::<6>::EMPTY;
            let dy = TensorMap::strided(t, p.dy, p.rows, n, p.dy_pitch.unwrap_or(2 * n), 64)?;
            output.push(dy, TensorMap::new(t, p.weight.data, n, k, 64)?, n);
            output.n = p.weight.k;
            (output.out, output.scale) = (p.dx, p.scale);
            output.residual = if p.accumulate { p.dx } else { 0 };
            return self.sm90_matmul_dx(output, Rows { rows: p.rows, cols: k, which: p.which }, t);
        }
        let (tile, rows, columns, threads, shared) = tile_of(false, p.rows, k, self.caps);
        let args = Args::new().ptrs(&[p.dy, p.weight.data, p.scale, p.dx, self.counts()?]);
        let args = args.u32(p.which).u32(p.rows).u32(n).u32(k).u32(usize::from(p.accumulate));
        let grid = [p.rows.div_ceil(rows), k.div_ceil(columns), 1];
        let name = format!("matmul_dx_tile_{tile}_{}", suffix(t));
        self.launch("matmul_dx_tile", &name, grid, threads, shared, args).map(drop)
    }

    /// The weight as a matrix of `t` whose rows are whole 16 bytes, decoded to scratch where it is quantised; `None` where
    /// the tensor-core kernels cannot take it.
    pub fn dense(&mut self, weight: WeightView, dtype: DType, t: DType) -> Result<Option<WeightView>> {
        let aligned = weight.k.is_multiple_of(8) && weight.n.is_multiple_of(8);
        if t == DType::F32 || !aligned || (dtype != t && !dtype.is_quantised()) {
            return Ok(None);
        }
        self.plain(weight, dtype, t).map(|(weight, _)| Some(weight))
    }

    /// Bytes of scratch that a product decodes its weight to.
    pub fn decoded_bytes(&self, weight: WeightView, dtype: DType, t: DType) -> usize {
        match dtype.is_quantised() && t != DType::F32 {
            true => (weight.n as usize * weight.k as usize * 2).next_multiple_of(256),
            false => 0,
        }
    }

    /// The weight with plain elements where activations are 16-bit: quantised ones are decoded to scratch.
    fn plain(&mut self, weight: WeightView, dtype: DType, t: DType) -> Result<(WeightView, DType)> {
        if t == DType::F32 || !dtype.is_quantised() {
            return Ok((weight, dtype));
        }
        self.decode(weight, dtype, t, 0).map(|weight| (weight, t))
    }

    /// The quantised weight as a matrix of `t` in the scratch, `offset` bytes from its start.
    pub fn decode(&mut self, weight: WeightView, dtype: DType, t: DType, offset: usize) -> Result<WeightView> {
        let (n, k) = (weight.n as usize, weight.k as usize);
        let scratch = self.scratch(offset + n * k * 2) + offset as u64;
        let args = Args::new().bytes(bytemuck::bytes_of(&weight)).u32(0).u32(n).ptr(scratch);
        let blocks = (n * k.div_ceil(8)).div_ceil(1024).min(16 * self.caps.multiprocessors as usize);
        let name = format!("matmul_decode_{}_{}", suffix(dtype), suffix(t));
        self.launch(&format!("matmul_decode/{}", suffix(dtype)), &name, [blocks, 1, 1], 256, 0, args)?;
        Ok(WeightView { data: scratch, planes: [0; 3], ..weight })
    }

    /// One product on Hopper.
    fn sm90_matmul(&mut self, p: &Product, t: DType, constant: bool) -> Result<()> {
        let (rows, n, k) = (p.rows, p.weight.n as usize, p.weight.k as usize);
        let x = TensorMap::new(t, p.x, rows, k, self.a_box(rows))?;
        let mut output = MatmulOutput::<2>::EMPTY;
        output.push(x, TensorMap::new(t, p.weight.data, n, k, 64)?, k);
        output.n = p.weight.n;
        (output.out, output.bias, output.residual) = (p.out, p.bias, p.residual);
        let outputs = [output, MatmulOutput::EMPTY, MatmulOutput::EMPTY];
        let r = Rows { rows, cols: k, which: p.which };
        self.sm90_outputs(&Outputs { list: outputs, count: 1, out_f32: p.out_f32, constant, adapters: None }, r, t)
    }

    /// Rows of the boxes in which x is read.
    pub fn a_box(&self, rows: usize) -> usize {
        rows.next_power_of_two().clamp(16, 64)
    }

    /// Launches a Hopper product.
    pub fn sm90_outputs(&mut self, outputs: &Outputs, r: Rows, t: DType) -> Result<()> {
        let Outputs { mut list, count, out_f32, constant, adapters } = *outputs;
        let file = if adapters.is_none() { "sm90_matmul/0" } else { "sm90_matmul/1" };
        let widths: Vec<usize> = list[..count].iter().map(|o| o.n as usize).collect();
        let multiprocessors = self.caps.multiprocessors as usize;
        let tokens = [16, 32, 64, 128].into_iter().find(|tokens| *tokens >= r.rows).unwrap_or(128);
        let (across, deep) = (widths.iter().map(|n| n.div_ceil(128)).sum::<usize>(), r.rows.div_ceil(tokens));
        let tiles = across * deep;
        // More rows, too, where their tiles would leave half of the chip idle: 256 × 1,024 × 3,072 takes 11.5 µs instead of 19.4.
        let small = deep == 1 || 2 * tiles <= multiprocessors;
        let tile = hopper_tile(r.rows, &widths, multiprocessors);
        if let Some(adapters) = &adapters {
            adapters.complete(&mut list, t, if small { 128 } else { tile.columns })?;
        }
        let args = MatmulArgs {
            outputs: list,
            counts: self.counts()?,
            which: r.which as u32,
            rows: r.rows as u32,
            count: count as u32,
            out_f32: u32::from(out_f32),
            act: 0,
            slots: adapters.map_or(0, |a| a.slots),
            ready: adapters.map_or(0, |a| a.ready),
        };
        let args = Args::new().bytes(args.bytes());
        if small {
            // A tile whose rows have no adapters has only the first product.
            let products = if adapters.is_none() { 2 } else { 1 };
            let steps = list[0].k[..products].iter().map(|k| k.div_ceil(64) as usize).sum::<usize>();
            let parts = split(tiles, steps, multiprocessors);
            let stages = match tokens {
                16 => 10,
                32 => 9,
                64 => 8,
                _ => 6,
            };
            let shared = 197_632 + 16 * stages;
            let name = format!("sm90_matmul_t{tokens}_{}", suffix(t));
            let launch = self.launch(file, &name, [parts * across, deep, 1], 288, shared, args)?;
            launch.cluster = Some(parts as u32);
            launch.overlaps = constant;
            return Ok(());
        }
        let name = format!("sm90_matmul_n{}c{}_{}", tile.columns, tile.cluster, suffix(t));
        let launch = self.launch(file, &name, [tile.grid, 1, 1], 384, tile.shared, args)?;
        launch.overlaps = constant && adapters.is_some();
        Ok(())
    }

    /// Launches a Hopper product of gradients: up to six terms of one result.
    pub fn sm90_matmul_dx(&mut self, output: MatmulOutput<6>, r: Rows, t: DType) -> Result<()> {
        let args = MatmulArgs {
            outputs: [output],
            counts: self.counts()?,
            which: r.which as u32,
            rows: r.rows as u32,
            count: 1,
            out_f32: 0,
            act: 0,
            slots: 0,
            ready: 0,
        };
        let tile = hopper_tile(r.rows, &[r.cols], self.caps.multiprocessors as usize);
        let name = format!("sm90_matmul_dx_n{}c{}_{}", tile.columns, tile.cluster, suffix(t));
        let args = Args::new().bytes(args.bytes());
        self.launch("sm90_matmul_dx", &name, [tile.grid, 1, 1], 384, tile.shared, args).map(drop)
    }

    /// The loss, chunk by chunk. `[labels, scale, logits, loss]`.
    fn head_loss(
        &mut self,
        x: TensorId,
        weight: TensorId,
        ids: [TensorId; 4],
        weights: Option<TensorId>,
        smoothing: f32,
        (dx, dw): (Option<TensorId>, Option<HeadDw>),
    ) -> Result<()> {
        let [labels, scale, logits, loss] = ids;
        let (r, t) = (self.rows(x), self.activation(&[x])?);
        let (view, dtype) = self.product_weight(weight, t)?;
        let (chunk, vocab) = (self.decl(logits).rows, self.decl(logits).cols);
        let at_logits = self.at(logits)?;
        // Quantised heads are decoded once, before the chunks.
        let decoded = self.decoded_bytes(view, dtype, t);
        let (weight, dtype) = self.plain(view, dtype, t)?;
        // f32 gradients take the logits' place; so do 16-bit ones where the product takes rows that far apart, else they
        // go to scratch.
        let spaced = self.caps.hopper() && self.dense(weight, dtype, t)?.is_some();
        let (gradient, pitch) = match t {
            _ if dx.is_none() && dw.is_none() => (0, vocab),
            DType::F32 => (at_logits, vocab),
            _ if spaced => (at_logits, 2 * vocab),
            _ => (self.scratch(decoded + chunk * vocab * 2) + decoded as u64, vocab),
        };
        let row_bytes = (r.cols * t.block_bytes()) as u64;
        for row0 in (0..r.rows).step_by(chunk) {
            let rows = chunk.min(r.rows - row0);
            let product = Product {
                x: self.at(x)? + row0 as u64 * row_bytes,
                weight,
                dtype,
                bias: 0,
                residual: 0,
                out: at_logits,
                out_f32: true,
                rows,
                which: 2,
            };
            self.matmul(&product, t)?;
            let ids = [at_logits, self.at(labels)?, self.at(scale)?, self.maybe(weights)?, self.at(loss)?, gradient];
            let args = Args::new().ptrs(&ids);
            let args = self.live(args.u32(pitch).u32(rows).u32(vocab).u32(row0).u32(r.rows), r)?.f32(smoothing);
            self.launch("head_loss", &format!("head_loss_{}", suffix(t)), [rows, 1, 1], 1024, 0, args)?;
            if let Some(HeadDw { dw, scale }) = dw {
                let dw = DenseDw {
                    dy: gradient,
                    pitch,
                    x: self.at(x)? + row0 as u64 * row_bytes,
                    scale: self.maybe(scale)?,
                    dw: self.at(dw)?,
                    row0,
                    rows: Rows { rows, ..r },
                    n: vocab,
                    k: r.cols,
                };
                self.dense_dw(&dw, t)?;
            }
            if let Some(dx) = dx {
                let product = ProductDx {
                    dy: gradient,
                    dy_pitch: spaced.then_some(4 * vocab),
                    weight,
                    dtype,
                    scale: 0,
                    dx: self.at(dx)? + row0 as u64 * row_bytes,
                    accumulate: false,
                    rows,
                    which: 2,
                };
                self.matmul_dx(&product, t)?;
            }
        }
        Ok(())
    }
}

/// Parts of an inner dimension of so many steps, in a cluster, as long as all of them run at once. The kernel shares the tokens out
/// among them: a power of two, each with something to add.
pub fn split(tiles: usize, steps: usize, multiprocessors: usize) -> usize {
    let parts = match tiles {
        _ if 8 * tiles <= multiprocessors => 4,
        _ if 2 * tiles <= multiprocessors => 2,
        _ => 1,
    };
    parts.min(1 << steps.max(1).ilog2())
}

/// How a Hopper product is cut.
struct HopperTile {
    columns: usize,
    cluster: usize,
    grid: usize,
    shared: usize,
}

/// The wider tile reads less, the narrower one leaves fewer multiprocessors idle in the last wave. The weights are times of a
/// wave, measured on an H100.
fn hopper_tile(rows: usize, widths: &[usize], multiprocessors: usize) -> HopperTile {
    let choices = [(256, 2, 4, 0.70), (192, 2, 5, 0.55), (128, 2, 6, 0.40), (128, 1, 6, 0.49)];
    let tiles = |columns: usize, cluster: usize| {
        rows.div_ceil(128 * cluster) * widths.iter().map(|n| n.div_ceil(columns)).sum::<usize>()
    };
    let cost = |(columns, cluster, _, wave): &(usize, usize, usize, f64)| {
        let tiles = tiles(*columns, *cluster);
        // Half-empty waves of the smallest tile have the memory to themselves.
        let wave = if *cluster == 1 && 2 * tiles <= multiprocessors { 0.36 } else { *wave };
        tiles.div_ceil(multiprocessors / cluster) as f64 * wave
    };
    let best = choices.iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).copied();
    let (columns, cluster, stages, _) = best.unwrap_or(choices[0]);
    let grid = cluster * tiles(columns, cluster).min(multiprocessors / cluster);
    HopperTile { columns, cluster, grid, shared: 1024 + stages * (128 + columns) * 128 + 16 * stages }
}

/// Tile of `matmul_tile` (`wide`: 128x256) and `matmul_dx_tile` (256x128): name, rows, columns, threads, shared memory.
fn tile_of(wide: bool, rows: usize, columns: usize, caps: Caps) -> (&'static str, usize, usize, usize, usize) {
    let large = if wide { ("128x256", 128, 256, 256, 98_304) } else { ("256x128", 256, 128, 256, 98_304) };
    let small = ("64x64", 64, 64, 128, 49_152);
    let roomy = [large, ("128x128x64", 128, 128, 256, 98_304)];
    let tight = [("128x128", 128, 128, 128, 49_152), ("128x64", 128, 64, 128, 49_152)];
    let tiles = if large.4 <= caps.max_shared as usize { roomy } else { tight };
    let busy = |t: &&(&str, usize, usize, usize, usize)| {
        10 * rows.div_ceil(t.1) * columns.div_ceil(t.2) >= 9 * caps.multiprocessors as usize
    };
    *tiles.iter().find(busy).unwrap_or(&small)
}
