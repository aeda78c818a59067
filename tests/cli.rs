//! The command line: arguments, exit codes, error lines and the shapes of the JSON that scripts rely on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A random-weight checkpoint with a tokenizer and a chat template.
const TINY: &str = "tests/golden/tiny/chat";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runtime"));
    command.current_dir(root()).args(args).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs on the CPU and returns what it printed.
fn ok(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

/// One JSON object on one line.
fn json(args: &[&str]) -> Value {
    let text = ok(args);
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// Exit code 1 and one line on stderr; returns what follows `error: `.
fn error(args: &[&str]) -> String {
    let output = run(args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "{args:?}: {text}");
    assert_eq!(text.lines().last(), Some(lines[0]), "the error comes last: {text}");
    lines[0].trim_start_matches("error: ").to_owned()
}

fn refused(args: &[&str], part: &str) {
    let output = run(args);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
    assert!(stderr(&output).contains(part), "{args:?}: {}", stderr(&output));
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn cpu<'a>(command: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    [&[command, "-m", TINY, "--backend", "cpu"], rest].concat()
}

/// A file in a folder of its own.
fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[test]
fn wrong_arguments_are_2() {
    refused(&[], "Usage");
    refused(&["sing"], "sing");
    refused(&["generate", "-m", TINY, "-p", "x", "--warp", "9"], "--warp");
    refused(&["generate", "-m", TINY], "--prompt");
    refused(&["generate", "-m", TINY, "-p", "x", "--ids", "1"], "cannot be used with");
    refused(&["generate", "-m", TINY, "--ids", "1", "--chat"], "cannot be used with");
    refused(&["generate", "-m", TINY, "--ids", "1,x"], "'x' is no token id");
    refused(&["generate", "-m", TINY, "-p", "x", "--backend", "abacus"], "use auto, cuda, wgpu or cpu");
    refused(&["generate", "-m", TINY, "-p", "x", "--dtype", "f64"], "use auto, f32, f16 or bf16");
    refused(&["score", "-m", TINY, "-p", "x", "--kv-cache-dtype", "fp8_e5m2"], "fp8, fp8_e4m3 or int8");
    refused(
        &["generate", "-m", TINY, "-p", "x", "--speculative-config", "{\"method\": \"eagle\"}"],
        "draft_model or ngram",
    );
    refused(
        &["train", "-m", TINY, "--data", "d", "-o", "o", "--max-steps", "1", "--epochs", "1"],
        "cannot be used with",
    );
    refused(&["train", "-m", TINY, "--data", "d", "-o", "o", "--loss", "none"], "use assistant or all");
    refused(&["train", "-m", TINY, "--data", "d", "-o", "o", "--shuffle", "maybe"], "neither true nor false");
}

#[test]
fn help_is_0_and_every_command_takes_a_device() {
    let text = ok(&["--help"]);
    let commands = [
        "generate", "chat", "score", "train", "grpo", "merge", "serve", "bench", "tokenize", "devices", "pull",
        "inspect",
    ];
    for command in commands {
        assert!(text.contains(command), "{command}");
        let help = ok(&[command, "--help"]);
        for flag in ["--backend", "--dtype", "--device"] {
            assert!(help.contains(flag), "{command} {flag}");
        }
    }
    assert!(ok(&["--version"]).starts_with("runtime "));
}

#[test]
fn missing_files_are_named() {
    assert_eq!(error(&["generate", "-m", "no.gguf", "-p", "x"]), "no.gguf: no such file or folder");
    let hint = error(&["generate", "-m", "no-such-owner/no-such-model", "-p", "x"]);
    assert!(hint.contains("runtime pull no-such-owner/no-such-model"), "{hint}");
    let message = error(&cpu("generate", &["-p", "x", "--adapter", "no/adapter"]));
    assert!(message.contains("no/adapter"), "{message}");
    let message = error(&cpu("train", &["--data", "no.jsonl", "-o", "unused"]));
    assert_eq!(message, "--data no.jsonl: no such file or folder");
}

#[test]
fn damaged_files_are_named() {
    for (bytes, what) in [(&b"not a model"[..], "text"), (b"", "empty"), (b"GGUF\x03\0\0\0\xff\xff\xff\xff", "cut")] {
        let (_folder, path) = file("broken.gguf", bytes);
        for command in [&["inspect"][..], &["generate", "-p", "x", "--backend", "cpu", "-m"]] {
            let message = error(&[command, &[path.to_str().unwrap()]].concat());
            assert!(message.contains("broken.gguf"), "{what}: {message}");
        }
    }
}

#[test]
fn generate_prints_one_object() {
    let report = json(&cpu("generate", &["-p", "Hello", "-n", "6", "--json"]));
    let expected = ["ids", "text", "finish_reason", "prompt_tokens", "prefill_tok_s", "decode_tok_s", "backend"];
    assert_eq!(keys(&report), expected);
    assert_eq!(report["backend"], "cpu");
    assert!(report["ids"].as_array().unwrap().len() <= 6);
    assert!(["stop", "length"].contains(&report["finish_reason"].as_str().unwrap()));
    // The same again, as text and as ids.
    let text = ok(&cpu("generate", &["-p", "Hello", "-n", "6"]));
    assert_eq!(text, format!("{}\n", report["text"].as_str().unwrap()));
    let chat = json(&cpu("generate", &["-p", "Hello", "-n", "6", "--json", "--chat", "--dtype", "float32"]));
    assert!(chat["prompt_tokens"].as_u64() > report["prompt_tokens"].as_u64(), "the template adds tokens");
}

#[test]
fn guesses_of_a_draft_model_or_of_the_text_change_nothing() {
    let ids = |more: &[&str]| {
        let args = ["-p", "Hello", "-n", "40", "--json", "--temperature", "0.9", "--seed", "5"];
        json(&cpu("generate", &[&args, more].concat()))["ids"].clone()
    };
    let plain = ids(&[]);
    let config = format!("{{\"model\": \"{TINY}\", \"num_speculative_tokens\": 3}}");
    assert_eq!(ids(&["--speculative-model", TINY]), plain);
    assert_eq!(ids(&["--speculative-config", &config]), plain);
    assert_eq!(ids(&["--num-speculative-tokens", "4"]), plain);
    let other = "tests/golden/tiny/qwen3";
    let message = error(&cpu("generate", &["-p", "x", "--speculative-model", other]));
    assert!(message.contains("the draft model 'qwen3' has "), "{message}");
}

#[test]
fn a_stop_string_is_cut() {
    let whole = json(&cpu("generate", &["-p", "Hello", "-n", "24", "--json"]));
    let text = whole["text"].as_str().unwrap();
    let Some((at, stop)) = text.char_indices().nth(text.chars().count() / 2) else { return };
    let stop = stop.to_string();
    let cut = json(&cpu("generate", &["-p", "Hello", "-n", "24", "--json", "--stop", "\u{1}", "--stop", &stop]));
    let first = text.find(&stop).unwrap();
    assert!(first <= at);
    assert_eq!(cut["text"], text[..first]);
    assert_eq!(cut["finish_reason"], "stop");
}

#[test]
fn sampling_is_repeatable_and_checked() {
    let args = cpu("generate", &["-p", "Hello", "-n", "12", "--json", "--temperature", "1.5", "--seed", "7"]);
    assert_eq!(json(&args)["ids"], json(&args)["ids"]);
    let message = error(&cpu("generate", &["-p", "Hello", "--top-p", "7"]));
    assert!(message.contains("top_p"), "{message}");
}

#[test]
fn score_prints_one_object() {
    let report = json(&cpu("score", &["-p", "Hello world", "--json"]));
    assert_eq!(keys(&report), ["ids", "logprobs", "next_top5"]);
    let ids = report["ids"].as_array().unwrap();
    let logprobs = report["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), ids.len() - 1);
    assert!(logprobs.iter().all(|x| x.as_f64().unwrap() < 0.0));
    let top = report["next_top5"].as_array().unwrap();
    assert_eq!(top.len(), 5);
    assert!(top.windows(2).all(|pair| pair[0][1].as_f64() >= pair[1][1].as_f64()));
    let list: Vec<String> = ids.iter().map(Value::to_string).collect();
    assert_eq!(json(&cpu("score", &["--ids", &list.join(","), "--json"])), report);
}

#[test]
fn tokenize_recognises_special_tokens_and_adds_none() {
    let report = json(&["tokenize", "-m", TINY, "-p", "Hello", "--json"]);
    assert_eq!(keys(&report), ["ids"]);
    let plain = report["ids"].as_array().unwrap().len();
    let special = json(&["tokenize", "-m", TINY, "-p", "<|im_start|>Hello", "--json"]);
    assert_eq!(special["ids"].as_array().unwrap().len(), plain + 1);
}

#[test]
fn devices_always_has_a_cpu() {
    let report = json(&["devices", "--json"]);
    assert_eq!(keys(&report), ["devices", "auto"]);
    assert!(report["devices"].as_array().unwrap().iter().any(|device| device["backend"] == "cpu"));
    let text = ok(&["devices"]);
    for part in ["cuda", "wgpu", "cpu", "--backend auto takes"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn inspect_describes() {
    let report = json(&["inspect", TINY, "--json"]);
    assert!(report["parameters"].as_u64().unwrap() > 0);
    assert!(ok(&["inspect", TINY]).contains("parameters"));
}

#[test]
fn bench_prints_one_object() {
    let report = json(&cpu("bench", &["-p", "8", "-n", "4", "-b", "2", "-r", "1", "--json"]));
    for key in ["prefill_tok_s", "decode_tok_s", "copy_gb_s", "decode_bandwidth_share"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}: {report}");
    }
    assert_eq!(report["batch"], 2);
    assert!(error(&cpu("bench", &["-p", "0"])).contains("prompt"));
}

#[test]
fn bench_of_random_weights_needs_no_files_of_a_model() {
    let (_folder, config) = file(
        "config.json",
        br#"{"model_type": "qwen3", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 500,
            "tie_word_embeddings": false}"#,
    );
    let config = config.to_str().unwrap();
    let bench = |more: &[&'static str]| {
        let all = ["bench", "--random-weights", config, "--backend", "cpu", "-p", "6", "-n", "3", "-r", "1", "--json"];
        json(&[&all[..], more].concat())
    };
    let report = bench(&["-b", "1,3", "--train", "--train-length", "24", "--rank", "4", "--recompute"]);
    let sizes: Vec<_> = report["batches"].as_array().unwrap().iter().map(|b| b["batch"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [1, 3]);
    assert!(report["first_token_s"].as_f64().unwrap() > report["load_s"].as_f64().unwrap(), "{report}");
    let train = &report["train"];
    assert!(train["tok_s"].as_f64().unwrap() > 0.0 && train["batch"] == 2, "{train}");
    // Random weights know nothing: every token of 500 is about as likely.
    assert!((train["loss"].as_f64().unwrap() - 500f64.ln()).abs() < 0.3, "{train}");
    let memory = |key: &str| train["memory"][key].as_u64().unwrap();
    // B begins at a multiple of 64 KiB.
    let padding = memory("adapters") - 4 * memory("parameters");
    assert!(padding < 64 << 10, "{padding}");
    assert!(memory("arena") >= memory("live_peak") && memory("live_peak") > 0);
    // Embedding and head; q, k, v, o, gate, up, down of a layer: 4.5 bits a weight, 6.5625 in the tables.
    let (tables, layers) = (2 * 500 * 256, 2 * 256 * (256 + 128 + 128 + 256 + 3 * 512));
    let q4_k = bench(&["--weight-type", "q4_k", "--train", "--train-length", "8"]);
    let norms = (2 * (2 * 256 + 2 * 64) + 256) * 4;
    assert_eq!(q4_k["train"]["memory"]["weights"], tables / 256 * 210 + layers / 256 * 144 + norms);
    let known = error(&["bench", "--random-weights", "gpt-5", "--backend", "cpu"]);
    assert!(known.contains("qwen3-8b"), "{known}");
    refused(&["bench"], "--model");
    refused(&["bench", "--random-weights", "qwen3-8b", "--weight-type", "q3"], "q4_k");
}

#[test]
fn chat_answers_a_pipe() {
    let mut child = command(&cpu("chat", &["-n", "4"]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"Hello\n\nAnd you?\n/reset\nHello\n/exit\nnever read\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let answer = ok(&cpu("generate", &["-p", "Hello", "-n", "4", "--chat"]));
    let text = stdout(&output);
    assert!(text.starts_with(&answer) && text.ends_with(&answer), "{text:?} around {answer:?}");
    assert_eq!(stderr(&output), "", "no prompts into a pipe");
}

const ROWS: &str = r#"{"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]}
{"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]}
"#;

#[test]
fn train_merge_and_use_an_adapter() {
    let (folder, data) = file("rows.jsonl", ROWS.as_bytes());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (adapter, log, merged) = (path("adapter"), path("log.jsonl"), path("merged"));
    let train = |rest: &[&str]| {
        let fixed = ["--data", data.to_str().unwrap(), "-o", &adapter, "--log", &log, "--rank", "4", "--lr", "1e-2"];
        let sizes = ["--batch-size", "2", "--grad-accum", "1", "--max-length", "64", "--shuffle", "false"];
        let output = run(&cpu("train", &[&fixed[..], &sizes, rest].concat()));
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    let said = train(&["--max-steps", "6", "--warmup-steps", "1"]);
    let (memory, step) = (said.find("memory").unwrap(), said.find("step 1/6").unwrap());
    assert!(memory < step, "the plan comes before the first step: {said}");
    let lines: Vec<Value> =
        std::fs::read_to_string(&log).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 6);
    assert_eq!(keys(&lines[0]), ["step", "loss", "grad_norm", "lr", "tokens", "tok_s"]);
    assert_eq!((lines[0]["step"].as_u64(), lines[0]["lr"].as_f64()), (Some(1), Some(0.0)));
    assert!(lines[5]["loss"].as_f64() < lines[0]["loss"].as_f64(), "it learns");
    for name in ["adapter_config.json", "adapter_model.safetensors", "README.md"] {
        assert!(Path::new(&adapter).join(name).exists(), "{name}");
    }
    // The merged model scores as base and adapter do.
    let ask = ["-p", "Hello world", "--json"];
    let together = json(&cpu("score", &[&ask[..], &["--adapter", &adapter]].concat()));
    ok(&["merge", "-m", TINY, "--adapter", &adapter, "-o", &merged, "--dtype", "f32"]);
    let alone = json(&[&["score", "-m", &merged, "--backend", "cpu"], &ask[..]].concat());
    let base = json(&cpu("score", &ask));
    assert_eq!(alone["ids"], together["ids"]);
    let difference = |a: &Value, b: &Value| -> f64 {
        let pairs = a["logprobs"].as_array().unwrap().iter().zip(b["logprobs"].as_array().unwrap());
        pairs.map(|(a, b)| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs()).fold(0.0, f64::max)
    };
    assert!(difference(&alone, &together) < 1e-4, "{alone} {together}");
    assert!(difference(&alone, &base) > 1e-3, "the adapter does something");
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert!(Path::new(&merged).join(name).exists(), "{name}");
    }
    // So does the exported one.
    let gguf = path("merged.gguf");
    ok(&["export", "-m", TINY, "--adapter", &adapter, "-o", &gguf, "--type", "f32"]);
    let exported = json(&[&["score", "-m", &gguf, "--backend", "cpu"], &ask[..]].concat());
    assert_eq!(exported["ids"], together["ids"]);
    assert!(difference(&exported, &together) < 1e-4, "{exported} {together}");
    let message = error(&["export", "-m", TINY, "-o", &path("folder"), "--type", "q4_0"]);
    assert!(message.contains(".gguf"), "{message}");
    // Into the model's own folder: never.
    let message = error(&["merge", "-m", &merged, "--adapter", &adapter, "-o", &merged]);
    assert!(message.contains("own folder"), "{message}");
}

#[test]
fn pairs_and_rewards_train_adapters() {
    let pair = r#"{"prompt": "Who?", "chosen": " Ada.", "rejected": " Bob."}"#;
    let (folder, data) = file("pairs.jsonl", format!("{pair}\n{pair}\n").as_bytes());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (adapter, log, data) = (path("adapter"), path("log.jsonl"), data.to_str().unwrap());
    let base = ["--data", data, "-o", &adapter, "--log", &log, "--rank", "4", "--max-steps", "2"];
    let more = ["--preference", "dpo", "--beta", "0.2", "--max-length", "64", "--lr", "1e-2"];
    ok(&cpu("train", &[&base[..], &more].concat()));
    let lines = std::fs::read_to_string(&log).unwrap();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    // Nothing is learned yet: the model is its own reference.
    assert!((first["loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-4, "{lines}");
    assert_eq!(first["rewards/margins"].as_f64().map(|m| m.abs() < 1e-3), Some(true), "{lines}");
    refused(&cpu("train", &[&base[..], &["--beta", "0.2"]].concat()), "--preference");

    let seen = path("seen.json");
    let judge = format!("cat > {seen}; echo '[1, 0, 0, 1]'");
    let sizes = ["--reward-command", &judge, "--prompts", "2", "--generations", "2", "-n", "4"];
    ok(&cpu("grpo", &[&base[..], &sizes].concat()));
    let question: Value = serde_json::from_str(&std::fs::read_to_string(&seen).unwrap()).unwrap();
    assert_eq!(question["completions"].as_array().map(Vec::len), Some(4), "{question}");
    assert_eq!((&question["prompts"][0], &question["rows"][3]["chosen"]), (&"Who?".into(), &" Ada.".into()));
    let first: Value = serde_json::from_str(std::fs::read_to_string(&log).unwrap().lines().next().unwrap()).unwrap();
    assert_eq!(first["reward"], 0.5);
}

#[test]
fn a_bad_line_of_data_is_named() {
    for (line, part) in [("{broken", "rows.jsonl:3"), (r#"{"message": 1}"#, "rows.jsonl:3")] {
        let (folder, data) = file("rows.jsonl", format!("{ROWS}{line}\n").as_bytes());
        let output = folder.path().join("adapter");
        let sizes = ["--max-steps", "1", "--max-length", "64"];
        let args = [&["--data", data.to_str().unwrap(), "-o", output.to_str().unwrap()][..], &sizes].concat();
        let message = error(&cpu("train", &args));
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn wrong_recipes_are_refused_before_the_model_is_loaded() {
    let message = error(&["train", "-m", "no.gguf", "--data", "d", "-o", "o", "--rank", "0"]);
    assert!(message.contains("rank is 0"), "{message}");
}

/// A file in TRL's words, flags before it, and what is printed runs.
#[test]
fn a_recipe_file_runs_and_flags_go_before_it() {
    let (folder, data) = file("rows.jsonl", ROWS.as_bytes());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let yaml = format!(
        "model_name: {TINY}\ndataset: {}\noutput_dir: {}\nr: 4\nlearning_rate: 1e-2\nmax_seq_length: 64\nlogging_steps: 1\n\
         per_device_train_batch_size: 2\ngradient_accumulation_steps: 1\nnum_train_epochs: 2\nreport_to: none\n",
        data.display(),
        path("adapter")
    );
    std::fs::write(path("recipe.yaml"), yaml).unwrap();
    let recipe = path("recipe.yaml");
    let weighted = ok(&["train", "--data", "a.jsonl", "--data", "b.parquet=0.5", "--print-recipe"]);
    assert!(weighted.contains(r#"data = ["a.jsonl", "b.parquet=0.5"]"#), "{weighted}");
    let printed = ok(&["train", "--recipe", &recipe, "--print-recipe", "--max_steps", "3", "--optim", "lion_32bit"]);
    for part in ["rank = 4", "lr = 0.01", "max_steps = 3", "optim = \"lion\"", "batch_size = 2"] {
        assert!(printed.lines().any(|line| line == part), "{part}: {printed}");
    }
    assert!(!printed.contains("epochs"), "--max-steps goes before the file's epochs: {printed}");
    std::fs::write(path("printed.toml"), &printed).unwrap();
    let evaluation = ["--eval-data", data.to_str().unwrap(), "--eval-steps", "2", "--sample-prompt", "Who?"];
    let more = ["--sample-steps", "3", "--sample-tokens", "3", "--backend", "cpu"];
    let output = run(&[&["train", "--recipe", &path("printed.toml")], &evaluation[..], &more].concat());
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    for part in
        ["⟦", "lengths: shortest", "step 3/3", "step 2: evaluation loss", "step 3: Who? →", "best evaluation loss"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(Path::new(&path("adapter")).join("adapter_model.safetensors").exists());
    // Magnitudes from the run to the answer: beside the weights, and merged into them.
    let printed = ok(&["train", "--recipe", &recipe, "--use-dora", "--load-in-4bit", "--print-recipe"]);
    for part in ["use_dora = true", "weight_type = \"nf4\""] {
        assert!(printed.lines().any(|line| line == part), "{part}: {printed}");
    }
    let (dora, merged) = (path("dora"), path("merged"));
    let train = ["train", "--recipe", &path("printed.toml"), "--use-dora", "-o", &dora, "--backend", "cpu"];
    let output = run(&train);
    assert!(output.status.success(), "{}", stderr(&output));
    ok(&["merge", "-m", TINY, "--adapter", &dora, "-o", &merged, "--dtype", "f32"]);
    let answer = |more: &[&str]| {
        ok(&[&["generate", "--ids", "5,17,33", "-n", "6", "--backend", "cpu", "--json"], more].concat())
    };
    let ids = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap()["ids"].clone();
    let beside = ids(answer(&["-m", TINY, "--adapter", &dora]));
    assert_eq!(beside, ids(answer(&["-m", &merged])));
    assert!(beside.as_array().is_some_and(|ids| !ids.is_empty()), "{beside}");
    std::fs::write(path("bad.toml"), "lerning_rate = 1").unwrap();
    let message = error(&["train", "--recipe", &path("bad.toml")]);
    assert!(message.contains("bad.toml: unknown field `lerning_rate`"), "{message}");
    assert!(error(&["train", "--data", "d", "-o", "o"]).contains("--model is missing"));
    let example = ok(&["train", "--recipe", "examples/recipe.yaml", "--print-recipe"]);
    assert!(example.contains("optim = \"adamw_8bit\"") && example.contains("max_steps = 50"), "{example}");
}

#[test]
#[cfg(feature = "serve")]
fn serve_takes_the_flags_of_vllm() {
    refused(&["serve", TINY, "--tensor-parallel-size", "2"], "--tensor-parallel-size is 2");
    refused(&["serve", TINY, "--adapter", "nameless"], "NAME=DIR");
    refused(&["serve"], "MODEL");
    // All of them at once; an address that cannot be listened on ends the run.
    let args = [
        "serve",
        TINY,
        "--served-model-name",
        "a",
        "b",
        "--dtype",
        "float32",
        "--backend",
        "cpu",
        "--host",
        "203.0.113.1",
        "--port",
        "8124",
        "--tensor-parallel-size",
        "1",
        "--api-key",
        "k",
        "--max-model-len",
        "128",
        "--max-num-seqs",
        "2",
        "--max-num-batched-tokens",
        "64",
        "--gpu-memory-utilization",
        "0.9",
        "--enable-prefix-caching",
        "--enable-chunked-prefill",
        "--enforce-eager",
        "--trust-remote-code",
        "--seed",
        "1",
        "--enable-lora",
        "--max-loras",
        "2",
        "--max-lora-rank",
        "8",
    ];
    let output = run(&args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("note: --enforce-eager has no effect"), "{text}");
    assert!(text.lines().last().unwrap().contains("203.0.113.1:8124"), "{text}");
}

#[test]
#[cfg(unix)]
fn a_closed_pipe_is_no_error() {
    let mut child = command(&cpu("generate", &["-p", "Hello", "-n", "32"]))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}
