//! Gate, up and the activation between them in one product (`kernels/sm90_matmul.cu`).

use super::launch::Args;
use super::launch_matmul::{Product, RowAdapters, split};
use super::places::suffix;
use super::record::{Recorder, Rows};
use super::tensor_map::{MatmulArgs, MatmulOutput, TensorMap};
use crate::error::Result;
use crate::model::config::Activation;
use crate::tensor::DType;

/// Most rows that the kernel takes.
pub const GATED_ROWS: usize = 128;

/// Elements of k of a step.
const STEP: usize = 64;

impl Recorder<'_> {
    /// `out = act(x · gateᵀ) · (x · upᵀ)` for 17 to 128 rows on Hopper. The products have no bias and no residual; with
    /// adapters of each row, both have them: first halves and the rest.
    pub fn sm90_glu(
        &mut self,
        [gate, up]: [Product; 2],
        (act, out): (Activation, u64),
        r: Rows,
        t: DType,
        adapters: Option<([TensorMap; 2], RowAdapters)>,
    ) -> Result<()> {
        let (n, k) = (gate.weight.n as usize, gate.weight.k as usize);
        let multiprocessors = self.caps.multiprocessors as usize;
        let parts = |half: usize| split(n.div_ceil(half), k.div_ceil(STEP), multiprocessors);
        // Rows of each weight that a tile takes: those whose blocks have the least to read.
        let work = |half: &usize| (n.div_ceil(*half) * parts(*half)).div_ceil(multiprocessors) * half / parts(*half);
        let half = [64, 96].into_iter().min_by_key(work).unwrap_or(64);
        let tokens = r.rows.next_power_of_two().clamp(32, GATED_ROWS);
        let x = TensorMap::new(t, gate.x, r.rows, k, self.a_box(tokens))?;
        let output = |p: &Product| {
            let mut output = MatmulOutput::<2>::EMPTY;
            output.push(x, TensorMap::new(t, p.weight.data, n, k, half)?, k);
            (output.n, output.out) = (p.weight.n, out);
            Ok::<_, crate::Error>(output)
        };
        let mut outputs = [output(&gate)?, output(&up)?, MatmulOutput::EMPTY];
        if let Some((halves, adapters)) = &adapters {
            for (output, u) in outputs.iter_mut().zip(halves) {
                output.push(*u, TensorMap::NONE, adapters.rank);
            }
            adapters.complete(&mut outputs, t, half)?;
        }
        let file = if adapters.is_none() { "sm90_matmul/0" } else { "sm90_matmul/1" };
        let args = MatmulArgs {
            outputs,
            counts: self.counts()?,
            which: r.which as u32,
            rows: r.rows as u32,
            count: 2,
            out_f32: 0,
            act: match act {
                Activation::Silu => 0,
                Activation::GeluTanh => 1,
            },
            slots: adapters.map_or(0, |(_, adapters)| adapters.slots),
            ready: adapters.map_or(0, |(_, adapters)| adapters.ready),
        };
        let stage = (2 * half + tokens) * 128;
        let ring = if half == 64 { 196_608 } else { 204_800 };
        let shared = 1024 + ring + 16 * (ring / stage);
        let parts = parts(half);
        let (grid, block) = ([parts * n.div_ceil(half), 1, 1], 4 * half + 32);
        let name = format!("sm90_matmul_glu{half}_t{tokens}_{}", suffix(t));
        let launch = self.launch(file, &name, grid, block, shared, Args::new().bytes(args.bytes()))?;
        launch.cluster = Some(parts as u32);
        launch.overlaps = true;
        Ok(())
    }
}
