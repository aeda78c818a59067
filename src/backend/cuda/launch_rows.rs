//! Ops that work row by row or element by element.

use super::launch::Args;
use super::places::suffix;
use super::record::{Recorder, Rows};
use crate::error::{Error, Result};
use crate::model::config::Activation;
use crate::program::Op;

/// Elements of a block of the element-wise kernels (`kernels/elementwise.cuh`).
const ELEMENTS: usize = 2048;

/// Logits of a block of `kernels/{sample,adjust_logits,top_logprobs}.cu`, and the most such blocks of a row that is sampled from.
const SAMPLE_CHUNK: usize = 4096;
const MAX_SAMPLE_CHUNKS: usize = 64;

/// The activation's name in kernels' names.
pub fn activation_suffix(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu",
    }
}

impl Recorder<'_> {
    /// Appends the launches of one op.
    pub fn row_ops(&mut self, op: &Op) -> Result<()> {
        let hopper = self.caps.hopper();
        match *op {
            Op::Embed { table, ids, out } => {
                let (r, t) = (self.rows(out), self.activation(&[out])?);
                let name = format!("embed_{}_{}", suffix(self.decl(table).dtype), suffix(t));
                let view = self.weight(table)?;
                let args = Args::new().bytes(bytemuck::bytes_of(&view)).ptr(self.at(ids)?).ptr(self.counts()?);
                let args = args.u32(r.which).u32(r.rows).ptr(self.at(out)?);
                let across = r.cols.div_ceil(8).div_ceil(128);
                let file = format!("embed/{}", suffix(self.decl(table).dtype));
                self.launch(&file, &name, [r.rows, across, 1], 128, 0, args)?;
            }
            Op::RmsNorm { x, weight, eps, out } => {
                let (r, t) = (self.rows(x), self.activation(&[x, out])?);
                let args = Args::new().ptrs(&[self.at(x)?, self.at(weight)?, self.at(out)?]);
                let args = self.live(args.u32(r.rows).u32(r.cols).f32(eps), r)?;
                let name = format!("rms_norm_{}", suffix(t));
                self.launch("rms_norm", &name, [r.rows, 1, 1], block_of(r), 0, args)?.overlaps = hopper;
            }
            Op::RmsNormBackward { x, weight, eps, dy, dx, accumulate } => {
                let (r, t) = (self.rows(x), self.activation(&[x, dy, dx])?);
                let args = Args::new().ptrs(&[self.at(x)?, self.at(weight)?, self.at(dy)?, self.at(dx)?]);
                let args = self.live(args.u32(r.rows).u32(r.cols).f32(eps).u32(usize::from(accumulate)), r)?;
                let name = format!("rms_norm_backward_{}", suffix(t));
                self.launch("rms_norm_backward", &name, [r.rows, 1, 1], block_of(r), 0, args)?;
            }
            Op::Dropout { x, p, salt, complement, out, accumulate } => {
                let (r, t) = (self.rows(x), self.activation(&[x, out])?);
                let args = Args::new().ptrs(&[self.at(x)?, self.at(out)?]).u32(r.rows).u32(r.cols).f32(p);
                let args = args.u32(salt as usize).u32(usize::from(complement)).u32(usize::from(accumulate));
                let args = self.live(args, r)?;
                self.elementwise("dropout", &format!("dropout_{}", suffix(t)), r, args)?;
            }
            Op::Glu { gate, up, activation, out } => {
                let (r, t) = (self.rows(out), self.activation(&[gate, up, out])?);
                let args = Args::new().ptrs(&[self.at(gate)?, self.at(up)?, self.at(out)?]).u32(r.rows).u32(r.cols);
                let args = self.live(args, r)?;
                let name = format!("glu_{}_{}", suffix(t), activation_suffix(activation));
                self.elementwise("glu", &name, r, args)?;
            }
            Op::GluBackward { gate, up, activation, dout, dgate, dup } => {
                let (r, t) = (self.rows(dout), self.activation(&[gate, up, dout, dgate, dup])?);
                let operands = [self.at(gate)?, self.at(up)?, self.at(dout)?, self.at(dgate)?, self.at(dup)?];
                let args = self.live(Args::new().ptrs(&operands).u32(r.rows).u32(r.cols), r)?;
                let name = format!("glu_backward_{}_{}", suffix(t), activation_suffix(activation));
                self.elementwise("glu_backward", &name, r, args)?;
            }
            Op::GatherRows { x, rows, out } => {
                let (r, t) = (self.rows(out), self.activation(&[x, out])?);
                let args = Args::new().ptrs(&[self.at(x)?, self.at(rows)?, self.at(out)?]);
                let args = self.live(args.u32(r.rows).u32(r.cols).u32(self.rows(x).rows), r)?;
                let name = format!("gather_rows_{}", suffix(t));
                self.launch("gather_rows", &name, [r.rows, 1, 1], 256, 0, args)?.overlaps = hopper;
            }
            Op::Copy { x, out } => {
                // A buffer in host memory has rows for all tokens; the other operand says how many are live.
                let (r, t) = (self.rows(out), self.activation(&[x, out])?);
                let args = self.live(Args::new().ptrs(&[self.at(x)?, self.at(out)?]).u32(r.rows).u32(r.cols), r)?;
                self.elementwise("copy", &format!("copy_{}", suffix(t)), r, args)?;
            }
            Op::Accumulate { x, y } => {
                let (r, t) = (self.rows(y), self.activation(&[x, y])?);
                let args = self.live(Args::new().ptrs(&[self.at(x)?, self.at(y)?]).u32(r.rows).u32(r.cols), r)?;
                self.elementwise("accumulate", &format!("accumulate_{}", suffix(t)), r, args)?;
            }
            Op::PreferenceLoss { loss, kinds, bounds, reference, hyper, weights, pairs } => {
                let ids = [self.program.counts, loss, kinds, bounds, reference, hyper, weights, pairs];
                let operands = ids.into_iter().map(|id| self.at(id)).collect::<Result<Vec<_>>>()?;
                let count = self.decl(pairs).rows;
                let args = Args::new().ptrs(&operands);
                self.launch("preference_loss", "preference_loss", [count, 1, 1], 256, 0, args)?;
            }
            Op::Sample { logits, sampling, uniforms, tokens } => {
                let r = self.rows(logits);
                if r.cols > SAMPLE_CHUNK * MAX_SAMPLE_CHUNKS {
                    let most = SAMPLE_CHUNK * MAX_SAMPLE_CHUNKS;
                    return Err(Error::unsupported(format!("cuda: sampling from {} tokens, at most {most}", r.cols)));
                }
                let chunks = r.cols.div_ceil(SAMPLE_CHUNK);
                let scratch = self.scratch(r.rows * chunks * 16);
                let args = Args::new().ptrs(&[self.at(logits)?, self.at(sampling)?, scratch]);
                let args = self.live(args, r)?.u32(r.rows).u32(r.cols);
                self.launch("sample", "sample_chunks", [chunks, r.rows, 1], 256, 0, args)?.overlaps = hopper;
                let args = Args::new().ptrs(&[self.at(logits)?, self.at(sampling)?, self.at(uniforms)?, scratch]);
                let args = self.live(args.ptr(self.at(tokens)?), r)?.u32(r.rows).u32(r.cols);
                self.launch("sample", "sample", [r.rows, 1, 1], 1024, 65_536, args)?.overlaps = hopper;
            }
            Op::AdjustLogits { logits, entries, starts, repetition, masks, mask_of, out } => {
                let (r, words) = (self.rows(logits), self.rows(masks).cols);
                let args = Args::new().ptrs(&[self.at(logits)?, self.at(masks)?, self.at(mask_of)?, self.at(out)?]);
                let args = self.live(args, r)?.u32(r.rows).u32(r.cols).u32(words);
                let grid = [r.cols.div_ceil(SAMPLE_CHUNK), r.rows, 1];
                self.launch("adjust_logits", "adjust_logits", grid, 256, 0, args)?.overlaps = hopper;
                let lists = [self.at(logits)?, self.at(entries)?, self.at(starts)?, self.at(repetition)?];
                let args = Args::new().ptrs(&lists).ptrs(&[self.at(masks)?, self.at(mask_of)?, self.at(out)?]);
                let args = self.live(args, r)?.u32(r.rows).u32(r.cols).u32(words);
                let name = "adjust_logits_entries";
                self.launch("adjust_logits", name, [r.rows, 1, 1], 256, 0, args)?.overlaps = hopper;
            }
            Op::TopLogprobs { logits, tokens, labels, logprobs, top } => {
                let (r, n) = (self.rows(logits), self.rows(top).cols);
                let chunks = r.cols.div_ceil(SAMPLE_CHUNK);
                // A record of a chunk: its largest logit and the sum, then n tokens with their logits; 8 bytes each.
                let scratch = self.scratch(r.rows * chunks * (1 + n) * 8);
                let args = self.live(Args::new().ptrs(&[self.at(logits)?, scratch]), r)?;
                let args = args.u32(r.rows).u32(r.cols).u32(n);
                let name = "top_logprobs_chunks";
                self.launch("top_logprobs", name, [chunks, r.rows, 1], 256, 0, args)?.overlaps = hopper;
                let args = Args::new().ptrs(&[self.at(logits)?, self.at(tokens)?, self.at(labels)?, scratch]);
                let args = self.live(args.ptrs(&[self.at(logprobs)?, self.at(top)?]), r)?;
                let args = args.u32(r.rows).u32(r.cols).u32(n);
                self.launch("top_logprobs", "top_logprobs", [r.rows, 1, 1], 256, 0, args)?.overlaps = hopper;
            }
            ref other => return Err(Error::internal(format!("cuda: '{}' is no op of rows", other.name()))),
        }
        Ok(())
    }

    /// The last two arguments of most kernels.
    pub fn live(&self, args: Args, rows: Rows) -> Result<Args> {
        Ok(args.ptr(self.counts()?).u32(rows.which))
    }

    /// Appends a launch in the frame of `kernels/elementwise.cuh`.
    pub fn elementwise(&mut self, file: &str, name: &str, r: Rows, args: Args) -> Result<()> {
        self.launch(file, name, [(r.rows * r.cols).div_ceil(ELEMENTS), 1, 1], 256, 0, args)?;
        Ok(())
    }
}

/// Threads that read a row in as few rounds as there are.
fn block_of(r: Rows) -> usize {
    r.cols.div_ceil(8).next_multiple_of(32).clamp(32, 1024)
}
