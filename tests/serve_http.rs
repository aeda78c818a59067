//! The server below the level of a well-behaved client: malformed bodies, vanishing and slow readers, many at once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]
#![cfg(feature = "serve")]

mod serve_support;

use runtime::serve::{Limits, ServeOptions};
use serde_json::{Value, json};
use serve_support::{MODEL, Server, answer, events, tiny_engine, tiny_options};
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const JSON: &str = "Content-Type: application/json\r\n";

/// A chat request with more fields.
fn chat(more: Value) -> String {
    let mut body = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0, "ignore_eos": true,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

#[test]
fn malformed_requests_are_refused_by_name() {
    let server = Server::tiny(tiny_engine(4));
    for body in ["", "{", "[]", "\"x\"", "{\"model\": \"tiny\",}", "{\"max_tokens\": 1e999}", "\u{feff}{}"] {
        let (status, _, param, _) = server.refused(CHAT, body);
        assert_eq!((status, param), (400, Value::Null), "{body}");
    }
    let deep = format!("{{\"messages\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(server.refused(CHAT, &deep).0, 400);

    let messages = json!([{"role": "user", "content": "x"}]);
    let chats = [
        ("model", json!({"messages": messages})),
        ("model", json!({"messages": messages, "model": null})),
        ("model", json!({"messages": messages, "model": 7})),
        ("messages", json!({"model": MODEL})),
        ("messages", json!({"model": MODEL, "messages": "x"})),
        ("messages[0]", json!({"model": MODEL, "messages": ["x"]})),
        ("messages[0]", json!({"model": MODEL, "messages": [{"content": "x"}]})),
        ("messages[0].content", json!({"model": MODEL, "messages": [{"role": "user", "content": 1}]})),
        ("messages[0].content", json!({"model": MODEL, "messages": [{"role": "user", "content": null}]})),
        (
            "messages[0].content[1]",
            json!({"model": MODEL, "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "input_audio"}]}]}),
        ),
    ];
    for (field, body) in chats {
        let (status, message, param, _) = server.refused(CHAT, &body.to_string());
        assert_eq!((status, &param), (400, &json!(field)), "{body}: {message}");
        assert!(message.contains(field), "{body}: {message}");
    }
    let wrong = [
        json!({"max_tokens": "8"}),
        json!({"max_tokens": -1}),
        json!({"max_tokens": 1.5}),
        json!({"temperature": "hot"}),
        json!({"temperature": -0.1}),
        json!({"top_p": 1.1}),
        json!({"stop": 3}),
        json!({"stop": ["a", 3]}),
        json!({"stop": [""]}),
        json!({"stream": "yes"}),
        json!({"stream_options": {"include_usage": true}}),
        json!({"seed": 1.5}),
        json!({"n": 1000}),
        json!({"logit_bias": {"x": 1}}),
        json!({"logit_bias": {"5": 101}}),
        json!({"logprobs": 3}),
        json!({"stop_token_ids": [-1]}),
        json!({"tools": {"type": "function"}}),
        json!({"best_of": 0}),
        json!({"tool_choice": "required"}),
        json!({"response_format": {"type": "json_schema", "json_schema": {}}}),
        json!({"guided_json": 7}),
        json!({"guided_json": "{"}),
        json!({"guided_choice": []}),
        json!({"structured_outputs": {"regex": "a", "json": {}}}),
        json!({"modalities": ["text", "audio"]}),
        json!({"chat_template_kwargs": []}),
        json!({"an_unknown_field": 1}),
    ];
    for more in wrong {
        let field = more.as_object().unwrap().keys().next().unwrap().clone();
        let (status, message, param, _) = server.refused(CHAT, &chat(more.clone()));
        assert_eq!((status, param), (400, json!(field)), "{more}: {message}");
        assert!(message.contains(&field), "{more}: {message}");
    }
    let (_, message, ..) = server.refused(CHAT, &chat(json!({"stream": true, "stream_options": {"also": 1}})));
    assert!(message.contains("also"), "{message}");
    for prompt in
        [json!(7), json!({}), json!([]), json!([[]]), json!([1, "x"]), json!([-1]), json!([99999]), Value::Null]
    {
        let body = json!({"model": MODEL, "prompt": prompt}).to_string();
        let (status, _, param, _) = server.refused(TEXT, &body);
        assert_eq!((status, param), (400, json!("prompt")), "{body}");
    }
}

#[test]
fn other_endpoints_refuse_by_name_too() {
    let server = Server::tiny(tiny_engine(4));
    for (path, base, wrong) in [
        (
            "/v1/responses",
            json!({"model": MODEL, "input": "x", "max_output_tokens": 2}),
            vec![
                json!({"input": null}),
                json!({"model": 7}),
                json!({"max_output_tokens": "8"}),
                json!({"previous_response_id": "resp_1"}),
                json!({"tools": {}}),
                json!({"include": "x"}),
                json!({"text": "plain"}),
                json!({"an_unknown_field": 1}),
            ],
        ),
        (
            "/v1/embeddings",
            json!({"model": MODEL, "input": "x"}),
            vec![
                json!({"input": {}}),
                json!({"dimensions": -1}),
                json!({"encoding_format": 1}),
                json!({"stream": true}),
            ],
        ),
    ] {
        for more in wrong {
            let mut body = base.clone();
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let field = more.as_object().unwrap().keys().next().unwrap().clone();
            let (status, message, param, _) = server.refused(path, &body.to_string());
            assert_eq!((status, param), (400, json!(field)), "{more}: {message}");
        }
    }
    // Anthropic's form, whatever is wrong.
    for (method, headers, body, status, kind) in [
        ("POST", JSON, "{", 400, "invalid_request_error"),
        ("POST", "", "{}", 415, "invalid_request_error"),
        ("GET", "", "", 405, "invalid_request_error"),
        ("POST", JSON, "{\"model\": \"nobody\"}", 404, "not_found_error"),
    ] {
        let (got, text) = answer(server.send(method, "/v1/messages", headers, body));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((got, &value["type"], &value["error"]["type"]), (status, &json!("error"), &json!(kind)), "{text}");
    }
}

#[test]
fn streams_of_typed_events_name_them() {
    let server = Server::tiny(tiny_engine(1));
    let more = json!({"model": MODEL, "stream": true, "temperature": 0, "ignore_eos": true});
    for (path, mut body, first, last) in [
        ("/v1/responses", json!({"input": "x", "max_output_tokens": 2}), "response.created", "response.incomplete"),
        (
            "/v1/messages",
            json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}),
            "message_start",
            "message_stop",
        ),
    ] {
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, text) = server.post(path, &body.to_string());
        assert_eq!(status, 200, "{text}");
        let named: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
        let typed = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let typed: Vec<Value> = typed.map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(named, typed.iter().map(|event| event["type"].as_str().unwrap()).collect::<Vec<_>>());
        assert_eq!((named[0], *named.last().unwrap()), (first, last), "{text}");
    }
}

#[test]
fn absent_and_null_fields_are_the_same() {
    let server = Server::tiny(tiny_engine(4));
    let text = |more: Value| {
        let (status, body) = server.post(CHAT, &chat(more));
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).unwrap()["choices"][0]["message"]["content"].clone()
    };
    let nulls = json!({"stop": null, "top_p": null, "tools": null, "response_format": null, "stream": null, "user": null, "guided_json": null});
    assert_eq!(text(nulls), text(json!({})));
}

