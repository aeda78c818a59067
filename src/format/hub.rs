//! Downloads from the Hugging Face hub into its standard cache, through the `hf-hub` crate.
//!
//! Version 0.4 of the crate on purpose: it is ureq with rustls and no async runtime (48 s for the crate and
//! everything below it on two cores), where 1.0 brings the Xet client, reqwest and hyper.

use crate::error::{Error, Result};
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Attempts after the first, each of which resumes where the last one stopped.
const RETRIES: usize = 3;

/// What to fetch and how. [`Pull::new`] reads the environment as Hugging Face's tools do.
#[derive(Clone, Debug)]
pub struct Pull {
    /// `owner/name`, or `owner/name:file.gguf`.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Cache folder; `None`: `HF_HOME/hub`, by default `~/.cache/huggingface/hub`.
    pub cache: Option<PathBuf>,
    /// Server; `None`: `HF_ENDPOINT`, by default `https://huggingface.co`.
    pub endpoint: Option<String>,
    /// Access token; `None`: `HF_TOKEN`, then the one stored by `hf auth login`.
    pub token: Option<String>,
}

/// Progress of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullEvent {
    /// Name inside the repository.
    pub file: String,
    /// Bytes so far, those of an earlier attempt included.
    pub done: u64,
    /// Size of the file in bytes.
    pub total: u64,
}

impl Pull {
    /// The `main` revision of `repo`, with endpoint, cache and token from the environment.
    pub fn new(repo: impl Into<String>) -> Self {
        Self { repo: repo.into(), revision: "main".into(), cache: None, endpoint: None, token: None }
    }
}

/// Downloads what is needed to run a model: configuration, tokenizer, chat template, and the safetensors; or
/// one .gguf file, where it is named or where the repository has nothing else. Files that the cache has are
/// not fetched again. Returns what [`super::Checkpoint::open`] takes: the folder, or the .gguf file where a
/// repository has config.json beside it.
///
/// # Errors
/// [`Error::Network`] naming repository and file: not found, access refused (names `HF_TOKEN`), connection
/// lost; [`Error::Invalid`] where the repository holds several .gguf files and none is named.
pub fn pull(request: &Pull, progress: &mut dyn FnMut(&PullEvent)) -> Result<PathBuf> {
    // The crate asserts and unwraps on what a server answers; a library must not take its host down.
    catch_unwind(AssertUnwindSafe(|| pull_inner(request, progress)))
        .unwrap_or_else(|_| Err(Error::Network(format!("{}: the server's answer makes no sense", request.repo))))
}

fn pull_inner(request: &Pull, progress: &mut dyn FnMut(&PullEvent)) -> Result<PathBuf> {
    let (name, wanted) = match request.repo.split_once(':') {
        Some((name, file)) => (name, Some(file)),
        None => (request.repo.as_str(), None),
    };
    check_name(name)?;
    let (api, cache) = connect(request)?;
    let repo = Repo::with_revision(name.to_owned(), RepoType::Model, request.revision.clone());
    let api = api.repo(repo.clone());
    let info = api.info().map_err(|e| explain(&e, request, "the list of files"))?;
    let files: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).filter(|f| is_safe(f)).collect();
    let chosen = choose(name, &files, wanted)?;
    // The server's commit decides what is cached: the crate's own look-up trusts an older reference.
    let cached = cache.path().join(repo.folder_name());
    let snapshot = cached.join("snapshots").join(&info.sha);
    let progress = RefCell::new(progress);
    let mut last = None;
    for file in &chosen {
        let pointer = snapshot.join(file);
        let path = match pointer.is_file() {
            true => pointer,
            false => download(&api, file, &progress, &cached).map_err(|e| explain(&e, request, file))?,
        };
        last = Some((path, *file));
    }
    let (path, file) = last.ok_or_else(|| Error::Network(format!("{name}: nothing to download")))?;
    // Out of the file's own folders inside the repository.
    match path.ancestors().nth(Path::new(file).components().count()) {
        Some(folder) if !file.ends_with(".gguf") => Ok(folder.to_owned()),
        _ => Ok(path),
    }
}

/// One file, with what the crate leaves out: an unusable partial download is started over, and a server that
/// ignores ranges does not leave a blob of the wrong length.
fn download(
    api: &ApiRepo,
    file: &str,
    sink: &RefCell<&mut dyn FnMut(&PullEvent)>,
    cached: &Path,
) -> Result<PathBuf, ApiError> {
    let total = Cell::new(0);
    let attempt = || api.download_with_progress(file, Reporter::new(file, sink, &total));
    let path = match attempt() {
        Err(e) if matches!(e, ApiError::InvalidResume) || status(&e) == Some(416) => {
            for entry in std::fs::read_dir(cached.join("blobs"))?.flatten() {
                if entry.path().extension().is_some_and(|e| e == "part") {
                    std::fs::remove_file(entry.path())?;
                }
            }
            attempt()?
        }
        other => other?,
    };
    let found = std::fs::metadata(&path)?.len();
    if found != total.get() {
        let blob = std::fs::canonicalize(&path)?;
        std::fs::remove_file(&path)?;
        std::fs::remove_file(blob)?;
        let message = format!("received {found} bytes, the hub announced {}", total.get());
        return Err(ApiError::IoError(std::io::Error::other(message)));
    }
    Ok(path)
}

