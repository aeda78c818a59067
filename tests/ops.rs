//! Every op, in three modes. *test*: on the first wgpu adapter (with each family of shaders) and on the first NVIDIA GPU (with
//! f32, bf16 and f16 activations) against the CPU backend, same program, same random operands. *grad*: every backward op
//! on the CPU against finite differences of its forward op. *support*: which backend has which op. (*perf* is
//! `cargo bench --bench ops`.)
//!
//! Without a wgpu adapter the test fails; `RUNTIME_NO_WGPU=1` says that there is none on purpose. Without an NVIDIA GPU the
//! CUDA half is left out (`RUNTIME_CUDA=1` makes that a failure). The file is long because it is one table of all ops.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]
#![cfg(feature = "wgpu")]

use runtime::backend::wgpu::Variants;
use runtime::backend::{BackendChoice, Bindings, BufferDesc, ComputeType, Device, Executable, cpu, wgpu};
use runtime::model::config::Activation;
use runtime::program::cache::{encode, row_len, scale_of};
use runtime::program::{
    Builder, Geometry, HeadDw, KvLayout, Live, Op, Place, Program, TensorDecl, TensorId, dynamic_map,
};
use runtime::tensor::{DType, HostBytes, HostTensor};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Once, OnceLock};
use std::time::Instant;

/// SplitMix64, as numbers in (-1, 1).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn number(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

fn f16_bytes(v: f32) -> [u8; 2] {
    half::f16::from_f32(v).to_le_bytes()
}

/// Rounds f32 elements to f16's precision, so that an f32 cache and an f16 cache start equal.
fn round_to_f16(bytes: &mut [u8]) {
    for b in bytes.chunks_exact_mut(4) {
        let rounded = half::f16::from_f32(f32::from_le_bytes([b[0], b[1], b[2], b[3]])).to_f32();
        b.copy_from_slice(&rounded.to_le_bytes());
    }
}

/// Random elements; blocks get scales of a sane size.
fn random_bytes(dtype: DType, rows: usize, cols: usize, r: &mut Random) -> Vec<u8> {
    let n = rows * cols;
    match dtype {
        DType::F32 => (0..n).flat_map(|_| r.number().to_le_bytes()).collect(),
        DType::F16 => (0..n).flat_map(|_| f16_bytes(r.number())).collect(),
        DType::BF16 => (0..n).flat_map(|_| half::bf16::from_f32(r.number()).to_le_bytes()).collect(),
        DType::U32 => vec![0; n * 4],
        _ => {
            let mut bytes: Vec<u8> =
                (0..rows * dtype.bytes_for(cols).unwrap()).map(|_| (r.bits() >> 32) as u8).collect();
            for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                let small = f16_bytes(0.02 + 0.05 * r.number().abs());
                match dtype {
                    DType::Q6_K => block[208..210].copy_from_slice(&f16_bytes(0.001 * r.number())),
                    DType::NF4 => block[32..36].copy_from_slice(&(0.1 * r.number().abs()).to_le_bytes()),
                    DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => {
                        let scale = if dtype.block_len() == 256 { 0.001 } else { 0.05 };
                        block[0..2].copy_from_slice(&f16_bytes(scale * r.number()));
                        block[2..4].copy_from_slice(&f16_bytes(scale * r.number()));
                    }
                    _ => block[0..2].copy_from_slice(&small),
                }
            }
            bytes
        }
    }
}

/// An f32 input of which only the live rows count, as intermediates of a real program.
fn live_input(b: &mut Builder, name: &str, rows: usize, cols: usize) -> TensorId {
    b.tensor(TensorDecl { name: name.into(), rows, cols, dtype: DType::F32, place: Place::Input, live: Live::Tokens })
}

/// What u32 tensors and special f32 ones hold, by name.
type Given = HashMap<&'static str, Vec<u32>>;

/// Rounds f32 elements to the precision of `dtype`, so that both sides start from equal numbers.
fn round_to(dtype: DType, bytes: &mut [u8]) {
    for b in bytes.chunks_exact_mut(4) {
        let v = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let v = if dtype == DType::F16 { half::f16::from_f32(v).to_f32() } else { half::bf16::from_f32(v).to_f32() };
        b.copy_from_slice(&v.to_le_bytes());
    }
}

/// Names of what is f32 whatever the activations are.
const ALWAYS_F32: &[&str] = &["lse", "delta", "loss", "logits", "adjusted", "drawn_from", "logprobs"];

/// The same program with activations, caches and plain matrices of type `dtype`.
fn in_type(program: &Program, dtype: DType) -> Program {
    let mut program = program.clone();
    for t in &mut program.tensors {
        let plain = matches!(t.dtype, DType::F32 | DType::F16 | DType::BF16);
        let is_activation = t.live != Live::All && !ALWAYS_F32.contains(&t.name.as_str());
        let is_matrix = t.place == Place::Weight && t.rows > 1;
        if plain && (is_activation || is_matrix || t.name.ends_with("cache") || t.name.starts_with("served")) {
            t.dtype = dtype;
        }
    }
    program
}

/// Runs `program` on a device; returns every Output and State tensor. f32 operands that are 16-bit in `like` are rounded.
fn results(device: &dyn Device, program: &Arc<Program>, given: &Given, seed: u64) -> Vec<(String, DType, Vec<u8>)> {
    results_like(device, program, program, given, seed)
}

fn results_like(
    device: &dyn Device,
    program: &Arc<Program>,
    like: &Program,
    given: &Given,
    seed: u64,
) -> Vec<(String, DType, Vec<u8>)> {
    // Small ops have many units, too, at which they can stop.
    static FINER: Once = Once::new();
    FINER.call_once(|| cpu::finer_units(1 << 12));
    let mut bindings = Bindings::new();
    let (mut inputs, mut states) = (Vec::new(), Vec::new());
    for id in program.ids() {
        let decl = program.decl(id);
        let mut r = Random(seed ^ (id.index() as u64) << 32);
        let mut bytes: Vec<u8> = match given.get(decl.name.as_str()) {
            Some(words) => words.iter().flat_map(|w| w.to_le_bytes()).collect(),
            None => random_bytes(decl.dtype, decl.rows, decl.cols, &mut r),
        };
        if decl.name.ends_with("cache") && decl.dtype == DType::F32 {
            round_to_f16(&mut bytes);
        }
        let wanted = like.decl(id).dtype;
        if decl.dtype == DType::F32 && matches!(wanted, DType::F16 | DType::BF16) {
            round_to(wanted, &mut bytes);
        }
        match &decl.place {
            Place::Weight => {
                let host = HostTensor::new(decl.dtype, vec![decl.rows, decl.cols], HostBytes::from_vec(bytes)).unwrap();
                bindings.insert(decl.name.clone(), device.upload(&decl.name, &host).unwrap());
            }
            Place::State { buffer, offset } => {
                let desc =
                    BufferDesc { name: buffer.clone(), dtype: decl.dtype, rows: 1, cols: offset + decl.len() + 64 };
                let storage = device.allocate(desc).unwrap();
                states.push((storage.clone(), decl.dtype.bytes_for(*offset).unwrap(), bytes));
                bindings.insert(buffer.clone(), storage);
            }
            Place::Input => inputs.push((id, bytes)),
            Place::Temp | Place::Output => {}
        }
    }
    let run = |executable: &mut dyn Executable, parts: bool| {
        for (storage, at, bytes) in &states {
            device.write(storage, *at, bytes).unwrap();
        }
        for (id, bytes) in &inputs {
            executable.write(*id, bytes).unwrap();
        }
        match parts {
            false => executable.run().unwrap(),
            true => in_parts(executable),
        }
        read_back(device, program, executable, &bindings, given)
    };
    let compile = |program: Arc<Program>| device.compile(program, &bindings).unwrap();
    let whole = run(&mut *compile(program.clone()), false);
    let bits = |results: &[Named]| results.iter().map(|(_, _, bytes)| bytes.clone()).collect::<Vec<_>>();
    // In an executable of its own: outputs that an op adds to begin with zeros again.
    let parts = run(&mut *compile(Arc::new(Program { cut: true, ..(**program).clone() })), true);
    assert!(bits(&whole) == bits(&parts), "{} of '{}' is not the same in parts", device.info().backend, program.name);
    whole
}

/// Runs a program with a deadline that has always passed.
fn in_parts(executable: &mut dyn Executable) {
    let now = Instant::now();
    let mut next = 0;
    while let Some(more) = executable.run_part(next, now).unwrap() {
        assert_ne!(more, next, "a part does something");
        next = more;
        PARTS.set(PARTS.get() + 1);
    }
}

thread_local! {
    /// Parts that were not the last ones of their programs, in this thread's test.
    static PARTS: Cell<usize> = const { Cell::new(0) };
}

/// Every Output and State tensor of a program that has run.
fn read_back(
    device: &dyn Device,
    program: &Program,
    executable: &mut dyn Executable,
    bindings: &Bindings,
    given: &Given,
) -> Vec<Named> {
    let mut list = Vec::new();
    for id in program.ids() {
        let decl = program.decl(id);
        let mut bytes = vec![0; decl.bytes()];
        match &decl.place {
            Place::Output => executable.read(id, &mut bytes).unwrap(),
            Place::State { buffer, offset } => {
                device.read(&bindings[buffer], decl.dtype.bytes_for(*offset).unwrap(), &mut bytes).unwrap();
            }
            _ => continue,
        }
        // Rows past the live ones hold anything.
        let live = match decl.live {
            Live::Tokens => given["counts"][0] as usize,
            Live::Gathered => given["counts"][1] as usize,
            Live::All => decl.rows,
        };
        let row_bytes = decl.bytes() / decl.rows.max(1);
        bytes[live.min(decl.rows) * row_bytes..].fill(0);
        list.push((decl.name.clone(), decl.dtype, bytes));
    }
    list
}

fn numbers(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        DType::BF16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// Compares a program's results on both devices: largest difference at most `tolerance` of the largest number.
fn check(label: &str, program: Program, given: &Given, tolerance: f32) {
    compare(label, &Arc::new(program.clone()), &Arc::new(program), given, tolerance);
}

/// The same with one program for each device (the CPU backend has no f16 buffers).
fn compare(label: &str, on_cpu: &Arc<Program>, on_gpu: &Arc<Program>, given: &Given, tolerance: f32) {
    let cpu = cpu::open(ComputeType::F32).unwrap();
    let want = results(cpu.as_ref(), on_cpu, given, 7);
    for (family, gpu) in adapters() {
        let got = results(gpu.as_ref(), on_gpu, given, 7);
        same(&format!("{label} ({family:?})"), &want, &got, tolerance);
    }
    let by = if label.starts_with("loss") { 3.0 } else { 1.0 };
    check_rounded(label, on_cpu, given, tolerance, by);
}

/// On an NVIDIA GPU alone: with f32 activations to the same tolerance, with 16-bit ones to the rounding of their results.
fn check_cuda(label: &str, program: &Program, given: &Given, tolerance: f32) {
    check_rounded(label, program, given, tolerance, 1.0);
}

/// The same where roundings are amplified `by` this much: a softmax of large logits turns a rounding of a weight into a
/// relative error of the size of the logit's.
fn check_rounded(label: &str, program: &Program, given: &Given, tolerance: f32, by: f32) {
    let cpu = cpu::open(ComputeType::F32).unwrap();
    for (dtype, device) in nvidia() {
        let (on_cpu, on_gpu) = match dtype {
            DType::F32 => (program.clone(), program.clone()),
            _ => (in_type(program, *dtype), in_type(program, *dtype)),
        };
        // The CPU has f32 activations and caches; its plain matrices may have any type.
        let mut plain = on_cpu.clone();
        for t in plain.tensors.iter_mut().filter(|t| t.place != Place::Weight && t.dtype != DType::U32) {
            t.dtype = DType::F32;
        }
        let want = results_like(cpu.as_ref(), &Arc::new(plain), &on_cpu, given, 7);
        let got = results(device.as_ref(), &Arc::new(on_gpu), given, 7);
        // A few roundings to 8 or 11 bits of numbers about as large as the largest.
        let allowed = match dtype {
            DType::BF16 => 2e-2 * by,
            DType::F16 => 3e-3 * by,
            _ => tolerance,
        };
        same(&format!("{label} (cuda {dtype})"), &want, &got, allowed);
    }
}

/// Name, type and bytes of a result.
type Named = (String, DType, Vec<u8>);

/// Hands on the results of a program whose caches hold codes: device, tolerance, the CPU's and the device's.
fn on_all(program: &Program, given: &Given, check: impl Fn(&str, f32, &[Named], &[Named])) {
    let (cpu, shared) = (cpu::open(ComputeType::F32).unwrap(), Arc::new(program.clone()));
    let want = results(cpu.as_ref(), &shared, given, 7);
    for (family, gpu) in adapters() {
        check(&format!("{family:?}"), 1e-5, &want, &results(gpu.as_ref(), &shared, given, 7));
    }
    for (dtype, device) in nvidia() {
        let on_gpu = if *dtype == DType::F32 { program.clone() } else { in_type(program, *dtype) };
        let want = results_like(cpu.as_ref(), &shared, &on_gpu, given, 7);
        let allowed = if *dtype == DType::BF16 { 2e-2 } else { 3e-3 };
        let allowed = if *dtype == DType::F32 { 1e-5 } else { allowed };
        check(&format!("cuda {dtype}"), allowed, &want, &results(device.as_ref(), &Arc::new(on_gpu), given, 7));
    }
}

/// The first NVIDIA GPU with each type of activations; none where there is no GPU.
fn nvidia() -> &'static [(DType, Arc<dyn Device>)] {
    static OPEN: OnceLock<Vec<(DType, Arc<dyn Device>)>> = OnceLock::new();
    OPEN.get_or_init(|| {
        let types = [(DType::F32, ComputeType::F32), (DType::BF16, ComputeType::BF16), (DType::F16, ComputeType::F16)];
        let open = |(dtype, compute)| match runtime::backend::open(BackendChoice::Cuda, 0, compute) {
            Ok(device) => Some((dtype, device)),
            Err(error) => {
                assert!(std::env::var_os("RUNTIME_CUDA").is_none(), "{error}");
                None
            }
        };
        types.into_iter().filter_map(open).collect()
    })
}

