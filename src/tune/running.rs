//! A job while it trains: a guest on the engine's thread, which works in the slices that requests leave. It touches no disk:
//! what it learns goes to the director's thread.

use super::session::{Did, Trained};
use crate::engine::{DeviceAdapter, Guest, House, Turn, panic_message};
use crate::error::{Error, Result};
use crate::model::LoadedModel;
use crate::train::{Copying, EvalReport, Job, StepReport};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What others want of a job.
#[derive(Default)]
pub struct Control {
    /// To end.
    pub cancel: AtomicBool,
    /// To leave a checkpoint and end.
    pub pause: AtomicBool,
}

/// How a job ended.
pub enum Outcome {
    /// All steps are done.
    Done,
    /// It may go on from its last checkpoint.
    Paused,
    /// Somebody wanted so.
    Cancelled,
    /// It cannot go on.
    Failed(Error),
}

/// What the director's thread hears.
pub enum Note {
    /// There may be a job to start.
    Kick,
    /// A step is done.
    Step { job: String, report: StepReport },
    /// The validation file's loss.
    Evaluated { job: String, report: EvalReport },
    /// A checkpoint to write; those at the end of an epoch have a name under which the version is published.
    Saved { job: String, copied: Box<Copying>, published: Option<(String, u64)> },
    /// It is over.
    Ended { job: String, outcome: Outcome },
    /// The server ends.
    Stop,
}

/// A checkpoint on its way to the host.
struct Saving {
    copying: Box<Copying>,
    published: Option<(String, u64)>,
    /// Then the job leaves.
    pause: bool,
}

/// A job that was made ready.
pub struct Running {
    pub id: String,
    pub job: Job,
    pub control: Arc<Control>,
    /// Its model's name.
    pub model: String,
    placed: DeviceAdapter,
    evaluating: bool,
    saving: Option<Saving>,
    /// Epochs that were complete after the last step.
    epochs: usize,
    saved: Instant,
    save_every: Duration,
}

impl Running {
    /// A job that goes on after `epochs` whole epochs.
    pub fn new(
        id: String,
        job: Job,
        control: Arc<Control>,
        model: String,
        epochs: usize,
        save_every: Duration,
    ) -> Self {
        let (params, layout, scale) = job.placed();
        let placed = DeviceAdapter::new(params.clone(), layout.clone(), scale);
        Self {
            id,
            job,
            control,
            model,
            placed,
            evaluating: false,
            saving: None,
            epochs,
            saved: Instant::now(),
            save_every,
        }
    }

    /// Works until `deadline`; the outcome once it is over.
    fn turn(&mut self, deadline: Instant, house: &mut dyn House, notes: &Sender<Note>) -> Result<Option<Outcome>> {
        if self.control.cancel.load(Ordering::SeqCst) {
            return Ok(Some(Outcome::Cancelled));
        }
        if let Some(saving) = &mut self.saving {
            if !self.job.copy(&mut saving.copying, deadline)? {
                return Ok(None);
            }
            let Some(Saving { copying, published, pause }) = self.saving.take() else { return Ok(None) };
            self.saved = Instant::now();
            let _ = notes.send(Note::Saved { job: self.id.clone(), copied: copying, published });
            return Ok(match (pause, self.job.is_done()) {
                (_, true) => Some(Outcome::Done),
                (true, false) => Some(Outcome::Paused),
                (false, false) => None,
            });
        }
        if self.control.pause.load(Ordering::SeqCst) && !self.evaluating {
            self.saving = Some(Saving { copying: Box::new(self.job.copying()), published: None, pause: true });
            return Ok(None);
        }
        let tell = |note| drop(notes.send(note));
        if self.evaluating {
            let Some(report) = self.job.evaluate_turn(deadline)? else { return Ok(None) };
            self.evaluating = false;
            tell(Note::Evaluated { job: self.id.clone(), report });
        } else {
            if self.job.is_done() {
                return Ok(Some(Outcome::Done));
            }
            let Some(report) = self.job.turn(deadline)? else { return Ok(None) };
            tell(Note::Step { job: self.id.clone(), report });
            if self.job.evaluation_due() {
                self.evaluating = true;
                return Ok(None);
            }
        }
        let epochs = self.job.epochs_done();
        let whole = epochs > self.epochs || self.job.is_done();
        self.epochs = epochs;
        if whole || self.saved.elapsed() >= self.save_every {
            self.save(whole, house)?;
        }
        Ok(None)
    }

