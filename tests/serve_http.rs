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

use runtime::serve::ServeOptions;
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
        json!({"tool_choice": "required"}),
        json!({"response_format": {"type": "json_schema", "json_schema": {}}}),
        json!({"guided_json": {}}),
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
    let options = ServeOptions { max_body_bytes: 10_000, ..tiny_options() };
    let server = Server::start(tiny_engine(4), options);
    assert_eq!(server.get("/health"), (200, String::new()));
    for (method, path, status) in [
        ("GET", "/", 404),
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
fn health_needs_no_key() {
    let server = Server::start(tiny_engine(1), ServeOptions { api_keys: vec!["k".into()], ..tiny_options() });
    assert_eq!(server.get("/health").0, 200);
    assert_eq!(server.get("/v1/models").0, 401);
    assert_eq!(server.get("/v1/nothing").0, 401);
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