/// The first adapter once with each family of shaders; none where there is no adapter.
fn adapters() -> &'static [(Variants, Arc<dyn Device>)] {
    static OPEN: OnceLock<Vec<(Variants, Arc<dyn Device>)>> = OnceLock::new();
    OPEN.get_or_init(|| {
        let open = |family| wgpu::open_with(0, ComputeType::F32, true, family).map(|device| (family, device));
        let list: Vec<_> =
            [Variants::Auto, Variants::Gpu, Variants::Plain].into_iter().filter_map(|f| open(f).ok()).collect();
        let waived = std::env::var_os("RUNTIME_NO_WGPU").is_some();
        assert!(waived || !list.is_empty(), "no wgpu adapter: scripts/test.sh installs software Vulkan");
        list
    })
}

fn same(label: &str, want: &[(String, DType, Vec<u8>)], got: &[(String, DType, Vec<u8>)], tolerance: f32) {
    for ((name, want_type, want), (_, got_type, got)) in want.iter().zip(got) {
        if *want_type == DType::U32 {
            same_codes(&format!("{label}: {name}"), want, got);
            continue;
        }
        let (want, got) = (numbers(*want_type, want), numbers(*got_type, got));
        assert_eq!(want.len(), got.len(), "{label}: {name}");
        let top = want.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
        let allowed = tolerance;
        for (i, (w, g)) in want.iter().zip(&got).enumerate() {
            assert!((w - g).abs() <= allowed * top, "{label}: {name}[{i}]: cpu {w}, gpu {g}, largest {top}");
        }
    }
}

/// Tokens are equal. So are 8-bit codes, but for one in a thousand that lies on the edge between two and falls to the
/// other by rounding.
fn same_codes(label: &str, want: &[u8], got: &[u8]) {
    let different: Vec<usize> = (0..want.len()).filter(|i| want[*i] != got[*i]).collect();
    let allowed = if label.contains("8bit") { want.len() / 1000 } else { 0 };
    for i in &different {
        assert!(
            want[*i].abs_diff(got[*i]) == 1 && different.len() <= allowed,
            "{label}: {different:?} of {}",
            want.len()
        );
    }
}

fn counts(tokens: u32, gathered: u32, sequences: u32) -> Given {
    HashMap::from([("counts", vec![tokens, gathered, sequences, 77])])
}

/// That results are the same in parts, every test here checks; this one, that an op has parts.
#[test]
fn an_op_stops_between_its_units() {
    let mut b = Builder::new("one product");
    let weight = b.weight("w", DType::Q4_0, 2000, 96);
    let x = live_input(&mut b, "x", 400, 96);
    let out = b.output("out", 400, 2000, Live::Tokens);
    b.push(Op::MatMul { x, weight, bias: None, residual: None, out }).unwrap();
    results(cpu::open(ComputeType::F32).unwrap().as_ref(), &Arc::new(b.finish()), &counts(400, 0, 1), 7);
    assert!(PARTS.get() >= 20, "{} parts", PARTS.get());
}

#[test]
fn matmul_of_every_type() {
    for dtype in DType::WEIGHTS {
        let sizes: &[(usize, usize)] = match dtype.block_len() {
            1 => &[(37, 19), (64, 34)],
            // Rows of whole 256 elements have kernels of their own.
            32 => &[(96, 19), (256, 21)],
            64 => &[(192, 19)],
            _ => &[(512, 19)],
        };
        for &(k, n) in sizes {
            for (rows, live) in [(1, 1), (3, 2), (70, 67)] {
                let mut b = Builder::new("matmul");
                let weight = b.weight("w", dtype, n, k);
                let x = live_input(&mut b, "x", rows, k);
                let bias = (rows > 1).then(|| b.input("bias", DType::F32, 1, n));
                let residual = (rows != 3).then(|| live_input(&mut b, "residual", rows, n));
                let out = b.output("out", rows, n, Live::Tokens);
                b.push(Op::MatMul { x, weight, bias, residual, out }).unwrap();
                let dy = live_input(&mut b, "dy", rows, n);
                let dx = b.output("dx", rows, k, Live::Tokens);
                b.push(Op::MatMulDx { dy, weight, scale: None, dx, accumulate: false }).unwrap();
                let ids = b.input("ids", DType::U32, 1, rows);
                let row = b.output("row", rows, k, Live::Tokens);
                b.push(Op::Embed { table: weight, ids, out: row }).unwrap();
                let mut given = counts(live, 0, 1);
                given.insert("ids", (0..rows as u32).map(|i| (i * 7) % n as u32).collect());
                check(&format!("matmul {dtype} {rows}x{k}x{n}"), b.finish(), &given, 3e-6);
            }
        }
    }
}

/// Large products in f16 with f32 sums, where the adapter has cooperative matrices; gradients may be as small as they like.
#[test]
fn products_on_matrix_units() {
    let cpu = cpu::open(ComputeType::F32).unwrap();
    let Ok(gpu) = wgpu::open_with(0, ComputeType::F16, true, Variants::Gpu) else { return };
    for dtype in [DType::F32, DType::BF16, DType::Q8_0, DType::Q4_0] {
        for (rows, live, k, n) in [(64, 61, 64, 96), (160, 133, 192, 320)] {
            let mut b = Builder::new("units");
            let weight = b.weight("w", dtype, n, k);
            let x = live_input(&mut b, "x", rows, k);
            let residual = live_input(&mut b, "residual", rows, n);
            let out = b.output("out", rows, n, Live::Tokens);
            b.push(Op::MatMul { x, weight, bias: None, residual: None, out }).unwrap();
            let sum = b.output("sum", rows, n, Live::Tokens);
            b.push(Op::MatMul { x, weight, bias: None, residual: Some(residual), out: sum }).unwrap();
            let dy = live_input(&mut b, "dy", rows, n);
            let scale = b.input("scale", DType::F32, 1, 1);
            let dx = b.output("dx", rows, k, Live::Tokens);
            b.push(Op::MatMulDx { dy, weight, scale: None, dx, accumulate: false }).unwrap();
            let more = b.output("more", rows, k, Live::Tokens);
            b.push(Op::MatMulDx { dy, weight, scale: Some(scale), dx: more, accumulate: false }).unwrap();
            b.push(Op::MatMulDx { dy, weight, scale: Some(scale), dx: more, accumulate: true }).unwrap();
            let program = Arc::new(b.finish());
            let mut given = counts(live, 0, 1);
            let mut r = Random(3);
            let tiny = (0..rows * n).map(|_| (r.number() * 1e-9).to_bits());
            given.insert("dy", tiny.collect());
            let want = results(cpu.as_ref(), &program, &given, 7);
            let got = results(gpu.as_ref(), &program, &given, 7);
            for (want, got) in want.iter().zip(&got) {
                let scale = |list: &[f32]| list.iter().fold(0f32, |m, v| m.max(v.abs()));
                let top = scale(&numbers(want.1, &want.2));
                let allowed = top * 2e-3;
                for (i, (w, g)) in numbers(want.1, &want.2).iter().zip(numbers(got.1, &got.2)).enumerate() {
                    let label = format!("{dtype} {rows}x{k}x{n} {}[{i}]", want.0);
                    assert!((w - g).abs() <= allowed, "{label}: cpu {w}, gpu {g}, largest {top}");
                }
            }
        }
    }
}

#[test]
fn rows() {
    for (rows, k, live) in [(1, 64, 1), (5, 37, 4), (40, 576, 39)] {
        let mut b = Builder::new("rows");
        let x = live_input(&mut b, "x", rows, k);
        let y = live_input(&mut b, "y", rows, k);
        let weight = b.weight("norm", DType::F32, 1, k);
        let out = b.output("normed", rows, k, Live::Tokens);
        b.push(Op::RmsNorm { x, weight, eps: 1e-5, out }).unwrap();
        let dx = b.output("dnorm", rows, k, Live::Tokens);
        b.push(Op::RmsNormBackward { x, weight, eps: 1e-5, dy: y, dx, accumulate: false }).unwrap();
        b.push(Op::RmsNormBackward { x: y, weight, eps: 1e-5, dy: x, dx, accumulate: true }).unwrap();
        let dropped = b.output("dropped", rows, k, Live::Tokens);
        b.push(Op::Dropout { x, p: 0.3, salt: 5, complement: false, out: dropped, accumulate: false }).unwrap();
        b.push(Op::Dropout { x: y, p: 0.1, salt: 6, complement: false, out: dropped, accumulate: true }).unwrap();
        b.push(Op::Dropout { x: y, p: 0.4, salt: 6, complement: true, out: dropped, accumulate: true }).unwrap();
        b.push(Op::Accumulate { x, y: dropped }).unwrap();
        let copied = b.output("copied", rows, k, Live::Tokens);
        b.push(Op::Copy { x: y, out: copied }).unwrap();
        for (i, activation) in [Activation::Silu, Activation::GeluTanh].into_iter().enumerate() {
            let glu = b.output(["silu", "gelu"][i], rows, k, Live::Tokens);
            let dgate = b.output(["dgate0", "dgate1"][i], rows, k, Live::Tokens);
            let dup = b.output(["dup0", "dup1"][i], rows, k, Live::Tokens);
            b.push(Op::Glu { gate: x, up: y, activation, out: glu }).unwrap();
            b.push(Op::GluBackward { gate: x, up: y, activation, dout: out, dgate, dup }).unwrap();
        }
        let picked = b.input("picked", DType::U32, 1, 3);
        let gathered = b.output("gathered", 3, k, Live::Gathered);
        b.push(Op::GatherRows { x, rows: picked, out: gathered }).unwrap();
        let mut given = counts(live, 2, 1);
        given.insert("picked", vec![live - 1, 0, 0]);
        check(&format!("rows {rows}x{k}"), b.finish(), &given, 2e-6);
    }
}

