//! Exports read back: GGUF of every family against the checkpoint it was made from, quantised types, adapters; and what
//! llama.cpp computed with the same files (scripts/golden/exports.py).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod train_support;

use runtime::backend::BackendChoice;
use runtime::engine::{Engine, EngineOptions, Event, Request};
use runtime::format::gguf::GgufFile;
use runtime::format::peft::Adapter;
use runtime::format::quant::{dequantise_row, quantise_row};
use runtime::format::{Checkpoint, Source};
use runtime::model::text_tools;
use runtime::tensor::{DType, HostTensor};
use runtime::train::export::{FileType, merge, write_adapter_gguf, write_model_gguf};
use std::ops::ControlFlow;
use std::path::Path;
use train_support::{golden, open, relative_norm};

/// Every tiny checkpoint that GGUF can express.
const TINY: [&str; 13] = [
    "chat",
    "chat_llama",
    "llama2",
    "llama_bias",
    "llama_head_dim",
    "llama_linear",
    "llama_llama3",
    "llama_tied",
    "llama_yarn",
    "mistral",
    "mistral_full",
    "qwen2",
    "qwen3",
];

fn tiny(name: &str) -> Checkpoint {
    Checkpoint::open(&golden(&format!("tiny/{name}"))).unwrap()
}

fn values(tensor: &HostTensor) -> Vec<f32> {
    let mut out = vec![0.0; tensor.len()];
    dequantise_row(tensor.dtype, &tensor.data, &mut out).unwrap();
    out
}

/// Log-probabilities of some ids under the model at `path`, on the CPU in f32.
fn scores(path: &Path, adapter: Option<&Path>, ids: &[u32]) -> Vec<f32> {
    let model = open(path, BackendChoice::Cpu);
    let loaded = adapter.map(|folder| Adapter::read(folder, model.config()).unwrap());
    let engine =
        Engine::start(model, EngineOptions { max_adapters: 1, max_rank: 8, ..EngineOptions::default() }).unwrap();
    if let Some(adapter) = &loaded {
        engine.load_adapter("a", adapter).unwrap();
    }
    engine.score(ids, adapter.map(|_| "a")).unwrap().logprobs
}

fn close(a: &[f32], b: &[f32], tolerance: f32, what: &str) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    eprintln!("{what}: {worst:.1e}");
    assert!(worst <= tolerance, "{what}: {worst}");
}

const IDS: [u32; 12] = [5, 17, 101, 33, 7, 7, 64, 120, 9, 3, 77, 41];

#[test]
fn a_plain_gguf_is_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    for name in TINY {
        let (from, path) = (tiny(name), folder.path().join(format!("{name}.gguf")));
        let bytes = write_model_gguf(&from, None, &path, FileType::F32).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), bytes, "{name}");
        let back = Checkpoint::open(&path).unwrap();
        assert!(back.tensors.keys().eq(from.tensors.keys()), "{name}");
        for (tensor, expected) in &from.tensors {
            assert_eq!(values(&back.tensors[tensor]), values(expected), "{name}: {tensor}");
        }
        assert_eq!((&back.config.eos, back.config.bos), (&from.config.eos, from.config.bos), "{name}");
        close(&scores(&path, None, &IDS), &scores(&from.path, None, &IDS), 2e-5, name);
    }
}

#[test]
fn tokenizer_and_template_go_along() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["chat", "chat_llama"] {
        let (from, path) = (tiny(name), folder.path().join(format!("{name}.gguf")));
        write_model_gguf(&from, None, &path, FileType::F16).unwrap();
        let back = Checkpoint::open(&path).unwrap();
        assert_eq!(back.chat_template, from.chat_template);
        let (theirs, ours) = (text_tools(&from).unwrap().0.unwrap(), text_tools(&back).unwrap().0.unwrap());
        for text in ["Hello world!  12345 ärger", "<|im_start|>user\nWho?<|im_end|>\n", "日本語 'ello I'll\n\n\tx"]
        {
            for special in [false, true] {
                assert_eq!(ours.encode(text, special).unwrap(), theirs.encode(text, special).unwrap(), "{text:?}");
            }
        }
        assert_eq!((ours.eos(), ours.end_ids()), (theirs.eos(), theirs.end_ids()));
    }
}

