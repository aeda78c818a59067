//! Rotary frequencies of every scaling kind against transformers (scripts/golden/rope.py).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

use runtime::model::families::config_from_json;
use runtime::model::rope::{frequencies, rope_table};
use serde_json::Value;

#[test]
fn frequencies_equal_transformers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/rope/cases.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let config = config_from_json("config.json", &case["config"]).unwrap();
        let seq_len = case["seq_len"].as_u64().unwrap() as usize;
        let got = frequencies(&config, seq_len);
        let want: Vec<f64> = case["inv_freq"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!(got.inv_freq.len(), want.len(), "{name}");
        for (i, (g, w)) in got.inv_freq.iter().zip(&want).enumerate() {
            // transformers computes in f32
            assert!((g / w - 1.0).abs() < 1e-5, "{name} frequency {i}: {g} against {w}");
        }
        let want = case["attention_factor"].as_f64().unwrap();
        assert!((got.attention_factor - want).abs() < 1e-9, "{name}: {} against {want}", got.attention_factor);

        let table = rope_table(&config, seq_len);
        assert_eq!(table.cos_sin.len(), seq_len * table.half * 2, "{name}");
        for (position, i) in [(0, 0), (1, 0), (seq_len - 1, table.half - 1)] {
            let angle = position as f64 * got.inv_freq[i];
            let at = (position * table.half + i) * 2;
            assert_eq!(table.cos_sin[at], (angle.cos() * got.attention_factor) as f32, "{name} cos");
            assert_eq!(table.cos_sin[at + 1], (angle.sin() * got.attention_factor) as f32, "{name} sin");
        }
    }
}