/// DoRA: the length of adapted rows of every type of weight, the scaled product, and the magnitude's gradient.
#[test]
fn dora_and_its_gradient() {
    let weights =
        [DType::F32, DType::F16, DType::BF16, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q8_0]
            .map(|dtype| (dtype, 96))
            .into_iter()
            .chain([DType::Q4_K, DType::Q5_K, DType::Q6_K].map(|dtype| (dtype, 256)))
            .chain([(DType::NF4, 128), (DType::F32, 37), (DType::BF16, 37)]);
    for (dtype, k) in weights {
        for (n, rank) in [(1, 1), (19, 4), (64, 16)] {
            let mut b = Builder::new("dora_norm");
            let weight = b.weight("w", dtype, n, k);
            let a = b.state("a", "a", 0, DType::F32, rank, k);
            let up = b.state("b", "b", 64, DType::F32, n, rank);
            let scales = b.input("scales", DType::F32, 1, 1);
            let norms = b.state("norms", "norms", 0, DType::F32, 1, n);
            b.push(Op::DoraNorm { weight, a, b: up, scales, norms }).unwrap();
            check(&format!("dora_norm {dtype} {n}x{k} rank {rank}"), b.finish(), &counts(0, 0, 0), 2e-6);
        }
    }
    for (rows, n, live, slots) in [(1, 8, 1, false), (5, 37, 4, true), (200, 96, 130, false), (70, 64, 67, true)] {
        let mut b = Builder::new("dora_scale");
        let x = live_input(&mut b, "x", rows, n);
        let residual = live_input(&mut b, "residual", rows, n);
        let bias = b.weight("bias", DType::F32, 1, n);
        let adapters = if slots { 3 } else { 1 };
        let magnitude = b.state("magnitude", "magnitude", 0, DType::F32, adapters, n);
        let norms = b.state("norms", "norms", 64, DType::F32, adapters, n);
        let slots = slots.then(|| b.input("slots", DType::U32, 1, rows));
        let (mut out, full) = (|name: &str| b.output(name, rows, n, Live::Tokens), Some(residual));
        let (plain, biased, added) = (out("plain"), out("biased"), out("added"));
        let mut push = |bias, residual, out| b.push(Op::DoraScale { x, magnitude, norms, slots, bias, residual, out });
        push(None, None, plain).unwrap();
        push(Some(bias), None, biased).unwrap();
        push(Some(bias), full, added).unwrap();
        if slots.is_none() {
            let scale = b.input("scale", DType::F32, 1, 1);
            let dm = b.state("dm", "dm", 0, DType::F32, 1, n);
            b.push(Op::DoraScaleBackward { dy: residual, x, norms, scale: None, dm }).unwrap();
            b.push(Op::DoraScaleBackward { dy: x, x: residual, norms, scale: Some(scale), dm }).unwrap();
        }
        let mut given = counts(live, 0, 1);
        let mut r = Random(3);
        // Lengths of rows are far from zero.
        given.insert("norms", (0..adapters * n).map(|_| (1.5 + r.number()).to_bits()).collect());
        given.insert("slots", (0..rows as u32).map(|t| [0, u32::MAX, 2, 1][t as usize % 4]).collect());
        check(&format!("dora_scale {rows}x{n}"), b.finish(), &given, 2e-6);
    }
}

#[test]
fn lora_and_its_gradients() {
    for (rows, k, n, rank, slots) in [
        (3, 40, 24, 4, true),
        (5, 64, 37, 8, false),
        (50, 96, 70, 16, false),
        (50, 64, 64, 16, true),
        (270, 352, 200, 16, false),
    ] {
        let mut b = Builder::new("lora");
        let adapters = if slots { 3 } else { 1 };
        let x = live_input(&mut b, "x", rows, k);
        let a = b.state("a", "a", 64, DType::F32, adapters * rank, k);
        let bb = b.state("b", "b", 128, DType::F32, adapters * n, rank);
        let y = b.tensor(TensorDecl {
            name: "y".into(),
            rows,
            cols: n,
            dtype: DType::F32,
            place: Place::State { buffer: "y".into(), offset: 0 },
            live: Live::Tokens,
        });
        let scales = b.input("scales", DType::F32, 1, adapters);
        let u = b.output("u", rows, rank, Live::Tokens);
        let slot_of = slots.then(|| b.input("slots", DType::U32, 1, rows));
        b.push(Op::LoraShrink { x, a, slots: slot_of, rank, out: u }).unwrap();
        b.push(Op::LoraExpand { u, b: bb, slots: slot_of, scales, rank, y }).unwrap();
        if !slots {
            let dy = live_input(&mut b, "dy", rows, n);
            let da = b.state("da", "da", 64, DType::F32, rank, k);
            let db = b.state("db", "db", 128, DType::F32, n, rank);
            let du = b.output("du", rows, rank, Live::Tokens);
            let dx = b.output("dx", rows, k, Live::Tokens);
            b.push(Op::MatMulDw { dy, x: u, scale: Some(scales), dw: db }).unwrap();
            b.push(Op::MatMulDx { dy, weight: bb, scale: Some(scales), dx: du, accumulate: false }).unwrap();
            b.push(Op::MatMulDw { dy: du, x, scale: None, dw: da }).unwrap();
            b.push(Op::MatMulDx { dy: du, weight: a, scale: None, dx, accumulate: false }).unwrap();
            b.push(Op::MatMulDx { dy: du, weight: a, scale: None, dx, accumulate: true }).unwrap();
        }
        let mut given = counts(rows as u32 - 1, 0, 1);
        given.insert("slots", (0..rows as u32).map(|i| [1, u32::MAX, 2, 0][i as usize % 4]).collect());
        check(&format!("lora {rows}x{k}x{n} r{rank} slots {slots}"), b.finish(), &given, 4e-6);
    }
}

fn geometry(heads: usize, kv_heads: usize, head_dim: usize, window: Option<u32>, softcap: Option<f32>) -> Geometry {
    Geometry { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), window, softcap }
}

/// Attention and its gradients over packed sequences, with two dead rows.
fn packed(g: Geometry, lengths: &[usize]) -> (Program, Given) {
    let live: usize = lengths.iter().sum();
    let rows = live + 2;
    let (width, kv_width) = (g.heads * g.head_dim, g.kv_heads * g.head_dim);
    let mut b = Builder::new("attention");
    let q = live_input(&mut b, "q", rows, width);
    let k = live_input(&mut b, "k", rows, kv_width);
    let v = live_input(&mut b, "v", rows, kv_width);
    let seqs = b.input("seqs", DType::U32, 1, rows);
    let positions = b.input("positions", DType::U32, 1, rows);
    let bounds = b.input("bounds", DType::U32, 1, lengths.len() + 1);
    let out = b.output("out", rows, width, Live::Tokens);
    let lse = b.output("lse", rows, g.heads, Live::Tokens);
    let layout = KvLayout::Packed { bounds };
    b.push(Op::Attention { q, k, v, seqs, positions, layout, geometry: g, out, lse: Some(lse) }).unwrap();
    let dout = live_input(&mut b, "dout", rows, width);
    let delta = b.temp("delta", rows, g.heads, Live::Tokens);
    let dq = b.output("dq", rows, width, Live::Tokens);
    let dk = b.output("dk", rows, kv_width, Live::Tokens);
    let dv = b.output("dv", rows, kv_width, Live::Tokens);
    b.push(Op::AttentionBackward { q, k, v, seqs, bounds, geometry: g, out, lse, dout, delta, dq, dk, dv }).unwrap();
    let mut given = counts(live as u32, 0, lengths.len() as u32);
    let (mut seq_of, mut position_of, mut starts) = (vec![], vec![], vec![0u32]);
    for (s, n) in lengths.iter().enumerate() {
        seq_of.extend(vec![s as u32; *n]);
        position_of.extend(0..*n as u32);
        starts.push(seq_of.len() as u32);
    }
    seq_of.resize(rows, 0);
    position_of.resize(rows, 0);
    given.extend([("seqs", seq_of), ("positions", position_of), ("bounds", starts)]);
    (b.finish(), given)
}

#[test]
fn packed_attention_and_its_gradients() {
    for (g, lengths) in [
        (geometry(4, 2, 16, None, None), vec![5usize, 1, 9]),
        (geometry(3, 1, 64, Some(7), None), vec![70, 20]),
        (geometry(2, 2, 6, None, Some(2.0)), vec![12]),
        (geometry(2, 1, 256, None, None), vec![10]),
    ] {
        let (program, given) = packed(g, &lengths);
        check(&format!("packed {g:?}"), program, &given, 5e-6);
    }
}

/// Pages of 8 positions, 576 of each of two sequences: enough for attention to split the keys of few rows.
const PAGED: (usize, usize, usize) = (8, 72, 2);

/// New keys and values go to the cache (`writes`), and queries attend to it (`reads`).
fn paged(g: Geometry, kv: DType, norms: bool, rows: usize, (writes, reads): (bool, bool)) -> Program {
    let (page, pages, sequences) = PAGED;
    let (width, kv_width, cache) = (g.heads * g.head_dim, g.kv_heads * g.head_dim, page * pages * sequences);
    let cache_width = row_len(kv, g.kv_heads, g.head_dim);
    let mut b = Builder::new("paged");
    let mut q = live_input(&mut b, "q", rows, width);
    let seqs = b.input("seqs", DType::U32, 1, rows);
    let positions = b.input("positions", DType::U32, 1, rows);
    let table = b.input("table", DType::U32, sequences, pages);
    let k_cache = b.state("k_cache", "k_cache", 0, kv, cache, cache_width);
    let v_cache = b.state("v_cache", "v_cache", 0, kv, cache, cache_width);
    if writes {
        let k = live_input(&mut b, "k", rows, kv_width);
        let v = live_input(&mut b, "v", rows, kv_width);
        let slots = b.input("slots", DType::U32, 1, rows);
        // All of a head turns, or about half of it.
        let turning = if norms { g.head_dim } else { g.head_dim / 4 * 2 };
        let rope = b.input("rope", DType::F32, page * pages, turning);
        let q_norm = norms.then(|| b.weight("q_norm", DType::F32, 1, g.head_dim));
        let k_norm = norms.then(|| b.weight("k_norm", DType::F32, 1, g.head_dim));
        let q_out = b.output("q_out", rows, width, Live::Tokens);
        let rotary = Op::QkNormRopeKv {
            q,
            k,
            v,
            q_norm,
            k_norm,
            eps: 1e-6,
            head_dim: g.head_dim,
            positions,
            rope,
            slots: Some(slots),
            q_out,
            k_out: k_cache,
            v_out: Some(v_cache),
        };
        b.push(rotary).unwrap();
        q = q_out;
    }
    if reads {
        let out = b.output("out", rows, width, Live::Tokens);
        let layout = KvLayout::Paged { table, page, apart: false };
        b.push(Op::Attention { q, k: k_cache, v: v_cache, seqs, positions, layout, geometry: g, out, lse: None })
            .unwrap();
    }
    b.finish()
}

/// Where the rows of [`paged`] belong: halves of them to each of two sequences.
fn paged_rows(rows: usize) -> Given {
    let (page, pages, sequences) = PAGED;
    let mut given = counts((rows as u32 - 1).max(1), 0, 2);
    let pages_of: Vec<u32> = (0..(sequences * pages) as u32).map(|i| (i * 5) % (sequences * pages) as u32).collect();
    // Rows of a sequence follow each other, as in the engine's steps.
    let first = rows as u32 / 2;
    let place: Vec<(u32, u32)> =
        (0..rows as u32).map(|t| if t < first { (0, 500 + t) } else { (1, 530 + t - first) }).collect();
    let slot = |&(s, p): &(u32, u32)| pages_of[s as usize * pages + p as usize / page] * page as u32 + p % page as u32;
    given.insert("slots", place.iter().map(slot).collect());
    given.insert("seqs", place.iter().map(|p| p.0).collect());
    given.insert("positions", place.iter().map(|p| p.1).collect());
    given.insert("table", pages_of);
    given
}

#[test]
fn paged_attention_and_the_cache() {
    for (g, kv_type, norms, rows) in [
        (geometry(4, 2, 16, None, None), DType::F32, true, 3usize),
        (geometry(3, 1, 64, Some(9), None), DType::F16, false, 3),
        (geometry(2, 1, 6, None, None), DType::F32, false, 20),
        (geometry(2, 2, 128, None, Some(3.0)), DType::F16, true, 20),
        (geometry(4, 2, 128, None, None), DType::F16, true, 1),
        (geometry(6, 2, 64, Some(70), Some(3.0)), DType::F32, true, 8),
        (geometry(8, 1, 256, None, None), DType::F16, false, 2),
    ] {
        let build = |kv: DType| Arc::new(paged(g, kv, norms, rows, (true, true)));
        // An f16 cache rounds the new keys and values to 11 bits.
        let tolerance = if kv_type == DType::F16 { 1e-3 } else { 5e-6 };
        let label = format!("paged {g:?} {kv_type}");
        compare(&label, &build(DType::F32), &build(kv_type), &paged_rows(rows), tolerance);
    }
}

