//! Products with the adapters' matrices: f32, and narrow (the rank) on one side. Gradients of whole weights, too.

use super::launch::Args;
use super::places::suffix;
use super::record::{Recorder, Rows};
use crate::error::{Error, Result};
use crate::program::TensorId;
use crate::tensor::DType;

/// Widest rank that the narrow kernels take.
pub const MAX_RANK: usize = 256;

/// Tiles of the narrow kernels by the columns that they hold.
const RANK_TILES: [usize; 4] = [16, 32, 48, 64];

/// The tile of `matmul_dw` for `columns` columns in all.
fn rank_tile(columns: usize) -> usize {
    RANK_TILES.into_iter().find(|tile| *tile >= columns).unwrap_or(64)
}

/// `out = x · Aᵀ` for up to three `A` that share x.
pub struct Shrink<'a> {
    pub x: TensorId,
    /// (A, out).
    pub parts: &'a [(TensorId, TensorId)],
    pub slots: Option<TensorId>,
    pub rank: usize,
    /// x is normalised first: address of the norm's weight, eps. For up to [`NORM_ROWS`] rows.
    pub norm: Option<(u64, f32)>,
}

/// Most rows of a [`Shrink`] with a norm.
pub const NORM_ROWS: usize = 32;

/// `scale · x · Aᵀ` of the adapter that each row has, in the columns of its slot, and zeros in all others; for up to three `A` of
/// the activations' type that share x.
pub struct Spread<'a> {
    pub x: TensorId,
    /// (A, address of the result `[rows, count · rank]`).
    pub parts: &'a [(TensorId, u64)],
    pub slots: TensorId,
    /// f32 `[count]`.
    pub scales: TensorId,
    /// Adapters in the bank.
    pub count: usize,
    /// A multiple of 8.
    pub rank: usize,
}

/// Most rows for which the blocks of a [`Spread`] have eight rows each: with more they would read the adapters too often.
const EIGHT_ROWS: usize = 512;

/// `dw += scale · dyᵀ · x` of a whole weight f32 `[n, k]`, by addresses.
pub struct DenseDw {
    pub dy: u64,
    /// Elements from row to row of dy.
    pub pitch: usize,
    pub x: u64,
    pub scale: u64,
    pub dw: u64,
    /// First of the rows among all of which some are live, and how many there are.
    pub row0: usize,
    pub rows: Rows,
    pub n: usize,
    pub k: usize,
}

/// `y += scale · u · Bᵀ` for up to three (u, B, scales, y).
pub struct Expand<'a> {
    pub parts: &'a [[TensorId; 4]],
    pub slots: Option<TensorId>,
    pub rank: usize,
}