#[test]
fn routes_methods_types_and_sizes() {
    let limits = Limits { body_bytes: 10_000, ..Limits::default() };
    let options = ServeOptions { limits, ..tiny_options() };
    let server = Server::start(tiny_engine(4), options);
    assert_eq!(server.get("/health"), (200, String::new()));
    for (method, path, status) in [
        ("GET", "/v1", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/models/nobody/here", 404),
        ("GET", CHAT, 405),
        ("POST", "/v1/models", 405),
    ] {
        let (got, body) = answer(server.send(method, path, JSON, ""));
        assert_eq!(got, status, "{method} {path}: {body}");
        assert!(serde_json::from_str::<Value>(&body).unwrap()["error"]["message"].is_string(), "{body}");
    }
    assert_eq!(answer(server.send("POST", CHAT, "Content-Type: text/plain\r\n", &chat(json!({})))).0, 415);
    assert_eq!(answer(server.send("POST", CHAT, "", &chat(json!({})))).0, 415);
    let charset = "Content-Type: application/json; charset=utf-8\r\n";
    assert_eq!(answer(server.send("POST", CHAT, charset, &chat(json!({})))).0, 200);
    let (status, message, ..) = server.refused(CHAT, &chat(json!({"user": "x".repeat(20_000)})));
    assert_eq!(status, 413, "{message}");
}

#[test]
fn tokens_and_text() {
    let server = Server::tiny(tiny_engine(1));
    let post = |path: &str, body: Value| {
        let (status, text) = server.post(path, &body.to_string());
        assert_eq!(status, 200, "{text}");
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let text = post("/tokenize", json!({"model": MODEL, "prompt": "Hello <|im_end|>"}));
    assert_eq!((&text["max_model_len"], &text["token_strs"]), (&json!(512), &Value::Null));
    let ids = text["tokens"].as_array().unwrap();
    assert_eq!(text["count"], ids.len());
    assert_eq!(post("/detokenize", json!({"tokens": ids})), json!({"prompt": "Hello <|im_end|>"}));
    let spelled = post("/tokenize", json!({"prompt": "Hello <|im_end|>", "return_token_strs": true}));
    assert_eq!(spelled["token_strs"].as_array().unwrap().last().unwrap(), "<|im_end|>");
    // What chat makes of messages, to the token.
    let messages = json!([{"role": "user", "content": "hello"}]);
    let prompt = post("/tokenize", json!({"messages": messages}));
    let answer = post(CHAT, serde_json::from_str(&chat(json!({}))).unwrap());
    assert_eq!(prompt["count"], answer["usage"]["prompt_tokens"]);
    let bare = post("/tokenize", json!({"messages": messages, "add_generation_prompt": false}));
    assert!(bare["count"].as_u64() < prompt["count"].as_u64());
    let tool = json!({"type": "function", "function": {"name": "f"}});
    assert!(
        post("/tokenize", json!({"messages": messages, "tools": [tool]}))["count"].as_u64() > prompt["count"].as_u64()
    );
    for (path, field, body) in [
        ("/tokenize", "prompt", json!({})),
        ("/tokenize", "model", json!({"model": "nobody", "prompt": "x"})),
        ("/tokenize", "messages", json!({"messages": 7})),
        ("/detokenize", "tokens", json!({"tokens": [99999]})),
        ("/detokenize", "token", json!({"tokens": [1], "token": 1})),
    ] {
        let (_, message, param, _) = server.refused(path, &body.to_string());
        assert_eq!(param, field, "{message}");
    }
}

#[test]
fn adapters_come_and_go_at_run_time() {
    let server = Server::tiny(tiny_engine(2));
    let folder = serve_support::root().join("tests/golden/sft/tiny_chat/final_all");
    let load = |body: Value| server.post("/v1/load_lora_adapter", &body.to_string());
    let unload = |name: &str| server.post("/v1/unload_lora_adapter", &json!({"lora_name": name}).to_string());
    let body = json!({"lora_name": "second", "lora_path": folder});
    assert_eq!(load(body.clone()), (200, "Success: LoRA adapter 'second' added successfully.".into()));
    assert!(server.get("/v1/models").1.contains("\"second\""));
    assert_eq!(server.post(CHAT, &chat(json!({"model": "second"}))).0, 200);
    let refused = |body: Value| server.refused("/v1/load_lora_adapter", &body.to_string());
    let (status, message, ..) = refused(body);
    assert!(status == 400 && message.contains("already been loaded"), "{message}");
    assert_eq!(load(json!({"lora_name": "second", "lora_path": folder, "load_inplace": true})).0, 200);
    assert_eq!(refused(json!({"lora_name": "third", "lora_path": "no/where"})).0, 404);
    assert_eq!(refused(json!({"lora_name": MODEL, "lora_path": folder})).0, 400);
    assert_eq!(refused(json!({"lora_name": "third"})).2, "lora_path");
    assert_eq!(unload("second"), (200, "Success: LoRA adapter 'second' removed successfully.".into()));
    assert_eq!(server.refused(CHAT, &chat(json!({"model": "second"}))).0, 404);
    assert_eq!(server.refused("/v1/unload_lora_adapter", "{\"lora_name\": \"second\"}").0, 404);
    assert_eq!(server.refused("/v1/unload_lora_adapter", "{}").0, 400);
}

/// The value of the first series that begins so.
fn series(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn metrics_have_the_names_of_vllm() {
    let server = Server::tiny(tiny_engine(2));
    assert_eq!(server.post(CHAT, &chat(json!({"n": 2}))).0, 200);
    let label = "model_name=\"tiny\"";
    // A client may have its answer before the engine has counted the end of its last step.
    let end = Instant::now() + Duration::from_secs(60);
    let text = loop {
        let (status, text) = server.get("/metrics");
        assert_eq!(status, 200);
        if series(&text, &format!("vllm:num_requests_running{{{label}}}")) == 0.0 {
            break text;
        }
        assert!(Instant::now() < end, "{text}");
        std::thread::sleep(Duration::from_millis(20));
    };
    let reason = |reason: &str| format!("vllm:request_success_total{{finished_reason=\"{reason}\"");
    assert_eq!(series(&text, &reason("length")), 2.0);
    assert_eq!(series(&text, &reason("abort")), 0.0);
    for name in [
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
    ] {
        assert!(series(&text, &format!("vllm:{name}_count{{{label}}}")) >= 2.0, "{name}");
    }
    assert_eq!(series(&text, &format!("vllm:request_generation_tokens_sum{{{label}}}")), 16.0);
    for name in ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "gpu_cache_usage_perc"] {
        assert_eq!(series(&text, &format!("vllm:{name}{{{label}}}")), 0.0, "{name}");
    }
    assert_eq!(series(&text, &format!("vllm:generation_tokens_total{{{label}}}")), 16.0);
    assert!(series(&text, &format!("vllm:prompt_tokens_total{{{label}}}")) >= 2.0);
    // What gateways reckon with.
    let cache = text.lines().find(|line| line.starts_with("vllm:cache_config_info{")).unwrap();
    for label in ["block_size=\"16\"", "cache_dtype=\"auto\"", "num_gpu_blocks=\"64\""] {
        assert!(cache.contains(label) && cache.ends_with("} 1"), "{cache}");
    }
    assert!(text.contains("vllm:lora_requests_info{"), "{text}");
    // More answers than can end before the engine learns that nobody wants them.
    let many = json!({"model": MODEL, "prompt": "x", "max_tokens": 500, "ignore_eos": true, "n": 64, "stream": true});
    let reader = server.send("POST", TEXT, JSON, &many.to_string());
    reader.peek(&mut [0]).unwrap();
    drop(reader);
    let end = Instant::now() + Duration::from_secs(60);
    while series(&server.get("/metrics").1, &reason("abort")) == 0.0 {
        assert!(Instant::now() < end, "nothing was aborted");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(server.get("/version"), (200, format!("{{\"version\":\"{}\"}}", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn slow_and_large_heads_are_cut_off() {
    let limits = Limits {
        head_time: Duration::from_millis(300),
        head_bytes: 4096,
        write_stall: Duration::from_millis(300),
        connections: 2,
        ..Limits::default()
    };
    let server = Server::start(tiny_engine(8), ServeOptions { limits, ..tiny_options() });
    let large = format!("X-Large: {}\r\n", "x".repeat(5000));
    assert_eq!(answer(server.send("GET", "/health", &large, "")).0, 431);
    // Two that say nothing take both places; a third is served when they have lost them.
    let time = Instant::now();
    let mut silent = std::net::TcpStream::connect(server.address).unwrap();
    let _other = std::net::TcpStream::connect(server.address).unwrap();
    assert_eq!(server.get("/health").0, 200);
    assert!(time.elapsed() > Duration::from_millis(200), "{:?}", time.elapsed());
    assert_eq!(std::io::Read::read(&mut silent, &mut [0; 64]).unwrap(), 0);
    // One that does not read its answer loses its connection: 30 MB are more than sockets' buffers hold.
    let flood = chat(json!({"max_tokens": 480, "logprobs": true, "top_logprobs": 20, "n": 60}));
    let slow = server.send("POST", CHAT, JSON, &flood);
    slow.peek(&mut [0]).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let mut body = Vec::new();
    let _ = std::io::Read::read_to_end(&mut { slow }, &mut body);
    assert!(!body.ends_with(b"}"), "the answer was cut");
}

#[test]
fn health_needs_no_key() {
    let server = Server::start(tiny_engine(1), ServeOptions { api_keys: vec!["k".into()], ..tiny_options() });
    assert_eq!(server.get("/health").0, 200);
    assert_eq!(server.get("/v1/models").0, 401);
    assert_eq!(server.get("/v1/nothing").0, 401);
    assert_eq!(server.get("/metrics").0, 200);
    assert_eq!(server.post("/tokenize", "{}").0, 401);
    assert_eq!(answer(server.send("GET", "/v1/models", "Authorization: Basic k\r\n", "")).0, 401);
    assert_eq!(answer(server.send("GET", "/v1/models", "authorization: bearer k\r\n", "")).0, 200);
}

#[test]
fn twenty_streams_at_once_do_not_mix() {
    let server = Server::tiny(tiny_engine(8));
    let body = |i: usize, stream: bool| {
        json!({"model": MODEL, "prompt": format!("story {i}"), "max_tokens": 40, "temperature": 0, "ignore_eos": true, "stream": stream})
            .to_string()
    };
    let alone: Vec<String> = (0..20)
        .map(|i| {
            let (status, text) = server.post(TEXT, &body(i, false));
            assert_eq!(status, 200, "{text}");
            serde_json::from_str::<Value>(&text).unwrap()["choices"][0]["text"].as_str().unwrap().to_owned()
        })
        .collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        let send = |i| server.post(TEXT, &body(i, true)).1;
        let streams: Vec<_> = (0..20).map(|i| scope.spawn(move || send(i))).collect();
        streams.into_iter().map(|stream| stream.join().unwrap()).collect()
    });
    for (alone, stream) in alone.iter().zip(together) {
        let text: String =
            events(&stream).iter().map(|event| event["choices"][0]["text"].as_str().unwrap().to_owned()).collect();
        assert_eq!(&text, alone);
    }
}

/// Starts an answer as long as possible and leaves after its first line of data.
fn abandon(server: &Server, stream: bool) {
    let body =
        json!({"model": MODEL, "prompt": "x", "max_tokens": 500, "ignore_eos": true, "stream": stream}).to_string();
    let mut reader = BufReader::new(server.send("POST", TEXT, JSON, &body));
    let mut line = String::new();
    while stream && !line.starts_with("data: ") {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
}

#[test]
fn clients_that_leave_cost_nothing() {
    // One place in the engine: an answer that nobody reads would keep all others waiting.
    let server = Server::tiny(tiny_engine(1));
    let long = json!({"model": MODEL, "prompt": "x", "max_tokens": 500, "ignore_eos": true}).to_string();
    let time = Instant::now();
    assert_eq!(server.post(TEXT, &long).0, 200);
    let whole = time.elapsed();
    for stream in [true, false] {
        let time = Instant::now();
        (0..12).for_each(|_| abandon(&server, stream));
        assert_eq!(server.post(CHAT, &chat(json!({}))).0, 200);
        let abandoned = time.elapsed();
        assert!(abandoned < whole * 6, "12 abandoned answers took {abandoned:?}, a whole one {whole:?}");
    }
}

#[test]
fn a_client_that_does_not_read_holds_nobody_up() {
    let server = Server::tiny(tiny_engine(8));
    // 60 answers of 480 events, each of more than a kilobyte: more than sockets' buffers and the queue hold.
    let flood = chat(json!({"max_tokens": 480, "stream": true, "logprobs": true, "top_logprobs": 20, "n": 60}));
    let slow = server.send("POST", CHAT, JSON, &flood);
    // The head comes once all are queued. The next request waits its turn behind most of them, so it is served
    // when they have ended.
    slow.peek(&mut [0]).unwrap();
    assert_eq!(server.post(CHAT, &chat(json!({}))).0, 200);
    let (status, body) = answer(slow);
    assert_eq!(status, 200);
    let last = events(&body).pop().unwrap();
    let message =
        last["error"]["message"].as_str().unwrap_or_else(|| panic!("{} bytes fitted, then {last}", body.len()));
    assert!(message.contains("waiting to be read"), "{message}");
}

#[test]
fn a_graceful_stop_lets_answers_end_and_a_second_one_does_not() {
    let body = |max: usize| {
        json!({"model": MODEL, "prompt": "x", "max_tokens": max, "ignore_eos": true, "stream": true, "n": 16})
            .to_string()
    };
    let server = Server::tiny(tiny_engine(1));
    let mut running = BufReader::new(server.send("POST", TEXT, JSON, &body(20)));
    let mut line = String::new();
    running.read_line(&mut line).unwrap();
    let address = server.address;
    server.shutdown.stop();
    std::thread::sleep(Duration::from_millis(50));
    assert!(std::net::TcpStream::connect(address).is_err(), "no new connection is accepted");
    let mut rest = String::new();
    while running.read_line(&mut rest).unwrap() > 0 {}
    assert!(rest.contains("data: [DONE]"), "{rest}");
    server.join();

    let server = Server::tiny(tiny_engine(1));
    let mut running = BufReader::new(server.send("POST", TEXT, JSON, &body(500)));
    running.read_line(&mut line).unwrap();
    let time = Instant::now();
    server.shutdown.stop();
    server.shutdown.stop();
    server.join();
    assert!(time.elapsed() < Duration::from_secs(5), "took {:?}", time.elapsed());
}

#[test]
fn an_address_in_use_is_an_error() {
    let engine = tiny_engine(1);
    let server = Server::tiny(engine.clone());
    let options = ServeOptions { port: server.address.port(), ..tiny_options() };
    let error = runtime::serve::serve(engine, options, |_| panic!("listens twice"), &runtime::serve::Shutdown::new());
    assert!(
        matches!(error, Err(runtime::Error::Network(message)) if message.contains(&server.address.port().to_string()))
    );
}