/// Rows that are each alone in their sequence, as in a step of decoding: norm, rotation and the cache's new rows may be attention's
/// own work.
#[test]
fn rows_alone_in_their_sequences() {
    for (g, norms, rows) in [
        (geometry(8, 2, 128, None, None), true, 20usize),
        (geometry(4, 4, 64, Some(70), Some(3.0)), true, 1),
        (geometry(18, 2, 128, None, None), true, 3),
        (geometry(4, 2, 64, None, None), false, 5),
        (geometry(2, 1, 256, None, None), true, 2),
    ] {
        let (page, pages, _) = PAGED;
        let build = |kv: DType| {
            let mut program = paged(g, kv, norms, rows, (true, true));
            for t in &mut program.tensors {
                match t.name.as_str() {
                    "table" => t.rows = rows,
                    "k_cache" | "v_cache" => t.rows = rows * page * pages,
                    "q_out" => t.place = Place::Temp,
                    _ => {}
                }
            }
            for node in &mut program.nodes {
                if let Op::Attention { layout: KvLayout::Paged { apart, .. }, .. } = &mut node.op {
                    *apart = true;
                }
            }
            Arc::new(program)
        };
        let all = (rows * pages) as u32;
        let pages_of: Vec<u32> = (0..all).map(|i| (i * 7 + 3) % all).collect();
        let positions: Vec<u32> = (0..rows as u32).map(|t| (493 + t * 97) % 575).collect();
        let slot = |(t, p): (usize, &u32)| pages_of[t * pages + *p as usize / page] * page as u32 + p % page as u32;
        let mut given = counts((rows as u32 - 1).max(1), 0, rows as u32);
        given.insert("slots", positions.iter().enumerate().map(slot).collect());
        given.insert("seqs", (0..rows as u32).collect());
        given.insert("positions", positions);
        given.insert("table", pages_of);
        compare(&format!("rows alone {g:?} {rows}"), &build(DType::F32), &build(DType::F16), &given, 1e-3);
    }
}

