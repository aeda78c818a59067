//! Products of a few rows, at the speed of memory (`shaders/matmul_vec.wgsl`).

use super::context::Caps;
use super::launch_rows::activation_code;
use super::library::weight_flags;
use super::places::WeightView;
use super::record::{Bind, Recorder, defines};
use super::template::Defines;
use crate::error::{Error, Result};
use crate::model::config::Activation;
use crate::program::TensorId;
use crate::tensor::DType;

/// Rows up to which these products are launched on a GPU.
pub const VEC_ROWS: usize = 8;

/// Weights that one launch takes.
pub const VEC_PARTS: usize = 3;

/// One weight of a launch.
pub struct VecPart {
    /// All its rows, or those of one binding.
    pub weight: WeightView,
    pub bias: Option<TensorId>,
    pub out: TensorId,
}

/// Products that share x.
pub struct VecProduct<'a> {
    pub x: TensorId,
    /// First row of x that is read.
    pub x_row0: usize,
    pub rows: usize,
    /// The first four parameters, see [`Recorder::head`].
    pub head: [u32; 4],
    pub parts: &'a [VecPart],
    /// Added to the first part's result.
    pub residual: Option<TensorId>,
    /// x is normalised first: weight of the norm, eps.
    pub norm: Option<(TensorId, f32)>,
    /// The parts are gate and up: `act(gate) · up` goes to the first one's `out`.
    pub act: Option<Activation>,
}

/// How a launch is cut: the constants of the shader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    /// Invocations that share rows.
    lanes: usize,
    /// Such teams in a workgroup.
    sets: usize,
    /// Rows of each weight that a team takes.
    r: usize,
    /// Units that a lane loads ahead.
    u: usize,
    /// Units of x in workgroup memory.
    units: usize,
}

impl Recorder<'_> {
    /// Up to [`VEC_PARTS`] products that share x, in one launch.
    pub fn matmul_vec(&mut self, product: &VecProduct) -> Result<()> {
        let VecProduct { x, rows, parts, .. } = *product;
        let Some(first) = parts.first() else { return Err(Error::internal("matmul_vec without a weight")) };
        let (k, dtype) = (self.shape(x).1, first.weight.dtype);
        let together = if product.act.is_some() { parts.len() } else { 1 };
        let n: usize = parts.iter().map(|part| part.weight.rows).sum();
        let Some(shape) = shape(self.caps, rows, k, n, dtype, together) else {
            return Err(Error::internal(format!("matmul_vec of {rows} rows of {k} elements")));
        };
        let [stride, groups, ..] = first.weight.layout;
        let eps = product.norm.map_or(0.0, |(_, eps)| eps);
        let mut params = product.head.to_vec();
        params.extend([product.x_row0 as u32, stride, groups, eps.to_bits()]);
        let outs = if product.act.is_some() { 1 } else { parts.len() };
        let mut set = shape.constants(dtype, k);
        set.extend(defines(&[("T", rows.next_power_of_two() as i64), ("PARTS", outs as i64)]));
        set.insert("WEIGHTS", together as i64);
        if self.caps.subgroup.is_some() {
            set.insert("SUBGROUPS", 1);
        }
        let mut bindings = self.binds(&[self.program.counts, x])?;
        let mut workgroups = 0;
        for (i, part) in parts.iter().enumerate() {
            let of_part = part.weight.rows.div_ceil(shape.sets * shape.r);
            let [.., w1, w2, w3] = part.weight.layout;
            let ldo = self.shape(part.out).1 as u32;
            params.extend([part.weight.rows as u32, part.weight.first as u32, ldo, of_part as u32, w1, w2, w3, 0]);
            bindings.push(Bind::View(part.weight.view.clone()));
            if i >= outs {
                continue;
            }
            workgroups += of_part;
            bindings.push(self.bind(part.out)?);
            if let Some(bias) = part.bias {
                set.insert(["BIAS0", "BIAS1", "BIAS2"][i], 1);
                bindings.push(self.bind(bias)?);
            }
        }
        if let Some(residual) = product.residual {
            set.insert("RESIDUAL", 1);
            bindings.push(self.bind(residual)?);
        }
        if let Some((weight, _)) = product.norm {
            set.insert("NORM", 1);
            bindings.push(self.bind(weight)?);
        }
        if let Some(activation) = product.act {
            set.insert("ACT", activation_code(activation));
        }
        self.dispatch("matmul_vec", set, bindings, &params, workgroups as u64, (rows * n * k) as u64)?;
        let with = if product.norm.is_some() { "norm, " } else { "" };
        self.label_last(format!("{with}{dtype} {}x{k}", n));
        Ok(())
    }
}