#[test]
fn what_gguf_cannot_say_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (name, part) in [
        ("llama_dynamic", "dynamic"),
        ("llama_longrope", "LongRoPE"),
        ("llama_yarn_factors", "attention factor"),
        ("qwen2_window", "sliding window"),
    ] {
        let path = folder.path().join("x.gguf");
        let error = write_model_gguf(&tiny(name), None, &path, FileType::F32).unwrap_err().to_string();
        assert!(error.contains(part), "{name}: {error}");
        assert!(!path.exists());
    }
    assert!("q2_k".parse::<FileType>().unwrap_err().to_string().contains("q4_k_m"));
}

/// The merged GGUF, the merged folder, and base and adapter together: the same log-probabilities.
#[test]
fn an_adapter_is_merged_into_either_format() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny("chat_llama");
    let init = golden("sft/tiny_chat_llama/init");
    let adapter = Adapter::read(&init, &model.config).unwrap();
    let (file, hf) = (folder.path().join("m.gguf"), folder.path().join("hf"));
    write_model_gguf(&model, Some(&adapter), &file, FileType::F32).unwrap();
    merge(&model, Some(&adapter), &hf, Some(DType::F32)).unwrap();
    let (base, together) = (scores(&model.path, None, &IDS), scores(&model.path, Some(&init), &IDS));
    close(&scores(&file, None, &IDS), &together, 5e-5, "merged GGUF");
    close(&scores(&hf, None, &IDS), &together, 5e-5, "merged folder");
    assert!(base.iter().zip(&together).any(|(a, b)| (a - b).abs() > 1e-2), "the adapter does something");
}

#[test]
fn an_adapter_as_gguf_holds_its_product() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let model = tiny("chat");
    let adapter = Adapter::read(&golden("sft/tiny_chat/init"), &model.config).unwrap();
    write_adapter_gguf(&model.config, &adapter, &path, DType::F32).unwrap();
    let file = GgufFile::open(&Source::open(&path).unwrap()).unwrap();
    assert_eq!(file.metadata.get_str("general.type").unwrap(), Some("adapter"));
    assert_eq!(file.metadata.get_str("adapter.type").unwrap(), Some("lora"));
    assert_eq!(file.metadata.get_f64("adapter.lora.alpha").unwrap(), Some(adapter.config.lora_alpha));
    assert_eq!(file.tensors.len(), 2 * adapter.modules.len());
    let module = &adapter.modules["model.layers.1.mlp.up_proj"];
    assert_eq!(values(&file.tensors["blk.1.ffn_up.weight.lora_a"]), values(&module.a));
    assert_eq!(values(&file.tensors["blk.1.ffn_up.weight.lora_b"]), values(&module.b));
    let error = write_adapter_gguf(&model.config, &adapter, &path, DType::Q4_0).unwrap_err().to_string();
    assert!(error.contains("f32 or f16"), "{error}");
}

/// Types by tensor, and that the numbers stay near.
#[test]
fn quantised_files_hold_what_their_names_say() {
    let folder = tempfile::tempdir().unwrap();
    let from = tiny("chat_wide");
    for (kind, projection, head, tolerance) in [
        (FileType::Q8_0, DType::Q8_0, DType::Q8_0, 0.01),
        (FileType::Q4_0, DType::Q4_0, DType::Q6_K, 0.12),
        (FileType::Q4_K_M, DType::Q4_K, DType::Q6_K, 0.1),
    ] {
        let path = folder.path().join("m.gguf");
        write_model_gguf(&from, None, &path, kind).unwrap();
        let back = Checkpoint::open(&path).unwrap();
        assert_eq!(back.tensors["model.layers.0.mlp.up_proj.weight"].dtype, projection);
        assert_eq!(back.tensors["model.embed_tokens.weight"].dtype, head);
        for (name, tensor) in &from.tensors {
            let off = relative_norm(&values(&back.tensors[name]), &values(tensor));
            assert!(off <= tolerance, "{kind:?} {name}: {off}");
        }
        // What is quantised already keeps its bits.
        let again = folder.path().join("again.gguf");
        write_model_gguf(&back, None, &again, kind).unwrap();
        let again = Checkpoint::open(&again).unwrap();
        for (name, tensor) in &back.tensors {
            assert_eq!(*again.tensors[name].data, *tensor.data, "{kind:?} {name}");
        }
    }
}