/// A cache of random numbers in codes; heads differ in size.
fn random_codes(kv: DType, rows: usize, g: &Geometry, r: &mut Random) -> Vec<u32> {
    let width = row_len(kv, g.kv_heads, g.head_dim);
    let mut bytes = Vec::with_capacity(rows * width);
    for _ in 0..rows {
        let mut scales = Vec::new();
        for _ in 0..g.kv_heads {
            let size = 0.3 + 2.0 * r.number().abs();
            let (scale, factor) = scale_of(kv, size);
            bytes.extend((0..g.head_dim).map(|_| encode(kv, r.number() * size * factor)));
            scales.extend(scale.to_le_bytes());
        }
        bytes.extend(scales);
        bytes.resize(bytes.len().next_multiple_of(16), 0);
    }
    assert_eq!(bytes.len(), rows * width);
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// Scales agree; codes do, but for some that lie on the edge between two.
fn same_cache(label: &str, g: &Geometry, kv: DType, want: &[u8], got: &[u8]) {
    let (codes, width) = (g.kv_heads * g.head_dim, row_len(kv, g.kv_heads, g.head_dim));
    let mut different = 0;
    for (row, (want, got)) in want.chunks_exact(width).zip(got.chunks_exact(width)).enumerate() {
        let scales = |row: &[u8]| numbers(DType::F32, &row[codes..codes + 4 * g.kv_heads]);
        for (w, g) in scales(want).iter().zip(scales(got)) {
            assert!((w - g).abs() <= 1e-5 * w, "{label}: row {row}: scale {g} instead of {w}");
        }
        for (i, (w, g)) in want[..codes].iter().zip(&got[..codes]).enumerate() {
            different += usize::from(w != g);
            // As signed numbers, or as signs and sizes.
            let near = if kv == DType::I8 { (*w as i8).abs_diff(*g as i8) } else { w.abs_diff(*g) };
            assert!(near <= 1 || (w | g) & 0x7f == 0, "{label}: row {row}, code {i}: {g} instead of {w}");
        }
    }
    assert!(different * 100 <= want.len(), "{label}: {different} codes of {} differ", want.len());
}

/// 8-bit caches: what is written, and attention over the same bytes.
#[test]
fn paged_attention_over_caches_of_8_bits() {
    for (g, norms, rows) in [
        (geometry(4, 2, 16, None, None), true, 3usize),
        (geometry(3, 1, 64, Some(9), None), false, 3),
        (geometry(8, 4, 64, None, None), true, 20),
        (geometry(2, 1, 20, None, None), false, 20),
        (geometry(2, 2, 128, None, Some(3.0)), true, 20),
        (geometry(4, 2, 128, None, None), true, 1),
        (geometry(8, 2, 128, Some(70), None), true, 36),
        (geometry(8, 1, 256, None, None), false, 2),
        (geometry(2, 1, 256, None, None), false, 18),
        (geometry(4, 2, 80, None, None), false, 3),
        (geometry(4, 2, 96, None, None), false, 18),
    ] {
        for kv in [DType::I8, DType::E4M3] {
            let label = format!("8-bit cache {g:?} {kv} {rows}");
            let (page, pages, sequences) = PAGED;
            let mut given = paged_rows(rows);
            for (name, seed) in [("k_cache", 1), ("v_cache", 2)] {
                given.insert(name, random_codes(kv, page * pages * sequences, &g, &mut Random(seed)));
            }
            on_all(&paged(g, kv, norms, rows, (true, false)), &given, |device, _, want, got| {
                for ((name, dtype, want), (.., got)) in
                    want.iter().zip(got).filter(|((_, dtype, _), _)| dtype.is_code())
                {
                    same_cache(&format!("{label} ({device}): {name}"), &g, *dtype, want, got);
                }
            });
            on_all(&paged(g, kv, norms, rows, (false, true)), &given, |device, allowed, want, got| {
                let outputs =
                    |list: &[Named]| list.iter().filter(|(_, t, _)| !t.is_code()).cloned().collect::<Vec<_>>();
                same(&format!("{label} ({device})"), &outputs(want), &outputs(got), allowed);
            });
        }
    }
}

#[test]
fn rotary_and_its_gradient() {
    for (norms, d) in [(false, 16), (true, 16), (false, 64), (true, 128), (true, 256)] {
        let (rows, heads, kv) = (7, 3, 1);
        let mut b = Builder::new("rotary");
        let q = live_input(&mut b, "q", rows, heads * d);
        let k = live_input(&mut b, "k", rows, kv * d);
        let v = live_input(&mut b, "v", rows, kv * d);
        let positions = b.input("positions", DType::U32, 1, rows);
        let rope = b.input("rope", DType::F32, 32, d);
        let q_norm = norms.then(|| b.weight("q_norm", DType::F32, 1, d));
        let k_norm = norms.then(|| b.weight("k_norm", DType::F32, 1, d));
        let q_out = b.output("q_out", rows, heads * d, Live::Tokens);
        let k_out = b.output("k_out", rows, kv * d, Live::Tokens);
        let forward = Op::QkNormRopeKv {
            q,
            k,
            v,
            q_norm,
            k_norm,
            eps: 1e-6,
            head_dim: d,
            positions,
            rope,
            slots: None,
            q_out,
            k_out,
            v_out: None,
        };
        b.push(forward).unwrap();
        let dq_out = live_input(&mut b, "dq_out", rows, heads * d);
        let dk_out = live_input(&mut b, "dk_out", rows, kv * d);
        let dq = b.output("dq", rows, heads * d, Live::Tokens);
        let dk = b.output("dk", rows, kv * d, Live::Tokens);
        let backward = Op::QkNormRopeBackward {
            q,
            k,
            q_norm,
            k_norm,
            eps: 1e-6,
            head_dim: d,
            positions,
            rope,
            dq_out,
            dk_out,
            dq,
            dk,
        };
        b.push(backward).unwrap();
        let mut given = counts(6, 0, 1);
        given.insert("positions", vec![0, 3, 9, 31, 2, 1, 0]);
        check("rotary", b.finish(), &given, 2e-6);
    }
}

/// Gradients of weights that are no products, and products with weights that lie in a State buffer.
#[test]
fn whole_weights_and_their_gradients() {
    for (rows, live, k, d) in [(7, 6, 48, 16), (70, 67, 40, 8), (200, 131, 264, 128)] {
        for scaled in [false, true] {
            let (vocab, heads, n) = (150, 3, 24);
            let mut b = Builder::new("weights");
            let x = live_input(&mut b, "x", rows, k);
            let dy = live_input(&mut b, "dy", rows, k);
            let scale = scaled.then(|| b.input("scale", DType::F32, 1, 1));
            let trained =
                |b: &mut Builder, name: &str, rows: usize, cols: usize| b.state(name, name, 64, DType::F32, rows, cols);
            let ids = b.input("ids", DType::U32, 1, rows);
            let table = trained(&mut b, "table", vocab, k);
            let row = b.output("row", rows, k, Live::Tokens);
            b.push(Op::Embed { table, ids, out: row }).unwrap();
            let dw = trained(&mut b, "d.table", vocab, k);
            b.push(Op::EmbedDw { ids, dy, skip: scaled.then_some(5), scale, dw }).unwrap();
            let dw = trained(&mut b, "d.norm", 1, k);
            b.push(Op::RmsNormDw { x, eps: 1e-5, dy, scale, dw }).unwrap();
            let out = trained(&mut b, "d.bias", 1, k);
            b.push(Op::ColumnSum { x: dy, scale, out }).unwrap();
            let (weight, bias) = (trained(&mut b, "w", n, k), trained(&mut b, "bias", 1, n));
            let y = b.output("y", rows, n, Live::Tokens);
            b.push(Op::MatMul { x, weight, bias: Some(bias), residual: None, out: y }).unwrap();
            let dout = live_input(&mut b, "dout", rows, n);
            let dx = b.output("dx", rows, k, Live::Tokens);
            b.push(Op::MatMulDx { dy: dout, weight, scale: None, dx, accumulate: false }).unwrap();
            let dw = trained(&mut b, "d.w", n, k);
            b.push(Op::MatMulDw { dy: dout, x, scale, dw }).unwrap();
            let q = live_input(&mut b, "q", rows, heads * d);
            let dq = live_input(&mut b, "dq", rows, heads * d);
            let positions = b.input("positions", DType::U32, 1, rows);
            let rope = b.input("rope", DType::F32, 32, d / 2);
            let dw = trained(&mut b, "d.q_norm", 1, d);
            b.push(Op::QkNormDw { x: q, eps: 1e-6, head_dim: d, positions, rope, dout: dq, scale, dw }).unwrap();
            let mut given = counts(live, 0, 1);
            given.insert("ids", (0..rows as u32).map(|i| i * i % 37 % vocab as u32).collect());
            given.insert("positions", (0..rows as u32).map(|i| i * 7 % 32).collect());
            check(&format!("whole weights {rows}x{k} {scaled}"), b.finish(), &given, 5e-6);
        }
    }
}

/// Large enough for the tensor cores' tiles, and cut where the rows end.
#[test]
fn gradients_of_large_weights_on_cuda() {
    if nvidia().is_empty() {
        return;
    }
    for (rows, live, n, k) in [(64, 64, 264, 320), (100, 77, 512, 264), (300, 290, 2056, 1032), (130, 1, 328, 776)] {
        let mut b = Builder::new("dw");
        let (x, dy) = (live_input(&mut b, "x", rows, k), live_input(&mut b, "dy", rows, n));
        let scale = b.input("scale", DType::F32, 1, 1);
        let dw = b.state("dw", "dw", 0, DType::F32, n, k);
        b.push(Op::MatMulDw { dy, x, scale: Some(scale), dw }).unwrap();
        check_cuda(&format!("dw {rows}x{n}x{k}"), &b.finish(), &counts(live, 0, 1), 2e-5);
        // The head's, over chunks.
        let mut b = Builder::new("loss");
        let x = live_input(&mut b, "x", rows, k);
        let weight = b.state("w", "w", 0, DType::F32, n, k);
        let labels = b.input("labels", DType::U32, 1, rows);
        let scale = b.input("scale", DType::F32, 1, 1);
        let logits = b.temp("logits", 48, n, Live::All);
        let loss = b.output("loss", rows, 1, Live::Tokens);
        let dx = Some(b.output("dx", rows, k, Live::Tokens));
        let dw = Some(HeadDw { dw: b.state("dw", "dw", 0, DType::F32, n, k), scale: None });
        let (weights, smoothing) = (None, 0.0);
        b.push(Op::HeadLoss { x, weight, labels, scale, weights, smoothing, logits, loss, dx, dw }).unwrap();
        let mut given = counts(live, 0, 1);
        given.insert(
            "labels",
            (0..rows as u32).map(|i| if i % 5 == 0 { u32::MAX } else { i * 37 % n as u32 }).collect(),
        );
        // Of numbers that 16 bits hold, so that the copy that products read is the weight itself.
        let mut r = Random(3);
        let mut number = || half::bf16::from_f32(0.1 * r.number()).to_f32().to_bits();
        given.insert("w", (0..n * k).map(|_| number()).collect());
        check_rounded(&format!("loss dw {rows}x{n}x{k}"), &b.finish(), &given, 2e-5, 3.0);
    }
}

#[test]
fn loss_in_chunks() {
    for (dtype, k, smoothing) in [(DType::F32, 40, 0.0), (DType::Q8_0, 64, 0.0), (DType::F32, 40, 0.1)] {
        for (gradient, weighted) in [(false, false), (true, false), (true, true)] {
            let (rows, vocab, chunk) = (10, 133, 4);
            let mut b = Builder::new("loss");
            let x = live_input(&mut b, "x", rows, k);
            let weight = b.weight("head", dtype, vocab, k);
            let labels = b.input("labels", DType::U32, 1, rows);
            let scale = b.input("scale", DType::F32, 1, 1);
            let weights = weighted.then(|| b.input("weights", DType::F32, 1, rows));
            let logits = b.temp("logits", chunk, vocab, Live::All);
            let loss = b.output("loss", rows, 1, Live::Tokens);
            let dx: Option<TensorId> = gradient.then(|| b.output("dx", rows, k, Live::Tokens));
            let dw_scale = b.input("dw_scale", DType::F32, 1, 1);
            // A head that is trained gains its gradient, too.
            let dw = (gradient && dtype == DType::F32).then(|| HeadDw {
                dw: b.state("dw", "dw", 0, DType::F32, vocab, k),
                scale: weighted.then_some(dw_scale),
            });
            b.push(Op::HeadLoss { x, weight, labels, scale, weights, smoothing, logits, loss, dx, dw }).unwrap();
            let mut given = counts(9, 0, 1);
            given.insert("labels", vec![5, 132, u32::MAX, 0, 7, 8, 9, u32::MAX, 100, 3]);
            check(&format!("loss {dtype} {gradient} {weighted} {smoothing}"), b.finish(), &given, 5e-6);
        }
    }
}

/// Three pairs of which two are live, in sequences of different lengths; every loss.
fn preference(rows: usize, which: u32) -> (Program, Given) {
    let mut b = Builder::new("preference");
    let loss = b.input("loss", DType::F32, rows, 1);
    let kinds = b.input("kinds", DType::U32, 1, rows);
    let bounds = b.input("bounds", DType::U32, 1, 7);
    let reference = b.input("reference", DType::F32, 1, 6);
    let hyper = b.input("hyper", DType::F32, 1, 4);
    let place = Place::Output;
    let decl = TensorDecl { name: "weights".into(), rows: 1, cols: rows, dtype: DType::F32, place, live: Live::All };
    let weights = b.tensor(decl);
    let pairs = b.output("pairs", 3, 4, Live::All);
    b.push(Op::PreferenceLoss { loss, kinds, bounds, reference, hyper, weights, pairs }).unwrap();
    let mut given = counts(14, 0, 4);
    let floats = |all: &[f32]| all.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    let losses: Vec<f32> = (0..rows).map(|t| 0.3 + 0.17 * ((t * 5) % 7) as f32).collect();
    given.insert("loss", floats(&losses));
    given.insert("kinds", (0..rows as u32).map(|t| [0, 1, 3, 1, 2, 3, 1][t as usize % 7]).collect());
    given.insert("bounds", vec![0, 5, 8, 11, 14, 14, 14]);
    given.insert("reference", floats(&[-1.5, -1.2, -2.0, -0.7, 0.0, 0.0]));
    given.insert("hyper", floats(&[which as f32, 0.4, 0.25, 0.0]));
    (b.finish(), given)
}

#[test]
fn preference_losses() {
    for which in 0..4 {
        let (program, given) = preference(14, which);
        check(&format!("preference {which}"), program, &given, 5e-6);
    }
}

/// The tokens' weights are the derivative of the pairs' losses.
#[test]
fn preference_weights_by_differences() {
    let cpu = cpu::open(ComputeType::F32).unwrap();
    for which in 0..4 {
        let (program, given) = preference(14, which);
        let program = Arc::new(program);
        let run = |given: &Given| {
            let list = results(cpu.as_ref(), &program, given, 7);
            let of = |wanted: &str| list.iter().find(|(n, ..)| n == wanted).map(|(_, t, b)| numbers(*t, b)).unwrap();
            let total: f64 = of("pairs").chunks(4).map(|p| f64::from(p[0]) + 0.25 * f64::from(p[3])).sum();
            (total, of("weights"))
        };
        let weights = run(&given).1;
        for t in 0..14 {
            let moved = |step: f32| {
                let mut given = given.clone();
                let losses = given.get_mut("loss").unwrap();
                losses[t] = (f32::from_bits(losses[t]) + step).to_bits();
                run(&given).0
            };
            let want = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            let got = f64::from(weights[t]);
            assert!(
                (got - want).abs() <= 2e-3 * (1.0 + want.abs()),
                "loss {which}, token {t}: {got}, by differences {want}"
            );
        }
    }
}

/// Tokens are equal: a draw on the edge of two tokens' shares would differ by rounding, and none of these is.
#[test]
fn sampling() {
    let filters: [[f32; 4]; 11] = [
        [0.0, 0.0, 1.0, 0.0],
        [0.7, 0.0, 1.0, 0.0],
        [1.0, 1.0, 1.0, 0.0],
        [1.5, 40.0, 1.0, 0.0],
        [0.6, 20.0, 0.95, 0.0],
        [1.0, 0.0, 0.9, 0.0],
        [1.0, 0.0, 0.999, 0.0],
        [1.0, 0.0, 1.0, 0.1],
        [50.0, 0.0, 0.5, 0.0],
        [3.0, 3000.0, 0.7, 0.02],
        [1.0, 9999999.0, 1.0, 0.0],
    ];
    // Logits of a model's spread; all equal; few levels with many ties; a vocabulary of one chunk.
    for (vocab, spread, levels) in [(9_001, 8.0, 0.0), (4_100, 0.0, 0.0), (8_192, 6.0, 2.0), (333, 4.0, 0.0)] {
        let rows = filters.len() * 3;
        let mut r = Random(3);
        let mut b = Builder::new("sample");
        let mut gathered = |name: &str, cols: usize, dtype: DType, place: Place| {
            b.tensor(TensorDecl { name: name.into(), rows, cols, dtype, place, live: Live::Gathered })
        };
        let logits = gathered("logits", vocab, DType::F32, Place::Input);
        let tokens = gathered("tokens", 1, DType::U32, Place::Output);
        let how = b.input("sampling", DType::F32, rows, 4);
        let uniforms = b.input("uniforms", DType::F32, 1, rows);
        b.push(Op::Sample { logits, sampling: how, uniforms, tokens }).unwrap();
        let mut given = counts(0, rows as u32 - 1, 0);
        let mut logit = || {
            // The sum of three uniform numbers is bell-shaped enough.
            let l = spread * (r.number() + r.number() + r.number());
            let l: f32 = if levels > 0.0 { (l * levels).round() / levels } else { l };
            l.to_bits()
        };
        given.insert("logits", (0..rows * vocab).map(|_| logit()).collect());
        given.insert("sampling", (0..rows).flat_map(|i| filters[i % filters.len()].map(f32::to_bits)).collect());
        given.insert("uniforms", (0..rows).map(|_| (r.number().abs() * 0.999).to_bits()).collect());
        check(&format!("sample {vocab} x {spread}"), b.finish(), &given, 1e-9);
    }
}

/// Masks, penalties, biases and bans, the draw after them, and the log-probabilities of what was drawn.
#[test]
fn adjusted_logits_and_log_probabilities() {
    use runtime::program::{IMPOSSIBLE, SEEN};
    // Whole chunks and words; a row that is no multiple of 4; one of less than a chunk, with many equal logits.
    for (vocab, levels, n) in [(8_192, 0.0, 5), (9_001, 0.0, 20), (333, 2.0, 20), (24, 1.0, 1)] {
        let (rows, masked) = (9, 2);
        let mut r = Random(5);
        let mut b = Builder::new("adjusted");
        let mut gathered = |name: &str, cols: usize, dtype: DType, place: Place| {
            b.tensor(TensorDecl { name: name.into(), rows, cols, dtype, place, live: Live::Gathered })
        };
        let logits = gathered("logits", vocab, DType::F32, Place::Input);
        let adjusted = gathered("adjusted", vocab, DType::F32, Place::Output);
        let drawn_from = gathered("drawn_from", vocab, DType::F32, Place::Temp);
        let tokens = gathered("tokens", 1, DType::U32, Place::Output);
        let logprobs = gathered("logprobs", 1 + n, DType::F32, Place::Output);
        let top = gathered("top", n, DType::U32, Place::Output);
        let mut words = |name: &str, rows: usize, cols: usize| b.input(name, DType::U32, rows, cols);
        let (entries, starts) = (words("entries", 4096, 2), words("starts", 1, rows + 1));
        let (masks, mask_of) = (words("masks", masked, vocab.div_ceil(32)), words("mask_of", 1, rows));
        let (unmasked, labels) = (words("unmasked", 1, rows), words("labels", 1, rows));
        let (no_bans, banned) = (words("no_bans", 4096, 2), entries);
        let repetition = b.input("repetition", DType::F32, 1, rows);
        let how = b.input("sampling", DType::F32, rows, 4);
        let uniforms = b.input("uniforms", DType::F32, 1, rows);
        let adjust = |entries: TensorId, mask_of: TensorId, out: TensorId| Op::AdjustLogits {
            logits,
            entries,
            starts,
            repetition,
            masks,
            mask_of,
            out,
        };
        // The numbers are compared without what is impossible: nothing would count beside it.
        b.push(adjust(no_bans, unmasked, adjusted)).unwrap();
        b.push(adjust(banned, mask_of, drawn_from)).unwrap();
        b.push(Op::Sample { logits: drawn_from, sampling: how, uniforms, tokens }).unwrap();
        b.push(Op::TopLogprobs { logits, tokens, labels, logprobs, top }).unwrap();
        let mut given = counts(0, rows as u32 - 1, 0);
        let mut logit = || {
            let l = 8.0 * (r.number() + r.number() + r.number());
            let l: f32 = if levels > 0.0 { (l * levels).round() / levels } else { l };
            l.to_bits()
        };
        given.insert("logits", (0..rows * vocab).map(|_| logit()).collect());
        let (mut list, mut bounds) = (Vec::new(), vec![0]);
        for row in 0..rows {
            // Some rows have none, some very many.
            let step = [vocab + 1, 3, 19][row % 3];
            for token in (1..vocab).step_by(step) {
                list.push([token as u32 | if token % 2 == 0 { SEEN } else { 0 }, (2.0 * r.number()).to_bits()]);
            }
            list.truncate(4096);
            bounds.push(list.len() as u32);
        }
        given.insert("no_bans", list.iter().flatten().copied().collect());
        list.iter_mut().step_by(5).for_each(|entry| entry[1] = IMPOSSIBLE.to_bits());
        given.insert("entries", list.into_iter().flatten().collect());
        for name in ["no_bans", "entries"] {
            given.get_mut(name).unwrap().resize(8192, 0);
        }
        given.insert("starts", bounds);
        given.insert("repetition", (0..rows).map(|i| [1.3f32, 0.8, 1.0][i % 3].to_bits()).collect());
        given.insert("unmasked", vec![u32::MAX; rows]);
        given.insert("mask_of", (0..rows as u32).map(|i| if i % 4 == 3 { u32::MAX } else { i % 2 }).collect());
        let sparse = |r: &mut Random| (r.bits() & r.bits() & r.bits()) as u32 | 1;
        given.insert("masks", (0..masked * vocab.div_ceil(32)).map(|_| sparse(&mut r)).collect());
        given.insert("labels", (0..rows as u32).map(|i| if i % 3 == 0 { i } else { u32::MAX }).collect());
        let filters = [[0.0, 0.0, 1.0, 0.0], [0.9, 0.0, 1.0, 0.0], [1.1, 12.0, 0.9, 0.0], [1.0, 0.0, 0.8, 0.01f32]];
        given.insert("sampling", (0..rows).flat_map(|i| filters[i % 4].map(f32::to_bits)).collect());
        given.insert("uniforms", (0..rows).map(|_| (r.number().abs() * 0.999).to_bits()).collect());
        check(&format!("adjusted {vocab}"), b.finish(), &given, 1e-6);
    }
}

#[test]
fn optimizer() {
    let n = 100_003;
    let mut b = Builder::new("adamw");
    let params = b.state("params", "params", 0, DType::F32, 1, n);
    let grads = b.state("grads", "grads", 0, DType::F32, 1, n);
    let m = b.state("m", "m", 0, DType::F32, 1, n);
    let v = b.state("v", "v", 64, DType::F32, 1, n);
    let filled = b.state("filled", "filled", 64, DType::F32, 3, 50);
    let hyper = b.input("hyper", DType::F32, 1, 8);
    let norm = b.output("norm", 1, 1, Live::All);
    b.push(Op::Fill { x: v, value: 0.25 }).unwrap();
    b.push(Op::GradNorm { x: grads, out: norm }).unwrap();
    b.push(Op::AdamW { params, grads, m, v, norm, hyper }).unwrap();
    b.push(Op::Fill { x: filled, value: -1.5 }).unwrap();
    let mut given = counts(0, 0, 0);
    let hyper = [1e-2f32, 0.9, 0.999, 1e-8, 0.1, 0.1, 0.001, 1.0];
    given.insert("hyper", hyper.iter().map(|h| h.to_bits()).collect());
    check("adamw", b.finish(), &given, 2e-6);
}

/// Matrices of a flat buffer in places of another one, some of them larger.
#[test]
fn place_adapter() {
    let mut b = Builder::new("place_adapter");
    let from = b.state("from", "from", 0, DType::F32, 1, 1000);
    let to = b.state("to", "to", 0, DType::F32, 1, 5000);
    let table = b.input("table", DType::U32, 4, 8);
    b.push(Op::PlaceAdapter { from, table, to }).unwrap();
    let mut given = counts(0, 0, 0);
    let rows: [[u32; 8]; 4] = [
        [0, 4, 64, 128, 8, 64, 1f32.to_bits(), 0],
        [256, 100, 4, 1024, 100, 8, 0.25f32.to_bits(), 0],
        [0, 0, 0, 2048, 16, 48, 2f32.to_bits(), 0],
        [700, 1, 300, 4096, 1, 300, (-3f32).to_bits(), 0],
    ];
    given.insert("table", rows.concat());
    check("place_adapter", b.finish(), &given, 1e-6);
}

/// Lion and SGD, twice each: the second update meets a moment.
#[test]
fn optimizers_with_one_moment() {
    let n = 100_003;
    for name in ["lion", "sgd"] {
        let mut b = Builder::new(name);
        let params = b.state("params", "params", 0, DType::F32, 1, n);
        let grads = b.state("grads", "grads", 0, DType::F32, 1, n);
        let m = b.state("m", "m", 64, DType::F32, 1, n);
        let hyper = b.input("hyper", DType::F32, 1, 8);
        let norm = b.output("norm", 1, 1, Live::All);
        b.push(Op::GradNorm { x: grads, out: norm }).unwrap();
        for _ in 0..2 {
            b.push(match name {
                "lion" => Op::Lion { params, grads, m, norm, hyper },
                _ => Op::Sgd { params, grads, m, norm, hyper },
            })
            .unwrap();
        }
        let mut given = counts(0, 0, 0);
        let hyper = [1e-2f32, 0.9, 0.99, 0.0, 0.1, 0.0, 0.0, 1.0];
        given.insert("hyper", hyper.iter().map(|h| h.to_bits()).collect());
        check(name, b.finish(), &given, 2e-6);
    }
}

#[test]
fn optimizer_in_8_bits() {
    // Whole blocks of 256; one that is cut; a part of one.
    for n in [2048, 2052, 64] {
        let mut b = Builder::new("adamw_8bit");
        let params = b.state("params", "params", 0, DType::F32, 1, n);
        let grads = b.state("grads", "grads", 0, DType::F32, 1, n);
        let m = b.state("m", "m", 0, DType::U32, 1, n / 4);
        let v = b.state("v", "v", 64, DType::U32, 1, n / 4);
        let m_max = b.state("m_max", "m_max", 0, DType::F32, 1, n.div_ceil(256));
        let v_max = b.state("v_max", "v_max", 64, DType::F32, 1, n.div_ceil(256));
        let hyper = b.input("hyper", DType::F32, 1, 520);
        let norm = b.output("norm", 1, 1, Live::All);
        b.push(Op::GradNorm { x: grads, out: norm }).unwrap();
        b.push(Op::AdamW8bit { params, grads, m, v, m_max, v_max, norm, hyper }).unwrap();
        let mut given = counts(0, 0, 0);
        let mut r = Random(9);
        let mut words = |len: usize| (0..len).map(|_| r.bits() as u32).collect::<Vec<u32>>();
        given.insert("m", words(n / 4));
        given.insert("v", words(n / 4));
        // The first block is new: all zeros.
        let maxima = |top: f32| (0..n.div_ceil(256)).map(|i| (top * i as f32).to_bits()).collect::<Vec<u32>>();
        given.insert("m_max", maxima(0.5));
        given.insert("v_max", maxima(0.1));
        let hyper = [1e-2f32, 0.9, 0.999, 1e-8, 0.1, 0.1, 0.001, 1.0];
        let maps = [dynamic_map(true), dynamic_map(false)].concat();
        given.insert("hyper", hyper.iter().chain(&maps).map(|h| h.to_bits()).collect());
        check(&format!("adamw_8bit {n}"), b.finish(), &given, 2e-6);

        let mut b = Builder::new("lion_8bit");
        let params = b.state("params", "params", 0, DType::F32, 1, n);
        let grads = b.state("grads", "grads", 0, DType::F32, 1, n);
        let m = b.state("m", "m", 0, DType::U32, 1, n / 4);
        let m_max = b.state("m_max", "m_max", 64, DType::F32, 1, n.div_ceil(256));
        let hyper = b.input("hyper", DType::F32, 1, 264);
        let norm = b.output("norm", 1, 1, Live::All);
        b.push(Op::GradNorm { x: grads, out: norm }).unwrap();
        b.push(Op::Lion8bit { params, grads, m, m_max, norm, hyper }).unwrap();
        given.insert("hyper", given["hyper"][..264].to_vec());
        check(&format!("lion_8bit {n}"), b.finish(), &given, 2e-6);
    }
}

/// Large forward products with f16 tiles, where the adapter has f16: within f16's rounding of the operands.
#[test]
fn products_in_f16() {
    let cpu = cpu::open(ComputeType::F32).unwrap();
    let Ok(gpu) = wgpu::open_with(0, ComputeType::F16, true, Variants::Gpu) else {
        assert!(std::env::var_os("RUNTIME_NO_WGPU").is_some(), "no wgpu adapter");
        return;
    };
    for (dtype, k) in [(DType::F32, 64), (DType::BF16, 96), (DType::Q4_1, 96), (DType::Q6_K, 256)] {
        let mut b = Builder::new("half");
        let x = live_input(&mut b, "x", 70, k);
        let weight = b.weight("w", dtype, 67, k);
        let out = b.output("out", 70, 67, Live::Tokens);
        b.push(Op::MatMul { x, weight, bias: None, residual: None, out }).unwrap();
        let (program, given) = (Arc::new(b.finish()), counts(69, 0, 1));
        let want = results(cpu.as_ref(), &program, &given, 7);
        let got = results(gpu.as_ref(), &program, &given, 7);
        same(&format!("f16 {dtype}"), &want, &got, 2e-3);
        let exact = want.iter().zip(&got).all(|(w, g)| w.2 == g.2);
        assert!(!exact, "{dtype}: not a bit differs from f32: were the tiles f16?");
    }
}

/// A program of one forward op and its backward op: `inputs` are the differentiable operands, `gradients` theirs, for
/// a gradient `dy` (an input) of `out`.
struct Pair {
    name: &'static str,
    program: Program,
    inputs: Vec<&'static str>,
    gradients: Vec<&'static str>,
    out: &'static str,
    dy: &'static str,
    given: Given,
}

/// Compares Σ dy·∂out along a random direction with the backward op's Σ gradient·direction, in f64 sums.
fn check_gradient(pair: Pair) {
    let Pair { name, program, inputs, gradients, out, dy, mut given } = pair;
    let cpu = cpu::open(ComputeType::F32).unwrap();
    let program = Arc::new(program);
    let mut random = Random(11);
    let floats = |bits: &[u32]| bits.iter().map(|b| f32::from_bits(*b)).collect::<Vec<f32>>();
    for input in inputs.iter().chain([&dy]) {
        let decl = program.decl(program.find(input).unwrap());
        given.insert(input, (0..decl.len()).map(|_| random.number().to_bits()).collect());
    }
    let run = |given: &Given| -> HashMap<String, Vec<f32>> {
        let list = results(cpu.as_ref(), &program, given, 7);
        list.into_iter().map(|(name, dtype, bytes)| (name, numbers(dtype, &bytes))).collect()
    };
    let base = run(&given);
    let dy = floats(&given[dy]);
    for (input, gradient) in inputs.iter().zip(&gradients) {
        let x = floats(&given[input]);
        let direction: Vec<f32> = x.iter().map(|_| random.number()).collect();
        let moved = |step: f32| {
            let mut given = given.clone();
            given.insert(input, x.iter().zip(&direction).map(|(x, d)| (x + step * d).to_bits()).collect());
            let out = &run(&given)[out];
            out.iter().zip(&dy).map(|(o, dy)| f64::from(*o) * f64::from(*dy)).sum::<f64>()
        };
        // Central differences of a smooth function: the error falls with the square of the step.
        const STEP: f32 = 1e-2;
        let want = (moved(STEP) - moved(-STEP)) / (2.0 * f64::from(STEP));
        let got: f64 = base[*gradient].iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        let size: f64 = base[*gradient].iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        assert!(
            size > 0.0 && (got - want).abs() <= 2e-3 * size,
            "{name}: {gradient}: {got}, by differences {want}, norm {size}"
        );
    }
}

#[test]
fn gradients_match_finite_differences() {
    let (rows, k) = (5, 24);
    let mut b = Builder::new("norm");
    let x = live_input(&mut b, "x", rows, k);
    let dy = live_input(&mut b, "dy", rows, k);
    let weight = b.weight("w", DType::F32, 1, k);
    let out = b.output("out", rows, k, Live::Tokens);
    let dx = b.output("dx", rows, k, Live::Tokens);
    b.push(Op::RmsNorm { x, weight, eps: 1e-5, out }).unwrap();
    b.push(Op::RmsNormBackward { x, weight, eps: 1e-5, dy, dx, accumulate: false }).unwrap();
    let pair = |name, program, inputs, gradients, given| {
        check_gradient(Pair { name, program, inputs, gradients, out: "out", dy: "dy", given });
    };
    pair("rms_norm", b.finish(), vec!["x"], vec!["dx"], counts(5, 0, 1));

    // Gradients of weights: those are inputs here, so that they can be moved.
    let mut b = Builder::new("norm");
    let x = live_input(&mut b, "x", rows, k);
    let dy = live_input(&mut b, "dy", rows, k);
    let weight = b.input("w", DType::F32, 1, k);
    let out = b.output("out", rows, k, Live::Tokens);
    let dw = b.output("dw", 1, k, Live::All);
    b.push(Op::RmsNorm { x, weight, eps: 1e-5, out }).unwrap();
    b.push(Op::RmsNormDw { x, eps: 1e-5, dy, scale: None, dw }).unwrap();
    pair("rms_norm_dw", b.finish(), vec!["w"], vec!["dw"], counts(5, 0, 1));

    let mut b = Builder::new("embed");
    let table = b.input("w", DType::F32, 9, k);
    let ids = b.input("ids", DType::U32, 1, rows);
    let dy = live_input(&mut b, "dy", rows, k);
    let out = b.output("out", rows, k, Live::Tokens);
    let dw = b.output("dw", 9, k, Live::All);
    b.push(Op::Embed { table, ids, out }).unwrap();
    b.push(Op::EmbedDw { ids, dy, skip: None, scale: None, dw }).unwrap();
    let mut given = counts(5, 0, 1);
    given.insert("ids", vec![3, 0, 3, 8, 3]);
    pair("embed_dw", b.finish(), vec!["w"], vec!["dw"], given);

    let mut b = Builder::new("bias");
    let x = live_input(&mut b, "x", rows, k);
    let (weight, bias) = (b.input("w", DType::F32, 7, k), b.input("bias", DType::F32, 1, 7));
    let dy = live_input(&mut b, "dy", rows, 7);
    let out = b.output("out", rows, 7, Live::Tokens);
    let (dw, db) = (b.output("dw", 7, k, Live::All), b.output("db", 1, 7, Live::All));
    b.push(Op::MatMul { x, weight, bias: Some(bias), residual: None, out }).unwrap();
    b.push(Op::MatMulDw { dy, x, scale: None, dw }).unwrap();
    b.push(Op::ColumnSum { x: dy, scale: None, out: db }).unwrap();
    pair("matmul_dw, column_sum", b.finish(), vec!["w", "bias"], vec!["dw", "db"], counts(5, 0, 1));

    for activation in [Activation::Silu, Activation::GeluTanh] {
        let mut b = Builder::new("glu");
        let gate = live_input(&mut b, "gate", rows, k);
        let up = live_input(&mut b, "up", rows, k);
        let dout = live_input(&mut b, "dy", rows, k);
        let out = b.output("out", rows, k, Live::Tokens);
        let dgate = b.output("dgate", rows, k, Live::Tokens);
        let dup = b.output("dup", rows, k, Live::Tokens);
        b.push(Op::Glu { gate, up, activation, out }).unwrap();
        b.push(Op::GluBackward { gate, up, activation, dout, dgate, dup }).unwrap();
        pair("glu", b.finish(), vec!["gate", "up"], vec!["dgate", "dup"], counts(5, 0, 1));
    }

    for dtype in DType::WEIGHTS {
        let k = dtype.block_len().max(8);
        let mut b = Builder::new("matmul");
        let x = live_input(&mut b, "x", rows, k);
        let weight = b.weight("w", dtype, 7, k);
        let dy = live_input(&mut b, "dy", rows, 7);
        let out = b.output("out", rows, 7, Live::Tokens);
        let dx = b.output("dx", rows, k, Live::Tokens);
        b.push(Op::MatMul { x, weight, bias: None, residual: None, out }).unwrap();
        b.push(Op::MatMulDx { dy, weight, scale: None, dx, accumulate: false }).unwrap();
        pair("matmul", b.finish(), vec!["x"], vec!["dx"], counts(5, 0, 1));
    }

    for (norms, d) in [(false, 8), (true, 16)] {
        let (heads, kv) = (2, 1);
        let mut b = Builder::new("rotary");
        let q = live_input(&mut b, "q", rows, heads * d);
        let k = live_input(&mut b, "k", rows, kv * d);
        let v = live_input(&mut b, "v", rows, kv * d);
        let positions = b.input("positions", DType::U32, 1, rows);
        let rope = b.input("rope", DType::F32, 16, d);
        let q_norm = norms.then(|| b.input("q_norm", DType::F32, 1, d));
        let k_norm = norms.then(|| b.input("k_norm", DType::F32, 1, d));
        let q_out = b.output("out", rows, heads * d, Live::Tokens);
        let k_out = b.output("k_out", rows, kv * d, Live::Tokens);
        let dq_out = live_input(&mut b, "dy", rows, heads * d);
        let dk_out = live_input(&mut b, "dk_out", rows, kv * d);
        let dq = b.output("dq", rows, heads * d, Live::Tokens);
        let dk = b.output("dk", rows, kv * d, Live::Tokens);
        let (eps, head_dim, slots, v_out) = (1e-6, d, None, None);
        b.push(Op::QkNormRopeKv {
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
        })
        .unwrap();
        b.push(Op::QkNormRopeBackward { q, k, q_norm, k_norm, eps, head_dim, positions, rope, dq_out, dk_out, dq, dk })
            .unwrap();
        for (x, dout, name) in [(q, dq_out, "dq_norm"), (k, dk_out, "dk_norm")] {
            let dw = b.output(name, 1, d, Live::All);
            b.push(Op::QkNormDw { x, eps, head_dim, positions, rope, dout, scale: None, dw }).unwrap();
        }
        let program = b.finish();
        let mut given = counts(5, 0, 1);
        given.insert("positions", vec![0, 3, 9, 15, 2]);
        let side = |input, gradient, out, dy, given| {
            let (name, program) = ("qk_norm_rope_kv", program.clone());
            check_gradient(Pair { name, program, inputs: vec![input], gradients: vec![gradient], out, dy, given });
        };
        side("q", "dq", "out", "dy", given.clone());
        side("k", "dk", "k_out", "dk_out", given.clone());
        if norms {
            side("q_norm", "dq_norm", "out", "dy", given.clone());
            side("k_norm", "dk_norm", "k_out", "dk_out", given);
        }
    }

    for g in [geometry(4, 2, 8, None, None), geometry(2, 1, 16, Some(3), Some(2.0))] {
        let (rows, width, kv_width) = (9, g.heads * g.head_dim, g.kv_heads * g.head_dim);
        let mut b = Builder::new("attention");
        let q = live_input(&mut b, "q", rows, width);
        let k = live_input(&mut b, "k", rows, kv_width);
        let v = live_input(&mut b, "v", rows, kv_width);
        let seqs = b.input("seqs", DType::U32, 1, rows);
        let positions = b.input("positions", DType::U32, 1, rows);
        let bounds = b.input("bounds", DType::U32, 1, 3);
        let out = b.output("out", rows, width, Live::Tokens);
        let lse = b.output("lse", rows, g.heads, Live::Tokens);
        let dout = live_input(&mut b, "dy", rows, width);
        let delta = b.temp("delta", rows, g.heads, Live::Tokens);
        let dq = b.output("dq", rows, width, Live::Tokens);
        let dk = b.output("dk", rows, kv_width, Live::Tokens);
        let dv = b.output("dv", rows, kv_width, Live::Tokens);
        let layout = KvLayout::Packed { bounds };
        b.push(Op::Attention { q, k, v, seqs, positions, layout, geometry: g, out, lse: Some(lse) }).unwrap();
        b.push(Op::AttentionBackward { q, k, v, seqs, bounds, geometry: g, out, lse, dout, delta, dq, dk, dv })
            .unwrap();
        let mut given = counts(9, 0, 2);
        given.insert("seqs", vec![0, 0, 0, 0, 0, 0, 1, 1, 1]);
        given.insert("positions", vec![0, 1, 2, 3, 4, 5, 0, 1, 2]);
        given.insert("bounds", vec![0, 6, 9]);
        pair("attention", b.finish(), vec!["q", "k", "v"], vec!["dq", "dk", "dv"], given);
    }

    let mut b = Builder::new("dora_scale");
    let x = live_input(&mut b, "x", rows, k);
    let dy = live_input(&mut b, "dy", rows, k);
    let magnitude = b.input("magnitude", DType::F32, 1, k);
    let norms = b.input("norms", DType::F32, 1, k);
    let out = b.output("out", rows, k, Live::Tokens);
    let dx = b.output("dx", rows, k, Live::Tokens);
    let dm = b.state("dm", "dm", 0, DType::F32, 1, k);
    let (slots, bias, residual) = (None, None, None);
    b.push(Op::DoraScale { x, magnitude, norms, slots, bias, residual, out }).unwrap();
    b.push(Op::DoraScale { x: dy, magnitude, norms, slots, bias, residual, out: dx }).unwrap();
    b.push(Op::DoraScaleBackward { dy, x, norms, scale: None, dm }).unwrap();
    let mut given = counts(rows as u32, 0, 1);
    given.insert("dm", vec![0; k]);
    given.insert("norms", (0..k).map(|i| (1.0 + i as f32 / 8.0).to_bits()).collect());
    pair("dora_scale", b.finish(), vec!["x", "magnitude"], vec!["dx", "dm"], given);

    let (vocab, labels) = (11, vec![3, u32::MAX, 0, 10, 7]);
    for smoothing in [0.0, 0.2] {
        let mut b = Builder::new("loss");
        let x = live_input(&mut b, "x", rows, k);
        let weight = b.input("w", DType::F32, vocab, k);
        let ids = b.input("labels", DType::U32, 1, rows);
        let scale = b.input("scale", DType::F32, 1, 1);
        // Every row's loss enters the sum with the same factor, so dy is a constant here.
        b.input("dy", DType::F32, rows, 1);
        let logits = b.temp("logits", 2, vocab, Live::All);
        let loss = b.output("out", rows, 1, Live::Tokens);
        let dx = b.output("dx", rows, k, Live::Tokens);
        let dw = Some(HeadDw { dw: b.output("dw", vocab, k, Live::All), scale: None });
        let weights = None;
        b.push(Op::HeadLoss { x, weight, labels: ids, scale, weights, smoothing, logits, loss, dx: Some(dx), dw })
            .unwrap();
        loss_gradient(b.finish(), labels.clone());
    }
}

/// As [`check_gradient`], for the loss: its own backward pass multiplies by `scale`.
fn loss_gradient(program: Program, labels: Vec<u32>) {
    let cpu = cpu::open(ComputeType::F32).unwrap();
    let program = Arc::new(program);
    for (input, gradient) in [("x", "dx"), ("w", "dw")] {
        let mut random = Random(5);
        let decl = program.decl(program.find(input).unwrap());
        let x: Vec<f32> = (0..decl.len()).map(|_| random.number()).collect();
        let direction: Vec<f32> = x.iter().map(|_| random.number()).collect();
        let run = |step: f32| {
            let mut given = counts(5, 0, 1);
            given.insert("labels", labels.clone());
            given.insert("scale", vec![0.5f32.to_bits()]);
            given.insert(input, x.iter().zip(&direction).map(|(x, d)| (x + step * d).to_bits()).collect());
            let list = results(cpu.as_ref(), &program, &given, 7);
            let of = |wanted: &str| list.iter().find(|(n, ..)| n == wanted).map(|(_, t, b)| numbers(*t, b)).unwrap();
            (of("out").iter().map(|l| 0.5 * f64::from(*l)).sum::<f64>(), of(gradient))
        };
        let want = (run(1e-2).0 - run(-1e-2).0) / 2e-2;
        let found = run(0.0).1;
        let got: f64 = found.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        let size: f64 = found.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let label = format!("head_loss: {gradient}");
        assert!(size > 0.0 && (got - want).abs() <= 2e-3 * size, "{label}: {got}, by differences {want}, norm {size}");
    }
}

#[test]
fn support() {
    println!("cpu: all ops, f32, every weight type");
    for (family, device) in adapters() {
        println!("wgpu {family:?} ({}): all ops, every weight type", device.info().name);
    }
    for (dtype, device) in nvidia() {
        println!("cuda {dtype} ({}): all ops, every weight type", device.info().name);
    }
    if nvidia().is_empty() {
        println!("cuda: no NVIDIA GPU here, nothing was run on one");
    }
}

/// Shapes that the tensor cores' kernels take, at sizes that only a GPU likes.
#[test]
fn products_of_every_shape_on_cuda() {
    if nvidia().is_empty() {
        return;
    }
    for dtype in [DType::F32, DType::BF16, DType::Q8_0, DType::Q4_K, DType::Q6_K] {
        for (rows, live, k, n) in [
            (1, 1, 512, 1024),
            (4, 3, 1024, 264),
            (16, 13, 512, 520),
            (17, 17, 256, 264),
            (32, 30, 1024, 1032),
            (64, 64, 192, 136),
            (128, 100, 512, 136),
            (128, 128, 192, 136),
            (130, 129, 768, 392),
            (520, 517, 512, 776),
        ] {
            if k % dtype.block_len() != 0 {
                continue;
            }
            let mut b = Builder::new("matmul");
            let weight = b.weight("w", dtype, n, k);
            let x = live_input(&mut b, "x", rows, k);
            let bias = b.input("bias", DType::F32, 1, n);
            let residual = live_input(&mut b, "residual", rows, n);
            let out = b.output("out", rows, n, Live::Tokens);
            b.push(Op::MatMul { x, weight, bias: Some(bias), residual: Some(residual), out }).unwrap();
            let dy = live_input(&mut b, "dy", rows, n);
            let scale = b.input("scale", DType::F32, 1, 1);
            let dx = b.output("dx", rows, k, Live::Tokens);
            b.push(Op::MatMulDx { dy, weight, scale: Some(scale), dx, accumulate: false }).unwrap();
            b.push(Op::MatMulDx { dy, weight, scale: None, dx, accumulate: true }).unwrap();
            let given = counts(live, 0, 1);
            check_cuda(&format!("matmul {dtype} {rows}x{k}x{n}"), &b.finish(), &given, 2e-5);
        }
    }
}

/// A norm that only its products read, and what follows them: what GPUs do together, against the ops one by one on the CPU.
#[test]
fn norms_and_their_products() {
    for (rows, live) in [(1, 1), (2, 2), (5, 4), (16, 13), (40, 33)] {
        for (dtype, k) in [(DType::BF16, 576), (DType::Q4_K, 512), (DType::Q4_1, 576)] {
            // A norm that only its products read; query, key and value; gate, up and the activation between them.
            let mut b = Builder::new("norm");
            let x = live_input(&mut b, "x", rows, k);
            let norm = b.weight("norm", DType::F32, 1, k);
            let temp = |b: &mut Builder, name: &str, cols: usize| b.temp(name, rows, cols, Live::Tokens);
            let seen = temp(&mut b, "seen", k);
            b.push(Op::RmsNorm { x, weight: norm, eps: 1e-5, out: seen }).unwrap();
            for (name, n) in [("q", 576), ("k", 192), ("v", 192)] {
                let weight = b.weight(&format!("w{name}"), dtype, n, k);
                let bias = (name == "q").then(|| b.input("bias", DType::F32, 1, n));
                let out = b.output(name, rows, n, Live::Tokens);
                b.push(Op::MatMul { x: seen, weight, bias, residual: None, out }).unwrap();
            }
            // The head's product over the gathered row, as the last of a program.
            let picked = b.temp("picked", 1, k, Live::Gathered);
            let row = b.input("row", DType::U32, 1, 1);
            let last = temp(&mut b, "last", k);
            b.push(Op::RmsNorm { x, weight: norm, eps: 1e-5, out: last }).unwrap();
            b.push(Op::GatherRows { x: last, rows: row, out: picked }).unwrap();
            let (head, logits) = (b.weight("whead", dtype, 100, k), b.output("logits", 1, 100, Live::Gathered));
            b.push(Op::MatMul { x: picked, weight: head, bias: None, residual: None, out: logits }).unwrap();
            let again = temp(&mut b, "again", k);
            b.push(Op::RmsNorm { x, weight: norm, eps: 1e-5, out: again }).unwrap();
            let (gate, up) = (temp(&mut b, "gate", 264), temp(&mut b, "up", 264));
            for (name, out) in [("wgate", gate), ("wup", up)] {
                let weight = b.weight(name, dtype, 264, k);
                b.push(Op::MatMul { x: again, weight, bias: None, residual: None, out }).unwrap();
            }
            let out = b.output("glu", rows, 264, Live::Tokens);
            b.push(Op::Glu { gate, up, activation: Activation::Silu, out }).unwrap();
            let mut given = counts(live, 1, 1);
            given.insert("row", vec![live - 1]);
            check(&format!("norm and products {dtype} {rows}"), b.finish(), &given, 2e-5);
        }
    }
}

/// Gate, up and the activation between them: with 132 multiprocessors, 8,640 is a width at which tiles are the larger ones.
#[test]
fn gated_products_on_cuda() {
    if nvidia().is_empty() {
        return;
    }
    for (rows, live, k, n) in [(17, 17, 192, 200), (40, 33, 512, 8640), (64, 60, 256, 264), (128, 128, 576, 8640)] {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let mut b = Builder::new("gated");
            let x = live_input(&mut b, "x", rows, k);
            let temp = |b: &mut Builder, name: &str| b.temp(name, rows, n, Live::Tokens);
            let (gate, up) = (temp(&mut b, "gate"), temp(&mut b, "up"));
            for (name, out) in [("wgate", gate), ("wup", up)] {
                let weight = b.weight(name, DType::BF16, n, k);
                b.push(Op::MatMul { x, weight, bias: None, residual: None, out }).unwrap();
            }
            let out = b.output("glu", rows, n, Live::Tokens);
            b.push(Op::Glu { gate, up, activation, out }).unwrap();
            check_cuda(&format!("gated {rows}x{k}x{n}"), &b.finish(), &counts(live, 0, 1), 2e-5);
        }
    }
}