/// Whether a product of `rows` rows of `k` elements can be launched here.
pub fn vec_fits(caps: Caps, rows: usize, k: usize, dtype: DType) -> bool {
    !caps.software && rows <= VEC_ROWS && shape(caps, rows, k, 1, dtype, 1).is_some()
}

impl Shape {
    /// The constants that the shader and its parts ask for, apart from those of the operands.
    fn constants(&self, dtype: DType, k: usize) -> Defines {
        let mut set = defines(&weight_flags(dtype));
        let quantised = dtype.is_quantised();
        let minimum = matches!(dtype, DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K);
        set.extend(defines(&[
            ("K_ANY", (!k.is_multiple_of(32)).into()),
            ("QUANTISED", quantised.into()),
            ("MINIMUM", minimum.into()),
            ("VECS", (unit(dtype) / 4) as i64),
            ("LANES", self.lanes as i64),
            ("SETS", self.sets as i64),
            ("WG", (self.lanes * self.sets) as i64),
            ("R", self.r as i64),
            ("U", self.u as i64),
            ("UNITS", self.units as i64),
        ]));
        set
    }
}

/// Elements that a lane reads at a time: 16 bytes of most types.
fn unit(dtype: DType) -> usize {
    if dtype.is_quantised() { 32 } else { 8 }
}

/// Workgroups from which on a large GPU has work for each of its multiprocessors.
const LARGE_GPU: usize = 128;

/// The cut of a product with `n` rows of weights in all, `together` of which a team takes at once.
fn shape(caps: Caps, rows: usize, k: usize, n: usize, dtype: DType, together: usize) -> Option<Shape> {
    let t = rows.next_power_of_two();
    let lanes = caps.subgroup.map_or(64, |width| width as usize).min(caps.max_group as usize);
    let unit = unit(dtype);
    let whole = k.div_ceil(unit);
    // Enough loads on their way, few registers: about eight of 16 bytes a lane.
    let r = match (n / together, t) {
        (_, 8) => 2,
        (0..=2048, _) => 1,
        (_, 4) => 2,
        // What is staged of x serves more rows: gate and up of an 8B in Q4_K 54 to 47 µs (H200); in bf16 it is slower.
        (4096.., 1 | 2) if dtype.is_quantised() && together == 2 => 4,
        (0..=16384, _) => 2,
        _ => 4,
    };
    let r = (r / together).max(1);
    let u = (4 / (r * together)).clamp(1, 4).min(whole.div_ceil(lanes).next_power_of_two());
    // Teams of a workgroup share x: as many as leave work for every multiprocessor of a large GPU. 8B on an H200, bf16, with 128,
    // 256, 512 and 1,024 invocations: gate and up 92, 64, 58 and 61 µs, down 54, 38, 37 and 38.
    let busy = |threads: &usize| (n / together).div_ceil(threads / lanes * r) >= LARGE_GPU;
    let threads = [512, 256].into_iter().find(busy).unwrap_or(128).min(caps.max_group as usize);
    let sets = if caps.subgroup.is_some() { (threads / lanes).max(1) } else { 1 };
    let step = lanes * u;
    // Half of the memory of a workgroup that adapters have at least, else all there is but for the sums.
    let room = |bytes: usize| bytes / (t * unit * 4) / step * step;
    let most = match room(16 << 10) {
        0 => room((caps.max_shared as usize).saturating_sub(2 << 10)),
        most => most,
    };
    let units = most.min(whole.next_multiple_of(step));
    (units > 0).then_some(Shape { lanes, sets, r, u, units })
}
