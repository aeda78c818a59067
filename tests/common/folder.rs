//! Tiny Hugging Face folders, written file by file.
#![allow(dead_code)] // each test binary uses its part

use runtime::format::safetensors_write::write_folder;
use runtime::model::families::config_from_json;
use runtime::model::weights::expected_tensors;
use runtime::tensor::HostTensor;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// A config.json of two layers; `extra` is merged over it.
pub fn config(model_type: &str, architecture: &str, extra: Value) -> Value {
    let mut c = json!({
        "model_type": model_type, "architectures": [architecture],
        "vocab_size": 10, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    });
    c.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    c
}

/// Every tensor that the config implies, filled with ones.
pub fn tensors(raw: &Value) -> BTreeMap<String, HostTensor> {
    let config = config_from_json("config.json", raw).unwrap();
    let ones = |shape: &[usize]| vec![1.0; shape.iter().product()];
    expected_tensors(&config).map(|(n, s)| (n, HostTensor::from_f32(s.clone(), &ones(&s)).unwrap())).collect()
}

/// A whole folder with one file of weights.
pub fn write(folder: &Path, raw: &Value) {
    write_folder(folder, &tensors(raw), usize::MAX).unwrap();
    json_file(folder, "config.json", raw);
}

pub fn json_file(folder: &Path, name: &str, value: &Value) {
    std::fs::write(folder.join(name), value.to_string()).unwrap();
}
