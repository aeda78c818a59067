//! AdamW and Lion with 8-bit moments against bitsandbytes' map and rounding (scripts/golden/adamw_8bit.py).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

use runtime::backend::{Bindings, BufferDesc, ComputeType, cpu};
use runtime::program::{Builder, Live, Op, TensorId, dynamic_map};
use runtime::tensor::DType;
use safetensors::SafeTensors;
use std::sync::Arc;

fn golden() -> Vec<u8> {
    golden_of("updates")
}

fn golden_of(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/golden/adamw_8bit/{name}.safetensors", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn floats(golden: &SafeTensors, name: &str) -> Vec<f32> {
    let data = golden.tensor(name).unwrap().data();
    data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Equal to 3·10⁻⁶ of each number, or of `size` where that is larger.
fn close(what: &str, want: &[f32], got: &[f32], size: f32) {
    assert_eq!(want.len(), got.len(), "{what}");
    for (i, (w, g)) in want.iter().zip(got).enumerate() {
        assert!((w - g).abs() <= 3e-6 * w.abs().max(size), "{what}[{i}]: {g} against {w}");
    }
}

#[test]
fn the_maps_are_those_of_bitsandbytes() {
    let file = golden();
    let golden = SafeTensors::deserialize(&file).unwrap();
    for (name, signed) in [("map.signed", true), ("map.unsigned", false)] {
        let (want, got) = (floats(&golden, name), dynamic_map(signed));
        for (i, (w, g)) in want.iter().zip(&got).enumerate() {
            assert_eq!(w.to_bits(), g.to_bits(), "{name}[{i}]: {g:e} against {w:e}");
        }
    }
}

#[test]
fn three_updates_equal_bitsandbytes() {
    updates(&golden(), &["m", "v"], 520, 0.999, |id| Op::AdamW8bit {
        params: id("params"),
        grads: id("grads"),
        m: id("m"),
        v: id("v"),
        m_max: id("m_max"),
        v_max: id("v_max"),
        norm: id("norm"),
        hyper: id("hyper"),
    });
}

#[test]
fn three_updates_of_lion_equal_bitsandbytes() {
    updates(&golden_of("lion"), &["m"], 264, 0.99, |id| Op::Lion8bit {
        params: id("params"),
        grads: id("grads"),
        m: id("m"),
        m_max: id("m_max"),
        norm: id("norm"),
        hyper: id("hyper"),
    });
}

/// Three updates of an optimizer with these moments.
fn updates(
    file: &[u8],
    moments: &[&str],
    hyper_len: usize,
    beta2: f64,
    op: impl Fn(&mut dyn FnMut(&str) -> TensorId) -> Op,
) {
    let golden = SafeTensors::deserialize(file).unwrap();
    let device = cpu::open(ComputeType::F32).unwrap();
    let params = floats(&golden, "params.0");
    let n = params.len();
    let mut b = Builder::new("8 bits");
    let mut bindings = Bindings::new();
    let mut state = |name: &str| {
        let (dtype, cols) = match name {
            "params" | "grads" => (DType::F32, n),
            "m" | "v" => (DType::U32, n / 4),
            "norm" => (DType::F32, 1),
            "hyper" => (DType::F32, hyper_len),
            _ => (DType::F32, n.div_ceil(256)),
        };
        let desc = BufferDesc { name: name.into(), dtype, rows: 1, cols };
        bindings.insert(name.into(), device.allocate(desc).unwrap());
        b.state(name, name, 0, dtype, 1, cols)
    };
    let op = op(&mut state);
    b.push(op).unwrap();
    b.output("unused", 1, 1, Live::All);
    let mut executable = device.compile(Arc::new(b.finish()), &bindings).unwrap();
    let write = |name: &str, numbers: &[f32]| {
        device.write(&bindings[name], 0, bytemuck::cast_slice(numbers)).unwrap();
    };
    let read = |name: &str| {
        let mut bytes = vec![0; bindings[name].desc().bytes()];
        device.read(&bindings[name], 0, &mut bytes).unwrap();
        bytes
    };
    let read_floats = |name: &str| bytemuck::pod_collect_to_vec::<u8, f32>(&read(name));
    write("params", &params);
    let maps = [dynamic_map(true), dynamic_map(false)].concat();
    for step in 1..=3 {
        let correction = |beta: f64| (1.0 - beta.powi(step)) as f32;
        let hyper = [1e-2, 0.9, beta2 as f32, 1e-8, 0.01, correction(0.9), correction(beta2), 0.0];
        write("hyper", &[&hyper[..], &maps[..hyper_len - 8]].concat());
        write("grads", &floats(&golden, &format!("grads.{step}")));
        executable.run().unwrap();
        close(&format!("params.{step}"), &floats(&golden, &format!("params.{step}")), &read_floats("params"), 1.0);
        for name in moments {
            let label = format!("{name}.{step}");
            let (want, got) = (golden.tensor(&label).unwrap().data().to_vec(), read(name));
            let different: Vec<usize> = (0..n).filter(|i| want[*i] != got[*i]).collect();
            // Quotients are rounded differently: a moment on the edge may fall to the neighbouring code.
            assert!(different.len() <= 2, "{label}: {} codes differ", different.len());
            for i in different {
                assert_eq!(want[i].abs_diff(got[i]), 1, "{label}[{i}]");
            }
            let label = format!("{name}_max.{step}");
            close(&label, &floats(&golden, &label), &read_floats(&format!("{name}_max")), 0.0);
        }
    }
}