    /// Publishes what was learned, in place, and begins to copy a checkpoint.
    fn save(&mut self, publish: bool, house: &mut dyn House) -> Result<()> {
        let mut published = None;
        if publish {
            let name = checkpoint_name(&self.model, self.job.steps_done(), self.job.is_done());
            let version = match house.publish(&name, &mut self.placed) {
                // All places are taken, or the device has no way: through the host then.
                Err(Error::Busy(_) | Error::Unsupported(_)) => house.load(&name, &self.job.adapter()?)?,
                other => other?,
            };
            published = Some((name, version));
        }
        self.saving = Some(Saving { copying: Box::new(self.job.copying()), published, pause: false });
        Ok(())
    }
}

/// The name of a checkpoint's model: OpenAI's, but that the last one's is the job's model.
pub fn checkpoint_name(model: &str, step: usize, last: bool) -> String {
    if last { model.to_owned() } else { format!("{model}:ckpt-step-{step}") }
}

/// The jobs' place on the engine's thread.
pub struct Seat {
    /// The next one, ready to train.
    pub waiting: Arc<Mutex<Option<Box<Running>>>>,
    /// To the director.
    pub notes: Sender<Note>,
    /// The one that trains.
    pub current: Option<Box<Running>>,
    /// The model of the sessions.
    pub model: Arc<LoadedModel>,
    /// Sessions that were opened.
    pub arriving: Arc<Mutex<Vec<Trained>>>,
    /// Those that are here.
    pub sessions: VecDeque<Trained>,
}

impl Seat {
    /// Does what sessions were asked, each in its turn; false where nothing was.
    fn serve_sessions(&mut self, deadline: Instant, house: &mut dyn House) -> bool {
        self.sessions.extend(self.arriving.lock().unwrap_or_else(PoisonError::into_inner).drain(..));
        for _ in 0..self.sessions.len() {
            let Some(mut session) = self.sessions.pop_front() else { return false };
            let did = catch_unwind(AssertUnwindSafe(|| session.turn(&self.model, deadline, house)));
            match did {
                Ok(Did::Nothing) => self.sessions.push_back(session),
                Ok(Did::Something) => {
                    self.sessions.push_back(session);
                    return true;
                }
                // After a panic it is in no state to go on; whoever waits for it hears that it is gone.
                Ok(Did::Over) | Err(_) => {}
            }
        }
        false
    }
}

impl Guest for Seat {
    fn turn(&mut self, deadline: Instant, house: &mut dyn House) -> Turn {
        if self.serve_sessions(deadline, house) {
            return Turn::Worked;
        }
        if self.current.is_none() {
            self.current = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        let Some(running) = &mut self.current else { return Turn::Idle };
        let turn = catch_unwind(AssertUnwindSafe(|| running.turn(deadline, house, &self.notes)))
            .unwrap_or_else(|panic| Err(Error::Panic(format!("training: {}", panic_message(&*panic)))));
        let outcome = match turn {
            Ok(None) => return Turn::Worked,
            Ok(Some(outcome)) => outcome,
            Err(error) => Outcome::Failed(error),
        };
        if let Some(running) = self.current.take() {
            let job = running.id.clone();
            drop(running);
            let _ = self.notes.send(Note::Ended { job, outcome });
        }
        Turn::Worked
    }
}