/// Runs of products with adapters, and of gradients, that `src/backend/cuda/fuse.rs` does together.
#[test]
fn fused_runs_on_cuda() {
    if nvidia().is_empty() {
        return;
    }
    for (rows, live) in [(1, 1), (2, 2), (5, 4), (16, 13), (40, 33), (64, 64), (128, 128), (200, 190)] {
        // Products with adapters and all their gradients, as a layer's query, key and value; v behind a dropout.
        for (dtype, k) in [(DType::BF16, 576), (DType::Q4_K, 512), (DType::Q4_1, 576)] {
            let rank = 16;
            let mut b = Builder::new("adapters");
            let x = live_input(&mut b, "x", rows, k);
            let scales = b.input("scales", DType::F32, 1, 1);
            let names = [("q", 576), ("k", 192), ("v", 192)];
            let mut parts = Vec::new();
            for (i, (name, n)) in names.into_iter().enumerate() {
                let weight = b.weight(&format!("w{name}"), dtype, n, k);
                let a = b.state(&format!("a{name}"), &format!("a{name}"), 64 * i, DType::F32, rank, k);
                let up = b.state(&format!("b{name}"), &format!("b{name}"), 64 * i, DType::F32, n, rank);
                let (u, y) =
                    (b.temp(format!("u{name}"), rows, rank, Live::Tokens), b.output(name, rows, n, Live::Tokens));
                let residual = (name == "q").then(|| live_input(&mut b, "residual", rows, n));
                b.push(Op::MatMul { x, weight, bias: None, residual, out: y }).unwrap();
                let mut seen = x;
                if name == "v" {
                    seen = b.temp("dropout", rows, k, Live::Tokens);
                    b.push(Op::Dropout { x, p: 0.1, salt: 3, complement: false, out: seen, accumulate: false })
                        .unwrap();
                }
                b.push(Op::LoraShrink { x: seen, a, slots: None, rank, out: u }).unwrap();
                b.push(Op::LoraExpand { u, b: up, slots: None, scales, rank, y }).unwrap();
                parts.push((name, n, weight, a, up, u));
            }
            let dx = b.output("dx", rows, k, Live::Tokens);
            for (i, (name, n, weight, a, up, u)) in parts.into_iter().rev().enumerate() {
                let dy = live_input(&mut b, &format!("dy{name}"), rows, n);
                let du = b.temp(format!("du{name}"), rows, rank, Live::Tokens);
                let da = b.state(&format!("da{name}"), &format!("da{name}"), 0, DType::F32, rank, k);
                let db = b.state(&format!("db{name}"), &format!("db{name}"), 0, DType::F32, n, rank);
                b.push(Op::MatMulDw { dy, x: u, scale: Some(scales), dw: db }).unwrap();
                b.push(Op::MatMulDx { dy, weight: up, scale: Some(scales), dx: du, accumulate: false }).unwrap();
                b.push(Op::MatMulDw { dy: du, x, scale: None, dw: da }).unwrap();
                b.push(Op::MatMulDx { dy: du, weight: a, scale: None, dx, accumulate: i > 0 }).unwrap();
                b.push(Op::MatMulDx { dy, weight, scale: None, dx, accumulate: true }).unwrap();
            }
            check_cuda(&format!("adapters {dtype} {rows}"), &b.finish(), &counts(live, 0, 1), 2e-5);
        }
    }
}

