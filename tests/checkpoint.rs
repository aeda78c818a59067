//! Hugging Face folders: configuration defaults, shards, tokenizer files, and what broken ones say.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod common;

use common::folder::{config, json_file, tensors, write};
use runtime::format::safetensors::{INDEX, SINGLE};
use runtime::format::safetensors_write::{write_file, write_folder};
use runtime::format::{Checkpoint, TokenizerSource};
use runtime::model::families::config_from_json;
use runtime::model::{Activation, Family, ModelConfig, RopeScaling};
use runtime::tensor::HostTensor;
use serde_json::{Value, json};
use std::path::Path;

fn read(raw: Value) -> ModelConfig {
    config_from_json("config.json", &raw).unwrap()
}

fn refused(raw: Value) -> String {
    config_from_json("config.json", &raw).expect_err("refused").to_string()
}

fn error(path: &Path) -> String {
    Checkpoint::open(path).expect_err("broken").to_string()
}

fn llama(extra: Value) -> Value {
    config("llama", "LlamaForCausalLM", extra)
}

#[test]
fn defaults_are_those_of_transformers() {
    let c = read(json!({ "model_type": "llama" }));
    assert_eq!((c.hidden, c.layers, c.heads, c.kv_heads, c.head_dim), (4096, 32, 32, 32, 128));
    assert_eq!((c.intermediate, c.vocab, c.max_positions), (11008, 32000, 2048));
    assert_eq!((c.rms_norm_eps, c.rope_theta, c.tied_head), (1e-6, 10000.0, false));
    assert_eq!((c.bos, c.eos.as_slice()), (Some(1), &[2][..]));
    let c = read(json!({ "model_type": "mistral" }));
    assert_eq!((c.kv_heads, c.max_positions, c.intermediate), (8, 131_072, 14336));
    assert_eq!(c.windows, vec![Some(4096); 32]);
    let c = read(json!({ "model_type": "mistral", "sliding_window": null, "num_key_value_heads": null }));
    assert_eq!((c.windows[0], c.kv_heads), (None, 32));
    let c = read(json!({ "architectures": ["Qwen2ForCausalLM"] }));
    assert_eq!((c.family, c.qkv_bias, c.o_bias, c.vocab, c.bos), (Family::Qwen2, true, false, 151_936, None));
    let c = read(json!({ "model_type": "qwen3", "hidden_size": 1024 }));
    assert_eq!((c.head_dim, c.qk_norm, c.qkv_bias, c.kv_heads), (128, true, false, 32));
}

#[test]
fn keys_are_read() {
    let c = read(llama(json!({
        "attention_bias": true, "mlp_bias": true, "hidden_act": "gelu_pytorch_tanh", "eos_token_id": [3, 4],
        "bos_token_id": null, "rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 5e5, "head_dim": 6,
        "partial_rotary_factor": 0.7, "tie_word_embeddings": true,
    })));
    assert!(c.qkv_bias && c.o_bias && c.mlp_bias && c.tied_head);
    assert_eq!((c.activation, c.eos.as_slice(), c.bos), (Activation::GeluTanh, &[3, 4][..], None));
    assert_eq!((c.rope_scaling, c.rope_theta, c.rope_dim), (RopeScaling::Linear { factor: 2.0 }, 5e5, 4));
    let c = read(llama(json!({ "rope_parameters": {"rope_type": "default", "rope_theta": 7e4}, "rope_theta": 1.0 })));
    assert_eq!((c.rope_theta, c.rope_scaling), (7e4, RopeScaling::None));
    let qwen = |extra| read(config("qwen2", "Qwen2ForCausalLM", extra)).windows;
    assert_eq!(qwen(json!({ "sliding_window": 5, "max_window_layers": 1 })), [None, None]);
    let on = json!({ "use_sliding_window": true, "sliding_window": 5, "max_window_layers": 1 });
    assert_eq!(qwen(on), [None, Some(5)]);
    let types = ["sliding_attention", "full_attention"];
    assert_eq!(qwen(json!({ "use_sliding_window": true, "sliding_window": 5, "layer_types": types })), [Some(5), None]);
}

