//! Times every op that counts at the shapes of real models, beside the device's ceilings measured in the same run: a large copy
//! and a large product.
//!
//!     cargo bench --bench ops [-- FILTER]        RUNTIME_BENCH_BACKEND=cuda|wgpu|cpu, RUNTIME_BENCH_MODEL=smollm2|qwen3-8b
//!
//! An op's roofline is the larger of bytes ÷ copy bandwidth and operations ÷ the product's rate; `of roofline` is that time
//! over the time seen. Ops are repeated inside one program with weights of their own, so that no cache holds them. Activations
//! are zeros, for the ceiling too: a GPU at its power limit multiplies numbers more slowly, so shares are to be read, not rates.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // a bench prints, and stops at the first error

use runtime::backend::{self, BackendChoice, Bindings, BufferDesc, ComputeType, Device};
use runtime::model::config::Activation;
use runtime::program::{Builder, Geometry, KvLayout, Live, Op, Place, Program, TensorId};
use runtime::tensor::{DType, HostBytes, HostTensor};
use std::sync::Arc;
use std::time::Instant;

/// Widths of a model.
struct Shape {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    inner: usize,
    vocab: usize,
    weights: &'static [DType],
}

const SMOLLM2: Shape =
    Shape { hidden: 576, heads: 9, kv_heads: 3, head_dim: 64, inner: 1536, vocab: 49152, weights: &[DType::Q4_1] };

const QWEN3_8B: Shape = Shape {
    hidden: 4096,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    inner: 12288,
    vocab: 151_936,
    weights: &[DType::BF16, DType::Q4_K],
};

/// Bytes of weights that no cache holds.
const COLD: usize = 256 << 20;

struct Bench {
    device: Arc<dyn Device>,
    activations: DType,
    filter: String,
    /// Bytes and operations a second.
    ceilings: (f64, f64),
}

/// What an op must move and compute, at least.
struct Work {
    bytes: f64,
    operations: f64,
}

impl Bench {
    fn activation(&self, b: &mut Builder, name: &str, rows: usize, cols: usize) -> TensorId {
        b.input(name, self.activations, rows, cols)
    }

    fn out(&self, b: &mut Builder, rows: usize, cols: usize) -> TensorId {
        b.activation("out", rows, cols, Live::Tokens)
    }

    fn builder(&self) -> Builder {
        Builder::new("bench").with_activations(self.activations)
    }