/// What a layer does for a step in which each row has its own adapter.
#[test]
fn adapters_of_each_row_on_cuda() {
    if nvidia().is_empty() {
        return;
    }
    for (rows, live) in [(1, 1), (4, 3), (16, 13), (33, 33), (64, 60), (200, 190), (512, 300)] {
        // "served" adapters have the type of activations, others are f32.
        for (dtype, k, rank, bank) in
            [(DType::BF16, 576, 16, "served"), (DType::Q4_K, 512, 8, "served"), (DType::BF16, 576, 16, "f32")]
        {
            let adapters = 5;
            let mut b = Builder::new("adapters");
            let x = live_input(&mut b, "x", rows, k);
            let slots = b.input("slots", DType::U32, 1, rows);
            let scales = b.input("scales", DType::F32, 1, adapters);
            let names = [("q", 576), ("k", 192), ("v", 192)];
            let outputs = names.map(|(name, n)| {
                let weight = b.weight(&format!("w{name}"), dtype, n, k);
                let y = b.output(name, rows, n, Live::Tokens);
                b.push(Op::MatMul { x, weight, bias: None, residual: None, out: y }).unwrap();
                y
            });
            let halves = names.map(|(name, _)| {
                let (a, place) = (format!("{bank} a{name}"), format!("a{name}"));
                let a = b.state(&a, &place, 64, DType::F32, adapters * rank, k);
                let u = b.temp(format!("u{name}"), rows, rank, Live::Tokens);
                b.push(Op::LoraShrink { x, a, slots: Some(slots), rank, out: u }).unwrap();
                u
            });
            for (((name, n), u), y) in names.into_iter().zip(halves).zip(outputs) {
                let (up, place) = (format!("{bank} b{name}"), format!("b{name}"));
                let up = b.state(&up, &place, 64, DType::F32, adapters * n, rank);
                b.push(Op::LoraExpand { u, b: up, slots: Some(slots), scales, rank, y }).unwrap();
            }
            let program = b.finish();
            // In runs, as the engine sorts them, and mixed.
            for mixed in [false, true] {
                let mut given = counts(live, 0, 1);
                let slot = |i: u32| if mixed { [1, u32::MAX, 4, 0][i as usize % 4] } else { i * 4 / rows as u32 };
                given.insert("slots", (0..rows as u32).map(slot).collect());
                check_cuda(&format!("adapters {bank} {dtype} {rows} mixed {mixed}"), &program, &given, 2e-5);
            }
        }
    }
}

