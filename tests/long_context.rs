//! Where the memory of long texts goes: the plan of an 8B QLoRA step on a device of 24 GiB, made without one; and weights that
//! lie in host memory.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

use runtime::backend::{BackendChoice, Limits};
use runtime::model::decoder::{ModelShape, Objective, TrainShape, train_program};
use runtime::model::families::config_from_json;
use runtime::model::lora::{LoraLayout, Projection};
use runtime::model::{LoadOptions, LoadedModel};
use runtime::program::{OFFLOADED, Place, plan};
use runtime::tensor::DType;
use serde_json::json;

const GIB: f64 = (1u64 << 30) as f64;

/// Bytes of intermediates alive at one time, and of layers' inputs on the host, of one row of `rows` tokens; as the CUDA backend
/// would have it.
fn step(rows: usize, recompute: bool, offload: bool) -> (f64, f64) {
    let raw = json!({
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 4096, "intermediate_size": 12288,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151_936, "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": false, "hidden_act": "silu",
    });
    let config = config_from_json("config.json", &raw).unwrap();
    let dtype = |name: &str| if name.contains("_proj.weight") { DType::NF4 } else { DType::BF16 };
    let limits = Limits {
        max_step_rows: 8192,
        max_tensor_bytes: usize::MAX,
        runs_ahead: true,
        kv_dtype: DType::BF16,
        activations: DType::BF16,
        logits_chunk_bytes: 312 << 20,
        recompute_cheap: true,
    };
    let model = ModelShape { config: &config, dtype: &dtype, max_len: rows, limits };
    let shape = TrainShape {
        rows,
        seqs: 1,
        dropout: 0.0,
        recompute,
        offload,
        scaled_loss: false,
        noise: false,
        smoothing: 0.0,
        gradients: true,
        objective: Objective::Tokens,
    };
    let layout = LoraLayout::new(&config, 16, 1, &Projection::ALL);
    let program = train_program(&model, &shape, &layout.into()).unwrap().program;
    let host = program
        .tensors
        .iter()
        .filter(|t| matches!(&t.place, Place::State { buffer, .. } if buffer.starts_with(OFFLOADED)));
    let host = host.map(|t| t.bytes() as f64).sum::<f64>();
    (plan(&program, 256, usize::MAX).unwrap().bytes() as f64 / GIB, host / GIB)
}

#[test]
fn a_row_of_65536_tokens_of_an_8b_fits_24_gib() {
    // NF4 with f32 scales for 36 layers, embedding and head in bf16, adapters with gradients and moments in f32.
    let (layers, table) = (6.946e9 * 4.5 / 8.0 / GIB, 151_936.0 * 4096.0 * 2.0 / GIB);
    let adapters = 43.6e6 * 16.0 / GIB;
    let fixed = layers + 2.0 * table + adapters;
    println!(
        "fixed: {fixed:.2} GiB (layers {layers:.2}, embedding and head {:.2}, adapters {adapters:.2})",
        2.0 * table
    );
    for rows in [2048, 32_768, 65_536] {
        let (kept, _) = step(rows, true, false);
        let (arena, host) = step(rows, true, true);
        println!("{rows:>6} tokens: recomputed {kept:.2} GiB, offloaded {arena:.2} GiB and {host:.2} GiB on the host");
        if rows == 65_536 {
            assert!(fixed + kept > 24.0, "recomputation alone would be enough");
            // 1.5 GiB for the driver, kernels, and what the allocator rounds up.
            assert!(fixed + arena < 22.5, "{fixed} + {arena} GiB");
            assert!((host - 36.0 * 65_536.0 * 4096.0 * 2.0 / GIB).abs() < 0.01, "{host}");
        }
    }
}

#[test]
fn an_embedding_in_host_memory_is_none_of_the_devices() {
    let open = |name: &str, offload_embedding: bool| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny").join(name);
        let options = LoadOptions { backend: BackendChoice::Cpu, offload_embedding, ..LoadOptions::default() };
        LoadedModel::open(&path, &options)
    };
    let (here, away) = (open("llama2", false).unwrap(), open("llama2", true).unwrap());
    let table = away.weights["model.embed_tokens.weight"].clone();
    assert!(table.is_on_host() && !here.weights["model.embed_tokens.weight"].is_on_host());
    assert_eq!(away.weight_bytes() + table.desc().bytes(), here.weight_bytes());
    let error = open("llama_tied", true).unwrap_err().to_string();
    assert!(error.contains("offload_embedding: the embedding is also this model's head"), "{error}");
}
