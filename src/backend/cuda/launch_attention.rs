//! Attention, and the ops around it that see heads. Which kernel attends:
//!
//! | activations, head width | layout | kernel |
//! |---|---|---|
//! | f32, or a width that the tensor cores' kernels lack | any | `attention_{paged,packed}_plain` |
//! | 16 bit | packed | `attention_packed_d…`, on Hopper `sm90_attention_packed_d…` |
//! | 16 bit, few rows, or each alone in its sequence | paged | `attention_decode` |
//! | 16 bit, the same behind norm and rotation | paged | `attention_decode_fresh`, which does those too |
//! | 16 bit, few rows | paged, 8-bit codes | `attention_decode_…_{i8,e4m3}` |
//! | 16 bit, more rows | paged | `attention_decode` for sequences with one row, `attention_paged_d…`, on Hopper `sm90_attention_paged_d…`, for the others |

use super::launch::Args;
use super::places::suffix;
use super::record::Recorder;
use crate::error::{Error, Result};
use crate::program::{Geometry, KvLayout, Op, Place, TensorId};
use crate::tensor::DType;

/// Head widths of the tensor cores' kernels.
const WIDTHS: [usize; 5] = [64, 80, 96, 128, 256];

/// Steps of at most this many rows attend row by row.
const DECODE_ROWS: usize = 16;

/// Most parts into which the keys of a row are cut.
const MAX_SPLITS: usize = 64;

/// What `attention_decode_fresh` does before it attends (`Fresh` in `kernels/attention_decode.cu`).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Fresh {
    k: u64,
    v: u64,
    q_norm: u64,
    k_norm: u64,
    eps: f32,
    pad: u32,
    rope: u64,
    rope_rows: u32,
    pad2: u32,
    slots: u64,
    cache_rows: u32,
    pad3: u32,
}

/// The operands of one attention.
struct Attention {
    q: TensorId,
    k: TensorId,
    v: TensorId,
    seqs: TensorId,
    positions: TensorId,
    layout: KvLayout,
    geometry: Geometry,
    out: TensorId,
    lse: Option<TensorId>,
}

