//! Launches attention, its backward pass, and the rotary step before it.

use super::record::{Bind, Recorder, defines};
use super::template::Defines;
use crate::error::{Error, Result};
use crate::program::{Geometry, KvLayout, Live, Op, TensorId};
use crate::tensor::DType;

/// Rows and columns of the tiles of attention_tile.wgsl.
const TILE: usize = 64;
/// Rows up to which workgroups share the keys of a row.
const FEW_ROWS: usize = 16;

impl Recorder<'_> {
    pub(super) fn attention_ops(&mut self, op: &Op) -> Result<()> {
        let counts = self.program.counts;
        match op {
            Op::QkNormRopeKv {
                q,
                k,
                v,
                q_norm,
                k_norm,
                eps,
                head_dim,
                positions,
                rope,
                slots,
                q_out,
                k_out,
                v_out,
            } => {
                let (rows, heads, kv) = self.heads(*q, *k, *head_dim);
                let (rope_rows, rope_dim) = self.shape(*rope);
                let mut set = self.reducing(64);
                let mut params = self.head(*q_out, heads);
                params.extend([kv as u32, *head_dim as u32, rope_dim as u32, eps.to_bits()]);
                params.extend([self.shape(*k_out).0 as u32, rope_rows as u32, self.shape(*k_out).1 as u32 / 4]);
                let mut bindings = self.binds(&[counts, *q, *k, *positions, *rope, *q_out, *k_out])?;
                let mut parts = heads + kv;
                if let (Some(slots), Some(v_out)) = (slots, v_out) {
                    set.insert("SLOTS", 1);
                    bindings.extend(self.binds(&[*slots, *v, *v_out])?);
                    parts += kv;
                }
                let flags = self.cache_flags(*k_out)?;
                let multiple = if flags.contains(&"KV_CODES") { 4 } else { 2 };
                if !flags.is_empty() && !head_dim.is_multiple_of(multiple) {
                    return Err(Error::unsupported(format!(
                        "a head width of {head_dim} with caches of less than 32 bits"
                    )));
                }
                set.extend(flags.iter().map(|flag| (*flag, 1)));
                set.insert("KV_WORDS", i64::from(!flags.is_empty()));
                self.norms(&mut set, &mut bindings, *q_norm, *k_norm)?;
                self.dispatch(
                    "qk_norm_rope_kv",
                    set,
                    bindings,
                    &params,
                    (rows * parts) as u64,
                    (rows * parts * head_dim) as u64,
                )
            }
            Op::QkNormRopeBackward { q, k, q_norm, k_norm, eps, head_dim, positions, rope, dq_out, dk_out, dq, dk } => {
                let (rows, heads, kv) = self.heads(*q, *k, *head_dim);
                let (rope_rows, rope_dim) = self.shape(*rope);
                let mut set = self.reducing(64);
                let mut params = self.head(*dq, heads);
                params.extend([kv as u32, *head_dim as u32, rope_dim as u32, eps.to_bits(), rope_rows as u32]);
                let mut bindings = self.binds(&[counts, *q, *k, *positions, *rope, *dq_out, *dk_out, *dq, *dk])?;
                self.norms(&mut set, &mut bindings, *q_norm, *k_norm)?;
                let parts = heads + kv;
                self.dispatch(
                    "qk_norm_rope_backward",
                    set,
                    bindings,
                    &params,
                    (rows * parts) as u64,
                    (rows * parts * head_dim) as u64,
                )
            }
            Op::Attention { q, k, v, seqs, positions, layout, geometry, out, lse } => {
                self.attention(&[*q, *k, *v, *seqs, *positions, *out], *layout, geometry, *lse)
            }
            Op::AttentionBackward { q, k, v, seqs, bounds, geometry: g, out, lse, dout, delta, dq, dk, dv } => {
                let rows = self.shape(*q).0;
                let head = self.head(*dq, g.heads);
                let set = defines(&[("D", g.head_dim as i64)]);
                let bindings = self.binds(&[counts, *out, *dout, *delta])?;
                self.elementwise("attention_delta", set, bindings, &head, rows * g.heads)?;

                let sequences = self.shape(*bounds).1.saturating_sub(1);
                let mut params = head;
                params.extend([g.kv_heads as u32, self.shape(*k).0 as u32]);
                params.extend(masking(g));
                params.extend([0, 0, sequences as u32]);
                let work = (rows * rows / 2 * g.heads * g.head_dim * 3) as u64;
                let to_q = self.binds(&[counts, *q, *k, *v, *seqs, *bounds, *dout, *lse, *delta, *dq])?;
                let to_kv = self.binds(&[counts, *q, *k, *v, *seqs, *bounds, *dout, *lse, *delta, *dk, *dv])?;
                if self.tiled(g) {
                    let groups = self.item_tiles(rows, g);
                    self.dispatch("attention_dq_tile", tiles(g, 1), to_q, &params, groups, work)?;
                    let groups = (rows.div_ceil(TILE) * g.kv_heads) as u64;
                    return self.dispatch("attention_dkv_tile", tiles(g, 2), to_kv, &params, groups, work);
                }
                let set = self.chunked(g.head_dim, 64);
                self.dispatch("attention_dq", set.clone(), to_q, &params, (rows * g.heads) as u64, work)?;
                self.dispatch("attention_dkv", set, to_kv, &params, (rows * g.kv_heads) as u64, work)
            }
            other => Err(Error::internal(format!("attention_ops: {}", other.name()))),
        }
    }

    fn attention(&mut self, ids: &[TensorId; 6], layout: KvLayout, g: &Geometry, lse: Option<TensorId>) -> Result<()> {
        let [q, k, v, seqs, positions, out] = *ids;
        let counts = self.program.counts;
        let rows = self.shape(q).0;
        let kv_rows = self.shape(k).0;
        let (table, page, pages, sequences, longest) = match layout {
            KvLayout::Paged { table, page, .. } => {
                let (sequences, pages) = self.shape(table);
                (table, page, pages, sequences, page * pages)
            }
            KvLayout::Packed { bounds } => (bounds, 0, 0, self.shape(bounds).1.saturating_sub(1), rows),
        };
        // Few rows: several workgroups share the keys of one, so that a GPU is busy (flash decoding,
        // https://pytorch.org/blog/flash-decoding/); with many rows there is enough to do.
        let paged = matches!(layout, KvLayout::Paged { .. });
        let decode = (paged && rows <= FEW_ROWS).then(|| self.decode_constants(g)).flatten();
        let splits = match decode {
            Some(_) => (longest / DECODE_KEYS).clamp(1, (1024 / (rows * g.kv_heads)).clamp(1, 32)),
            None if paged && rows <= FEW_ROWS && !self.caps.software => (longest / 256).clamp(1, 32),
            None => 1,
        };
        let mut params = self.head(out, g.heads);
        params.extend([g.kv_heads as u32, kv_rows as u32]);
        params.extend(masking(g));
        params.extend([page as u32, pages as u32, splits as u32, sequences as u32, self.shape(k).1 as u32 / 4]);
        // Lanes as rows: registers hold D numbers of q and of out, so heads wider than 128 take the other shader.
        let lanes =
            self.caps.software && self.caps.subgroup == Some(8) && g.head_dim.is_multiple_of(32) && g.head_dim <= 128;
        let tiled = self.tiled(g) && (page == 0 || (rows > FEW_ROWS && !self.decodes(rows)));
        let mut set = self.reducing(64);
        let group = set.get("WG").copied().unwrap_or(64) as usize;
        set.extend(defines(&[("D", g.head_dim as i64), ("DPT", g.head_dim.div_ceil(group) as i64)]));
        if lanes {
            set = defines(&[("WG", 8), ("SUBGROUPS", 1), ("C", g.head_dim as i64 / 4), ("C8", g.head_dim as i64 / 32)]);
        }
        if tiled {
            set = tiles(g, 1);
        }
        let partial_bytes = (rows * g.heads * splits * (g.head_dim + 2) * 4) as u64;
        let mut bindings = self.binds(&[counts, q, k, v, seqs, table])?;
        bindings.push(if splits > 1 { Bind::Scratch(0..partial_bytes) } else { self.bind(out)? });
        let stored = self.cache_flags(k)?;
        for (flag, on) in [("D4", g.head_dim.is_multiple_of(4) && !lanes && !tiled), ("SPLIT", splits > 1)] {
            set.insert(flag, on.into());
        }
        set.extend(stored.iter().map(|flag| (*flag, 1)));
        if page > 0 {
            set.insert("PAGED", 1);
            bindings.push(self.bind(positions)?);
        }
        let direct_lse = lse.filter(|_| splits == 1);
        if let Some(lse) = direct_lse {
            set.insert("LSE", 1);
            bindings.push(self.bind(lse)?);
        }
        let work = (rows * g.heads * g.head_dim * longest) as u64;
        if tiled {
            return self.dispatch("attention_prefill", set, bindings, &params, self.item_tiles(rows, g), work);
        }
        if lanes {
            let per_group = rows * (g.heads / g.kv_heads);
            return self.dispatch(
                "attention_rows",
                set,
                bindings,
                &params,
                (per_group.div_ceil(8) * g.kv_heads) as u64,
                work,
            );
        }
        let groups = (rows * g.heads * splits) as u64;
        match decode {
            Some(mut constants) => {
                set.retain(|name, _| stored.contains(name) || ["SPLIT", "LSE"].contains(name));
                constants.extend(set);
                let lanes = 16 / self.program.decl(k).dtype.block_bytes();
                constants.insert("K_LOADS", (g.head_dim / 4 / lanes) as i64);
                let groups = (rows * g.kv_heads * splits) as u64;
                self.dispatch("attention_decode", constants, bindings, &params, groups, work)?;
            }
            None => self.dispatch("attention", set, bindings, &params, groups, work)?,
        }
        if splits == 1 {
            return Ok(());
        }
        let mut params = self.head(out, g.heads);
        params.push(splits as u32);
        let mut set = defines(&[("D", g.head_dim as i64), ("WG", 64), ("LSE", lse.is_some().into())]);
        set.retain(|_, value| *value != 0);
        let mut bindings = vec![self.bind(counts)?, Bind::Scratch(0..partial_bytes), self.bind(out)?];
        if let Some(lse) = lse {
            bindings.push(self.bind(lse)?);
        }
        self.dispatch(
            "attention_combine",
            set,
            bindings,
            &params,
            (rows * g.heads) as u64,
            (rows * g.heads * g.head_dim * splits) as u64,
        )
    }

    /// Whether the shaders of attention_tile.wgsl take heads like these.
    fn tiled(&self, g: &Geometry) -> bool {
        let fits = self.caps.max_group >= 256 && self.caps.max_shared >= 32 << 10;
        fits && !self.caps.software && g.head_dim.is_multiple_of(4) && g.head_dim <= 256
    }

    /// Workgroups that have a tile of items (row, head) of a group each.
    fn item_tiles(&self, rows: usize, g: &Geometry) -> u64 {
        ((rows * (g.heads / g.kv_heads)).div_ceil(TILE) * g.kv_heads) as u64
    }

    /// Whether most rows of the step may be sequences of their own: a tile of rows then shares no keys.
    fn decodes(&self, rows: usize) -> bool {
        let gathered = self.program.tensors.iter().filter(|t| t.live == Live::Gathered).map(|t| t.rows).max();
        gathered.is_some_and(|gathered| gathered * 4 > rows)
    }

    /// Constants of `attention_decode.wgsl`, where it takes heads like these.
    fn decode_constants(&self, g: &Geometry) -> Option<Defines> {
        let (d, per, group) = (g.head_dim, g.heads / g.kv_heads, 256);
        let shared = 4 * (per * (d + DECODE_KEYS * 5 + 2 * group) + 3 * DECODE_KEYS);
        let fits = matches!(d, 64 | 128 | 256) && self.caps.max_group as usize >= group;
        if self.caps.software || !fits || per > 8 || shared > self.caps.max_shared as usize {
            return None;
        }
        let phases = group / (d / 2);
        let set = [
            ("WG", group),
            ("D", d),
            ("PER", per),
            ("KEYS", DECODE_KEYS),
            ("PAIRS", d / 2),
            ("VQ", phases),
            ("V_LOADS", DECODE_KEYS / phases),
        ];
        Some(set.into_iter().map(|(name, value)| (name, value as i64)).collect())
    }

    /// Constants of the shaders that go through keys or queries in chunks of a workgroup.
    fn chunked(&self, head_dim: usize, group: usize) -> Defines {
        let set = [("WG", group), ("D", head_dim), ("DPT", head_dim.div_ceil(group))];
        set.into_iter().map(|(name, value)| (name, value as i64)).collect()
    }

    fn heads(&self, q: TensorId, k: TensorId, head_dim: usize) -> (usize, usize, usize) {
        let (rows, width) = self.shape(q);
        (rows, width / head_dim, self.shape(k).1 / head_dim)
    }

    /// What a cache holds if not f32.
    fn cache_flags(&self, id: TensorId) -> Result<&'static [&'static str]> {
        match self.program.decl(id).dtype {
            DType::F32 => Ok(&[]),
            DType::F16 => Ok(&["KV_F16"]),
            DType::I8 => Ok(&["KV_CODES", "KV_I8"]),
            DType::E4M3 => Ok(&["KV_CODES", "KV_E4M3"]),
            other => Err(Error::unsupported(format!("a {other} key/value cache on wgpu"))),
        }
    }

    fn norms(
        &self,
        set: &mut Defines,
        bindings: &mut Vec<Bind>,
        q_norm: Option<TensorId>,
        k_norm: Option<TensorId>,
    ) -> Result<()> {
        for (flag, norm) in [("Q_NORM", q_norm), ("K_NORM", k_norm)] {
            if let Some(norm) = norm {
                set.extend(defines(&[(flag, 1), ("NORMS", 1)]));
                bindings.push(self.bind(norm)?);
            }
        }
        Ok(())
    }
}

/// Constants of attention_tile.wgsl.
fn tiles(g: &Geometry, sums: i64) -> Defines {
    let d4 = g.head_dim / 4;
    // As many rows of an operand as its workgroup memory holds, but for short loops: a power of two.
    let chunk = 1 << (640 / d4).ilog2().min(5);
    let set = [
        ("D", g.head_dim),
        ("QUADS", d4),
        ("DV", d4.div_ceil(16)),
        ("CHUNK", chunk),
        ("PER", g.heads / g.kv_heads),
        ("WG", 256),
    ];
    set.into_iter().map(|(name, value)| (name, value as i64)).chain([("SUMS", sums)]).collect()
}

/// Keys that a workgroup of `attention_decode.wgsl` takes at a time: four invocations for each.
const DECODE_KEYS: usize = 64;

/// Window, scale and soft-cap as parameters.
fn masking(g: &Geometry) -> [u32; 3] {
    [g.window.unwrap_or(0), g.scale.to_bits(), g.softcap.unwrap_or(0.0).to_bits()]
}