/// The local copy of a repository's `main`, as `owner/name` or `owner/name:file.gguf`, in the cache that [`pull`] fills by
/// default; asks no server.
pub fn cached(repo: &str) -> Option<PathBuf> {
    let (name, file) = match repo.split_once(':') {
        Some((name, file)) => (name, Some(file)),
        None => (repo, None),
    };
    check_name(name).ok()?;
    let cache = Cache::from_env();
    let folder = cache.path().join(Repo::model(name.to_owned()).folder_name());
    let commit = std::fs::read_to_string(folder.join("refs").join("main")).ok()?;
    let snapshot = folder.join("snapshots").join(commit.trim());
    let path = file.filter(|file| is_safe(file)).map_or_else(|| snapshot.clone(), |file| snapshot.join(file));
    path.exists().then_some(path)
}

fn connect(request: &Pull) -> Result<(Api, Cache)> {
    let cache = request.cache.clone().map_or_else(Cache::from_env, Cache::new);
    let mut builder = ApiBuilder::from_cache(cache.clone()).with_retries(RETRIES).with_progress(false);
    let env = |key: &str| std::env::var(key).ok().filter(|v| !v.is_empty());
    if let Some(endpoint) = request.endpoint.clone().or_else(|| env("HF_ENDPOINT")) {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    if let Some(token) = request.token.clone().or_else(|| env("HF_TOKEN")) {
        builder = builder.with_token(Some(token));
    }
    let api = builder.build().map_err(|e| explain(&e, request, "the connection"))?;
    Ok((api, cache))
}

/// `owner/name` or `name`, of the characters that the hub allows.
fn check_name(name: &str) -> Result<()> {
    let part = |p: &str| {
        !p.is_empty() && !p.starts_with('.') && p.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    if name.split('/').count() <= 2 && name.split('/').all(part) {
        return Ok(());
    }
    Err(Error::invalid(format!("'{name}' is not a repository; expected OWNER/NAME or OWNER/NAME:FILE.gguf")))
}

/// A server must not write outside the cache.
fn is_safe(file: &str) -> bool {
    !file.contains('\\') && Path::new(file).components().all(|c| matches!(c, std::path::Component::Normal(_)))
}

fn choose<'a>(repo: &str, files: &[&'a str], wanted: Option<&str>) -> Result<Vec<&'a str>> {
    let ggufs: Vec<&str> = files.iter().filter(|f| f.ends_with(".gguf")).copied().collect();
    if let Some(wanted) = wanted {
        return match ggufs.iter().find(|f| **f == wanted) {
            Some(file) => Ok(vec![file]),
            None => Err(Error::invalid(format!("{repo} has no file '{wanted}'; its .gguf files: {}", list(&ggufs)))),
        };
    }
    let weights: Vec<&str> =
        files.iter().filter(|f| f.ends_with(".safetensors") && !f.contains('/')).copied().collect();
    if !weights.is_empty() {
        const SMALL: [&str; 8] = [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
            "adapter_config.json",
            super::safetensors::INDEX,
        ];
        // Some repositories also carry `consolidated.safetensors` in the original names: twice the size for nothing.
        let known = |f: &&str| f.starts_with("model") || f.starts_with("adapter_model");
        let named: Vec<&str> = weights.iter().filter(|f| known(f)).copied().collect();
        let weights = if named.is_empty() { weights } else { named };
        return Ok(files.iter().filter(|f| SMALL.contains(f)).copied().chain(weights).collect());
    }
    match ggufs.as_slice() {
        [one] => Ok(vec![one]),
        [] => Err(Error::unsupported(format!("{repo} holds neither safetensors nor .gguf files"))),
        many => {
            Err(Error::invalid(format!("{repo} holds several .gguf files; name one as {repo}:FILE: {}", list(many))))
        }
    }
}

fn list(files: &[&str]) -> String {
    if files.is_empty() { "none".into() } else { files.join(", ") }
}

/// Turns the crate's error into one line that says what to do.
fn explain(error: &ApiError, request: &Pull, what: &str) -> Error {
    let repo = &request.repo;
    Error::Network(match status(error) {
        Some(401 | 403) => format!(
            "{repo}: {what}: the hub refuses access; set HF_TOKEN to a token that may read this repository, and accept its licence on the hub"
        ),
        Some(404) => format!("{repo}: {what}: not found on the hub (revision '{}')", request.revision),
        Some(429) => format!("{repo}: {what}: the hub asks to slow down (429); try again later"),
        Some(code) => format!("{repo}: {what}: the hub answered {code}"),
        None => format!("{repo}: {what}: {error}"),
    })
}

fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(e) => match **e {
            ureq::Error::Status(code, _) => Some(code),
            ureq::Error::Transport(_) => None,
        },
        ApiError::TooManyRetries(e) => status(e),
        _ => None,
    }
}

/// Passes the crate's increments on as totals.
struct Reporter<'a, 'b> {
    event: PullEvent,
    sink: &'a RefCell<&'b mut dyn FnMut(&PullEvent)>,
    total: &'a Cell<u64>,
}

impl<'a, 'b> Reporter<'a, 'b> {
    fn new(file: &str, sink: &'a RefCell<&'b mut dyn FnMut(&PullEvent)>, total: &'a Cell<u64>) -> Self {
        Self { event: PullEvent { file: file.to_owned(), done: 0, total: 0 }, sink, total }
    }

    fn report(&self) {
        (self.sink.borrow_mut())(&self.event);
    }
}

impl Progress for Reporter<'_, '_> {
    fn init(&mut self, size: usize, _: &str) {
        (self.event.done, self.event.total) = (0, size as u64);
        self.total.set(size as u64);
        self.report();
    }
    fn update(&mut self, size: usize) {
        self.event.done += size as u64;
        self.report();
    }
    fn finish(&mut self) {
        self.report();
    }
}
