//! Files, jobs, events and checkpoints on disk, whole whenever the power goes: an embedded database, and files beside it that
//! have their names only once they are complete.

use super::records::{CheckpointRecord, EventRecord, FileRecord, JobRecord, ModelRecord};
use crate::error::{Error, Result};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

type Rows = TableDefinition<'static, &'static str, &'static str>;
type Numbered = TableDefinition<'static, (&'static str, u64), &'static str>;

const FILES: Rows = TableDefinition::new("files");
const JOBS: Rows = TableDefinition::new("jobs");
const MODELS: Rows = TableDefinition::new("models");
/// By job and number.
const EVENTS: Numbered = TableDefinition::new("events");
/// By job and step.
const CHECKPOINTS: Numbered = TableDefinition::new("checkpoints");

const DATABASE: &str = "fine-tuning.redb";
/// Ends the name of what is not complete.
const PARTIAL: &str = "partial";

/// Everything that survives.
pub struct Store {
    database: Database,
    folder: PathBuf,
}

/// An id that nobody else has.
pub fn unique(prefix: &str) -> String {
    // Each `RandomState` has keys of its own, randomly seeded.
    let random = || RandomState::new().hash_one(());
    format!("{prefix}{:016x}{:08x}", random(), random() as u32)
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Larger for what comes later.
pub fn order() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

fn failed(what: &str) -> impl Fn(redb::Error) -> Error {
    let what = what.to_owned();
    move |error| Error::internal(format!("the database of fine-tuning: {what}: {error}"))
}

/// Changes that become true together.
pub struct Change {
    inner: WriteTransaction,
}

impl Change {
    fn put(&self, table: Rows, key: &str, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(value).map_err(|e| Error::internal(e.to_string()))?;
        let fail = failed("writing");
        let mut table = self.inner.open_table(table).map_err(|e| fail(e.into()))?;
        table.insert(key, text.as_str()).map_err(|e| fail(e.into()))?;
        Ok(())
    }

    fn put_numbered(&self, table: Numbered, key: (&str, u64), value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(value).map_err(|e| Error::internal(e.to_string()))?;
        let fail = failed("writing");
        let mut table = self.inner.open_table(table).map_err(|e| fail(e.into()))?;
        table.insert(key, text.as_str()).map_err(|e| fail(e.into()))?;
        Ok(())
    }

    fn remove(&self, table: Rows, key: &str) -> Result<()> {
        let fail = failed("removing");
        let mut table = self.inner.open_table(table).map_err(|e| fail(e.into()))?;
        table.remove(key).map_err(|e| fail(e.into()))?;
        Ok(())
    }

    fn remove_numbered(&self, table: Numbered, key: (&str, u64)) -> Result<()> {
        let fail = failed("removing");
        let mut table = self.inner.open_table(table).map_err(|e| fail(e.into()))?;
        table.remove(key).map_err(|e| fail(e.into()))?;
        Ok(())
    }

    /// The job as it is within these changes.
    pub fn job(&self, id: &str) -> Result<Option<JobRecord>> {
        let fail = failed("reading");
        let table = self.inner.open_table(JOBS).map_err(|e| fail(e.into()))?;
        let found = table.get(id).map_err(|e| fail(e.into()))?;
        found.map(|text| parse(text.value())).transpose()
    }

    /// A job, new or changed.
    pub fn put_job(&self, job: &JobRecord) -> Result<()> {
        self.put(JOBS, &job.id, job)
    }

    /// A file, whose bytes have their name already.
    pub fn put_file(&self, file: &FileRecord) -> Result<()> {
        self.put(FILES, &file.id, file)
    }

    /// Forgets a file.
    pub fn remove_file(&self, id: &str) -> Result<()> {
        self.remove(FILES, id)
    }

    /// A model.
    pub fn put_model(&self, model: &ModelRecord) -> Result<()> {
        self.put(MODELS, &model.name, model)
    }

    /// Forgets a model.
    pub fn remove_model(&self, name: &str) -> Result<()> {
        self.remove(MODELS, name)
    }

    /// A checkpoint, whose folder has its name already.
    pub fn put_checkpoint(&self, checkpoint: &CheckpointRecord) -> Result<()> {
        self.put_numbered(CHECKPOINTS, (&checkpoint.job, checkpoint.step), checkpoint)
    }

    /// Forgets a checkpoint.
    pub fn remove_checkpoint(&self, job: &str, step: u64) -> Result<()> {
        self.remove_numbered(CHECKPOINTS, (job, step))
    }

    /// The next event of a job.
    pub fn add_event(&self, job: &str, event: &EventRecord) -> Result<()> {
        let fail = failed("reading");
        let next = {
            let table = self.inner.open_table(EVENTS).map_err(|e| fail(e.into()))?;
            let mut all = table.range((job, 0)..=(job, u64::MAX)).map_err(|e| fail(e.into()))?;
            match all.next_back() {
                Some(last) => last.map_err(|e| fail(e.into()))?.0.value().1 + 1,
                None => 0,
            }
        };
        self.put_numbered(EVENTS, (job, next), event)
    }

    /// Forgets the events of steps after `step`: they will happen again.
    pub fn remove_events_after(&self, job: &str, step: u64) -> Result<()> {
        let fail = failed("removing");
        let mut table = self.inner.open_table(EVENTS).map_err(|e| fail(e.into()))?;
        let mut gone = Vec::new();
        for row in table.range((job, 0)..=(job, u64::MAX)).map_err(|e| fail(e.into()))? {
            let (key, text) = row.map_err(|e| fail(e.into()))?;
            let event: EventRecord = parse(text.value())?;
            if event.step().is_some_and(|of| of > step) {
                gone.push(key.value().1);
            }
        }
        for number in gone {
            table.remove((job, number)).map_err(|e| fail(e.into()))?;
        }
        Ok(())
    }
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::format(DATABASE, "a row", e.to_string()))
}

