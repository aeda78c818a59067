//! The whole training program against finite differences: every adapter matrix of small random models with each of the
//! flags that families differ in.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod train_support;

use runtime::backend::{BackendChoice, Bindings, ComputeType, Device, open};
use runtime::model::config::{Activation, Family, ModelConfig, RopeScaling};
use runtime::model::lora::{LoraLayout, Magnitudes, Projection};
use runtime::model::weights::expected_tensors;
use runtime::tensor::HostTensor;
use runtime::train::Optim;
use runtime::train::batch::MicroBatch;
use runtime::train::data::Row;
use runtime::train::trainer::{Trainer, TrainerOptions};
use std::sync::Arc;
use train_support::{uniform, words};

const SEED: u64 = 11;
const RANK: usize = 3;

fn base() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        hidden: 32,
        layers: 2,
        heads: 4,
        kv_heads: 4,
        head_dim: 8,
        intermediate: 48,
        vocab: 40,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_dim: 8,
        rope_scaling: RopeScaling::None,
        max_positions: 128,
        qk_norm: false,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        windows: vec![None; 2],
        activation: Activation::Silu,
        tied_head: true,
        bos: None,
        eos: vec![],
    }
}

/// Random weights of a size that keeps activations near 1.
fn weights(device: &dyn Device, config: &ModelConfig) -> Bindings {
    let mut bindings = Bindings::new();
    for (name, shape) in expected_tensors(config) {
        let (cols, len) = (shape[shape.len() - 1], shape.iter().product());
        let norm = name.contains("norm");
        let bound = if norm {
            0.3
        } else if shape.len() == 1 {
            0.2
        } else {
            1.7 / (cols as f32).sqrt()
        };
        let mut values = uniform(SEED, &name, len, bound);
        if norm {
            values.iter_mut().for_each(|v| *v += 1.0);
        }
        let shape = if shape.len() == 1 { vec![1, shape[0]] } else { shape };
        bindings.insert(name.clone(), device.upload(&name, &HostTensor::from_f32(shape, &values).unwrap()).unwrap());
    }
    bindings
}

/// Three rows: one longer than an attention block, one of two tokens, one with a mask.
fn batch(config: &ModelConfig) -> MicroBatch {
    let row = |name: &str, len: usize, counts: &dyn Fn(usize) -> bool| Row {
        ids: words(SEED, name).take(len).map(|w| (w % config.vocab as u64) as u32).collect(),
        counted: (0..len).map(|t| t > 0 && counts(t)).collect(),
        line: 1,
    };
    MicroBatch::new(&[row("a", 70, &|_| true), row("b", 2, &|_| true), row("c", 19, &|t| t % 3 == 0)])
}

fn check(name: &str, config: ModelConfig, targets: &[Projection], dropout: f32, recompute: bool) {
    check_layout(name, &config, LoraLayout::new(&config, RANK, 1, targets), dropout, recompute);
}

/// Of DoRA only the magnitudes' gradients: those of A and B take the norms for constants, which differences do not.
fn check_dora(name: &str, config: ModelConfig, dropout: f32, recompute: bool) {
    let layout = LoraLayout::new(&config, RANK, 1, &Projection::ALL).with_magnitudes();
    check_layout(name, &config, layout, dropout, recompute);
}

