//! A server in this process on a tiny model, and the smallest HTTP client that shows raw bytes.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod variants;

use runtime::engine::{Engine, EngineOptions};
use runtime::format::peft::Adapter;
use runtime::model::{LoadOptions, LoadedModel};
use runtime::serve::{ServeOptions, Shutdown, serve};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Names under which the tiny model and its adapter are served.
pub const MODEL: &str = "tiny";
pub const ADAPTER: &str = "tuned";
/// Where the adapter lies.
pub const ADAPTER_FOLDER: &str = "tests/golden/sft/tiny_chat/final_all";

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// SmolLM2, where it was fetched.
pub fn smollm2() -> Option<PathBuf> {
    let path = std::env::var_os("RUNTIME_SMOLLM2").map(PathBuf::from);
    let path = path.unwrap_or_else(|| root().join(".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"));
    path.exists().then_some(path)
}

/// A Python with the clients' packages.
pub fn python() -> PathBuf {
    python_of("RUNTIME_PYTHON", ".venv")
}

/// The Python that a variable names, else that of an environment that scripts/test.sh makes.
pub fn python_of(variable: &str, environment: &str) -> PathBuf {
    let given = std::env::var_os(variable).map(PathBuf::from);
    let python = given.unwrap_or_else(|| root().join(environment).join("bin/python"));
    assert!(python.exists(), "no Python at {}: scripts/test.sh makes it, {variable} names another", python.display());
    python
}

/// An engine on the CPU; with the tiny model, its adapter is loaded.
pub fn engine(model: &Path, options: EngineOptions) -> Engine {
    let load = LoadOptions { backend: "cpu".parse().unwrap(), ..LoadOptions::default() };
    Engine::start(LoadedModel::open(model, &load).unwrap(), options).unwrap()
}

pub fn tiny_engine(max_seqs: usize) -> Engine {
    tiny_engine_at(&root().join(variants::TINY), max_seqs)
}

/// The same with a long context, for conversations with tools: each byte is a token.
pub fn roomy_engine(max_seqs: usize) -> Engine {
    tiny_engine_at(variants::long_model().path(), max_seqs)
}

fn tiny_engine_at(path: &Path, max_seqs: usize) -> Engine {
    let options = EngineOptions { max_seqs, max_adapters: 2, max_rank: 8, ..EngineOptions::default() };
    let engine = engine(path, options);
    let folder = root().join(ADAPTER_FOLDER);
    let adapter = Adapter::read(&folder, engine.model().config()).unwrap();
    engine.load_adapter(ADAPTER, &adapter).unwrap();
    engine
}

/// A running server; stops when dropped.
pub struct Server {
    pub address: SocketAddr,
    pub shutdown: Shutdown,
    thread: Option<JoinHandle<runtime::Result<()>>>,
}

impl Server {
    pub fn start(engine: Engine, options: ServeOptions) -> Self {
        let shutdown = Shutdown::new();
        let handle = shutdown.clone();
        let (ready, address) = mpsc::channel();
        let thread = std::thread::spawn(move || serve(engine, options, |at| ready.send(at).unwrap(), &handle));
        let address = address.recv_timeout(Duration::from_secs(20)).expect("the server starts");
        Self { address, shutdown, thread: Some(thread) }
    }

    /// A server of the tiny model on a free port.
    pub fn tiny(engine: Engine) -> Self {
        Self::start(engine, tiny_options())
    }

    /// Where OpenAI's clients look.
    pub fn url(&self) -> String {
        format!("{}/v1", self.origin())
    }

    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until the server has ended.
    pub fn join(mut self) {
        self.thread.take().unwrap().join().unwrap().unwrap();
    }

    /// Opens a connection and sends a request.
    pub fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        send(self.address, method, path, headers, body)
    }

    pub fn post(&self, path: &str, body: &str) -> (u16, String) {
        answer(self.send("POST", path, "Content-Type: application/json\r\n", body))
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        answer(self.send("GET", path, "", ""))
    }

    /// Posts what must be refused; status, and `message`, `param` and `code` of the error.
    pub fn refused(&self, path: &str, body: &str) -> (u16, String, serde_json::Value, serde_json::Value) {
        let (status, text) = self.post(path, body);
        let value: serde_json::Value =
            serde_json::from_str(&text).unwrap_or_else(|_| panic!("{body} gave {status} {text}"));
        let error = &value["error"];
        let message = error["message"].as_str().unwrap_or_else(|| panic!("{body} gave {text}")).to_owned();
        (status, message, error["param"].clone(), error["code"].clone())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.stop();
        self.shutdown.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn tiny_options() -> ServeOptions {
    ServeOptions { port: 0, served_model_names: vec![MODEL.into(), "org/tiny".into()], ..ServeOptions::default() }
}

/// Opens a connection and sends a request.
pub fn send(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let len = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len}\r\n{headers}\r\n");
    socket.write_all(head.as_bytes()).unwrap();
    // A refused body may be cut off by the server's answer.
    let _ = socket.write_all(body.as_bytes());
    socket
}

/// Status and body of an answer, chunks put together.
pub fn answer(socket: TcpStream) -> (u16, String) {
    let mut reader = BufReader::new(socket);
    let (mut line, mut status, mut chunked) = (String::new(), 0, false);
    loop {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the connection ended within the head");
        if status == 0 {
            status = line.split(' ').nth(1).unwrap().parse().unwrap();
        }
        chunked |= line.to_ascii_lowercase().starts_with("transfer-encoding: chunked");
        if line == "\r\n" {
            break;
        }
    }
    let mut body = Vec::new();
    if !chunked {
        reader.read_to_end(&mut body).unwrap();
        return (status, String::from_utf8(body).unwrap());
    }
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        let len = usize::from_str_radix(line.trim(), 16).unwrap();
        let mut chunk = vec![0; len + 2];
        reader.read_exact(&mut chunk).unwrap();
        if len == 0 {
            return (status, String::from_utf8(body).unwrap());
        }
        body.extend_from_slice(&chunk[..len]);
    }
}

/// The objects of a stream, without the `[DONE]` that must be at its end.
pub fn events(body: &str) -> Vec<serde_json::Value> {
    let mut data: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{body}");
    data.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}