impl Recorder<'_> {
    /// Appends the launches of one op.
    pub fn attention_ops(&mut self, op: &Op) -> Result<()> {
        match *op {
            Op::Attention { q, k, v, seqs, positions, layout, geometry, out, lse } => {
                self.attention(&Attention { q, k, v, seqs, positions, layout, geometry, out, lse }, None)
            }
            Op::AttentionBackward { .. } => self.attention_backward(op),
            Op::QkNormRopeKv { .. } => self.qk_norm_rope_kv(op),
            Op::QkNormRopeBackward { .. } => self.qk_norm_rope_backward(op),
            ref other => Err(Error::internal(format!("cuda: '{}' is no op of heads", other.name()))),
        }
    }

    /// Norm, rotation and the cache's new rows, where the attention after them takes them over: each row is alone in its sequence.
    pub fn turned_attention(&mut self, at: usize) -> Result<Option<usize>> {
        let nodes = &self.program.nodes[at..];
        let Op::QkNormRopeKv { q, k, v, q_norm, k_norm, eps, head_dim, positions, rope, slots, q_out, k_out, v_out } =
            nodes[0].op
        else {
            return Ok(None);
        };
        let Some(Op::Attention {
            q: seen,
            k: keys,
            v: values,
            seqs,
            positions: same,
            layout,
            geometry,
            out,
            lse: None,
        }) = nodes.get(1).map(|node| node.op.clone())
        else {
            return Ok(None);
        };
        let alone = self.rows(q).rows == 1 || matches!(layout, KvLayout::Paged { apart: true, .. });
        let t = self.decl(q).dtype;
        let fits = t != DType::F32
            && [k_out, keys, values].iter().all(|id| self.decl(*id).dtype == t)
            && [64, 128].contains(&head_dim)
            && self.decl(rope).cols == head_dim
            && (seen, keys, Some(values), same) == (q_out, k_out, v_out, positions)
            && self.read_by(q_out) == 1
            && self.decl(q_out).place == Place::Temp;
        let (true, true, Some(slots), KvLayout::Paged { .. }) = (alone, fits, slots, layout) else { return Ok(None) };
        let fresh = Fresh {
            k: self.at(k)?,
            v: self.at(v)?,
            q_norm: self.maybe(q_norm)?,
            k_norm: self.maybe(k_norm)?,
            eps,
            rope: self.at(rope)?,
            rope_rows: self.decl(rope).rows as u32,
            slots: self.at(slots)?,
            cache_rows: self.decl(k_out).rows as u32,
            ..bytemuck::Zeroable::zeroed()
        };
        let attention = Attention { q, k: keys, v: values, seqs, positions, layout, geometry, out, lse: None };
        self.attention(&attention, Some(fresh))?;
        Ok(Some(2))
    }

    fn attention(&mut self, a: &Attention, fresh: Option<Fresh>) -> Result<()> {
        let (r, g) = (self.rows(a.q), a.geometry);
        let (t, kind_of_cache) = (self.activation(&[a.q, a.out])?, self.cache_kind(a.q, &[a.k, a.v])?);
        let tensor_cores = t != DType::F32 && WIDTHS.contains(&g.head_dim);
        let (kind, map, pages, page, apart) = match a.layout {
            KvLayout::Paged { table, page, apart } if page.is_power_of_two() && page >= 8 => {
                ("paged", table, self.decl(table).cols, page, apart)
            }
            KvLayout::Paged { page, .. } => {
                return Err(Error::unsupported(format!("cuda: pages of {page} positions: a power of two from 8 on")));
            }
            KvLayout::Packed { bounds } => ("packed", bounds, 0, 1, false),
        };
        let window = g.window.unwrap_or(u32::MAX) as usize;
        let softcap = g.softcap.unwrap_or(0.0);
        let lse = self.maybe(a.lse)?;
        let decode = tensor_cores && kind == "paged" && a.lse.is_none();
        if decode {
            let every_row = apart || fresh.is_some() || r.rows <= DECODE_ROWS;
            let units = if every_row { r.rows } else { r.rows.min(self.decl(map).rows) };
            let blocks = g.kv_heads * (g.heads / g.kv_heads).div_ceil(8);
            // More than one block on each multiprocessor where the keys are many; a block cuts no finer than 64 keys.
            let wanted = (3 * self.caps.multiprocessors as usize).div_ceil(2 * units * blocks);
            // Few of a mixed step's units may have a single row.
            let splits = wanted.max(if every_row { 1 } else { 4 });
            let splits = splits.min((pages * page).div_ceil(64)).clamp(1, MAX_SPLITS);
            let bytes = if splits > 1 { units * g.heads * splits * (g.head_dim + 2) * 4 } else { 0 };
            let (partial, tickets) = (self.scratch(bytes), self.counters(units * blocks));
            let args = Args::new().ptrs(&[self.at(a.out)?, self.at(a.q)?, self.at(a.k)?, self.at(a.v)?]);
            let args = args.ptrs(&[self.at(a.seqs)?, self.at(a.positions)?, self.at(map)?, self.counts()?]);
            let args = args.ptrs(&[partial, tickets]).u32(r.rows).u32(g.heads);
            let args = args.u32(g.kv_heads).u32(pages).u32(page).f32(g.scale).u32(window);
            let mut args = args.f32(softcap).u32(usize::from(every_row));
            let mut name = format!("attention_decode_d{}_{}", g.head_dim, suffix(t));
            if kind_of_cache != 0 {
                name = format!("{name}_{}", suffix(self.decl(a.k).dtype));
            }
            if let Some(fresh) = &fresh {
                args = args.bytes(bytemuck::bytes_of(fresh));
                name = format!("attention_decode_fresh_d{}_{}", g.head_dim, suffix(t));
            }
            let file = format!("attention_decode/{}", g.head_dim);
            let hopper = self.caps.hopper();
            self.launch(&file, &name, [splits, blocks, units], 128, 0, args)?.overlaps = hopper;
            if every_row {
                return Ok(());
            }
        }
        let args = Args::new().ptrs(&[self.at(a.out)?, lse, self.at(a.q)?, self.at(a.k)?, self.at(a.v)?]);
        let args = args.ptrs(&[self.at(a.seqs)?, self.at(a.positions)?, self.at(map)?, self.counts()?]);
        let args = args.u32(r.rows).u32(g.heads).u32(g.kv_heads).u32(g.head_dim).u32(pages).u32(page);
        let args = args.f32(g.scale).u32(window).f32(softcap).u32(usize::from(decode)).u32(kind_of_cache);
        if !tensor_cores {
            let name = format!("attention_{kind}_plain_{}", suffix(t));
            self.launch("attention/0", &name, [r.rows, g.heads, 1], 128, 20 * g.head_dim + 32, args)?;
            return Ok(());
        }
        if self.caps.hopper() && [64, 128, 256].contains(&g.head_dim) {
            let (n, stages) = if g.head_dim == 256 { (64, 2) } else { (128, 3) };
            let shared = 2 * (128 + 2 * stages * n) * g.head_dim + 1024;
            let name = format!("sm90_attention_{kind}_d{}_{}", g.head_dim, suffix(t));
            let file = format!("sm90_attention/{}", g.head_dim);
            self.launch(&file, &name, [g.heads, r.rows.div_ceil(128), 1], 384, shared, args)?;
            return Ok(());
        }
        let (name, file) =
            (format!("attention_{kind}_d{}_{}", g.head_dim, suffix(t)), format!("attention/{}", g.head_dim));
        let (m, n) = if g.head_dim == 256 { (64, 32) } else { (128, 64) };
        let shared = 2 * (m + 4 * n) * (g.head_dim + 8);
        self.launch(&file, &name, [g.heads, r.rows.div_ceil(m), 1], 128, shared, args)?;
        Ok(())
    }

    /// What caches hold, as `CacheKind` of `kernels/codes.cuh`: numbers of the activations' type, or codes.
    fn cache_kind(&self, activation: TensorId, caches: &[TensorId]) -> Result<usize> {
        match self.decl(caches[0]).dtype {
            DType::I8 => Ok(1),
            DType::E4M3 => Ok(2),
            _ => caches.iter().try_fold(0, |kind, cache| self.activation(&[activation, *cache]).map(|_| kind)),
        }
    }

    fn attention_backward(&mut self, op: &Op) -> Result<()> {
        let Op::AttentionBackward { q, k, v, seqs, bounds, geometry: g, out, lse, dout, delta, dq, dk, dv } = *op
        else {
            return Err(Error::internal("not attention_backward"));
        };
        let (r, t) = (self.rows(q), self.activation(&[q, k, v, out, dout, dq, dk, dv])?);
        let args = Args::new().ptrs(&[self.at(delta)?, self.at(out)?, self.at(dout)?, self.counts()?]);
        let args = args.u32(r.rows).u32(g.heads).u32(g.head_dim);
        let (file, blocks) = ("attention_backward/0", (r.rows * g.heads).div_ceil(4));
        self.launch(file, &format!("attention_delta_{}", suffix(t)), [blocks, 1, 1], 128, 0, args)?;
        let tensor_cores = t != DType::F32 && WIDTHS.contains(&g.head_dim);
        for (what, blocks_across, bytes) in [("dkv", g.kv_heads, 40), ("dq", g.heads, 24)] {
            let args = Args::new().ptrs(&[self.at(dq)?, self.at(dk)?, self.at(dv)?, self.at(q)?, self.at(k)?]);
            let args = args.ptrs(&[self.at(v)?, self.at(seqs)?, self.at(bounds)?, self.at(lse)?, self.at(dout)?]);
            let args = args.ptrs(&[self.at(delta)?, self.counts()?]).u32(r.rows).u32(g.heads).u32(g.kv_heads);
            let args = args.u32(g.head_dim).f32(g.scale).u32(g.window.unwrap_or(u32::MAX) as usize);
            let args = args.f32(g.softcap.unwrap_or(0.0));
            let hopper = self.caps.hopper() && (g.head_dim == 128 || g.head_dim == 64 && what == "dkv");
            if tensor_cores && hopper {
                let name = format!("sm90_attention_backward_{what}_d{}_{}", g.head_dim, suffix(t));
                let file = format!("sm90_attention_backward/{}", g.head_dim);
                let tiles = r.rows.div_ceil(128);
                if what == "dq" {
                    let shared = 1536 * g.head_dim + 1024;
                    self.launch(&file, &name, [g.heads, tiles, 1], 384, shared, args)?;
                } else {
                    // The heads of a group are shared out among the blocks of a cluster where there are too few blocks.
                    let enough = 2 * g.kv_heads * tiles >= 3 * self.caps.multiprocessors as usize;
                    let parts = if enough { 1 } else { (g.heads / g.kv_heads).min(8) };
                    let shared = 1280 * g.head_dim + 2560;
                    let launch = self.launch(&file, &name, [parts, g.kv_heads, tiles], 384, shared, args)?;
                    launch.cluster = Some(parts as u32);
                }
            } else if tensor_cores {
                let name = format!("attention_backward_{what}_d{}_{}", g.head_dim, suffix(t));
                let file = format!("attention_backward/{}", g.head_dim);
                if what == "dq" {
                    let (m, n) = if g.head_dim == 256 { (64, 32) } else { (128, 32) };
                    let shared = 4 * (m + 2 * n) * (g.head_dim + 8);
                    self.launch(&file, &name, [g.heads, r.rows.div_ceil(m), 1], 128, shared, args)?;
                } else {
                    let (m, columns) = if g.head_dim == 256 { (32, 2) } else { (64, 1) };
                    let shared = 4 * (64 + 2 * m) * (g.head_dim + 8) + 16 * m;
                    // The heads of a group are shared out among the blocks of a cluster.
                    let few = g.kv_heads * r.rows.div_ceil(64) < 4 * self.caps.multiprocessors as usize;
                    let clusters = self.caps.hopper() && few && g.head_dim < 256;
                    let parts = if clusters { (g.heads / g.kv_heads).min(8) } else { 1 };
                    let grid = [parts, g.kv_heads * columns, r.rows.div_ceil(64)];
                    self.launch(&file, &name, grid, 128, shared, args)?.cluster = Some(parts as u32);
                }
            } else {
                let name = format!("attention_backward_{what}_plain_{}", suffix(t));
                self.launch(file, &name, [r.rows, blocks_across, 1], 128, bytes * g.head_dim, args)?;
            }
        }
        Ok(())
    }

    fn qk_norm_rope_kv(&mut self, op: &Op) -> Result<()> {
        let Op::QkNormRopeKv { q, k, v, q_norm, k_norm, eps, head_dim, positions, rope, slots, q_out, k_out, v_out } =
            *op
        else {
            return Err(Error::internal("not qk_norm_rope_kv"));
        };
        let (r, t, kind) = (self.rows(q), self.activation(&[q, k, v, q_out])?, self.cache_kind(q, &[k_out])?);
        let (heads, kv) = (r.cols / head_dim, self.decl(k).cols / head_dim);
        let args = Args::new().ptrs(&[self.at(q)?, self.at(k)?, self.at(v)?, self.maybe(q_norm)?, self.maybe(k_norm)?]);
        let args = args.f32(eps).ptrs(&[self.at(positions)?, self.at(rope)?]).u32(self.decl(rope).rows);
        let args = args.u32(self.decl(rope).cols).ptr(self.maybe(slots)?).u32(self.decl(k_out).rows);
        let args = args.ptrs(&[self.at(q_out)?, self.at(k_out)?, self.maybe(v_out)?]).u32(r.rows).u32(heads).u32(kv);
        let args = self.live(args.u32(head_dim).u32(kind), r)?;
        let parts = heads + kv + if slots.is_some() { kv } else { 0 };
        let name = format!("qk_norm_rope_kv_{}", suffix(t));
        let hopper = self.caps.hopper();
        self.launch("qk_norm_rope_kv", &name, [(r.rows * parts).div_ceil(4), 1, 1], 128, 0, args)?.overlaps = hopper;
        Ok(())
    }

    fn qk_norm_rope_backward(&mut self, op: &Op) -> Result<()> {
        let Op::QkNormRopeBackward { q, k, q_norm, k_norm, eps, head_dim, positions, rope, dq_out, dk_out, dq, dk } =
            *op
        else {
            return Err(Error::internal("not qk_norm_rope_backward"));
        };
        let (r, t) = (self.rows(q), self.activation(&[q, k, dq_out, dk_out, dq, dk])?);
        let (heads, kv) = (r.cols / head_dim, self.decl(k).cols / head_dim);
        let args = Args::new().ptrs(&[self.at(q)?, self.at(k)?, self.maybe(q_norm)?, self.maybe(k_norm)?]).f32(eps);
        let args = args.ptrs(&[self.at(positions)?, self.at(rope)?]).u32(self.decl(rope).rows);
        let args =
            args.u32(self.decl(rope).cols).ptrs(&[self.at(dq_out)?, self.at(dk_out)?, self.at(dq)?, self.at(dk)?]);
        let args = self.live(args.u32(r.rows).u32(heads).u32(kv).u32(head_dim), r)?;
        let blocks = (r.rows * (heads + kv)).div_ceil(4);
        let name = format!("qk_norm_rope_backward_{}", suffix(t));
        self.launch("qk_norm_rope_backward", &name, [blocks, 1, 1], 128, 0, args)?;
        Ok(())
    }
}