fn check_layout(name: &str, config: &ModelConfig, layout: LoraLayout, dropout: f32, recompute: bool) {
    let device: Arc<dyn Device> = open(BackendChoice::Cpu, 0, ComputeType::F32).unwrap();
    let weights = weights(&*device, config);
    let batch = batch(config);
    let (tokens, optim) = (batch.ids.len(), Optim::AdamW);
    let options = TrainerOptions {
        tokens,
        seqs: 3,
        max_len: 80,
        dropout,
        recompute,
        scale: 0.7,
        optim: optim.into(),
        ..TrainerOptions::default()
    };
    let new =
        |options: TrainerOptions| Trainer::new(device.clone(), config, &weights, layout.clone(), &options).unwrap();
    let mut trainer = new(options);
    let mut params = vec![0.0; layout.len];
    let mut matrices = Vec::new();
    for entry in &layout.entries {
        for (side, at, len) in [("A", entry.a, RANK * entry.inputs), ("B", entry.b, RANK * entry.outputs)] {
            let label = format!("{}.{side}", entry.module);
            params[at..at + len].copy_from_slice(&uniform(SEED, &label, len, 0.25));
            matrices.push((label, at..at + len));
        }
    }
    if let Some(Magnitudes::Behind(start)) = layout.magnitudes {
        matrices.clear();
        for entry in &layout.entries {
            let (label, at) = (format!("{}.magnitude", entry.module), start + entry.magnitude);
            let lengths = uniform(SEED, &label, entry.outputs, 0.3).into_iter().map(|x| 1.0 + x);
            params[at..at + entry.outputs].copy_from_slice(&lengths.collect::<Vec<f32>>());
            matrices.push((label, at..at + entry.outputs));
        }
    }
    trainer.set_params(&params).unwrap();
    let scale = 1.0 / batch.counted() as f32;
    let loss = trainer.micro_batch(&batch, scale, 5).unwrap() * f64::from(scale);
    assert!(loss > 1.0 && loss < 20.0, "{name}: loss {loss}");
    let gradients = trainer.gradients().unwrap();
    // A power of two changes no bit of an f32 gradient.
    let mut scaled = new(TrainerOptions { scale_loss: true, ..options });
    scaled.set_params(&params).unwrap();
    scaled.micro_batch(&batch, scale, 5).unwrap();
    assert_eq!(scaled.gradients().unwrap(), gradients, "{name}: gradients of a scaled loss");
    drop(scaled);
    let mut at = |params: &[f32]| {
        trainer.set_params(params).unwrap();
        trainer.micro_batch(&batch, 0.0, 5).unwrap() * f64::from(scale)
    };
    for (label, range) in matrices {
        let direction: Vec<f32> =
            words(SEED, &label).take(range.len()).map(|w| if w >> 63 == 1 { -1.0 } else { 1.0 }).collect();
        let inner =
            |d: &[f32]| gradients[range.clone()].iter().zip(d).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum::<f64>();
        let norm = gradients[range.clone()].iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        assert!(norm > 1e-6, "{name}: the gradient of {label} vanishes");
        // Along the gradient (a wrong sign or size) and across (a wrong place).
        let unit: Vec<f32> = gradients[range.clone()].iter().map(|g| (f64::from(*g) / norm) as f32).collect();
        let across: Vec<f32> = direction.iter().map(|d| d / (range.len() as f32).sqrt()).collect();
        for d in [unit, across] {
            let step = 0.01f32;
            let moved = |by: f32| {
                let mut p = params.clone();
                p[range.clone()].iter_mut().zip(&d).for_each(|(p, d)| *p += by * d);
                p
            };
            let expected = (at(&moved(step)) - at(&moved(-step))) / f64::from(2.0 * step);
            let found = inner(&d);
            assert!(
                (found - expected).abs() <= 0.01 * norm + 2e-5,
                "{name}: {label}: {found}, finite differences give {expected} (norm {norm})"
            );
        }
    }
}

#[test]
fn every_flag_of_the_decoder() {
    let all = Projection::ALL;
    check("plain", base(), &all, 0.0, false);
    check("grouped heads", ModelConfig { kv_heads: 2, ..base() }, &all, 0.0, false);
    check(
        "wide heads, partly rotated",
        ModelConfig { head_dim: 16, rope_dim: 8, kv_heads: 1, ..base() },
        &all,
        0.0,
        false,
    );
    check("qk norm", ModelConfig { qk_norm: true, kv_heads: 2, ..base() }, &all, 0.0, false);
    let biases = ModelConfig { qkv_bias: true, o_bias: true, mlp_bias: true, ..base() };
    check("biases", biases.clone(), &all, 0.0, false);
    check("windows", ModelConfig { windows: vec![Some(5), None], kv_heads: 2, ..base() }, &all, 0.0, false);
    check(
        "gelu, untied head",
        ModelConfig { activation: Activation::GeluTanh, tied_head: false, ..base() },
        &all,
        0.0,
        false,
    );
    check("dropout", base(), &all, 0.25, false);
    check("recompute", ModelConfig { qk_norm: true, qkv_bias: true, ..base() }, &all, 0.25, true);
    let flags = ModelConfig { qk_norm: true, ..biases };
    check_dora("dora", flags.clone(), 0.0, false);
    check_dora("dora, dropout", flags.clone(), 0.25, false);
    check_dora("dora, recompute", flags, 0.25, true);
    check("few targets", base(), &[Projection::K, Projection::Up], 0.0, false);
    check("last target only", base(), &[Projection::Down], 0.0, true);
}
