//! The HTTP server: the endpoints of OpenAI, Anthropic and vLLM over one [`Engine`].
//!
//! Handlers parse and tokenize on tokio's blocking threads, then only pass events on: [`running`] bridges the
//! engine's thread to tokio with a bounded queue, so a client that reads slowly or leaves costs its own
//! request and nothing else.

mod answer;
mod anthropic;
mod body;
mod constraint;
mod history;
mod http;
mod listen;
mod metrics;
mod openai;
mod page;
mod progress;
mod running;
mod sse;
mod style;
mod tinker;
mod tools;
mod turn;
mod vllm;

use crate::engine::{Engine, KvType};
use crate::error::{Error, Result};
use crate::tune::TuneOptions;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::watch;

pub use style::{ReasoningStyle, ToolStyle};

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Address to listen on.
    pub host: String,
    /// Port to listen on; 0: any free one.
    pub port: u16,
    /// Names of the base model, the first one for listings; empty: the model's own.
    pub served_model_names: Vec<String>,
    /// Keys that `/v1` asks for; empty: none.
    pub api_keys: Vec<String>,
    /// What clients may ask of connections and memory.
    pub limits: Limits,
    /// How the model writes tool calls.
    pub tool_style: ToolStyle,
    /// How the model writes reasoning.
    pub reasoning_style: ReasoningStyle,
    /// Adapters that can be loaded at once, for `/metrics`.
    pub max_adapters: usize,
    /// Type of the engine's key/value cache, for `/metrics`.
    pub kv_type: KvType,
    /// How long a graceful stop waits for running answers.
    pub drain: Duration,
    /// Fine-tuning, its base under the names above; `None`: its endpoints say that there is none.
    pub fine_tuning: Option<TuneOptions>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8000,
            served_model_names: Vec::new(),
            api_keys: Vec::new(),
            limits: Limits::default(),
            tool_style: ToolStyle::default(),
            reasoning_style: ReasoningStyle::default(),
            max_adapters: 0,
            kv_type: KvType::Auto,
            drain: Duration::from_secs(30),
            fine_tuning: None,
        }
    }
}

/// What one client, or many slow ones, may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once; more wait to be accepted.
    pub connections: usize,
    /// Largest request body in bytes.
    pub body_bytes: usize,
    /// Largest head of a request in bytes.
    pub head_bytes: usize,
    /// Most header lines of a request.
    pub headers: usize,
    /// How long a connection may go without a whole head, also between requests.
    pub head_time: Duration,
    /// How long a client may leave an answer unread once its connection's buffers are full.
    pub write_stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            // A context of a million tokens, written as JSON numbers or as text, fits.
            body_bytes: 16 << 20,
            head_bytes: 32 << 10,
            headers: 100,
            head_time: Duration::from_secs(30),
            write_stall: Duration::from_secs(60),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Running,
    Draining,
    Stopped,
}

/// Stops a server from any thread; clones refer to the same server.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Sender<Phase>);

impl std::fmt::Debug for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Phase::Running => "running",
            Phase::Draining => "draining",
            Phase::Stopped => "stopped",
        })
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Running))
    }
}

impl Shutdown {
    /// A handle that has not been used.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Accepts no new connection and lets running answers end. Called again, ends them at once. Takes no
    /// lock for long and never waits, so a signal thread may call it.
    pub fn stop(&self) {
        self.0.send_modify(|phase| *phase = if *phase == Phase::Running { Phase::Draining } else { Phase::Stopped });
    }

    async fn reached(&self, wanted: Phase) {
        // The sender is `self`, so the channel cannot close.
        let _ = self.0.subscribe().wait_for(|phase| *phase >= wanted).await;
    }
}

/// Serves until `shutdown` is used; `on_ready` gets the address once connections are accepted. Runs on its own
/// threads and blocks the caller's.
///
/// # Errors
/// [`Error::Network`] where the address cannot be listened on.
pub fn serve(
    engine: Engine,
    options: ServeOptions,
    on_ready: impl FnOnce(SocketAddr),
    shutdown: &Shutdown,
) -> Result<()> {
    let network = |what: &str, error: std::io::Error| Error::Network(format!("{what}: {error}"));
    // Two threads move bytes between sockets and queues; the work is on the engine's own thread.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(|error| network("cannot start the HTTP threads", error))?;
    let result = runtime.block_on(async {
        let address = (options.host.as_str(), options.port);
        let listening = format!("cannot listen on {}:{}", options.host, options.port);
        let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| network(&listening, error))?;
        let local = listener.local_addr().map_err(|error| network(&listening, error))?;
        let (drain, limits) = (options.drain, options.limits.clone());
        let router = http::router(engine, options)?;
        on_ready(local);
        let server = listen::listen(listener, router, &limits, shutdown.reached(Phase::Draining));
        let enough = async {
            shutdown.reached(Phase::Draining).await;
            let _ = tokio::time::timeout(drain, shutdown.reached(Phase::Stopped)).await;
        };
        tokio::select! {
            () = server => {}
            () = enough => {}
        }
        Ok(())
    });
    // Drops what still runs, which cancels its requests.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}
