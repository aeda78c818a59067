//! `runtime serve` as a process: vLLM's flags, adapters and templates from the command line, and signals.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]
#![cfg(all(feature = "serve", unix))]

mod serve_support;

use serde_json::{Value, json};
use serve_support::{ADAPTER_FOLDER, answer, root, send};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

const TINY: &str = "tests/golden/tiny/chat";

/// A server that was started with some arguments; killed when dropped.
struct Served {
    process: Child,
    address: SocketAddr,
    /// What it wrote to stderr before it was ready.
    notes: String,
    stderr: BufReader<ChildStderr>,
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runtime"));
    command.current_dir(root()).arg("serve").args(arguments).args(["--backend", "cpu", "--port", "0"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

impl Served {
    fn start(arguments: &[&str]) -> Self {
        let mut process = command(arguments).spawn().unwrap();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        let mut served = Self { process, address: ([0; 4], 0).into(), notes: String::new(), stderr };
        loop {
            let mut line = String::new();
            assert!(served.stderr.read_line(&mut line).unwrap() > 0, "{arguments:?} ended: {}", served.notes);
            if let Some((_, address)) = line.trim_end().split_once("http://") {
                served.address = address.strip_suffix("/v1").unwrap().parse().unwrap();
                return served;
            }
            served.notes.push_str(&line);
        }
    }

    fn get(&self, path: &str, headers: &str) -> (u16, String) {
        answer(send(self.address, "GET", path, headers, ""))
    }

    fn post(&self, path: &str, body: &Value) -> (u16, String) {
        answer(send(self.address, "POST", path, "Content-Type: application/json\r\n", &body.to_string()))
    }

    fn models(&self) -> Vec<String> {
        let list: Value = serde_json::from_str(&self.get("/v1/models", "").1).unwrap();
        list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    }

    fn chat(&self, model: &str) -> Value {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "ignore_eos": true});
        let (status, text) = self.post("/v1/chat/completions", &body);
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.process.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a start with these arguments is refused with.
fn refusal(arguments: &[&str], code: i32) -> String {
    let output = command(arguments).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

#[test]
fn flags_of_vllm() {
    let adapter = format!("tuned={ADAPTER_FOLDER}");
    let server = Served::start(&[
        "--model",
        TINY,
        "--served-model-name",
        "a",
        "b/c",
        "--host",
        "127.0.0.1",
        "--dtype",
        "half",
        "--api-key",
        "key",
        "--max-model-len",
        "256",
        "--gpu-memory-utilization",
        "0.5",
        "--max-num-seqs",
        "4",
        "--max-num-batched-tokens",
        "64",
        "--enable-prefix-caching",
        "--enable-chunked-prefill",
        "--enforce-eager",
        "--tensor-parallel-size",
        "1",
        "--enable-lora",
        "--lora-modules",
        &adapter,
        "--max-loras",
        "2",
        "--max-lora-rank",
        "32",
        "--trust-remote-code",
        "--seed",
        "1",
        "--kv-cache-dtype",
        "auto",
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "hermes",
        "--disable-log-requests",
    ]);
    for (flag, why) in [
        ("--enforce-eager", "replayed"),
        ("--trust-remote-code", "no model brings code"),
        ("--enable-chunked-prefill", "always computed in chunks"),
    ] {
        assert!(server.notes.lines().any(|line| line.contains(flag) && line.contains(why)), "{}", server.notes);
    }
    assert_eq!(server.get("/v1/models", "").0, 401);
    let (status, text) = server.get("/v1/models", "Authorization: Bearer key\r\n");
    assert!(status == 200 && text.contains("\"max_model_len\":256"), "{text}");
    assert!(text.contains("\"a\"") && text.contains("\"b/c\"") && text.contains("\"tuned\""), "{text}");
    let text = server.get("/metrics", "").1;
    assert!(text.contains("max_lora=\"2\""), "{text}");
    for dtype in ["auto", "float16", "bfloat16", "bf16", "f32"] {
        Served::start(&[TINY, "--dtype", dtype]);
    }
    for (arguments, says) in [
        (&["--tensor-parallel-size", "2"][..], "--tensor-parallel-size is 2"),
        (&["--dtype", "int3"], "int3"),
        (&["--no-such-flag"], "--no-such-flag"),
        (&["--lora-modules", "tuned"], "NAME=DIR"),
        (&["--lora-modules", "{\"name\": \"x\"}"], "`name` and `path` are required"),
        (&["--lora-modules", "{\"name\": \"x\", \"path\": \"y\", \"rank\": 3}"], "rank"),
    ] {
        let text = refusal(&[&[TINY], arguments].concat(), 2);
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn a_draft_model_as_vllm_takes_it() {
    let config = json!({"method": "draft_model", "model": TINY, "num_speculative_tokens": 3}).to_string();
    let ngram = json!({"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}).to_string();
    let answers = [&["--seed", "3"][..], &["--seed", "3", "--speculative-config", &config]].map(|arguments| {
        let server = Served::start(&[&[TINY, "--served-model-name", "tiny"], arguments].concat());
        let text = server.chat("tiny")["choices"][0]["message"]["content"].clone();
        (text, server.get("/metrics", "").1)
    });
    assert_eq!(answers[0].0, answers[1].0);
    let count = |text: &str, name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(&format!("vllm:spec_decode_num_{name}_total{{"))).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    // Eight tokens: the first, four from a step, three from the next. The last step may not be counted yet.
    let names = ["drafts", "draft_tokens", "accepted_tokens"];
    assert_eq!(names.map(|name| count(&answers[0].1, name)), [0.0; 3]);
    let counts = names.map(|name| count(&answers[1].1, name));
    assert!([[2.0, 5.0, 5.0], [1.0, 3.0, 3.0]].contains(&counts), "{counts:?}");
    Served::start(&[TINY, "--speculative-config", &ngram]).chat("chat");
    for (config, says) in [
        (json!({"method": "eagle", "model": TINY}), "'eagle'"),
        (json!({"model": TINY, "quantization": "fp8"}), "quantization"),
    ] {
        let text = refusal(&[TINY, "--speculative-config", &config.to_string()], 2);
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn a_seed_makes_a_run_repeatable() {
    let texts = |seed: &str| {
        let server = Served::start(&[TINY, "--served-model-name", "tiny", "--seed", seed]);
        [0, 1].map(|_| server.chat("tiny")["choices"][0]["message"]["content"].clone())
    };
    let (first, second, other) = (texts("7"), texts("7"), texts("8"));
    assert_eq!(first, second);
    assert_ne!(first, other);
    assert_ne!(first[0], first[1], "each request has its own");
}

#[test]
fn adapters_as_json_and_at_run_time() {
    let module = json!({"name": "tuned", "path": ADAPTER_FOLDER, "base_model_name": "someone/else"}).to_string();
    let server = Served::start(&[TINY, "--served-model-name", "tiny", "--lora-modules", &module]);
    assert!(server.notes.contains("someone/else"), "{}", server.notes);
    assert_eq!(server.models(), ["tiny", "tuned"]);
    server.chat("tuned");
    // Without modules: room for those to come, which are more than fit the device at once.
    let server = Served::start(&[TINY, "--served-model-name", "tiny", "--enable-lora"]);
    for name in ["one", "two"] {
        let body = json!({"lora_name": name, "lora_path": root().join(ADAPTER_FOLDER)});
        assert_eq!(server.post("/v1/load_lora_adapter", &body).0, 200);
    }
    assert_eq!(server.models(), ["tiny", "one", "two"]);
    ["one", "two", "tiny", "one"].into_iter().for_each(|name| drop(server.chat(name)));
    // No room was asked for.
    let server = Served::start(&[TINY]);
    let body = json!({"lora_name": "x", "lora_path": root().join(ADAPTER_FOLDER)});
    assert_eq!(server.post("/v1/load_lora_adapter", &body).0, 400);
}

#[test]
fn a_chat_template_from_a_file_or_in_place() {
    let inline = "{% for m in messages %}{{ m.role }}: {{ m.content }}\\n{% endfor %}assistant:";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), inline.replace("\\n", "\n")).unwrap();
    let counts = [inline, file.path().to_str().unwrap()].map(|template| {
        let server = Served::start(&[TINY, "--served-model-name", "tiny", "--chat-template", template]);
        let messages = json!([{"role": "user", "content": "hi"}]);
        let (status, text) = server.post("/tokenize", &json!({"messages": messages}));
        assert_eq!(status, 200, "{text}");
        let tokens: Value = serde_json::from_str(&text).unwrap();
        let (_, text) = server.post("/detokenize", &json!({"tokens": tokens["tokens"]}));
        assert_eq!(text, json!({"prompt": "user: hi\nassistant:"}).to_string());
        tokens["count"].clone()
    });
    assert_eq!(counts[0], counts[1]);
    assert!(refusal(&[TINY, "--chat-template", "no/such/file.jinja"], 1).contains("no/such/file.jinja"));
    assert!(refusal(&[TINY, "--chat-template", "{% for %}"], 1).contains("error"));
}

#[test]
fn sigterm_lets_answers_end() {
    let mut server = Served::start(&[TINY, "--served-model-name", "tiny", "--max-num-seqs", "1"]);
    let body = json!({"model": "tiny", "prompt": "x", "max_tokens": 60, "ignore_eos": true, "stream": true, "n": 16});
    let json = "Content-Type: application/json\r\n";
    let mut running = BufReader::new(send(server.address, "POST", "/v1/completions", json, &body.to_string()));
    let mut text = String::new();
    while !text.contains("data: ") {
        assert!(running.read_line(&mut text).unwrap() > 0);
    }
    server.signal("-TERM");
    running.read_to_string(&mut text).unwrap();
    assert!(text.contains("data: [DONE]"), "the answer comes to its end");
    assert_eq!(text.matches("\"finish_reason\":\"length\"").count(), 16);
    let end = Instant::now() + Duration::from_secs(20);
    let status = loop {
        match server.process.try_wait().unwrap() {
            Some(status) => break status,
            None => assert!(Instant::now() < end, "it goes on"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut rest = String::new();
    server.stderr.read_to_string(&mut rest).unwrap();
    assert!(status.success() && rest.contains("stopping"), "{status}: {rest}");
}
