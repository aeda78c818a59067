//! Times products and attention at SmolLM2-135M's shapes on the first wgpu adapter, or on the backend in
//! `RUNTIME_BENCH_BACKEND`: `cargo bench --bench ops [-- FILTER]` prints milliseconds, GFLOP/s and GB/s of weights.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // a bench prints, and stops at the first error

use runtime::backend::{self, BackendChoice, Bindings, BufferDesc, ComputeType, Device};
use runtime::program::{Builder, Geometry, KvLayout, Live, Op, Place, Program};
use runtime::tensor::{DType, HostBytes, HostTensor};
use std::sync::Arc;
use std::time::Instant;

/// Seconds of one run of `program`, the best of a few.
fn time(device: &dyn Device, program: Program, tokens: u32, fill: &[(&str, Vec<u32>)]) -> f64 {
    let program = Arc::new(program);
    let mut bindings = Bindings::new();
    for id in program.ids() {
        let decl = program.decl(id);
        if decl.place == Place::Weight {
            let bytes = (0..decl.bytes()).map(|i| (i * 37 % 64) as u8).collect();
            let host = HostTensor::new(decl.dtype, vec![decl.rows, decl.cols], HostBytes::from_vec(bytes)).unwrap();
            bindings.insert(decl.name.clone(), device.upload(&decl.name, &host).unwrap());
        } else if let Place::State { buffer, .. } = &decl.place {
            let desc = BufferDesc { name: buffer.clone(), dtype: decl.dtype, rows: decl.rows, cols: decl.cols };
            bindings.insert(buffer.clone(), device.allocate(desc).unwrap());
        }
    }
    let mut executable = device.compile(program.clone(), &bindings).unwrap();
    let words = |values: &[u32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    executable.write(program.counts, &words(&[tokens, 1, 1, 0])).unwrap();
    for (name, values) in fill {
        executable.write(program.find(name).unwrap(), &words(values)).unwrap();
    }
    let out = program.find("out").unwrap();
    let mut best = f64::MAX;
    for _ in 0..4 {
        let start = Instant::now();
        executable.run().unwrap();
        executable.read(out, &mut [0; 4]).unwrap();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let backend = std::env::var("RUNTIME_BENCH_BACKEND").map_or(BackendChoice::Wgpu, |name| name.parse().unwrap());
    let device = backend::open(backend, 0, ComputeType::F32).unwrap();
    println!("{} · {}", device.info().name, device.info().detail);
    println!("copy {:.1} GB/s", device.copy_bandwidth().unwrap() / 1e9);
    for rows in [1usize, 128, 512] {
        for (label, k, n) in
            [("qo", 576, 576), ("kv", 576, 192), ("gate", 576, 1536), ("down", 1536, 576), ("head", 576, 49152)]
        {
            let name = format!("matmul {label} q4_1 {rows}x{k}x{n}");
            if !name.contains(&filter) || label == "head" && rows > 1 {
                continue;
            }
            let repeat = if label == "head" { 1 } else { 8 };
            let mut b = Builder::new("bench");
            let weight = b.weight("w", DType::Q4_1, n, k);
            let x = b.input("x", DType::F32, rows, k);
            let out = b.output("out", rows, n, Live::Tokens);
            for _ in 0..repeat {
                b.push(Op::MatMul { x, weight, bias: None, residual: None, out }).unwrap();
            }
            let seconds = time(device.as_ref(), b.finish(), rows as u32, &[]) / f64::from(repeat);
            report(&name, seconds, 2.0 * (rows * k * n) as f64, (n * k / 32 * 20) as f64);
        }
        for (label, k, n) in [("down", 1536, 576), ("gate", 576, 1536)] {
            let name = format!("matmul_dx {label} q4_1 {rows}x{n}x{k}");
            if !name.contains(&filter) || rows == 1 {
                continue;
            }
            let mut b = Builder::new("bench");
            let weight = b.weight("w", DType::Q4_1, n, k);
            let dy = b.input("dy", DType::F32, rows, n);
            let dx = b.output("out", rows, k, Live::Tokens);
            b.push(Op::MatMulDx { dy, weight, scale: None, dx, accumulate: false }).unwrap();
            report(
                &name,
                time(device.as_ref(), b.finish(), rows as u32, &[]),
                2.0 * (rows * k * n) as f64,
                (n * k / 32 * 20) as f64,
            );
        }
        let name = format!("attention paged {rows} rows, 512 keys");
        if name.contains(&filter) {
            let geometry = Geometry { heads: 9, kv_heads: 3, head_dim: 64, scale: 0.125, window: None, softcap: None };
            let mut b = Builder::new("bench");
            let q = b.input("q", DType::F32, rows, 576);
            let k = b.state("k", "k", 0, DType::F32, 512, 192);
            let v = b.state("v", "v", 0, DType::F32, 512, 192);
            let seqs = b.input("seqs", DType::U32, 1, rows);
            let positions = b.input("positions", DType::U32, 1, rows);
            let table = b.input("table", DType::U32, 1, 32);
            let out = b.output("out", rows, 576, Live::Tokens);
            let layout = KvLayout::Paged { table, page: 16 };
            b.push(Op::Attention { q, k, v, seqs, positions, layout, geometry, out, lse: None }).unwrap();
            let positions = (0..rows as u32).map(|t| t + 512 - rows as u32).collect();
            let seconds = time(
                device.as_ref(),
                b.finish(),
                rows as u32,
                &[("positions", positions), ("table", (0..32).collect())],
            );
            report(&name, seconds, (rows * (512 - rows / 2) * 576 * 4) as f64, 0.0);
        }
    }
}

fn report(name: &str, seconds: f64, flop: f64, bytes: f64) {
    println!(
        "{name:40} {:9.3} ms {:8.2} GFLOP/s {:8.2} GB/s",
        seconds * 1e3,
        flop / seconds / 1e9,
        bytes / seconds / 1e9
    );
}
