//! Ops over flat f32 buffers: the optimizer's.

use super::launch::Args;
use super::places::suffix;
use super::record::Recorder;
use crate::error::{Error, Result};
use crate::program::{Op, TensorId};
use crate::tensor::DType;

/// Blocks of the first pass of the gradient's norm (`kernels/grad_norm.cu`).
const NORM_PARTS: usize = 512;
/// Blocks that copy one matrix of an adapter: those of all layers together fill the GPU.
const PLACE_BLOCKS: usize = 8;

impl Recorder<'_> {
    /// Appends the launches of one op.
    pub fn flat_ops(&mut self, op: &Op) -> Result<()> {
        match *op {
            Op::Fill { x, value } => {
                let n = self.flat(x)?;
                let args = Args::new().ptr(self.at(x)?).u64(n).f32(value);
                self.launch("fill", "fill_f32", [n.div_ceil(2048), 1, 1], 256, 0, args)?;
            }
            Op::PlaceAdapter { from, table, to } => {
                self.flat(from)?;
                let (matrices, dtype) = (self.decl(table).rows, self.activation(&[to])?);
                let args = Args::new().ptrs(&[self.at(from)?, self.at(table)?, self.at(to)?]);
                let name = format!("place_adapter_{}", suffix(dtype));
                self.launch("place_adapter", &name, [PLACE_BLOCKS, matrices, 1], 256, 0, args)?;
            }
            Op::GradNorm { x, out } => {
                let n = self.flat(x)?;
                let parts = self.scratch(4 * NORM_PARTS);
                let args = Args::new().ptr(self.at(x)?).u64(n).ptr(parts);
                self.launch("grad_norm", "grad_norm_parts", [NORM_PARTS, 1, 1], 1024, 0, args)?;
                let args = Args::new().ptrs(&[parts, self.at(out)?]);
                self.launch("grad_norm", "grad_norm", [1, 1, 1], NORM_PARTS, 0, args)?;
            }
            Op::AdamW { params, grads, m, v, norm, hyper } => {
                let n = self.flat(params)?;
                let operands = [params, grads, m, v, norm, hyper].map(|id| self.at(id));
                let operands = operands.into_iter().collect::<Result<Vec<_>>>()?;
                let args = Args::new().ptrs(&operands).u64(n);
                self.launch("adamw", "adamw_f32", [n.div_ceil(256), 1, 1], 256, 0, args)?;
            }
            Op::Lion { params, grads, m, norm, hyper } | Op::Sgd { params, grads, m, norm, hyper } => {
                let n = self.flat(params)?;
                let operands = [params, grads, m, norm, hyper].map(|id| self.at(id));
                let operands = operands.into_iter().collect::<Result<Vec<_>>>()?;
                let (name, args) = (op.name(), Args::new().ptrs(&operands).u64(n));
                self.launch(name, &format!("{name}_f32"), [n.div_ceil(256), 1, 1], 256, 0, args)?;
            }
            Op::AdamW8bit { params, grads, m, v, m_max, v_max, norm, hyper } => {
                let n = self.flat(params)?;
                let operands = [params, grads, m, v, m_max, v_max, norm, hyper].map(|id| self.at(id));
                let operands = operands.into_iter().collect::<Result<Vec<_>>>()?;
                let args = Args::new().ptrs(&operands).u64(n);
                self.launch("adamw_8bit", "adamw_8bit_f32", [n.div_ceil(2048), 1, 1], 256, 0, args)?;
            }
            Op::Lion8bit { params, grads, m, m_max, norm, hyper } => {
                let n = self.flat(params)?;
                let operands = [params, grads, m, m_max, norm, hyper].map(|id| self.at(id));
                let operands = operands.into_iter().collect::<Result<Vec<_>>>()?;
                let args = Args::new().ptrs(&operands).u64(n);
                self.launch("lion_8bit", "lion_8bit_f32", [n.div_ceil(2048), 1, 1], 256, 0, args)?;
            }
            ref other => return Err(Error::internal(format!("cuda: '{}' is no flat op", other.name()))),
        }
        Ok(())
    }

    /// Elements of a flat f32 tensor.
    fn flat(&self, id: TensorId) -> Result<usize> {
        let decl = self.decl(id);
        if decl.dtype != DType::F32 {
            return Err(Error::internal(format!("'{}' is {}, a flat op takes f32", decl.name, decl.dtype)));
        }
        Ok(decl.len())
    }
}