    /// Seconds of one of the `repeat` ops of `program`.
    fn seconds(&self, program: Program, tokens: usize, fill: &[(&str, Vec<u32>)], repeat: usize) -> f64 {
        let program = Arc::new(program);
        let mut bindings = Bindings::new();
        for id in program.ids() {
            let decl = program.decl(id);
            if decl.place == Place::Weight {
                let bytes = (0..decl.bytes()).map(|i| (i * 37 % 64) as u8).collect();
                let host = HostTensor::new(decl.dtype, vec![decl.rows, decl.cols], HostBytes::from_vec(bytes)).unwrap();
                bindings.insert(decl.name.clone(), self.device.upload(&decl.name, &host).unwrap());
            } else if let Place::State { buffer, .. } = &decl.place {
                let desc = BufferDesc { name: buffer.clone(), dtype: decl.dtype, rows: decl.rows, cols: decl.cols };
                bindings.insert(buffer.clone(), self.device.allocate(desc).unwrap());
            }
        }
        let done = program.find("done").unwrap();
        let mut executable = self.device.compile(program.clone(), &bindings).unwrap();
        let words = |values: &[u32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        executable.write(program.counts, &words(&[tokens as u32, 1, 1, 0])).unwrap();
        for (name, values) in fill {
            executable.write(program.find(name).unwrap(), &words(values)).unwrap();
        }
        let mut run = |times: usize| {
            let start = Instant::now();
            for _ in 0..times {
                executable.run().unwrap();
            }
            executable.read(done, &mut [0; 4]).unwrap();
            start.elapsed().as_secs_f64()
        };
        run(2);
        // The difference leaves out what a submission and a read cost.
        let best =
            |times: usize, run: &mut dyn FnMut(usize) -> f64| (0..4).map(|_| run(times)).fold(f64::MAX, f64::min);
        (best(5, &mut run) - best(1, &mut run)).max(1e-9) / 4.0 / repeat as f64
    }

    /// Finishes a program of `repeat` equal ops, times it and prints a row.
    fn row(&self, name: &str, mut b: Builder, tokens: usize, fill: &[(&str, Vec<u32>)], repeat: usize, work: &Work) {
        let x = b.state("flag", "flag", 0, DType::F32, 1, 64);
        let done = b.output("done", 1, 1, Live::All);
        b.push(Op::GradNorm { x, out: done }).unwrap();
        let seconds = self.seconds(b.finish(), tokens, fill, repeat);
        let floor = (work.bytes / self.ceilings.0).max(work.operations / self.ceilings.1);
        println!(
            "{name:44} {:10.1} µs {:9.1} GB/s {:9.2} TFLOP/s {:5.0} % of roofline",
            seconds * 1e6,
            work.bytes / seconds / 1e9,
            work.operations / seconds / 1e12,
            100.0 * floor / seconds
        );
    }

    fn wanted(&self, name: &str) -> bool {
        name.contains(&self.filter)
    }

    fn products(&self, shape: &Shape, rows: usize) {
        let (h, kv, q) = (shape.hidden, shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim);
        let widths = [("q", h, q), ("kv", h, kv), ("o", q, h), ("gate", h, shape.inner), ("down", shape.inner, h)];
        for &dtype in shape.weights {
            for (label, k, n) in widths {
                let bytes = n * dtype.bytes_for(k).unwrap();
                let work = Work {
                    bytes: (bytes + rows * (k + n) * self.activations.block_bytes()) as f64,
                    operations: 2.0 * (rows * k * n) as f64,
                };
                let repeat = (COLD / bytes).clamp(1, 16);
                let name = format!("matmul {label} {dtype} {rows}x{k}x{n}");
                if self.wanted(&name) {
                    let mut b = self.builder();
                    let x = self.activation(&mut b, "x", rows, k);
                    let out = self.out(&mut b, rows, n);
                    for i in 0..repeat {
                        let weight = b.weight(&format!("w{i}"), dtype, n, k);
                        b.push(Op::MatMul { x, weight, bias: None, residual: None, out }).unwrap();
                    }
                    self.row(&name, b, rows, &[], repeat, &work);
                }
                let name = format!("matmul_dx {label} {dtype} {rows}x{n}x{k}");
                if self.wanted(&name) && rows > 16 {
                    let mut b = self.builder();
                    let dy = self.activation(&mut b, "x", rows, n);
                    let dx = self.out(&mut b, rows, k);
                    for i in 0..repeat {
                        let weight = b.weight(&format!("w{i}"), dtype, n, k);
                        b.push(Op::MatMulDx { dy, weight, scale: None, dx, accumulate: false }).unwrap();
                    }
                    self.row(&name, b, rows, &[], repeat, &work);
                }
            }
        }
        let name = format!("lora {rows}x{h} r16");
        if self.wanted(&name) {
            let mut b = self.builder();
            let (x, y) = (self.activation(&mut b, "x", rows, h), self.out(&mut b, rows, h));
            let u = b.activation("u", rows, 16, Live::Tokens);
            let a = b.state("a", "a", 0, DType::F32, 16, h);
            let up = b.state("b", "b", 0, DType::F32, h, 16);
            let scales = b.input("scales", DType::F32, 1, 1);
            b.push(Op::LoraShrink { x, a, slots: None, rank: 16, out: u }).unwrap();
            b.push(Op::LoraExpand { u, b: up, slots: None, scales, rank: 16, y }).unwrap();
            let bytes = (3 * rows * h * self.activations.block_bytes() + 2 * 16 * h * 4) as f64;
            self.row(&name, b, rows, &[], 1, &Work { bytes, operations: 4.0 * (rows * h * 16) as f64 });
        }
    }

    fn rows(&self, shape: &Shape, rows: usize) {
        let (h, f, size) = (shape.hidden, shape.inner, self.activations.block_bytes());
        let name = format!("rms_norm {rows}x{h}");
        if self.wanted(&name) {
            let mut b = self.builder();
            let (x, out) = (self.activation(&mut b, "x", rows, h), self.out(&mut b, rows, h));
            let weight = b.weight("w", DType::F32, 1, h);
            b.push(Op::RmsNorm { x, weight, eps: 1e-6, out }).unwrap();
            self.row(&name, b, rows, &[], 1, &Work { bytes: (2 * rows * h * size) as f64, operations: 0.0 });
        }
        let name = format!("glu {rows}x{f}");
        if self.wanted(&name) {
            let mut b = self.builder();
            let (gate, up) = (self.activation(&mut b, "x", rows, f), self.activation(&mut b, "y", rows, f));
            let out = self.out(&mut b, rows, f);
            b.push(Op::Glu { gate, up, activation: Activation::Silu, out }).unwrap();
            self.row(&name, b, rows, &[], 1, &Work { bytes: (3 * rows * f * size) as f64, operations: 0.0 });
        }
    }

    fn attention(&self, shape: &Shape, rows: usize, keys: usize, kv_dtype: DType) {
        let name = format!("attention {rows} rows, {keys} keys");
        if !self.wanted(&name) {
            return;
        }
        let (q_cols, kv_cols) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let geometry = Geometry {
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            window: None,
            softcap: None,
        };
        let mut b = self.builder();
        let q = self.activation(&mut b, "x", rows, q_cols);
        let k = b.state("k", "k", 0, kv_dtype, keys, kv_cols);
        let v = b.state("v", "v", 0, kv_dtype, keys, kv_cols);
        let seqs = b.input("seqs", DType::U32, 1, rows);
        let positions = b.input("positions", DType::U32, 1, rows);
        let table = b.input("table", DType::U32, 1, keys / 16);
        let out = self.out(&mut b, rows, q_cols);
        let layout = KvLayout::Paged { table, page: 16, apart: rows == 1 };
        b.push(Op::Attention { q, k, v, seqs, positions, layout, geometry, out, lse: None }).unwrap();
        let seen = rows * (keys - rows / 2);
        let work = Work {
            bytes: (2 * keys * kv_cols * kv_dtype.block_bytes() + 2 * rows * q_cols * self.activations.block_bytes())
                as f64,
            operations: 4.0 * (seen * q_cols) as f64,
        };
        let at = (0..rows as u32).map(|t| t + (keys - rows) as u32).collect();
        self.row(&name, b, rows, &[("positions", at), ("table", (0..keys as u32 / 16).collect())], 1, &work);
    }

    fn head(&self, shape: &Shape) {
        let (k, n, dtype) = (shape.hidden, shape.vocab, shape.weights[0]);
        let name = format!("matmul head {dtype} 1x{k}x{n}");
        if self.wanted(&name) {
            let mut b = self.builder();
            let x = self.activation(&mut b, "x", 1, k);
            let out = b.temp("out", 1, n, Live::Tokens);
            let weight = b.weight("w", dtype, n, k);
            b.push(Op::MatMul { x, weight, bias: None, residual: None, out }).unwrap();
            let bytes = n * dtype.bytes_for(k).unwrap();
            self.row(&name, b, 1, &[], 1, &Work { bytes: bytes as f64, operations: 2.0 * (k * n) as f64 });
        }
    }

    /// Operations a second of a large product of the activations' type.
    fn product_rate(&self, size: usize) -> f64 {
        let mut b = self.builder();
        let (x, out) = (self.activation(&mut b, "x", size, size), self.out(&mut b, size, size));
        let dtype = self.activations;
        let weight = b.weight("w", dtype, size, size);
        b.push(Op::MatMul { x, weight, bias: None, residual: None, out }).unwrap();
        let flag = b.state("flag", "flag", 0, DType::F32, 1, 64);
        let done = b.output("done", 1, 1, Live::All);
        b.push(Op::GradNorm { x: flag, out: done }).unwrap();
        2.0 * (size as f64).powi(3) / self.seconds(b.finish(), size, &[], 1)
    }
}

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let backend = std::env::var("RUNTIME_BENCH_BACKEND").map_or(BackendChoice::Auto, |name| name.parse().unwrap());
    let device = backend::open(backend, 0, ComputeType::Auto).unwrap();
    let large = device.info().backend == "cuda";
    let shape = match std::env::var("RUNTIME_BENCH_MODEL").as_deref() {
        Ok("smollm2") => SMOLLM2,
        Ok("qwen3-8b") => QWEN3_8B,
        _ if large => QWEN3_8B,
        _ => SMOLLM2,
    };
    let limits = device.limits();
    let mut bench = Bench { device, activations: limits.activations, filter, ceilings: (1.0, 1.0) };
    let copy = bench.device.copy_bandwidth().unwrap();
    bench.ceilings = (copy, bench.product_rate(if large { 8192 } else { 512 }));
    let info = bench.device.info();
    println!("{} · {} · {}", info.backend, info.name, info.detail);
    println!("copy {:.1} GB/s, product {:.2} TFLOP/s", copy / 1e9, bench.ceilings.1 / 1e12);
    bench.head(&shape);
    let steps: &[usize] = if large { &[1, 4, 16, 32, 128, 512, 2048] } else { &[1, 128, 512] };
    for &rows in steps {
        bench.products(&shape, rows);
        bench.rows(&shape, rows);
        bench.attention(&shape, rows, if large { 4096 } else { 512 }, limits.kv_dtype);
    }
}
