//! From a job's request to a training recipe, with what "auto" stands for.

use super::records::{Hyper, JobRecord, Method};
use super::store::Store;
use crate::train::{DataFile, Preference, Recipe};
use std::path::PathBuf;

/// Learning rate where the multiplier is 1.
const LR: f64 = 2e-4;
/// Share of the steps over which the learning rate rises.
const WARMUP: f64 = 0.05;
/// LoRA's rank, where the engine has room for it.
const RANK: usize = 16;
/// TRL's and OpenAI's β.
const BETA: f64 = 0.1;

impl Hyper {
    /// What is left to "auto", for so many rows. Epochs as OpenAI's cookbook has them (three, more for small sets and fewer for
    /// large ones), batches of 0.2 % of the rows (at most 256).
    #[must_use]
    pub fn resolved(self, method: Method, rows: usize) -> Self {
        let rows = rows.max(1);
        let epochs = match rows * 3 {
            few if few < 100 => (100 / rows).clamp(1, 25),
            many if many > 25_000 => (25_000 / rows).max(1),
            _ => 3,
        };
        Self {
            n_epochs: Some(self.n_epochs.unwrap_or(epochs)),
            batch_size: Some(self.batch_size.unwrap_or((rows as f64 * 0.002).round().clamp(1.0, 256.0) as usize)),
            learning_rate_multiplier: Some(self.learning_rate_multiplier.unwrap_or(1.0)),
            beta: (method == Method::Dpo).then_some(self.beta.unwrap_or(BETA)),
        }
    }
}

/// The recipe of a job whose numbers are known. `init`: the adapter that it starts from; `room`: the engine's largest rank;
/// `longest`: tokens of a row.
#[must_use]
pub fn recipe(job: &JobRecord, store: &Store, init: Option<PathBuf>, room: usize, longest: usize) -> Recipe {
    let file = |id: &String| DataFile::from(store.file_path(id));
    // An adapter that is tuned once more keeps its rank.
    let rank = init.is_none().then_some(RANK.min(room));
    Recipe {
        data: vec![file(&job.training_file)],
        eval_data: job.validation_file.iter().map(file).collect(),
        output: store.job_folder(&job.id),
        rank,
        alpha: rank.map(|rank| rank as f64),
        init_adapter: init,
        // One row a micro-batch: neighbours run together where they fit.
        batch_size: 1,
        grad_accum: job.hyper.batch_size.unwrap_or(1),
        epochs: Some(job.hyper.n_epochs.unwrap_or(1) as f64),
        lr: LR * job.hyper.learning_rate_multiplier.unwrap_or(1.0),
        max_length: longest,
        warmup_ratio: Some(WARMUP),
        seed: job.seed,
        resume: Some("auto".into()),
        preference: (job.method == Method::Dpo)
            .then(|| Preference { beta: job.hyper.beta.unwrap_or(BETA), ..Preference::default() }),
        ..Recipe::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_depends_on_the_rows() {
        let numbers = |rows| {
            let hyper = Hyper::default().resolved(Method::Supervised, rows);
            (hyper.n_epochs, hyper.batch_size)
        };
        assert_eq!(numbers(10), (Some(10), Some(1)));
        assert_eq!(numbers(1), (Some(25), Some(1)));
        assert_eq!(numbers(100), (Some(3), Some(1)));
        assert_eq!(numbers(5_000), (Some(3), Some(10)));
        assert_eq!(numbers(1_000_000), (Some(1), Some(256)));
        let given = Hyper { n_epochs: Some(7), ..Hyper::default() }.resolved(Method::Dpo, 10);
        assert_eq!((given.n_epochs, given.beta), (Some(7), Some(0.1)));
    }
}