#[test]
fn unsupported_keys_are_refused_by_name() {
    for (extra, part) in [
        (json!({ "quantization_config": {"bits": 4} }), "quantization_config"),
        (json!({ "num_local_experts": 8 }), "num_local_experts"),
        (json!({ "hidden_act": "relu" }), "relu"),
        (json!({ "rope_scaling": {"rope_type": "mystery", "factor": 2.0} }), "mystery"),
        (json!({ "rope_scaling": {"rope_type": "llama3", "factor": 2.0} }), "low_freq_factor"),
        (json!({ "hidden_size": "8" }), "hidden_size"),
        (json!({ "hidden_size": 0 }), "hidden_size"),
        (json!({ "num_hidden_layers": 1_000_000_000 }), "num_hidden_layers"),
        (json!({ "num_key_value_heads": 3 }), "num_key_value_heads"),
        (json!({ "num_attention_heads": 3, "num_key_value_heads": 3 }), "num_attention_heads"),
        (json!({ "head_dim": 5 }), "partial_rotary_factor"),
        (json!({ "architectures": ["LlamaForSequenceClassification"] }), "LlamaForSequenceClassification"),
    ] {
        let e = refused(llama(extra));
        assert!(e.contains(part) && e.contains("config.json"), "{e:?} does not say {part:?}");
    }
    let e = refused(json!({ "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"] }));
    assert!(e.contains("Gemma2ForCausalLM") && e.contains("Qwen3ForCausalLM"), "{e}");
    assert!(refused(json!([])).contains("object"));
    assert!(refused(json!({})).contains("model_type"));
}

#[test]
fn folders_with_one_file_and_with_shards() {
    let dir = tempfile::tempdir().unwrap();
    let raw = llama(json!({}));
    write(dir.path(), &raw);
    let single = Checkpoint::open(dir.path()).unwrap();
    assert!(matches!(single.tokenizer, TokenizerSource::None));
    write_folder(dir.path(), &tensors(&raw), 600).unwrap();
    assert!(!dir.path().join(SINGLE).exists() && dir.path().join(INDEX).exists());
    let sharded = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(single.tensors.len(), sharded.tensors.len());
    for (name, t) in &single.tensors {
        assert_eq!((&t.shape, &*t.data), (&sharded.tensors[name].shape, &*sharded.tensors[name].data), "{name}");
    }
    let shard = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().unwrap() == "safetensors");
    assert!(Checkpoint::open(&shard.unwrap()).is_ok());
    let second = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
    let second = second.into_iter().find(|p| p.to_string_lossy().contains("model-00002-of-")).unwrap();
    std::fs::remove_file(second).unwrap();
    let e = error(dir.path());
    assert!(e.contains("model-00002-of-") && e.contains("missing"), "{e}");
    // Writing one file again leaves no shard behind.
    write(dir.path(), &raw);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn a_broken_index_says_which_entry() {
    let dir = tempfile::tempdir().unwrap();
    let raw = llama(json!({}));
    json_file(dir.path(), "config.json", &raw);
    let all = tensors(&raw);
    write_file(&dir.path().join("a.safetensors"), all.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
    for (name, shard, part) in [
        ("model.norm.weight", json!("../a.safetensors"), "inside the folder"),
        ("model.norm.weight", json!("/etc/passwd"), "inside the folder"),
        ("model.norm.weight", json!("c:\\a"), "inside the folder"),
        ("model.norm.weight", json!(".."), "inside the folder"),
        ("model.norm.weight", json!(3), "expected a file name"),
        ("mystery", json!("a.safetensors"), "does not hold it"),
        ("model.norm.weight", json!("b.safetensors"), "the shard is missing"),
    ] {
        json_file(dir.path(), INDEX, &json!({ "weight_map": { name: shard } }));
        let e = error(dir.path());
        assert!(e.contains(part) && e.contains(INDEX), "{e:?} does not say {part:?}");
    }
    json_file(dir.path(), INDEX, &json!({}));
    assert!(error(dir.path()).contains("weight_map"));
    json_file(dir.path(), INDEX, &json!({ "weight_map": { "lm_head.weight": "a.safetensors" } }));
    assert!(Checkpoint::open(dir.path()).is_ok());
}

#[test]
fn tensors_are_checked_against_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let raw = llama(json!({}));
    let put = |change: &dyn Fn(&mut std::collections::BTreeMap<String, HostTensor>)| {
        let mut all = tensors(&raw);
        change(&mut all);
        write_folder(dir.path(), &all, usize::MAX).unwrap();
        json_file(dir.path(), "config.json", &raw);
    };
    let t = |n: usize| HostTensor::from_f32(vec![n], &vec![0.5; n]).unwrap();
    put(&|all| drop(all.remove("model.layers.1.mlp.up_proj.weight")));
    assert!(error(dir.path()).contains("model.layers.1.mlp.up_proj.weight': missing, expected shape [12, 8]"));
    put(&|all| drop(all.insert("model.norm.weight".into(), t(9))));
    assert!(error(dir.path()).contains("model.norm.weight': found shape [9], expected [8]"));
    put(&|all| drop(all.insert("model.layers.0.mystery".into(), t(1))));
    assert!(error(dir.path()).contains("model.layers.0.mystery"));
    put(&|all| drop(all.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), t(1))));
    assert!(Checkpoint::open(dir.path()).unwrap().tensors.keys().all(|n| !n.contains("inv_freq")));
}

