//! Every variant of every shader is expanded, parsed, validated and written to SPIR-V, without a GPU.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]
#![cfg(feature = "wgpu")]

use naga::valid::{Capabilities, ValidationFlags, Validator};
use runtime::backend::wgpu::library::{FILES, Variant, file, weight_flags};
use runtime::tensor::DType;

type Set = Vec<(&'static str, i64)>;

/// Every combination of one element of each axis.
fn product(axes: &[Vec<Set>]) -> Vec<Set> {
    axes.iter().fold(vec![vec![]], |sets, axis| {
        sets.iter().flat_map(|set| axis.iter().map(move |more| [set.clone(), more.clone()].concat())).collect()
    })
}

/// The flag absent and present.
fn flag(name: &'static str) -> Vec<Set> {
    vec![vec![], vec![(name, 1)]]
}

fn weights() -> Vec<Set> {
    let plain = [DType::F32, DType::F16, DType::BF16].map(|d| [weight_flags(d), vec![("K_ANY", 1)]].concat());
    DType::WEIGHTS.iter().map(|d| weight_flags(*d)).chain(plain).collect()
}

/// What matmul_vec.wgsl wants to know of a weight.
fn units() -> Vec<Set> {
    let more = |set: Set| {
        let has = |name: &str| set.iter().any(|(flag, _)| *flag == name);
        let quantised = has("NIBBLES") || has("W_Q8_0");
        let minimum = ["W_Q4_1", "W_Q5_1", "W_Q4_K", "W_Q5_K"].into_iter().any(has);
        let vecs = if quantised { 8 } else { 2 };
        [set, vec![("QUANTISED", quantised.into()), ("MINIMUM", minimum.into()), ("VECS", vecs)]].concat()
    };
    weights().into_iter().map(more).collect()
}

/// The three forms of reductions (reduce.wgsl).
fn reductions() -> Vec<Set> {
    vec![vec![("WG", 64)], vec![("WG", 256), ("SUBGROUPS", 1)], vec![("WG", 8), ("SUBGROUPS", 1), ("ONE_SUBGROUP", 1)]]
}

fn tile(bm: i64, bn: i64, bk: i64) -> Set {
    let threads = bm / 4 * (bn / 4);
    vec![("BM", bm), ("BN", bn), ("BK", bk), ("TM", 4), ("TN", 4), ("TM4", 1), ("TN4", 1), ("WG", threads)]
}

fn heads() -> Vec<Set> {
    [6, 64, 80, 128, 256]
        .into_iter()
        .flat_map(|d: i64| {
            [8, 64].map(|wg| vec![("D", d), ("DPT", (d + wg - 1) / wg), ("D4", i64::from(d % 4 == 0)), ("WG", wg)])
        })
        .collect()
}

fn head_tiles(sums: i64) -> Vec<Set> {
    [(16, 32, 2), (64, 32, 1), (80, 32, 3), (128, 16, 4), (256, 8, 2)]
        .into_iter()
        .map(|(d, chunk, per): (i64, i64, i64)| {
            let d4 = d / 4;
            vec![
                ("D", d),
                ("QUADS", d4),
                ("DV", (d4 + 15) / 16),
                ("CHUNK", chunk),
                ("PER", per),
                ("SUMS", sums),
                ("WG", 256),
            ]
        })
        .collect()
}

/// Constants of attention_decode.wgsl.
fn decode(d: i64, per: i64) -> Set {
    let phases = 512 / d;
    let loads = [("K_LOADS", d / 16), ("V_LOADS", 64 / phases)];
    let rest = [("WG", 256), ("D", d), ("PER", per), ("KEYS", 64), ("PAIRS", d / 2), ("VQ", phases)];
    loads.into_iter().chain(rest).collect()
}

/// Caches of 8-bit codes.
fn codes() -> Vec<Set> {
    ["KV_I8", "KV_E4M3"].map(|codes| vec![("KV_CODES", 1), (codes, 1)]).to_vec()
}

/// Caches in less than 32 bits.
fn small_caches() -> Vec<Set> {
    [codes(), vec![vec![("KV_F16", 1)]]].concat()
}

fn variants() -> Vec<(&'static str, Set)> {
    let group = || vec![vec![("WG", 64)]];
    let norms = || vec![vec![], vec![("Q_NORM", 1), ("K_NORM", 1), ("NORMS", 1)], vec![("K_NORM", 1), ("NORMS", 1)]];
    let table: Vec<(&'static str, Vec<Vec<Set>>)> = vec![
        ("embed", vec![weights(), group()]),
        ("embed_dw", vec![group(), flag("SCALE")]),
        ("rms_norm", vec![reductions()]),
        ("rms_norm_dw", vec![reductions()]),
        ("qk_norm_dw", vec![reductions()]),
        ("column_sum", vec![group()]),
        ("rms_norm_backward", vec![reductions(), flag("ACCUMULATE")]),
        (
            "matmul",
            vec![
                weights(),
                vec![tile(64, 64, 32), tile(64, 16, 32)],
                flag("BIAS"),
                flag("RESIDUAL"),
                flag("ACCUMULATE"),
                flag("F16"),
                flag("SPLIT"),
            ],
        ),
        (
            "matmul_rows",
            vec![
                weights(),
                vec![vec![("WG", 32), ("T", 1)], vec![("WG", 32), ("T", 8)]],
                vec![vec![], vec![("SUBGROUPS", 1), ("SG8", 1)]],
                flag("BIAS"),
                flag("RESIDUAL"),
                flag("ACCUMULATE"),
            ],
        ),
        (
            "matmul_vec",
            vec![
                units(),
                vec![
                    vec![("WG", 64), ("LANES", 64), ("SETS", 1)],
                    vec![("WG", 128), ("LANES", 32), ("SETS", 4), ("SUBGROUPS", 1)],
                ],
                vec![
                    vec![("T", 1), ("R", 1), ("U", 4), ("UNITS", 256)],
                    vec![("T", 8), ("R", 2), ("U", 1), ("UNITS", 64)],
                ],
                vec![
                    vec![("PARTS", 1), ("WEIGHTS", 1), ("RESIDUAL", 1)],
                    vec![("PARTS", 3), ("WEIGHTS", 1), ("BIAS0", 1), ("BIAS2", 1)],
                    vec![("PARTS", 1), ("WEIGHTS", 2), ("ACT", 0)],
                ],
                flag("NORM"),
            ],
        ),
        (
            "matmul_dx",
            vec![
                weights(),
                vec![tile(64, 64, 32), tile(64, 16, 32)],
                vec![vec![], vec![("ACCUMULATE", 1)], vec![("SPLIT", 1)]],
                flag("SCALE"),
                flag("EIGHTS"),
            ],
        ),
        (
            "matmul_dx_rows",
            vec![weights(), vec![vec![("WG", 8), ("T", 8), ("SUBGROUPS", 1)]], flag("ACCUMULATE"), flag("SCALE")],
        ),
        (
            "matmul_dw",
            vec![
                vec![tile(64, 64, 16), tile(16, 64, 16), tile(64, 16, 16)],
                vec![vec![], vec![("SCALE", 1)], vec![("SPLIT", 1)]],
            ],
        ),
        ("matmul_pack_rows", vec![reductions(), vec![vec![("F", 8)], vec![("F", 16)]]]),
        ("matmul_pack_weight", vec![weights(), vec![vec![("F", 8)], vec![("F", 16)]], group()]),
        (
            "matmul_coop",
            vec![
                vec![vec![("F", 8), ("FRAGMENT", 16), ("STRIDE", 2)], vec![("F", 16), ("FRAGMENT", 64), ("STRIDE", 4)]],
                vec![vec![("WG", 32), ("FM", 2), ("FN", 2), ("WM", 2), ("WN", 2), ("STEPS", 2), ("SUBGROUPS", 1)]],
                flag("DX"),
                flag("RESIDUAL"),
                flag("ACCUMULATE"),
                flag("SCALE"),
            ],
        ),
        ("matmul_sum_parts", vec![group(), flag("SCALE"), flag("ACCUMULATE")]),
        ("lora_shrink", vec![reductions(), flag("SLOTS")]),
        ("lora_expand", vec![group(), flag("SLOTS")]),
        ("dropout", vec![group(), flag("ACCUMULATE")]),
        ("dora_norm", vec![reductions(), weights(), vec![vec![("ROWS", 4)]]]),
        ("dora_scale", vec![group(), flag("SLOTS"), flag("BIAS"), flag("RESIDUAL")]),
        ("dora_scale_backward", vec![group(), flag("SCALE")]),
        ("qk_norm_rope_kv", vec![reductions(), vec![vec![], vec![("SLOTS", 1)]], norms()]),
        ("qk_norm_rope_kv", vec![reductions(), vec![vec![("SLOTS", 1), ("KV_WORDS", 1)]], small_caches(), norms()]),
        ("qk_norm_rope_backward", vec![reductions(), norms()]),
        (
            "attention",
            vec![
                heads(),
                vec![vec![], vec![("SUBGROUPS", 1)]],
                vec![vec![], vec![("PAGED", 1)], vec![("PAGED", 1), ("KV_F16", 1)], vec![("PAGED", 1), ("SPLIT", 1)]],
                flag("LSE"),
            ],
        ),
        (
            "attention",
            vec![
                heads().into_iter().filter(|set| set.contains(&("D4", 1))).collect(),
                vec![vec![("PAGED", 1)], vec![("PAGED", 1), ("SPLIT", 1)]],
                codes(),
            ],
        ),
        ("attention_prefill", vec![head_tiles(1), vec![vec![("PAGED", 1)]], codes()]),
        (
            "attention_rows",
            vec![vec![vec![("WG", 8), ("SUBGROUPS", 1), ("C", 16), ("C8", 2)]], vec![vec![("PAGED", 1)]], codes()],
        ),
        (
            "attention_decode",
            vec![vec![decode(64, 3), decode(128, 2), decode(256, 8)], codes(), vec![vec![("SPLIT", 1)], vec![]]],
        ),
        (
            "attention_rows",
            vec![
                vec![
                    vec![("WG", 8), ("SUBGROUPS", 1), ("C", 16), ("C8", 2)],
                    vec![("WG", 8), ("SUBGROUPS", 1), ("C", 32), ("C8", 4)],
                ],
                vec![vec![], vec![("PAGED", 1)], vec![("PAGED", 1), ("KV_F16", 1)]],
                flag("LSE"),
            ],
        ),
        (
            "attention_prefill",
            vec![head_tiles(1), vec![vec![], vec![("PAGED", 1)], vec![("PAGED", 1), ("KV_F16", 1)]], flag("LSE")],
        ),
        ("attention_combine", vec![heads(), flag("LSE")]),
        (
            "attention_decode",
            vec![
                vec![decode(64, 3), decode(128, 2), decode(256, 8)],
                vec![vec![], vec![("KV_F16", 1)]],
                vec![vec![("SPLIT", 1)], vec![("LSE", 1)]],
            ],
        ),
        ("attention_delta", vec![heads()]),
        ("attention_dq", vec![heads()]),
        ("attention_dkv", vec![heads()]),
        ("attention_dq_tile", vec![head_tiles(1)]),
        ("attention_dkv_tile", vec![head_tiles(2)]),
        ("glu", vec![group(), vec![vec![("ACT", 0)], vec![("ACT", 1)]]]),
        ("glu_backward", vec![group(), vec![vec![("ACT", 0)], vec![("ACT", 1)]]]),
        ("gather_rows", vec![group()]),
        ("head_loss", vec![reductions(), flag("GRADIENT"), flag("WEIGHTED")]),
        ("preference_loss", vec![reductions()]),
        ("sample", vec![reductions()]),
        ("sample_chunks", vec![reductions()]),
        ("adjust_logits", vec![group()]),
        ("adjust_logits_entries", vec![group()]),
        ("top_logprobs", vec![reductions()]),
        ("top_logprobs_chunks", vec![reductions()]),
        ("copy", vec![group()]),
        ("accumulate", vec![group()]),
        ("fill", vec![group()]),
        ("place_adapter", vec![group()]),
        ("grad_norm", vec![reductions(), flag("LAST")]),
        ("adamw", vec![group()]),
        ("lion", vec![group()]),
        ("sgd", vec![group()]),
        ("adamw_8bit", vec![reductions()]),
        ("lion_8bit", vec![reductions()]),
    ];
    table.into_iter().flat_map(|(shader, axes)| product(&axes).into_iter().map(move |set| (shader, set))).collect()
}

#[test]
fn every_variant_is_valid_and_becomes_spirv() {
    let list = variants();
    for (shader, set) in &list {
        let defines: std::collections::BTreeMap<_, _> = set.iter().copied().collect();
        let subgroups = defines.contains_key("SUBGROUPS");
        // Binding 3 is the weight in the products; frozen weights are bound `read`, trainable ones `read_write`.
        let product = matches!(*shader, "matmul" | "matmul_rows" | "matmul_vec" | "matmul_dx" | "matmul_dx_rows");
        for read_only in if product { vec![0, 0b1000] } else { vec![0] } {
            let variant = Variant { shader, defines: defines.clone(), read_only, bindings: 0 };
            let label = format!("{shader} {set:?}");
            let source = variant.source().unwrap_or_else(|e| panic!("{label}: {e}"));
            let module = naga::front::wgsl::parse_str(&source)
                .unwrap_or_else(|e| panic!("{label}: {}", e.emit_to_string(&source)));
            // unpack2x16float needs half conversions, which every native backend of wgpu has; no f16 arithmetic.
            let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
            capabilities.set(Capabilities::SUBGROUP, subgroups);
            let coop = *shader == "matmul_coop";
            capabilities.set(Capabilities::SHADER_FLOAT16, coop || defines.contains_key("F16"));
            capabilities.set(Capabilities::COOPERATIVE_MATRIX, coop);
            let info = Validator::new(ValidationFlags::all(), capabilities)
                .validate(&module)
                .unwrap_or_else(|e| panic!("{label}: {}", e.emit_to_string(&source)));
            let options = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
            naga::back::spv::write_vec(&module, &info, &options, None).unwrap_or_else(|e| panic!("{label}: {e}"));
        }
    }
    assert!(list.len() > 300, "{} variants", list.len());
}

#[test]
fn every_file_is_used() {
    let parts = [
        "common",
        "live",
        "reduce",
        "decode",
        "tile",
        "activation",
        "attention_mask",
        "codes",
        "attention_tile",
        "decode_load",
        "decode_value",
        "codes_moment",
    ];
    let shaders: std::collections::BTreeSet<_> = variants().into_iter().map(|(shader, _)| shader).collect();
    for name in FILES {
        let stem = name.trim_end_matches(".wgsl");
        assert!(file(name).is_some_and(|text| text.starts_with("//")), "{name} has no header comment");
        assert!(shaders.contains(stem) || parts.contains(&stem), "{name} is in no test");
    }
}
