//! `hub::pull` against a small server that speaks the hub's protocol.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

use runtime::format::hub::{Pull, PullEvent, pull};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has and what it saw.
#[derive(Default)]
struct Hub {
    files: BTreeMap<&'static str, Vec<u8>>,
    token: Option<&'static str>,
    /// Close the connection after this many bytes of the body, once for each file.
    cut: Mutex<BTreeMap<String, usize>>,
    /// `path range` of every request for a file's content.
    seen: Mutex<Vec<String>>,
}

fn start(hub: Hub) -> (String, Arc<Hub>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let hub = Arc::new(hub);
    let shared = hub.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let hub = shared.clone();
            std::thread::spawn(move || drop(answer(&hub, stream.unwrap())));
        }
    });
    (endpoint, hub)
}

fn answer(hub: &Hub, mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let mut plain = |status: &str, body: &str| {
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    };
    if let Some(token) = hub.token
        && headers.get("authorization") != Some(&format!("Bearer {token}"))
    {
        return plain("401 Unauthorized", "{}");
    }
    if path == "/api/models/owner/model/revision/main" {
        let files: Vec<_> = hub.files.keys().map(|f| serde_json::json!({ "rfilename": f })).collect();
        return plain("200 OK", &serde_json::json!({ "sha": COMMIT, "siblings": files }).to_string());
    }
    let Some((name, data)) = path.strip_prefix("/owner/model/resolve/main/").and_then(|f| hub.files.get_key_value(f))
    else {
        return plain("404 Not Found", "{}");
    };
    let range = headers.get("range").and_then(|r| r.strip_prefix("bytes=")).unwrap_or("0-");
    hub.seen.lock().unwrap().push(format!("{name} {range}"));
    let (from, to) = range.split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    if from >= data.len() {
        return plain("416 Range Not Satisfiable", "");
    }
    let to = to.parse().map_or(data.len(), |t: usize| (t + 1).min(data.len()));
    let mut body = &data[from..to];
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\n\
         ETag: \"etag-{name}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n",
        body.len(),
        to - 1,
        data.len()
    )?;
    if to - from > 1
        && let Some(cut) = hub.cut.lock().unwrap().remove(*name)
    {
        body = &body[..cut];
    }
    stream.write_all(body)
}

fn request(endpoint: &str, cache: &Path) -> Pull {
    Pull {
        cache: Some(cache.to_owned()),
        endpoint: Some(endpoint.to_owned()),
        token: Some("unused".into()),
        ..Pull::new("owner/model")
    }
}

fn model_files() -> BTreeMap<&'static str, Vec<u8>> {
    let mut files = BTreeMap::new();
    files.insert("config.json", b"{}".to_vec());
    files.insert("tokenizer.json", vec![7; 300]);
    files.insert("model.safetensors", (0..50_000u32).map(|i| i as u8).collect());
    files.insert("consolidated.safetensors", vec![1; 10]);
    files.insert("README.md", b"#".to_vec());
    files
}

fn error(request: &Pull) -> String {
    pull(request, &mut |_| ()).expect_err("refused").to_string()
}

#[test]
fn a_model_is_fetched_once_and_a_lost_connection_is_resumed() {
    let files = model_files();
    let cut = Mutex::new(BTreeMap::from([("model.safetensors".to_owned(), 20_000)]));
    let (endpoint, hub) = start(Hub { files: files.clone(), cut, ..Hub::default() });
    let cache = tempfile::tempdir().unwrap();
    let mut events: Vec<PullEvent> = vec![];
    let folder = pull(&request(&endpoint, cache.path()), &mut |e| events.push(e.clone())).unwrap();
    assert!(folder.ends_with(Path::new("models--owner--model/snapshots").join(COMMIT)), "{folder:?}");
    let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), files["model.safetensors"]);
    let seen = hub.seen.lock().unwrap().clone();
    assert!(seen.iter().any(|s| s == "model.safetensors 20000-"), "{seen:?}");
    let last = events.iter().rfind(|e| e.file == "model.safetensors").unwrap();
    assert_eq!((last.done, last.total), (50_000, 50_000));

    let requests = seen.len();
    assert_eq!(pull(&request(&endpoint, cache.path()), &mut |_| ()).unwrap(), folder);
    assert_eq!(hub.seen.lock().unwrap().len(), requests, "cached files are not asked for again");
}

#[test]
fn a_partial_file_that_cannot_be_resumed_is_fetched_again() {
    let files = model_files();
    let (endpoint, _) = start(Hub { files: files.clone(), ..Hub::default() });
    let cache = tempfile::tempdir().unwrap();
    let blobs = cache.path().join("models--owner--model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    // Longer than the file: an upload of the same name was shorter, or the disk is corrupt.
    std::fs::write(blobs.join("etag-config.part"), vec![0; 99]).unwrap();
    let folder = pull(&request(&endpoint, cache.path()), &mut |_| ()).unwrap();
    assert_eq!(std::fs::read(folder.join("config.json")).unwrap(), b"{}");
}

#[test]
fn gguf_files_are_chosen() {
    let gguf = |names: &[&'static str]| Hub {
        files: names.iter().map(|n| (*n, n.as_bytes().to_vec())).collect(),
        ..Hub::default()
    };
    let cache = tempfile::tempdir().unwrap();
    let (endpoint, _) = start(gguf(&["README.md", "a.gguf"]));
    assert!(pull(&request(&endpoint, cache.path()), &mut |_| ()).unwrap().ends_with("a.gguf"));
    let cache = tempfile::tempdir().unwrap();
    let (endpoint, _) = start(gguf(&["a.gguf", "q/b.gguf"]));
    let mut r = request(&endpoint, cache.path());
    let e = error(&r);
    assert!(e.contains("several") && e.contains("a.gguf, q/b.gguf"), "{e}");
    r.repo = "owner/model:q/b.gguf".into();
    assert!(pull(&r, &mut |_| ()).unwrap().ends_with("q/b.gguf"));
    r.repo = "owner/model:c.gguf".into();
    assert!(error(&r).contains("a.gguf"));
    let (endpoint, _) = start(gguf(&["README.md", "pytorch_model.bin"]));
    assert!(error(&request(&endpoint, cache.path())).contains("neither"));
}

#[test]
fn errors_say_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let (endpoint, _) = start(Hub { files: model_files(), token: Some("secret"), ..Hub::default() });
    let mut r = request(&endpoint, cache.path());
    let e = error(&r);
    assert!(e.contains("HF_TOKEN") && !e.contains("unused"), "{e}");
    r.token = Some("secret".into());
    assert!(pull(&r, &mut |_| ()).is_ok());
    r.repo = "owner/missing".into();
    let e = error(&r);
    assert!(e.contains("owner/missing") && e.contains("not found"), "{e}");
    for name in ["a/b/c", "", "../x", "owner/", "owner/mo del"] {
        r.repo = name.into();
        assert!(error(&r).contains("is not a repository"), "{name}");
    }
    r.repo = "owner/model".into();
    r.endpoint = Some("http://127.0.0.1:9".into());
    assert!(error(&r).contains("owner/model"));
}
