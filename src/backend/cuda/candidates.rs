//! Who computes a dense product: the kernels of this crate, or cuBLASLt where it is installed. Products that share a launch
//! (`fuse.rs`) are the own kernels' alone: none of the library's sums was faster.
//!
//! The first program on a device that has a product of some shape times both and the faster one is remembered as long as
//! the device is open, so that a shape is always computed by the same kernel, whatever program asks: serving and
//! training agree bit for bit. `RUNTIME_CUBLASLT` fixes the choice: `off` never asks the library (what is computed then does not
//! depend on a measurement), `always` takes it wherever it can (for tests), `auto`, the default, measures.

use super::context::Context;
use super::cublaslt::{Call, CublasLt, Plan, Shape};
use super::graph::Graph;
use super::launch::Work;
use super::record::Recorder;
use crate::error::{Error, Result};
use crate::program::Place;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

/// Rows for which both are timed: below, a product reads its weight as fast as memory gives it; above, both are within a few
/// per cent of each other (H100, 2026-11-24).
const ROWS: RangeInclusive<usize> = 64..=512;

/// Algorithms of the library that are timed, 3 ms each to load. Of six, one after the third won in two of twenty shapes, by 8 %.
const ALGORITHMS: usize = 3;

/// What the library must be faster by: less is noise.
const MARGIN: f64 = 0.97;

/// Bytes of weights that one round of a timing walks through: several times any L2, so that they come from memory as in a step.
const ROUND: usize = 256 << 20;

/// Most launches of a round.
const MOST_LAUNCHES: usize = 24;

/// In the place of a count: all rows of the bucket are live. The counts hold nothing yet when products are timed.
const ALL_ROWS: usize = 2;

/// Whether products go to the library.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Auto,
    Off,
    Always,
}

impl Mode {
    fn parse(word: &str) -> Result<Self> {
        match word {
            "" | "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            "always" => Ok(Self::Always),
            other => Err(Error::unsupported(format!("RUNTIME_CUBLASLT is '{other}': it may be auto, off or always"))),
        }
    }
}

/// The library's plan; `None` where the own kernel is taken.
type Choice = Option<Arc<Plan>>;

#[derive(Default)]
struct Known {
    /// `None` before the first question.
    library: Option<Option<Arc<CublasLt>>>,
    choices: HashMap<Shape, Choice>,
}

/// The choices made on one device.
pub struct Candidates {
    mode: Mode,
    known: Mutex<Known>,
}

impl Candidates {
    /// No choice made yet.
    ///
    /// # Errors
    /// `RUNTIME_CUBLASLT` is none of the words that it may be.
    pub fn new() -> Result<Self> {
        let word = std::env::var_os("RUNTIME_CUBLASLT").unwrap_or_default();
        let mode = Mode::parse(&word.to_string_lossy())?;
        Ok(Self { mode, known: Mutex::default() })
    }
}

impl Known {
    /// The library, opened when it is first asked for. The context is current.
    fn library(&mut self) -> Option<Arc<CublasLt>> {
        let opened = self.library.get_or_insert_with(|| {
            let library = CublasLt::open().map(Arc::new);
            match &library {
                Some(library) => tracing::debug!(version = library.version(), "cuBLASLt"),
                None => tracing::debug!("cuBLASLt is not installed"),
            }
            library
        });
        opened.clone()
    }
}

/// A dense product with its addresses.
#[derive(Clone, Copy)]
pub struct Dense {
    pub shape: Shape,
    pub x: u64,
    pub weight: u64,
    /// What is added, where something is.
    pub add: u64,
    pub out: u64,
    /// Which of the counts says how many rows are live.
    pub which: usize,
}

impl Dense {
    fn call(&self, plan: &Arc<Plan>, workspace: u64) -> Work {
        let add = if self.shape.add { self.add } else { self.out };
        Work::Product(Call { plan: plan.clone(), x: self.x, weight: self.weight, add, out: self.out, workspace })
    }
}

