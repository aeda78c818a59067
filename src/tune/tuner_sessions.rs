//! Training sessions by their ids, and the states that they leave.

use super::refusal::Refusal;
use super::session::{Session, open};
use super::store::{sync_folder, unique};
use super::tuner::{SessionRecord, Tuner};
use crate::error::{Error, Result};
use crate::train::{Recipe, Snapshot};
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};

/// Sessions that may be open at once: each has memory of its own.
const MOST: usize = 4;
/// Longest row of a session that does not say.
const TOKENS: usize = 1024;

impl Tuner {
    fn open_sessions(&self) -> MutexGuard<'_, Vec<(SessionRecord, Arc<Session>)>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session on the base model. `tokens`: its longest row.
    ///
    /// # Errors
    /// [`Refusal`] for another model, a rank or a length that does not fit, and for more sessions than there may be; those of
    /// making the trainer.
    pub fn open_session(&self, base: &str, recipe: Recipe, tokens: Option<usize>) -> Result<SessionRecord, Refusal> {
        let (shared, engine) = (&self.shared, &self.shared.engine);
        if !shared.options.names.iter().any(|name| name == base) {
            let message = format!("Model {base} is not available for training or does not exist.");
            return Err(Refusal::field("base_model", message).code("model_not_available"));
        }
        let room = engine.adapter_room().1;
        let rank = recipe.rank.unwrap_or(room);
        if !(1..=room).contains(&rank) {
            return Err(Refusal::field("rank", format!("`rank` is {rank}, expected 1 to {room}")));
        }
        let max_tokens = tokens.unwrap_or(TOKENS.min(shared.longest()));
        if !(2..=shared.longest()).contains(&max_tokens) {
            let most = shared.longest();
            return Err(Refusal::field("max_tokens", format!("`max_tokens` is {max_tokens}, expected 2 to {most}")));
        }
        let recipe = Recipe { rank: Some(rank), alpha: recipe.alpha.or(Some(rank as f64)), ..recipe };
        recipe.validate().map_err(|error| Refusal::bad(error.to_string()))?;
        if self.open_sessions().len() >= MOST {
            return Err(Refusal::bad(format!("{MOST} sessions are open, which is the limit: close one first.")));
        }
        let id = unique("session-");
        let waker = engine.waker();
        let (session, trained) = open(engine.model(), &recipe, &id, max_tokens, Box::new(waker))?;
        let record = SessionRecord { model: id.clone(), id, base_model: base.to_owned(), rank, max_tokens };
        self.arriving.lock().unwrap_or_else(PoisonError::into_inner).push(trained);
        self.open_sessions().push((record.clone(), Arc::new(session)));
        engine.wake();
        Ok(record)
    }

    /// All open sessions.
    pub fn sessions(&self) -> Vec<SessionRecord> {
        self.open_sessions().iter().map(|(record, _)| record.clone()).collect()
    }

    /// An open session.
    ///
    /// # Errors
    /// [`Refusal`] where there is none of that id.
    pub fn session(&self, id: &str) -> Result<Arc<Session>, Refusal> {
        let found = self.open_sessions().iter().find(|(record, _)| record.id == id).map(|(_, session)| session.clone());
        found.ok_or_else(|| Refusal::not_found("id", format!("There is no training session {id}")))
    }

    /// Closes a session: its memory is free once its last call has ended.
    ///
    /// # Errors
    /// As [`Tuner::session`].
    pub fn close_session(&self, id: &str) -> Result<(), Refusal> {
        self.session(id)?;
        self.open_sessions().retain(|(record, _)| record.id != id);
        let _ = self.shared.engine.unload_adapter(id);
        Ok(())
    }

    /// Where a state of that name lies, or would.
    ///
    /// # Errors
    /// [`Refusal`] for a name that could be a path.
    pub fn state_folder(&self, name: &str) -> Result<PathBuf, Refusal> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
            let message = "`name` must have 1 to 64 characters: letters, digits, '-' and '_'";
            return Err(Refusal::field("name", message));
        }
        Ok(self.shared.options.data_dir.join("states").join(name))
    }

    /// Writes a state; it has its name once it is complete.
    ///
    /// # Errors
    /// [`Refusal`] as [`Tuner::state_folder`]; [`Error::Io`].
    pub fn keep_state(&self, name: &str, snapshot: &Snapshot) -> Result<(), Refusal> {
        let folder = self.state_folder(name)?;
        let partial = folder.with_file_name(unique(".partial-"));
        let io = |error| Error::io(&folder, error);
        std::fs::create_dir_all(&partial).map_err(io)?;
        let written =
            snapshot.write(&partial, &self.shared.engine.model().checkpoint).and_then(|_| sync_folder(&partial));
        let named = written.and_then(|()| std::fs::rename(&partial, &folder).map_err(io));
        if let Err(error) = named {
            let _ = std::fs::remove_dir_all(&partial);
            return Err(error.into());
        }
        Ok(sync_folder(folder.parent().unwrap_or(&folder))?)
    }
}
