//! A fine-tuning server that is killed again and again: no file is half there, every job is where it says it is, and a job that
//! was cut off ends with the losses of one that was not.
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

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use serve_support::root;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const KILLS: usize = 30;
/// Times that the server is asked to end instead.
const STOPS: usize = 5;
const EPOCHS: usize = 8;
const STEPS: usize = 5 * EPOCHS;

struct Served {
    process: Child,
    address: SocketAddr,
}

impl Served {
    fn start(data_dir: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_runtime"));
        command.current_dir(root()).args(["serve", "tests/golden/tiny/chat", "--served-model-name", "tiny"]);
        command.args([
            "--backend",
            "cpu",
            "--port",
            "0",
            "--max-num-seqs",
            "2",
            "--max-model-len",
            "256",
            "--kv-cache-gb",
            "0.01",
        ]);
        command.arg("--data-dir").arg(data_dir).args(["--checkpoint-seconds", "0"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        let mut served = Self { process, address: ([0; 4], 0).into() };
        let mut all = String::new();
        loop {
            let mut line = String::new();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "the server ended: {all}");
            if let Some((_, address)) = line.trim_end().split_once("http://") {
                served.address = address.strip_suffix("/v1").unwrap().parse().unwrap();
                std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
                return served;
            }
            all.push_str(&line);
        }
    }

    /// Status and body; `None` where the server was killed meanwhile.
    fn call(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Option<(u16, String)> {
        let mut socket = TcpStream::connect(self.address).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).ok()?;
        socket.write_all(body).ok()?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).ok()?;
        let answer = String::from_utf8(answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        // The last byte of an answer that was cut off is missing.
        let length: usize =
            head.to_ascii_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())?;
        (body.len() == length).then(|| (head[9..12].parse().unwrap(), body.to_owned()))
    }

    fn get(&self, path: &str) -> Option<Value> {
        let (status, body) = self.call("GET", path, "application/json", b"")?;
        assert_eq!(status, 200, "{path}: {body}");
        Some(serde_json::from_str(&body).unwrap())
    }

    fn post(&self, path: &str, body: &Value) -> Option<Value> {
        let (status, text) = self.call("POST", path, "application/json", body.to_string().as_bytes())?;
        assert_eq!(status, 200, "{path}: {text}");
        Some(serde_json::from_str(&text).unwrap())
    }

    fn upload(&self, text: &str) -> Option<String> {
        let body = format!(
            "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--b\r\nContent-Disposition: form-data; \
             name=\"file\"; filename=\"train.jsonl\"\r\nContent-Type: application/octet-stream\r\n\r\n{text}\r\n--b--\r\n"
        );
        let (status, text) = self.call("POST", "/v1/files", "multipart/form-data; boundary=b", body.as_bytes())?;
        assert_eq!(status, 200, "{text}");
        Some(serde_json::from_str::<Value>(&text).unwrap()["id"].as_str().unwrap().to_owned())
    }

    fn create(&self, file: &str) -> Option<String> {
        let numbers = json!({"n_epochs": EPOCHS, "batch_size": 2, "learning_rate_multiplier": 50});
        let job = json!({"model": "tiny", "training_file": file, "seed": 11, "hyperparameters": numbers});
        Some(self.post("/v1/fine_tuning/jobs", &job)?["id"].as_str().unwrap().to_owned())
    }

    /// The losses of a job's steps, each of which must be there once and in order.
    fn losses(&self, job: &str) -> Option<Vec<f64>> {
        let events = self.get(&format!("/v1/fine_tuning/jobs/{job}/events?limit=1000"))?;
        let mut events: Vec<Value> = events["data"].as_array().unwrap().clone();
        events.reverse();
        let steps: Vec<&Value> =
            events.iter().map(|event| &event["data"]).filter(|data| data["train_loss"].is_f64()).collect();
        for (i, data) in steps.iter().enumerate() {
            assert_eq!(data["step"], i + 1, "{job}: {events:?}");
        }
        Some(steps.iter().map(|data| data["train_loss"].as_f64().unwrap()).collect())
    }