impl Recorder<'_> {
    /// Records a product with a weight of the program's: the library's way, or as `own` records it.
    pub fn fastest(&mut self, p: &Dense, own: impl Fn(&mut Self, &Dense) -> Result<()>) -> Result<()> {
        let context = self.context.clone();
        let candidates = &context.candidates;
        let wanted = match candidates.mode {
            Mode::Off => false,
            Mode::Auto => ROWS.contains(&p.shape.rows),
            Mode::Always => true,
        };
        if !wanted {
            return own(self, p);
        }
        let mut known = candidates.known.lock().unwrap_or_else(PoisonError::into_inner);
        let choice = match known.choices.get(&p.shape) {
            Some(choice) => choice.clone(),
            None => {
                let choice = match known.library() {
                    Some(library) => self.compare(&library, p, &own)?,
                    None => None,
                };
                known.choices.entry(p.shape).or_insert(choice).clone()
            }
        };
        let Some(plan) = choice else { return own(self, p) };
        let workspace = self.workspace(plan.workspace);
        self.launches.push(p.call(&plan, workspace));
        Ok(())
    }

    /// Times both; the library's fastest plan where it wins.
    fn compare(
        &mut self,
        library: &Arc<CublasLt>,
        p: &Dense,
        own: impl Fn(&mut Self, &Dense) -> Result<()>,
    ) -> Result<Choice> {
        let context = self.context.clone();
        let shape = p.shape;
        let plans: Vec<Arc<Plan>> = library.plans(shape, ALGORITHMS)?.into_iter().map(Arc::new).collect();
        let x_bytes = (2 * shape.rows * shape.pitch).next_multiple_of(256);
        let out_bytes = (shape.rows * shape.width * if shape.out_f32 { 4 } else { 2 }).next_multiple_of(256);
        let workspace = plans.iter().map(|plan| plan.workspace).max().unwrap_or(0);
        // Where memory is that short, the own kernels do.
        let Ok(memory) = context.allocate("timing a product", x_bytes + out_bytes + workspace) else { return Ok(None) };
        let [x, out, workspace] = [0, x_bytes, x_bytes + out_bytes].map(|offset| memory.address + offset as u64);
        // Small numbers: with zeros the chip would clock higher than it can.
        context.fill(x, 0x3c, x_bytes + out_bytes)?;
        let mut weights = self.weights_like(p)?;
        weights.truncate(ROUND.div_ceil(2 * shape.width * shape.inner).min(MOST_LAUNCHES));
        let trials: Vec<Dense> =
            weights.iter().map(|weight| Dense { x, weight: *weight, add: out, out, which: ALL_ROWS, ..*p }).collect();
        let recorded = self.launches.len();
        trials.iter().try_for_each(|trial| own(self, trial))?;
        let own_us = time(&context, &self.launches.split_off(recorded))? / trials.len() as f64 * 1e6;
        let timed = plans.into_iter().filter_map(|plan| {
            let calls: Vec<Work> = trials.iter().map(|trial| trial.call(&plan, workspace)).collect();
            // An algorithm that fails is none.
            Some((time(&context, &calls).ok()? / trials.len() as f64 * 1e6, plan))
        });
        let Some((library_us, plan)) = timed.min_by(|a, b| a.0.total_cmp(&b.0)) else { return Ok(None) };
        tracing::debug!(?shape, own_us, library_us, "timed a product");
        let wins = library_us < MARGIN * own_us || context.candidates.mode == Mode::Always;
        Ok(wins.then_some(plan))
    }

    /// Addresses of the program's weights of one shape: as many as it has, so that a timing finds them where a step does.
    fn weights_like(&self, p: &Dense) -> Result<Vec<u64>> {
        let Shape { width, inner, transposed, dtype, .. } = p.shape;
        let size = if transposed { (width, inner) } else { (inner, width) };
        let like = self.program.ids().filter(|id| {
            let decl = self.decl(*id);
            decl.place == Place::Weight && (decl.rows, decl.cols) == size && decl.dtype == dtype
        });
        let mut list = like.map(|id| self.at(id)).collect::<Result<Vec<_>>>()?;
        if list.is_empty() {
            list.push(p.weight);
        }
        Ok(list)
    }
}

/// Seconds of the launches one after another: the better of two rounds, after one that loads kernels and wakes the chip. In a graph, as
/// in a step: small products take the host longer to launch than the device to compute, and the library's the longest.
fn time(context: &Context, launches: &[Work]) -> Result<f64> {
    let submit = |stream| launches.iter().try_for_each(|launch| launch.submit(stream));
    submit(context.stream)?;
    let graph = Graph::capture(context, "a timing", submit)?;
    let round = || graph.launch(context, "a timing");
    round()?;
    let first = context.time(round)?;
    Ok(first.min(context.time(round)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_is_one_of_three_words() {
        assert!(Mode::parse("").is_ok_and(|mode| mode == Mode::Auto));
        assert!(Mode::parse("off").is_ok_and(|mode| mode == Mode::Off));
        assert!(Mode::parse("never").is_err());
    }
}