#[test]
fn tied_heads_follow_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let raw = llama(json!({ "tie_word_embeddings": true }));
    let open = |change: &dyn Fn(&mut std::collections::BTreeMap<String, HostTensor>)| {
        let mut all = tensors(&raw);
        change(&mut all);
        write_folder(dir.path(), &all, usize::MAX).unwrap();
        json_file(dir.path(), "config.json", &raw);
        Checkpoint::open(dir.path()).unwrap()
    };
    let table = |v: f32| HostTensor::from_f32(vec![10, 8], &[v; 80]).unwrap();
    assert!(open(&|_| ()).config.tied_head);
    let same = open(&|all| drop(all.insert("lm_head.weight".into(), table(1.0))));
    assert!(same.config.tied_head && !same.tensors.contains_key("lm_head.weight"));
    let other = open(&|all| drop(all.insert("lm_head.weight".into(), table(2.0))));
    assert!(!other.config.tied_head && other.tensors.contains_key("lm_head.weight"));
    let swapped = open(&|all| {
        all.remove("model.embed_tokens.weight");
        all.insert("lm_head.weight".into(), table(3.0));
    });
    assert!(swapped.config.tied_head && swapped.tensors.contains_key("model.embed_tokens.weight"));
}

#[test]
fn side_files_are_read() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &llama(json!({ "eos_token_id": 2 })));
    json_file(dir.path(), "generation_config.json", &json!({ "eos_token_id": [2, 5], "top_p": 0.9 }));
    json_file(dir.path(), "tokenizer.json", &json!({}));
    let templates = json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]);
    json_file(dir.path(), "tokenizer_config.json", &json!({ "chat_template": templates }));
    let c = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(c.config.eos, [2, 5]);
    assert_eq!(c.generation["top_p"], 0.9);
    assert_eq!(c.chat_template.as_deref(), Some("D"));
    assert!(matches!(&c.tokenizer, TokenizerSource::Json { tokenizer_json, .. } if tokenizer_json == b"{}"));
    std::fs::write(dir.path().join("chat_template.jinja"), "J").unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().chat_template.as_deref(), Some("J"));
    std::fs::write(dir.path().join("config.json"), "{\"model_type\": ").unwrap();
    let e = error(dir.path());
    assert!(e.contains("config.json") && e.contains("line 1 column"), "{e}");
}

#[test]
fn folders_around_a_gguf_file() {
    let dir = tempfile::tempdir().unwrap();
    assert!(error(dir.path()).contains("config.json"));
    let bytes = common::gguf::tiny("llama").build();
    std::fs::write(dir.path().join("a.gguf"), &bytes).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().path, dir.path().join("a.gguf"));
    std::fs::write(dir.path().join("b.gguf"), &bytes).unwrap();
    assert!(error(dir.path()).contains("2 .gguf files"));
    assert!(error(&dir.path().join("missing")).contains("missing"));
    json_file(dir.path(), "config.json", &llama(json!({})));
    std::fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    assert!(error(dir.path()).contains("pickle"));
}