/// Adapters of each row where a norm is in front and a gated activation behind, and where a residual is added, one after the
/// other: from the second on, a product begins before its first halves are done.
#[test]
fn adapters_of_each_row_beside_norms_on_cuda() {
    if nvidia().is_empty() {
        return;
    }
    let (k, n, rank, adapters) = (512, 768, 16, 6);
    for (rows, live) in [(1, 1), (2, 2), (8, 5), (16, 16), (48, 40), (128, 128), (384, 380)] {
        for dtype in [DType::BF16, DType::Q4_K, DType::Q6_K] {
            let mut b = Builder::new("adapters");
            let x = live_input(&mut b, "x", rows, k);
            let slots = b.input("slots", DType::U32, 1, rows);
            let scales = b.input("scales", DType::F32, 1, adapters);
            // Products of x with adapters of each row, all to tensors of `width`.
            let adapted = |b: &mut Builder, names: &[&str], x, [inner, width]: [usize; 2], residual| {
                let mut made = Vec::new();
                for name in names {
                    let weight = b.weight(&format!("w {name}"), dtype, width, inner);
                    let y = b.temp(*name, rows, width, Live::Tokens);
                    b.push(Op::MatMul { x, weight, bias: None, residual, out: y }).unwrap();
                    made.push(y);
                }
                let mut halves = Vec::new();
                for name in names {
                    let (a, place) = (format!("served a {name}"), format!("a {name}"));
                    let a = b.state(&a, &place, 64, DType::F32, adapters * rank, inner);
                    let u = b.temp(format!("u {name}"), rows, rank, Live::Tokens);
                    b.push(Op::LoraShrink { x, a, slots: Some(slots), rank, out: u }).unwrap();
                    halves.push(u);
                }
                for ((name, u), y) in names.iter().zip(halves).zip(&made) {
                    let (up, place) = (format!("served b {name}"), format!("b {name}"));
                    let up = b.state(&up, &place, 64, DType::F32, adapters * width, rank);
                    b.push(Op::LoraExpand { u, b: up, slots: Some(slots), scales, rank, y: *y }).unwrap();
                }
                made
            };
            let gated = |b: &mut Builder, layer: usize, x, out| {
                let weight = b.weight(&format!("norm {layer}"), DType::F32, 1, k);
                let seen = b.temp(format!("seen {layer}"), rows, k, Live::Tokens);
                b.push(Op::RmsNorm { x, weight, eps: 1e-6, out: seen }).unwrap();
                let names = [format!("gate {layer}"), format!("up {layer}")];
                let made = adapted(b, &[&names[0], &names[1]], seen, [k, n], None);
                b.push(Op::Glu { gate: made[0], up: made[1], activation: Activation::Silu, out }).unwrap();
            };
            let between = b.temp("between", rows, n, Live::Tokens);
            gated(&mut b, 0, x, between);
            let down = adapted(&mut b, &["down"], between, [n, k], Some(x))[0];
            let out = b.output("glu", rows, n, Live::Tokens);
            gated(&mut b, 1, down, out);
            let program = b.finish();
            for mixed in [false, true] {
                let mut given = counts(live, 0, 1);
                let slot = |i: u32| if mixed { [3, u32::MAX, 5, 0][i as usize % 4] } else { i * 6 / rows as u32 };
                given.insert("slots", (0..rows as u32).map(slot).collect());
                check_cuda(&format!("adapters {dtype} {rows} mixed {mixed}"), &program, &given, 4e-5);
            }
        }
    }
}

/// Packed sequences of a few hundred rows at the head widths of real models.
#[test]
fn long_attention_on_cuda() {
    if nvidia().is_empty() {
        return;
    }
    for (g, lengths) in [
        (geometry(4, 2, 64, None, None), vec![200usize, 1, 130]),
        (geometry(6, 2, 128, Some(50), None), vec![300, 77]),
        (geometry(4, 1, 128, None, Some(5.0)), vec![260]),
        (geometry(2, 1, 96, None, None), vec![33, 65]),
        (geometry(2, 2, 80, None, None), vec![140]),
        (geometry(2, 1, 256, None, None), vec![100, 40]),
    ] {
        let (program, given) = packed(g, &lengths);
        check_cuda(&format!("packed {g:?}"), &program, &given, 2e-5);
    }
}
