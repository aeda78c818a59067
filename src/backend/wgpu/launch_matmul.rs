//! Launches the products: matmul and its backward, LoRA, the head with its loss. Picks the shader by the rows of
//! the step and the kind of adapter.

use super::launch_coop::CoopProduct;
use super::launch_split::Total;
use super::launch_vec::{VEC_ROWS, VecPart, VecProduct, vec_fits};
use super::library::weight_flags;
use super::places::WeightView;
use super::record::{Bind, Recorder, defines};
use super::template::Defines;
use crate::error::{Error, Result};
use crate::program::{HeadDw, Op, TensorId};

/// An `x · wᵀ` with what goes around it.
struct Product {
    x: TensorId,
    /// First row of x that is read.
    x_row0: usize,
    weight: TensorId,
    out: TensorId,
    bias: Option<TensorId>,
    residual: Option<TensorId>,
    /// out += scales[0] · product.
    scales: Option<TensorId>,
    head: Vec<u32>,
    rows: usize,
}

impl Recorder<'_> {
    pub(super) fn products(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::MatMul { x, weight, bias, residual, out } => self.product(&Product {
                x: *x,
                x_row0: 0,
                weight: *weight,
                out: *out,
                bias: *bias,
                residual: *residual,
                scales: None,
                head: self.head(*out, self.shape(*x).1),
                rows: self.shape(*x).0,
            }),
            Op::MatMulDx { dy, weight, scale, dx, accumulate } => {
                let head = self.head(*dx, self.shape(*weight).1);
                self.product_dx(*dy, *weight, *scale, *dx, *accumulate, head, 0, 0)
            }
            Op::MatMulDw { dy, x, scale, dw } => {
                let head = self.head(*dy, 0);
                self.product_dw([*dy, *x, *dw], *scale, [head[0], head[1], head[2]], 0)
            }
            Op::LoraShrink { x, a, slots, rank, out } => self.lora_shrink(*x, *a, *slots, *rank, *out),
            Op::LoraExpand { u, b, slots, scales, rank, y } => self.lora_expand(*u, *b, *slots, *scales, *rank, *y),
            Op::HeadLoss { x, weight, labels, scale, weights, smoothing, logits, loss, dx, dw } => {
                let (rows, k) = self.shape(*x);
                let (chunk, vocab) = self.shape(*logits);
                for row0 in (0..rows).step_by(chunk) {
                    let count = chunk.min(rows - row0);
                    let mut head = self.head(*x, k);
                    (head[0], head[2]) = (count as u32, row0 as u32);
                    self.product(&Product {
                        x: *x,
                        x_row0: row0,
                        weight: *weight,
                        out: *logits,
                        bias: None,
                        residual: None,
                        scales: None,
                        head: head.clone(),
                        rows: count,
                    })?;
                    let mut params = head.clone();
                    params[3] = vocab as u32;
                    params.push(smoothing.to_bits());
                    let mut set = self.reducing(256);
                    set.insert("GRADIENT", (dx.is_some() || dw.is_some()).into());
                    let mut bindings = self.binds(&[self.program.counts, *logits, *labels, *loss, *scale])?;
                    if let Some(weights) = weights {
                        set.insert("WEIGHTED", 1);
                        bindings.push(self.bind(*weights)?);
                    }
                    self.dispatch("head_loss", set, bindings, &params, count as u64, (count * vocab * 8) as u64)?;
                    if let Some(HeadDw { dw, scale }) = dw {
                        self.product_dw([*logits, *x, *dw], *scale, [head[0], head[1], head[2]], row0)?;
                    }
                    if let Some(dx) = dx {
                        self.product_dx(*logits, *weight, None, *dx, false, head, row0, count)?;
                    }
                }
                Ok(())
            }
            other => Err(Error::internal(format!("products: {}", other.name()))),
        }
    }

    fn product(&mut self, product: &Product) -> Result<()> {
        let &Product { x, weight, rows, out, .. } = product;
        let k = self.shape(x).1;
        let ldo = self.shape(out).1;
        for part in self.weight(weight)? {
            let n = part.rows;
            if product.scales.is_none() && vec_fits(self.caps, rows, k, part.dtype) {
                let parts = [VecPart { weight: part, bias: product.bias, out }];
                let head = [product.head[0], product.head[1], product.head[2], k as u32];
                let (x_row0, residual) = (product.x_row0, product.residual);
                self.matmul_vec(&VecProduct { x, x_row0, rows, head, parts: &parts, residual, norm: None, act: None })?;
                continue;
            }
            let live = [product.head[1], product.head[2]];
            if product.bias.is_none()
                && product.scales.is_none()
                && self.matmul_coop(&CoopProduct {
                    x,
                    x_row0: product.x_row0,
                    rows,
                    part: &part,
                    k,
                    dx: false,
                    out,
                    out_row0: 0,
                    live,
                    residual: product.residual,
                    scale: None,
                    accumulate: false,
                })?
            {
                continue;
            }
            let mut params = product.head.clone();
            params.extend([n as u32, part.first as u32, ldo as u32]);
            params.extend(part.layout);
            params.push(product.x_row0 as u32);
            let mut set = weight_defines(&part, k);
            let (bm, bn) = if n <= 16 { (64, 16) } else { (64, 64) };
            let groups = n.div_ceil(bn) * rows.div_ceil(bm);
            let plain = product.bias.or(product.residual).or(product.scales).is_none();
            let split = if plain { self.split(groups, k, rows * n) } else { None };
            let target = match split {
                Some(split) => self.parts(split, rows * n),
                None => self.bind(out)?,
            };
            let mut bindings = vec![self.bind(self.program.counts)?, self.bind(x)?, Bind::View(part.view), target];
            for (flag, extra) in
                [("BIAS", product.bias), ("RESIDUAL", product.residual), ("ACCUMULATE", product.scales)]
            {
                if let Some(extra) = extra {
                    set.insert(flag, 1);
                    bindings.push(self.bind(extra)?);
                }
            }
            let work = (rows * n * k) as u64;
            if self.caps.software {
                let t = rows.next_power_of_two().min(16);
                let group = 32;
                set.extend(defines(&[("WG", group as i64), ("T", t as i64)]));
                if self.caps.subgroup == Some(8) && k.is_multiple_of(32) {
                    set.extend(defines(&[("SUBGROUPS", 1), ("SG8", 1)]));
                }
                let groups = n.div_ceil(group) * rows.div_ceil(t);
                self.dispatch("matmul_rows", set, bindings, &params, groups as u64, work)?;
            } else {
                set.extend(tile(bm, bn, 32));
                set.insert("SPLIT", split.is_some().into());
                params.push(split.map_or(0, |split| split.chunk as u32));
                // Forward only: gradients are small enough to vanish in f16.
                set.insert("F16", self.caps.half.into());
                let groups = groups * split.map_or(1, |split| split.parts);
                self.dispatch("matmul", set, bindings, &params, groups as u64, work)?;
            }
            self.label_last(format!("{} {n}x{k}", part.dtype));
            if let Some(split) = split {
                let head = [product.head[0], product.head[1], product.head[2], n as u32];
                let (scale, accumulate) = (None, false);
                self.sum_parts(split, &Total { out, head, col0: part.first, row0: 0, scale, accumulate })?;
            }
        }
        Ok(())
    }

    /// `dx (+)= scale · dy · w`; rows of dx start at `dx_row0`, `count` of them (0: all).
    #[allow(clippy::too_many_arguments)] // two callers; a struct would only repeat the names
    fn product_dx(
        &mut self,
        dy: TensorId,
        weight: TensorId,
        scale: Option<TensorId>,
        dx: TensorId,
        accumulate: bool,
        head: Vec<u32>,
        dx_row0: usize,
        count: usize,
    ) -> Result<()> {
        let (all, k) = self.shape(dx);
        let rows = if count == 0 { all } else { count };
        let ldy = self.shape(dy).1;
        for (i, part) in self.weight(weight)?.into_iter().enumerate() {
            // Parts after the first add to what the first wrote.
            let accumulate = accumulate || i > 0;
            let product = CoopProduct {
                x: dy,
                x_row0: 0,
                rows,
                part: &part,
                k,
                dx: true,
                out: dx,
                out_row0: dx_row0,
                live: [head[1], head[2]],
                residual: None,
                scale,
                accumulate,
            };
            if self.matmul_coop(&product)? {
                continue;
            }
            let mut params = head.clone();
            params.extend([part.rows as u32, part.first as u32, ldy as u32]);
            params.extend(part.layout);
            params.push(dx_row0 as u32);
            let mut set = weight_defines(&part, k);
            let work = (rows * part.rows * k) as u64;
            let (bm, bn) = if k <= 16 { (64, 16) } else { (64, 64) };
            let groups = rows.div_ceil(bm) * k.div_ceil(bn);
            if let Some(split) = self.split(groups, part.rows, rows * k) {
                set.extend(tile(bm, bn, 32));
                set.extend(defines(&[("SPLIT", 1), ("EIGHTS", eights(&part, ldy))]));
                params.push(split.chunk as u32);
                let label = format!("{} {}x{k}", part.dtype, part.rows);
                let mut bindings = vec![self.bind(self.program.counts)?, self.bind(dy)?, Bind::View(part.view)];
                bindings.push(self.parts(split, rows * k));
                self.dispatch("matmul_dx", set, bindings, &params, (groups * split.parts) as u64, work)?;
                self.label_last(label);
                let head = [head[0], head[1], head[2], k as u32];
                self.sum_parts(split, &Total { out: dx, head, col0: 0, row0: dx_row0, scale, accumulate })?;
                continue;
            }
            set.insert("ACCUMULATE", accumulate.into());
            let eights = eights(&part, ldy);
            let label = format!("{} {}x{k}", part.dtype, part.rows);
            let mut bindings =
                vec![self.bind(self.program.counts)?, self.bind(dy)?, Bind::View(part.view), self.bind(dx)?];
            if let Some(scale) = scale {
                set.insert("SCALE", 1);
                bindings.push(self.bind(scale)?);
            }
            if self.caps.software && self.caps.subgroup == Some(8) {
                let (t, group) = (rows.next_power_of_two().min(8), 8);
                set.extend(defines(&[("WG", group as i64), ("T", t as i64), ("SUBGROUPS", 1)]));
                let groups = k.div_ceil(8).div_ceil(group) * rows.div_ceil(t);
                self.dispatch("matmul_dx_rows", set, bindings, &params, groups as u64, work)?;
                continue;
            }
            set.extend(tile(bm, bn, 32));
            set.insert("EIGHTS", eights);
            self.dispatch("matmul_dx", set, bindings, &params, groups as u64, work)?;
            self.label_last(label);
        }
        Ok(())
    }

    fn lora_shrink(
        &mut self,
        x: TensorId,
        a: TensorId,
        slots: Option<TensorId>,
        rank: usize,
        out: TensorId,
    ) -> Result<()> {
        let (rows, k) = self.shape(x);
        if slots.is_none() && self.shape(a).0 == rank && (rows > VEC_ROWS || self.caps.software) {
            let head = self.head(out, k);
            return self.product(&Product {
                x,
                x_row0: 0,
                weight: a,
                out,
                bias: None,
                residual: None,
                scales: None,
                head,
                rows,
            });
        }
        let mut params = self.head(out, k);
        params.extend([rank as u32, (self.shape(a).0 / rank) as u32]);
        let mut set = self.reducing(64);
        let mut bindings = self.binds(&[self.program.counts, x, a, out])?;
        if let Some(slots) = slots {
            set.insert("SLOTS", 1);
            bindings.push(self.bind(slots)?);
        }
        self.dispatch("lora_shrink", set, bindings, &params, (rows * rank) as u64, (rows * rank * k) as u64)
    }

    fn lora_expand(
        &mut self,
        u: TensorId,
        b: TensorId,
        slots: Option<TensorId>,
        scales: TensorId,
        rank: usize,
        y: TensorId,
    ) -> Result<()> {
        let (rows, n) = self.shape(y);
        if slots.is_none() && self.shape(b).0 == n && rows > VEC_ROWS {
            let head = self.head(y, rank);
            return self.product(&Product {
                x: u,
                x_row0: 0,
                weight: b,
                out: y,
                bias: None,
                residual: None,
                scales: Some(scales),
                head,
                rows,
            });
        }
        let mut params = self.head(y, n);
        params.extend([rank as u32, (self.shape(b).0 / n) as u32]);
        let mut set = defines(&[]);
        let mut bindings = self.binds(&[self.program.counts, u, b, scales, y])?;
        if let Some(slots) = slots {
            set.insert("SLOTS", 1);
            bindings.push(self.bind(slots)?);
        }
        self.elementwise("lora_expand", set, bindings, &params, rows * n)
    }
}

fn weight_defines(part: &WeightView, k: usize) -> Defines {
    let mut set = defines(&weight_flags(part.dtype));
    set.insert("K_ANY", (!k.is_multiple_of(32)).into());
    set
}

/// Whether rows of dy are whole octets for this part of a weight, aligned to 16 bytes.
fn eights(part: &WeightView, ldy: usize) -> i64 {
    (part.rows.is_multiple_of(8) && part.first.is_multiple_of(4) && ldy.is_multiple_of(4)).into()
}

/// Constants of `tile.wgsl` with 4 × 4 sums an invocation.
pub fn tile(bm: usize, bn: usize, bk: i64) -> Defines {
    let threads = (bm / 4 * (bn / 4)) as i64;
    defines(&[
        ("BM", bm as i64),
        ("BN", bn as i64),
        ("BK", bk),
        ("TM", 4),
        ("TN", 4),
        ("TM4", 1),
        ("TN4", 1),
        ("WG", threads),
    ])
}