    fn wait(&self, job: &str) {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let found = self.get(&format!("/v1/fine_tuning/jobs/{job}")).unwrap();
            match found["status"].as_str().unwrap() {
                "succeeded" => return,
                "validating_files" | "queued" | "running" => {}
                other => panic!("{job} is {other}: {found}"),
            }
            assert!(Instant::now() < end, "{found}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the end that a signal brings.
    fn end(mut self) {
        self.process.wait().unwrap();
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn data() -> String {
    let row = |i: usize| json!({"messages": [{"role": "user", "content": format!("say {i}")}, {"role": "assistant", "content": format!("it is {}", i * 7)}]});
    (0..10).map(|i| row(i).to_string() + "\n").collect()
}

/// What must be true after every restart.
fn check(server: &Served, folder: &Path, known: &HashMap<String, String>, unbroken: &[f64]) {
    let files = server.get("/v1/files").unwrap();
    let mut listed = HashMap::new();
    for file in files["data"].as_array().unwrap() {
        let (id, bytes) = (file["id"].as_str().unwrap(), file["bytes"].as_u64().unwrap());
        let on_disk = std::fs::metadata(folder.join("files").join(id)).unwrap().len();
        assert_eq!(on_disk, bytes, "{file}");
        listed.insert(id.to_owned(), file["purpose"].as_str().unwrap().to_owned());
    }
    // What a client was told of is there.
    for (id, text) in known {
        let found = std::fs::read_to_string(folder.join("files").join(id)).unwrap();
        assert!(listed.contains_key(id) && found == *text, "{id}");
    }
    // What lies there is known by now, or on its way: a job that goes on writes its result.
    for entry in std::fs::read_dir(folder.join("files")).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        match name.strip_suffix(".partial") {
            None if listed.contains_key(&name) => {}
            None => drop(server.get(&format!("/v1/files/{name}")).unwrap()),
            Some(_) => {
                std::thread::sleep(Duration::from_secs(1));
                assert!(!entry.path().exists(), "{name} was left behind");
            }
        }
    }
    let jobs = server.get("/v1/fine_tuning/jobs?limit=100").unwrap();
    let models = server.get("/v1/models").unwrap();
    for job in jobs["data"].as_array().unwrap() {
        let (id, status) = (job["id"].as_str().unwrap(), job["status"].as_str().unwrap());
        let losses = server.losses(id).unwrap();
        assert_eq!(losses, unbroken[..losses.len()], "{id}: the losses of a job that was cut off");
        match status {
            "succeeded" => {
                assert_eq!(losses.len(), STEPS);
                let name = job["fine_tuned_model"].as_str().unwrap();
                assert!(models["data"].as_array().unwrap().iter().any(|model| model["id"] == name), "{name}");
                let chat = json!({"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2});
                server.post("/v1/chat/completions", &chat).unwrap();
                for file in job["result_files"].as_array().unwrap() {
                    server.get(&format!("/v1/files/{}", file.as_str().unwrap())).unwrap();
                }
            }
            "validating_files" | "queued" | "running" => assert!(job["finished_at"].is_null()),
            other => panic!("{id} is {other}: {job}"),
        }
    }
}

#[test]
fn thirty_kills_lose_nothing() {
    let text = data();
    let alone = tempfile::tempdir().unwrap();
    let server = Served::start(alone.path());
    let job = server.create(&server.upload(&text).unwrap()).unwrap();
    server.wait(&job);
    let unbroken = server.losses(&job).unwrap();
    assert_eq!(unbroken.len(), STEPS);
    assert!(unbroken[STEPS - 1] < unbroken[0]);
    server.kill();

    let folder = tempfile::tempdir().unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut known: HashMap<String, String> = HashMap::new();
    let (mut jobs, mut training) = (Vec::new(), None);
    // Long enough to be cut off on its way.
    let large: String = text.repeat(3000);
    let mut interrupted = 0;
    for round in 0..KILLS + STOPS {
        let server = Served::start(folder.path());
        check(&server, folder.path(), &known, &unbroken);
        let lifetime = Duration::from_millis(random.random_range(0..250));
        let (file, job, upload) = std::thread::scope(|scope| {
            let server = &server;
            let training = training.clone();
            let client = scope.spawn(move || {
                let mut made = (None, None, None);
                let file = match training {
                    Some(file) => Some(file),
                    None => server.upload(&data()),
                };
                if let Some(file) = file {
                    made.0 = Some(file.clone());
                    made.1 = (round % 3 > 0).then(|| server.create(&file)).flatten();
                }
                if round % 3 == 0 {
                    made.2 = server.upload(&data().repeat(3000));
                }
                made
            });
            std::thread::sleep(lifetime);
            // The handle is lent to the client meanwhile, so by its number. Now and then politely.
            let signal = if round % 7 == 6 { "-TERM" } else { "-9" };
            let kill = format!("kill {signal} {}", server.process.id());
            let killed = Command::new("sh").args(["-c", &kill]).status().unwrap();
            assert!(killed.success());
            client.join().unwrap()
        });
        training = file.clone();
        known.extend(file.map(|id| (id, text.clone())));
        known.extend(upload.map(|id| (id, large.clone())));
        jobs.extend(job);
        let was_open = !jobs.is_empty();
        interrupted += usize::from(was_open);
        server.end();
    }
    let server = Served::start(folder.path());
    check(&server, folder.path(), &known, &unbroken);
    let all = server.get("/v1/fine_tuning/jobs?limit=100").unwrap();
    let all: Vec<String> =
        all["data"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect();
    assert!(jobs.iter().all(|job| all.contains(job)), "a job that a client was told of is gone");
    for job in &all {
        server.wait(job);
    }
    check(&server, folder.path(), &known, &unbroken);
    println!("{KILLS} kills, {interrupted} with jobs, {} jobs", all.len());
    assert!(all.len() > 2 && interrupted > 10);
}