/// Rounding to ggml's types against llama.cpp's own: the same bytes; of K-quants, which take the best of some twenty scales, those
/// of another scale where two are as good and llama.cpp's compiler has fused a product and a sum: as small an error.
#[test]
fn quantised_as_ggml_does() {
    let bytes = std::fs::read(golden("quant/encode.safetensors")).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = |name: &str| file.tensor(name).unwrap().data();
    let numbers: Vec<f32> = bytemuck::pod_collect_to_vec(data("numbers"));
    for dtype in [DType::Q4_0, DType::Q5_0, DType::Q8_0, DType::Q4_K, DType::Q6_K] {
        let (ours, theirs) = (quantise_row(dtype, &numbers).unwrap(), data(dtype.name()));
        assert_eq!(ours.len(), theirs.len());
        let different = ours.iter().zip(theirs).filter(|(a, b)| a != b).count() as f64 / ours.len() as f64;
        let error = |bytes: &[u8]| {
            let mut back = vec![0.0; numbers.len()];
            dequantise_row(dtype, bytes, &mut back).unwrap();
            relative_norm(&back, &numbers)
        };
        let (a, b) = (error(&ours), error(theirs));
        eprintln!("{dtype}: {:.3} % of the bytes differ; errors {a:.6} and {b:.6}", 100.0 * different);
        let is_k = dtype.block_len() == 256;
        assert!(different <= if is_k { 0.2 } else { 1e-3 }, "{dtype}: {different}");
        assert!((a - b).abs() <= 0.002 * b, "{dtype}: {a} {b}");
    }
}

/// FNV-1a over a file's bytes, as scripts/golden/exports.py computes it.
fn fnv1a64(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01B3));
    format!("{hash:016x}")
}

/// Greedy tokens without the one that ends them.
fn greedy(engine: &Engine, prompt: Vec<u32>, max_tokens: usize, adapter: Option<&str>) -> Vec<u32> {
    let (sender, events) = std::sync::mpsc::channel();
    let sink = move |event| {
        sender.send(event).unwrap();
        ControlFlow::Continue(())
    };
    let request = Request { prompt, max_tokens, adapter: adapter.map(str::to_owned), ..Request::default() };
    engine.submit(request, Box::new(sink)).unwrap();
    let token = |event| if let Event::Token { id, .. } = event { Some(id) } else { None };
    events.into_iter().filter_map(token).collect()
}

/// llama.cpp has read these very files and said these tokens (scripts/golden/exports.py).
#[test]
fn llama_cpp_says_the_same() {
    let cases = train_support::json(&golden("gguf/llama_cpp.json"));
    let folder = tempfile::tempdir().unwrap();
    for case in cases["cases"].as_array().unwrap() {
        let text = |key: &str| case[key].as_str();
        let (kind, path) = (text("type").unwrap(), folder.path().join("model.gguf"));
        let model = tiny(text("model").unwrap());
        let adapter = |key: &str| text(key).map(|a| Adapter::read(&golden(a), &model.config).unwrap());
        write_model_gguf(&model, adapter("adapter").as_ref(), &path, kind.parse().unwrap()).unwrap();
        let what = format!("{} {kind} {:?} {:?}", text("model").unwrap(), text("adapter"), text("lora"));
        // Other bytes may be as good, but llama.cpp has not seen them: run the script again.
        assert_eq!(Some(fnv1a64(&std::fs::read(&path).unwrap()).as_str()), text("fnv1a64"), "{what}: another file");
        assert_eq!(case["template"], true, "{what}: the chat template is there");
        let loaded = open(&path, BackendChoice::Cpu);
        let tokenizer = loaded.tokenizer().unwrap().clone();
        let engine =
            Engine::start(loaded, EngineOptions { max_adapters: 1, max_rank: 8, ..EngineOptions::default() }).unwrap();
        let lora = adapter("lora");
        if let Some(adapter) = &lora {
            engine.load_adapter("a", adapter).unwrap();
        }
        let mut answers = 0;
        for answer in case["answers"].as_array().unwrap() {
            let list = |key: &str| -> Vec<u32> {
                answer[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
            };
            let (ids, mut said) = (list("ids"), list("greedy"));
            assert_eq!(tokenizer.encode(answer["text"].as_str().unwrap(), false).unwrap(), ids, "{what}: tokens");
            let max_tokens = said.len();
            // The script stops at one of the tokens that end an answer, the engine at any.
            said.truncate(said.iter().position(|id| tokenizer.end_ids().contains(id)).unwrap_or(max_tokens));
            assert_eq!(
                greedy(&engine, ids, max_tokens, lora.as_ref().map(|_| "a")),
                said,
                "{what}: {}",
                answer["text"]
            );
            answers += 1;
        }
        eprintln!("{what}: {answers} answers");
        assert!(answers >= 2);
    }
}
