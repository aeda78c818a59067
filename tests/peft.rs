//! PEFT's LoRA adapters, both ways; the golden adapter comes from scripts/golden/adapter.py.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

use runtime::format::Source;
use runtime::format::peft::{Adapter, AdapterConfig, TargetModules, WEIGHTS};
use runtime::format::safetensors_write::write_file;
use runtime::model::ModelConfig;
use runtime::model::families::config_from_json;
use runtime::tensor::{DType, HostBytes, HostTensor};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/peft")
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn model() -> ModelConfig {
    config_from_json("config.json", &json_of(&golden().join("config.json"))).unwrap()
}

#[test]
fn an_adapter_of_peft_is_read_and_written_unchanged() {
    let model = model();
    let adapter = Adapter::read(&golden().join("adapter"), &model).unwrap();
    let scales = json_of(&golden().join("scales.json"));
    assert_eq!(adapter.modules.len(), scales.as_object().unwrap().len());
    for (module, w) in &adapter.modules {
        let want = scales[module].as_f64().unwrap() as f32;
        assert!((w.scale - want).abs() < 1e-6, "{module}: {} against {want}", w.scale);
        assert_eq!(w.a.shape[0], w.b.shape[1]);
    }
    assert_eq!(adapter.modules["model.layers.1.self_attn.q_proj"].a.shape, [2, 8]);
    let mut chosen = adapter.config.targets(&model).unwrap();
    chosen.sort();
    assert!(chosen.iter().eq(adapter.modules.keys()), "{chosen:?}");

    // A folder of the caller's lets scripts/golden/adapter.py --check look at the result.
    let temporary = tempfile::tempdir().unwrap();
    let out =
        std::env::var("RUNTIME_TEST_ADAPTER_OUT").map_or_else(|_| temporary.path().join("new/deep"), PathBuf::from);
    adapter.write(&out).unwrap();
    let again = Adapter::read(&out, &model).unwrap();
    assert_eq!(again.config, adapter.config);
    for (module, w) in &adapter.modules {
        assert_eq!((&*w.a.data, &*w.b.data), (&*again.modules[module].a.data, &*again.modules[module].b.data));
    }
    let (mut theirs, mut ours) =
        (json_of(&golden().join("adapter/adapter_config.json")), json_of(&out.join("adapter_config.json")));
    for v in [&mut theirs, &mut ours] {
        v.as_object_mut().unwrap().remove("init_lora_weights");
    }
    assert_eq!(theirs.to_string(), ours.to_string());
}

#[test]
fn targets_are_selected_as_peft_does() {
    let model = model();
    let select = |t: TargetModules| AdapterConfig::new(4, 8.0, t).targets(&model);
    let list = |names: &[&str]| TargetModules::List(names.iter().map(|s| (*s).to_string()).collect());
    assert_eq!(select(TargetModules::AllLinear).unwrap().len(), 14);
    assert_eq!(select(list(&["q_proj", "mlp.up_proj"])).unwrap().len(), 4);
    assert_eq!(select(list(&["lm_head"])).unwrap(), ["lm_head"]);
    assert_eq!(select(list(&["model.layers.1.self_attn.v_proj"])).unwrap(), ["model.layers.1.self_attn.v_proj"]);
    let regex = |s: &str| TargetModules::Regex(s.into());
    assert_eq!(select(regex(r".*layers\.0\.(?!mlp).*(q|k)_proj")).unwrap().len(), 2);
    assert!(select(regex("q_proj")).unwrap_err().to_string().contains("down_proj"));
    assert!(select(list(&["proj"])).is_err());
    assert!(select(regex("(")).unwrap_err().to_string().contains("target_modules"));
}

#[test]
fn features_that_are_not_implemented_are_named() {
    let good = json_of(&golden().join("adapter/adapter_config.json"));
    for (key, value) in [
        ("bias", json!("all")),
        ("ensure_weight_tying", json!(true)),
        ("modules_to_save", json!("lm_head")),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("layer_replication", json!([[0, 1]])),
        ("target_parameters", json!(["x"])),
        ("peft_type", json!("IA3")),
        ("peft_type", Value::Null),
        ("r", json!(0)),
        ("target_modules", Value::Null),
        ("rank_pattern", json!({ "q_proj": "two" })),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        let e = AdapterConfig::from_json("adapter_config.json", &bad).unwrap_err().to_string();
        assert!(e.contains(key), "{e:?} does not say {key:?}");
    }
}

#[test]
fn weights_are_checked_against_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(WEIGHTS);
    let config = AdapterConfig::new(2, 4.0, TargetModules::AllLinear);
    let t = |shape: [usize; 2]| HostTensor::from_f32(shape.to_vec(), &vec![0.5; shape[0] * shape[1]]).unwrap();
    let row = |n: usize| HostTensor::from_f32(vec![n], &vec![0.5; n]).unwrap();
    let read = |tensors: &[(&str, HostTensor)]| {
        write_file(&file, tensors.iter().map(|(n, t)| (*n, t))).unwrap();
        Adapter::from_parts(config.clone(), &Source::open(&file).unwrap(), &model())
    };
    let a = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let b = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
    let ok = read(&[(a, t([2, 8])), (b, t([8, 2]))]).unwrap();
    assert_eq!(ok.modules["model.layers.0.self_attn.q_proj"].scale, 2.0);
    let named = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight";
    assert!(read(&[(named, t([2, 8])), (b, t([8, 2]))]).is_ok());
    let half = HostTensor::new(DType::BF16, vec![2, 8], HostBytes::from_vec([0x80, 0x3f].repeat(16))).unwrap();
    let ok = read(&[(a, half), (b, t([8, 2]))]).unwrap();
    assert_eq!(*ok.modules["model.layers.0.self_attn.q_proj"].a.data, *1f32.to_le_bytes().repeat(16));
    for (tensors, parts) in [
        (vec![(a, t([2, 8]))], ["lora_B", "missing"]),
        (vec![(a, t([3, 8])), (b, t([8, 2]))], ["found shape [3, 8]", "expected [2, 8]"]),
        (vec![(a, t([2, 8])), (b, t([9, 2]))], ["found shape [9, 2]", "lora_B"]),
        (vec![("x", t([2, 8]))], ["'x'", "lora_A.weight"]),
        (
            vec![
                ("base_model.model.model.layers.7.mlp.up_proj.lora_A.weight", t([2, 8])),
                ("base_model.model.model.layers.7.mlp.up_proj.lora_B.weight", t([8, 2])),
            ],
            ["layers.7", "no such"],
        ),
        (vec![("base_model.model.model.embed_tokens.lora_embedding_A", t([2, 8]))], ["embedding", "unsupported"]),
        (
            vec![
                (a, t([2, 8])),
                (b, t([8, 2])),
                ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", row(8)),
            ],
            ["lora_magnitude_vector", "use_dora false"],
        ),
        (vec![], ["no LoRA tensor", WEIGHTS]),
    ] {
        let e = read(&tensors).unwrap_err().to_string();
        parts.iter().for_each(|p| assert!(e.contains(p), "{e:?} does not say {p:?}"));
    }
}
