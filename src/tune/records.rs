//! What is remembered of files, jobs, events, checkpoints and models: the rows of the database.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// An uploaded file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileRecord {
    /// `file-…`
    pub id: String,
    /// Of those made before it, this is larger.
    pub order: u64,
    /// Its size.
    pub bytes: u64,
    /// Seconds since 1970.
    pub created_at: u64,
    /// As its owner called it.
    pub filename: String,
    /// `fine-tune`, or `fine-tune-results` for what the server made.
    pub purpose: String,
}

/// Where a job is; OpenAI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Its files are being read.
    ValidatingFiles,
    /// Waits for its turn.
    Queued,
    /// Trains.
    Running,
    /// Waits to be resumed.
    Paused,
    /// Its model is there.
    Succeeded,
    /// `error` says why.
    Failed,
    /// Somebody wanted so.
    Cancelled,
}

impl Status {
    /// Nothing more will happen.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// OpenAI's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::ValidatingFiles => "validating_files",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How a job learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// From answers.
    Supervised,
    /// From pairs of a preferred and another answer.
    Dpo,
}

impl Method {
    /// OpenAI's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Supervised => "supervised",
            Self::Dpo => "dpo",
        }
    }
}

/// Numbers of a job; `None` is "auto", until its files were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hyper {
    /// Passes over the data.
    pub n_epochs: Option<usize>,
    /// Rows of a step.
    pub batch_size: Option<usize>,
    /// Times the usual learning rate.
    pub learning_rate_multiplier: Option<f64>,
    /// DPO's β.
    pub beta: Option<f64>,
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// OpenAI's word for it.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// Which field of the job.
    pub param: Option<String>,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// `ftjob-…`
    pub id: String,
    /// Of those made before it, this is larger.
    pub order: u64,
    /// Seconds since 1970.
    pub created_at: u64,
    /// The same.
    pub finished_at: Option<u64>,
    /// When it will be done, as far as one knows.
    pub estimated_finish: Option<u64>,
    /// As the request named it: the base model or a tuned one.
    pub model: String,
    /// The loaded model's own name: a job goes on only where the same one is loaded.
    pub base: String,
    /// Where it is.
    pub status: Status,
    /// Ids of files.
    pub training_file: String,
    /// The same.
    pub validation_file: Option<String>,
    /// How it learns.
    pub method: Method,
    /// Its numbers.
    pub hyper: Hyper,
    /// For the model's name.
    pub suffix: Option<String>,
    /// Decides everything random.
    pub seed: u64,
    /// The user's own.
    pub metadata: Option<Map<String, Value>>,
    /// As they were asked for.
    pub integrations: Vec<Value>,
    /// Once it has succeeded.
    pub fine_tuned_model: Option<String>,
    /// Ids of files.
    pub result_files: Vec<String>,
    /// Tokens that were trained on.
    pub trained_tokens: u64,
    /// Why it failed.
    pub error: Option<Failure>,
}

impl JobRecord {
    /// The name of its model.
    pub fn model_name(&self) -> String {
        // What is tuned once more keeps the name of its base.
        let base = self.model.strip_prefix("ft:").and_then(|rest| rest.split(':').next()).unwrap_or(&self.model);
        let id = self.id.strip_prefix("ftjob-").unwrap_or(&self.id);
        let short = id.get(..8).unwrap_or(id);
        format!("ft:{base}:local:{}:{short}", self.suffix.as_deref().unwrap_or_default())
    }

    /// OpenAI's object.
    pub fn object(&self) -> Value {
        let Hyper { n_epochs, batch_size, learning_rate_multiplier, beta } = self.hyper;
        let auto = |value: Option<Value>| value.unwrap_or_else(|| "auto".into());
        let mut numbers = json!({
            "n_epochs": auto(n_epochs.map(Value::from)),
            "batch_size": auto(batch_size.map(Value::from)),
            "learning_rate_multiplier": auto(learning_rate_multiplier.map(Value::from)),
        });
        let plain = numbers.clone();
        if self.method == Method::Dpo {
            numbers["beta"] = auto(beta.map(Value::from));
        }
        let method = self.method.word();
        json!({
            "object": "fine_tuning.job", "id": self.id, "created_at": self.created_at, "finished_at": self.finished_at,
            "estimated_finish": self.estimated_finish.filter(|_| !self.status.is_over()), "model": self.model,
            "organization_id": "local", "status": self.status, "training_file": self.training_file,
            "validation_file": self.validation_file, "hyperparameters": plain,
            "method": {"type": method, method: {"hyperparameters": numbers}}, "seed": self.seed,
            "user_provided_suffix": self.suffix, "metadata": self.metadata, "integrations": self.integrations,
            "fine_tuned_model": self.fine_tuned_model, "result_files": self.result_files,
            "trained_tokens": (self.status == Status::Succeeded).then_some(self.trained_tokens),
            "error": self.error.as_ref().map_or_else(|| json!({}), |error| json!(error)),
        })
    }
}

impl FileRecord {
    /// OpenAI's object.
    pub fn object(&self) -> Value {
        json!({
            "object": "file", "id": self.id, "bytes": self.bytes, "created_at": self.created_at, "filename": self.filename,
            "purpose": self.purpose, "status": "processed", "status_details": null, "expires_at": null,
        })
    }
}

/// What happened to a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventRecord {
    /// `ftevent-…`
    pub id: String,
    /// Seconds since 1970.
    pub created_at: u64,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// For people.
    pub message: String,
    /// `message`, or `metrics` with `data`.
    pub kind: String,
    /// Numbers.
    pub data: Value,
}

impl EventRecord {
    /// OpenAI's object.
    pub fn object(&self) -> Value {
        json!({
            "object": "fine_tuning.job.event", "id": self.id, "created_at": self.created_at, "level": self.level,
            "message": self.message, "type": self.kind, "data": self.data,
        })
    }

    /// The step that it tells of.
    pub fn step(&self) -> Option<u64> {
        self.data["step"].as_u64().filter(|_| self.kind == "metrics")
    }
}

/// A state of a job that is a model of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointRecord {
    /// `ftckpt_…`
    pub id: String,
    /// Whose.
    pub job: String,
    /// Seconds since 1970.
    pub created_at: u64,
    /// The model's name.
    pub model: String,
    /// Steps done.
    pub step: u64,
    /// Losses there.
    pub metrics: Value,
}

impl CheckpointRecord {
    /// OpenAI's object.
    pub fn object(&self) -> Value {
        json!({
            "object": "fine_tuning.job.checkpoint", "id": self.id, "created_at": self.created_at,
            "fine_tuned_model_checkpoint": self.model, "fine_tuning_job_id": self.job, "step_number": self.step,
            "metrics": self.metrics,
        })
    }
}

/// A model that a job made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// As requests name it.
    pub name: String,
    /// Which job.
    pub job: String,
    /// Which of its checkpoints.
    pub step: u64,
    /// The loaded model's own name.
    pub base: String,
}