impl Recorder<'_> {
    /// Whether the tensor-core kernels take activations of this type and width.
    fn narrow_fast(&self, dtype: DType, width: usize) -> bool {
        dtype != DType::F32 && width.is_multiple_of(8)
    }

    /// Grid, tile name, threads and the splits' scratch of a product with a narrow result.
    fn narrow_grid(&mut self, r: Rows, inner: usize, columns: usize) -> ([usize; 3], &'static str, usize, [u64; 2]) {
        let (name, rows, tile, threads) = match (r.rows, columns) {
            (0..=256, _) => ("few", 16, 16, 128),
            (_, 0..=16) => ("r16", 128, 16, 256),
            (_, 17..=32) => ("r32", 64, 32, 256),
            _ => ("r64", 64, 64, 256),
        };
        let (across, deep) = (r.rows.div_ceil(rows), columns.div_ceil(tile));
        // Two blocks on each multiprocessor.
        let wanted = 2 * self.caps.multiprocessors as usize / (across * deep);
        let splits = wanted.clamp(1, inner.div_ceil(128).max(1));
        let partials = self.scratch(if splits > 1 { across * deep * splits * rows * tile * 4 } else { 0 });
        let counters = self.counters(across * deep);
        ([across, splits, deep], name, threads, [partials, counters])
    }

    /// Infix of the name, grid and threads of a product with a narrow inner dimension and `groups` results.
    fn wide_grid(
        &self,
        fast: bool,
        slots: Option<TensorId>,
        rows: usize,
        width: usize,
        groups: usize,
    ) -> (&'static str, [usize; 3], usize) {
        let (name, tile, threads, waves) = match rows {
            _ if !fast => return ("_plain", [width.div_ceil(256), rows, groups], 256),
            0..=4 => ("_few", 16, 64, 7),
            // Rows of one adapter lie together: a low tile has one or two of them, and its block stages no others.
            0..=512 if slots.is_some() => ("_few", 16, 64, 7),
            _ => ("", 128, 256, 2),
        };
        // A block walks over its tiles of rows: as many blocks as run at once.
        let across = width.div_ceil(64);
        let wanted = waves * self.caps.multiprocessors as usize / (across * groups);
        (name, [across, wanted.clamp(1, rows.div_ceil(tile)), groups], threads)
    }

    /// Parts into which the rows are cut: one block on each multiprocessor, two measured slower.
    fn splits(&self, blocks: usize, rows: usize) -> usize {
        (self.caps.multiprocessors as usize / blocks.max(1)).clamp(1, rows.div_ceil(128).max(1))
    }

    /// The flag by which the product that is recorded next learns that x is there, or 0 where it has to wait for this launch.
    pub fn lora_spread(&mut self, s: &Spread) -> Result<u64> {
        let (r, t, hopper) = (self.rows(s.x), self.activation(&[s.x])?, self.caps.hopper());
        let [ready, next] = self.flags();
        let (mut a, mut out) = ([0; 3], [0; 3]);
        for (i, part) in s.parts.iter().enumerate() {
            (a[i], out[i]) = (self.at(part.0)?, part.1);
        }
        let args = Args::new().ptr(self.at(s.x)?).ptrs(&a).ptrs(&out).ptr(self.at(s.slots)?).ptr(self.at(s.scales)?);
        let args = args.ptr(self.counts()?).u32(r.which).u32(r.rows).u32(r.cols).u32(s.rank).u32(s.count);
        let args = args.ptr(ready).ptr(next);
        let (infix, rows, threads) = match r.rows {
            0..=EIGHT_ROWS => ("", 8, if r.cols <= 2048 { 256 } else { 512 }),
            _ => ("many_", 16, 256),
        };
        // Blocks that find nothing to do cost time, too, where there are many.
        let across = r.rows.div_ceil(rows);
        let share = (64 / across).clamp(2, rows).min(s.count);
        let grid = [across, share, s.parts.len() * s.rank.div_ceil(16)];
        let name = format!("lora_shrink_slots_{infix}{}", suffix(t));
        self.launch("lora_shrink_slots", &name, grid, threads, 0, args)?.overlaps = hopper;
        Ok(ready)
    }

    /// With `tells` returns the flag of [`Self::lora_spread`].
    pub fn lora_shrink(&mut self, s: &Shrink, tells: bool) -> Result<u64> {
        let (r, t) = (self.rows(s.x), self.activation(&[s.x, s.parts[0].1])?);
        let (mut a, mut out) = ([0; 3], [0; 3]);
        for (i, part) in s.parts.iter().enumerate() {
            (a[i], out[i]) = (self.at(part.0)?, self.at(part.1)?);
        }
        let groups = s.parts.len();
        let whole = r.cols.is_multiple_of(8);
        let (grid, tile, threads, [partials, counters]) = match self.narrow_fast(t, r.cols) && s.rank <= MAX_RANK {
            // A block for each number of the result, f32 arithmetic.
            _ if whole && (r.rows <= NORM_ROWS || t == DType::F32) => ([s.rank, r.rows, groups], "one", 256, [0, 0]),
            true => self.narrow_grid(r, r.cols, groups * s.rank),
            false => ([r.rows, groups, 1], "plain", 256, [0, 0]),
        };
        let args = Args::new().ptr(self.at(s.x)?).ptrs(&a).ptrs(&out).ptr(self.maybe(s.slots)?);
        let args = args.ptrs(&[partials, counters]).ptr(self.counts()?).u32(r.which);
        let args = args.u32(r.rows).u32(r.cols).u32(s.rank).u32(groups);
        let (norm, eps) = s.norm.unwrap_or_default();
        let [ready, next] = if tells && tile == "one" { self.flags() } else { [0; 2] };
        let args = args.ptr(norm).f32(eps).ptr(ready).ptr(next);
        let file = format!("lora_shrink/{}", self.part(s.parts[0].0, t)?);
        let overlaps = self.caps.hopper();
        self.launch(&file, &format!("lora_shrink_{tile}_{}", suffix(t)), grid, threads, 0, args)?.overlaps = overlaps;
        Ok(ready)
    }

    /// Part of the kernels' file: 0 for an adapter of f32, 1 for one of the activations' type.
    fn part(&self, adapter: TensorId, t: DType) -> Result<u8> {
        match self.decl(adapter).dtype {
            DType::F32 => Ok(0),
            own if own == t => Ok(1),
            own => Err(Error::internal(format!("cuda: an adapter of {own} beside activations of {t}"))),
        }
    }

    pub fn lora_expand(&mut self, e: &Expand) -> Result<()> {
        let y = e.parts[0][3];
        let (r, t) = (self.rows(y), self.activation(&[y, e.parts[0][0]])?);
        let mut columns = [[0u64; 3]; 4];
        let mut widths = [0; 3];
        for (i, part) in e.parts.iter().enumerate() {
            for (column, id) in columns.iter_mut().zip(part) {
                column[i] = self.at(*id)?;
            }
            widths[i] = self.decl(part[3]).cols;
        }
        let widest = widths.iter().copied().max().unwrap_or(0);
        let fast = widths.iter().all(|w| self.narrow_fast(t, *w)) && e.rank <= MAX_RANK;
        let (name, grid, threads) = self.wide_grid(fast, e.slots, r.rows, widest, e.parts.len());
        let args = columns.iter().fold(Args::new(), |args, column| args.ptrs(column));
        let args = args.ptr(self.maybe(e.slots)?).ptr(self.counts()?).u32(r.which).u32(r.rows);
        let args = widths.iter().fold(args, |args, w| args.u32(*w)).u32(e.rank);
        let file = format!("lora_expand/{}", self.part(e.parts[0][1], t)?);
        let overlaps = self.caps.hopper();
        self.launch(&file, &format!("lora_expand{name}_{}", suffix(t)), grid, threads, 0, args)?.overlaps = overlaps;
        Ok(())
    }

    /// `y = base + scale · u · Bᵀ` for `[u, B, scales, y]`, base f32 `[rows, n]` at an address.
    pub fn lora_expand_from_f32(&mut self, [u, b, scales, y]: [TensorId; 4], base: u64, rank: usize) -> Result<()> {
        let (r, t) = (self.rows(y), self.activation(&[y, u])?);
        let fast = self.narrow_fast(t, r.cols) && rank <= MAX_RANK;
        let (name, grid, threads) = self.wide_grid(fast, None, r.rows, r.cols, 1);
        let args = Args::new().ptrs(&[self.at(u)?, self.at(b)?, self.at(scales)?, base, self.at(y)?]);
        let args = args.ptr(0).ptr(self.counts()?).u32(r.which).u32(r.rows).u32(r.cols).u32(rank);
        let name = format!("lora_expand{name}_from_f32_{}", suffix(t));
        self.launch("lora_expand/0", &name, grid, threads, 0, args).map(drop)
    }

    /// `du = scale · dy · B`, B f32 `[n, rank]`.
    pub fn lora_du(&mut self, dy: TensorId, b: TensorId, scale: Option<TensorId>, du: TensorId) -> Result<()> {
        let (r, t, rank) = (self.rows(dy), self.activation(&[dy, du])?, self.decl(b).cols);
        let (grid, tile, threads, [partials, counters]) = match self.narrow_fast(t, r.cols) {
            true => self.narrow_grid(r, r.cols, rank),
            false => ([r.rows, 1, 1], "plain", 256, [0, 0]),
        };
        let args = Args::new().ptrs(&[self.at(dy)?, self.at(b)?, self.maybe(scale)?, self.at(du)?, partials, counters]);
        let args = args.ptr(self.counts()?).u32(r.which).u32(r.rows).u32(r.cols).u32(rank);
        self.launch("lora_shrink/0", &format!("lora_du_{tile}_{}", suffix(t)), grid, threads, 0, args)?;
        Ok(())
    }

    /// `dx (+)= scale · du · A`, A f32 `[rank, k]`.
    pub fn lora_dx(
        &mut self,
        du: TensorId,
        a: TensorId,
        scale: Option<TensorId>,
        dx: TensorId,
        accumulate: bool,
    ) -> Result<()> {
        let (r, t, rank) = (self.rows(dx), self.activation(&[du, dx])?, self.decl(a).rows);
        let (name, grid, threads) = self.wide_grid(self.narrow_fast(t, r.cols), None, r.rows, r.cols, 1);
        let args = Args::new().ptrs(&[self.at(du)?, 0, 0, self.at(a)?, 0, 0, self.maybe(scale)?, 0, 0, self.at(dx)?]);
        let args = args.ptr(self.counts()?).u32(r.which).u32(r.rows).u32(r.cols).u32(rank).u32(1);
        let args = args.u32(usize::from(accumulate));
        self.launch("lora_expand/0", &format!("lora_dx{name}_{}", suffix(t)), grid, threads, 0, args)?;
        Ok(())
    }

    /// `dw += scale · dyᵀ · x`.
    pub fn matmul_dw(&mut self, dy: TensorId, x: TensorId, scale: Option<TensorId>, dw: TensorId) -> Result<()> {
        let (r, t) = (self.rows(dy), self.activation(&[dy, x])?);
        let (n, k) = (self.decl(dw).rows, self.decl(dw).cols);
        let scale = self.maybe(scale)?;
        let fits = |rank: usize, width: usize| {
            t != DType::F32 && rank <= MAX_RANK && rank.is_multiple_of(2) && width.is_multiple_of(8)
        };
        let (file, counts) = ("matmul_dw", self.counts()?);
        if fits(n, k) || fits(k, n) {
            // The narrow side is the rank: dA where it is dy, dB where it is x.
            let narrow_is_dy = fits(n, k);
            let (rank, width) = if narrow_is_dy { (n, k) } else { (k, n) };
            let tile = rank_tile(rank);
            let (across, deep) = (width.div_ceil(64), rank.div_ceil(tile));
            let splits = self.splits(across * deep, r.rows);
            let partials = self.scratch(if splits > 1 { across * deep * splits * 64 * tile * 4 } else { 0 });
            let counters = self.counters(across * deep);
            let (side, args) = match narrow_is_dy {
                true => {
                    let list = [self.at(dy)?, 0, 0, self.at(x)?, scale, 0, 0, self.at(dw)?, 0, 0, partials, counters];
                    ("a", Args::new().ptrs(&list))
                }
                false => ("b", Args::new().ptrs(&[self.at(x)?, self.at(dy)?, scale, self.at(dw)?, partials, counters])),
            };
            let args = args.ptr(counts).u32(r.which).u32(r.rows).u32(width).u32(rank);
            let args = if narrow_is_dy { args.u32(1) } else { args };
            let name = format!("matmul_dw_{side}_r{tile}_{}", suffix(t));
            self.launch(file, &name, [across, splits, deep], 256, 0, args)?;
            return Ok(());
        }
        let (dy, x, dw) = (self.at(dy)?, self.at(x)?, self.at(dw)?);
        self.dense_dw(&DenseDw { dy, pitch: n, x, scale, dw, row0: 0, rows: r, n, k }, t)
    }

    /// The same for a whole weight.
    pub fn dense_dw(&mut self, d: &DenseDw, t: DType) -> Result<()> {
        let &DenseDw { dy, pitch, x, scale, dw, row0, rows: r, n, k } = d;
        let args = Args::new().ptr(dy).u32(pitch).ptrs(&[x, scale, dw, self.counts()?]);
        let args = args.u32(r.which).u32(row0).u32(r.rows).u32(n).u32(k);
        if t == DType::F32 || ![n, k, pitch].iter().all(|size| size.is_multiple_of(8)) {
            let name = format!("matmul_dw_plain_{}", suffix(t));
            return self.launch("matmul_dw", &name, [k.div_ceil(64), n.div_ceil(64), 1], 256, 0, args).map(drop);
        }
        let large = n.div_ceil(128) * k.div_ceil(128) >= self.caps.multiprocessors as usize;
        let (tile, side, threads, shared) =
            if large { ("128x128", 128, 256, 49_152) } else { ("64x64", 64, 128, 24_576) };
        let name = format!("matmul_dw_tile_{tile}_{}", suffix(t));
        let grid = [n.div_ceil(side), k.div_ceil(side), 1];
        self.launch("matmul_dw_tile", &name, grid, threads, shared, args).map(drop)
    }
}