impl Store {
    /// Opens what lies in `folder`, made if need be, and clears away what was not completed.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] where another process has it open; [`Error::Format`] for a corrupt database.
    pub fn open(folder: &Path) -> Result<Self> {
        for folder in [folder, &folder.join("files"), &folder.join("jobs"), &folder.join("states")] {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        }
        let path = folder.join(DATABASE);
        let database = Database::create(&path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => Error::invalid(format!(
                "{} is in use by another process: give each server a --data-dir of its own",
                path.display()
            )),
            other => Error::format(path.display().to_string(), "the database", other.to_string()),
        })?;
        let store = Self { database, folder: folder.to_owned() };
        store.change(|change| {
            let fail = failed("opening");
            for table in [FILES, JOBS, MODELS] {
                change.inner.open_table(table).map_err(|e| fail(e.into()))?;
            }
            for table in [EVENTS, CHECKPOINTS] {
                change.inner.open_table(table).map_err(|e| fail(e.into()))?;
            }
            Ok(())
        })?;
        store.clear()?;
        Ok(store)
    }

    /// Makes changes that are on the disk, all of them, when this returns; none of them after an error.
    ///
    /// # Errors
    /// What `f` returns; [`Error::Internal`] for the disk.
    pub fn change<R>(&self, f: impl FnOnce(&Change) -> Result<R>) -> Result<R> {
        let fail = failed("changing");
        let change = Change { inner: self.database.begin_write().map_err(|e| fail(e.into()))? };
        let result = f(&change)?;
        change.inner.commit().map_err(|e| fail(e.into()))?;
        Ok(result)
    }

    fn one<T: DeserializeOwned>(&self, table: Rows, id: &str) -> Result<Option<T>> {
        let fail = failed("reading");
        let read = self.database.begin_read().map_err(|e| fail(e.into()))?;
        let table = read.open_table(table).map_err(|e| fail(e.into()))?;
        let found = table.get(id).map_err(|e| fail(e.into()))?;
        found.map(|text| parse(text.value())).transpose()
    }

    fn all<T: DeserializeOwned>(&self, table: Rows) -> Result<Vec<T>> {
        let fail = failed("reading");
        let read = self.database.begin_read().map_err(|e| fail(e.into()))?;
        let table = read.open_table(table).map_err(|e| fail(e.into()))?;
        let rows = table.iter().map_err(|e| fail(e.into()))?;
        rows.map(|row| parse(row.map_err(|e| fail(e.into()))?.1.value())).collect()
    }

    fn numbered<T: DeserializeOwned>(&self, table: Numbered, job: &str) -> Result<Vec<T>> {
        let fail = failed("reading");
        let read = self.database.begin_read().map_err(|e| fail(e.into()))?;
        let table = read.open_table(table).map_err(|e| fail(e.into()))?;
        let rows = table.range((job, 0)..=(job, u64::MAX)).map_err(|e| fail(e.into()))?;
        rows.map(|row| parse(row.map_err(|e| fail(e.into()))?.1.value())).collect()
    }

    /// A file.
    ///
    /// # Errors
    /// [`Error::Internal`] and [`Error::Format`] for the database; so of all that follow.
    pub fn file(&self, id: &str) -> Result<Option<FileRecord>> {
        self.one(FILES, id)
    }

    /// All files, the newest first.
    pub fn files(&self) -> Result<Vec<FileRecord>> {
        let mut all: Vec<FileRecord> = self.all(FILES)?;
        all.sort_by_key(|file| std::cmp::Reverse(file.order));
        Ok(all)
    }

    /// A job.
    pub fn job(&self, id: &str) -> Result<Option<JobRecord>> {
        self.one(JOBS, id)
    }

    /// All jobs, the newest first.
    pub fn jobs(&self) -> Result<Vec<JobRecord>> {
        let mut all: Vec<JobRecord> = self.all(JOBS)?;
        all.sort_by_key(|job| std::cmp::Reverse(job.order));
        Ok(all)
    }

    /// All models.
    pub fn models(&self) -> Result<Vec<ModelRecord>> {
        self.all(MODELS)
    }

    /// A model.
    pub fn model(&self, name: &str) -> Result<Option<ModelRecord>> {
        self.one(MODELS, name)
    }

    /// A job's events, the oldest first.
    pub fn events(&self, job: &str) -> Result<Vec<EventRecord>> {
        self.numbered(EVENTS, job)
    }

    /// A job's checkpoints, the oldest first.
    pub fn checkpoints(&self, job: &str) -> Result<Vec<CheckpointRecord>> {
        self.numbered(CHECKPOINTS, job)
    }

    /// Where a file's bytes lie.
    pub fn file_path(&self, id: &str) -> PathBuf {
        self.folder.join("files").join(id)
    }

    /// Where they are written until they are complete.
    pub fn partial_path(&self, id: &str) -> PathBuf {
        self.file_path(id).with_extension(PARTIAL)
    }

    /// Where a job's checkpoints lie.
    pub fn job_folder(&self, id: &str) -> PathBuf {
        self.folder.join("jobs").join(id)
    }

    /// Where one of them lies.
    pub fn checkpoint_folder(&self, job: &str, step: u64) -> PathBuf {
        self.job_folder(job).join(format!("checkpoint-{step}"))
    }

    /// As [`Store::place`], and takes the file into account.
    ///
    /// # Errors
    /// [`Error::Io`], and as [`Store::change`].
    pub fn keep(&self, file: &FileRecord) -> Result<()> {
        self.place(file)?;
        self.change(|change| change.put_file(file))
    }

    /// Gives bytes that are complete their name. Until a row knows them they may be cleared away.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn place(&self, file: &FileRecord) -> Result<()> {
        let (partial, path) = (self.partial_path(&file.id), self.file_path(&file.id));
        let fail = |e| Error::io(&path, e);
        std::fs::File::options().write(true).open(&partial).and_then(|f| f.sync_all()).map_err(fail)?;
        std::fs::rename(&partial, &path).map_err(fail)?;
        sync_folder(&self.folder.join("files"))
    }

    /// Forgets a file; then its bytes go.
    ///
    /// # Errors
    /// As [`Store::keep`].
    pub fn forget(&self, id: &str) -> Result<()> {
        self.change(|change| change.remove_file(id))?;
        match std::fs::remove_file(self.file_path(id)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(self.file_path(id), e)),
            _ => Ok(()),
        }
    }

    /// Removes what no row knows: uploads, and removals, that were cut off.
    fn clear(&self) -> Result<()> {
        let files: HashSet<String> = self.files()?.into_iter().map(|file| file.id).collect();
        let jobs: HashSet<String> = self.jobs()?.into_iter().map(|job| job.id).collect();
        let whole = |folder: &str| -> HashSet<String> {
            let entries = std::fs::read_dir(self.folder.join(folder)).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names.filter(|name| !name.starts_with('.')).collect()
        };
        let states = whole("states");
        for (folder, known) in [("files", files), ("jobs", jobs), ("states", states)] {
            let folder = self.folder.join(folder);
            for entry in std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, e))? {
                let path = entry.map_err(|e| Error::io(&folder, e))?.path();
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                if known.contains(name) {
                    continue;
                }
                let gone = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
                gone.map_err(|e| Error::io(&path, e))?;
            }
        }
        Ok(())
    }
}

/// Waits until the names in a folder are on the disk.
///
/// # Errors
/// [`Error::Io`].
pub fn sync_folder(folder: &Path) -> Result<()> {
    // Windows has no handles on folders for this, and orders its journal itself.
    if cfg!(unix) {
        std::fs::File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io(folder, e))?;
    }
    Ok(())
}
