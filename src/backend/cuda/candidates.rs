//! Who computes a dense product: the kernels of this crate, or cuBLASLt where it is installed.
//!
//! The first program on a device that has a product of some shape times both and the faster one is remembered as long as
//! the device is open, so that a shape is always computed by the same kernel, whatever program asks: serving and
//! training agree bit for bit. `RUNTIME_CUBLASLT` fixes the choice: `off` never asks the library (what is computed then does not
//! depend on a measurement), `always` takes it wherever it can (for tests), `auto`, the default, measures.

use super::context::Context;
use super::cublaslt::{Call, CublasLt, Plan, Shape};
use super::launch::Work;
use super::record::Recorder;
use crate::error::{Error, Result};
use crate::program::Place;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

/// Rows for which both are timed.
const ROWS: RangeInclusive<usize> = 64..=512;

/// Algorithms of the library that are timed.
const ALGORITHMS: usize = 4;

/// What the library must be faster by: less is noise.
const MARGIN: f64 = 0.97;

/// Bytes of weights that one round of a timing walks through: several times any L2, so that they come from memory as in a step.
const ROUND: usize = 256 << 20;

/// Most turns of a round.
const MOST_TURNS: usize = 24;

/// In the place of a count: all rows of the bucket are live. The counts hold nothing yet when products are timed.
const ALL_ROWS: usize = 2;

/// Whether products go to the library.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Auto,
    Off,
    Always,
}

/// Products that share a launch.
type Shapes = Vec<Shape>;
/// The library's plan for each of them; `None` where the own kernels are taken.
type Choice = Option<Vec<Arc<Plan>>>;

#[derive(Default)]
struct Known {
    /// `None` before the first question.
    library: Option<Option<Arc<CublasLt>>>,
    choices: HashMap<Shapes, Choice>,
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
        let mode = match std::env::var_os("RUNTIME_CUBLASLT").as_deref().map(|word| word.to_string_lossy()) {
            None => Mode::Auto,
            Some(word) => match &*word {
                "" | "auto" => Mode::Auto,
                "off" => Mode::Off,
                "always" => Mode::Always,
                other => {
                    return Err(Error::unsupported(format!("RUNTIME_CUBLASLT is '{other}': auto, off or always")));
                }
            },
        };
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
    /// Records products that share x: the library's, or those that `own` records. Weights lie in the program's own memory.
    pub fn fastest(&mut self, products: &[Dense], own: impl Fn(&mut Self, &[Dense]) -> Result<()>) -> Result<()> {
        let context = self.context.clone();
        let candidates = &context.candidates;
        let wanted = match candidates.mode {
            Mode::Off => false,
            Mode::Auto => ROWS.contains(&products[0].shape.rows),
            Mode::Always => true,
        };
        if !wanted {
            return own(self, products);
        }
        let shapes: Shapes = products.iter().map(|p| p.shape).collect();
        let mut known = candidates.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.choices.contains_key(&shapes) {
            let choice = match known.library() {
                Some(library) => self.compare(&library, products, &own)?,
                None => None,
            };
            known.choices.insert(shapes.clone(), choice);
        }
        let Some(plans) = known.choices.get(&shapes).cloned().flatten() else { return own(self, products) };
        let workspace = self.scratch(plans.iter().map(|plan| plan.workspace).max().unwrap_or(0));
        self.launches.extend(products.iter().zip(&plans).map(|(p, plan)| p.call(plan, workspace)));
        Ok(())
    }

    /// Times both; the library's plans where they are faster.
    fn compare(
        &mut self,
        library: &Arc<CublasLt>,
        products: &[Dense],
        own: impl Fn(&mut Self, &[Dense]) -> Result<()>,
    ) -> Result<Choice> {
        let context = self.context.clone();
        let plans = products.iter().map(|p| library.plans(p.shape, ALGORITHMS)).collect::<Result<Vec<_>>>()?;
        let shapes = || products.iter().map(|p| p.shape);
        let x_bytes = shapes().map(|s| 2 * s.rows * s.pitch).max().unwrap_or(0).next_multiple_of(256);
        let out_bytes = shapes().map(|s| (2 << u8::from(s.out_f32)) * s.rows * s.width).max().unwrap_or(0);
        let out_bytes = out_bytes.next_multiple_of(256);
        let workspace = plans.iter().flatten().map(|plan| plan.workspace).max().unwrap_or(0);
        // Where memory is that short, the own kernels do.
        let Ok(memory) = context.allocate("timing a product", x_bytes + out_bytes + workspace) else { return Ok(None) };
        let [x, out, workspace] = [0, x_bytes, x_bytes + out_bytes].map(|offset| memory.address + offset as u64);
        // Small numbers: with zeros the chip would clock higher than it can.
        context.fill(x, 0x3c, x_bytes + out_bytes)?;
        let weights = products.iter().map(|p| self.weights_like(p)).collect::<Result<Vec<_>>>()?;
        let bytes: usize = shapes().map(|s| 2 * s.width * s.inner).sum();
        let distinct = weights.iter().map(Vec::len).min().unwrap_or(1).div_ceil(products.len());
        let turns = ROUND.div_ceil(bytes).min(distinct).min(MOST_TURNS);
        let product = |turn: usize, i: usize| {
            let weight = weights[i][(turn * products.len() + i) % weights[i].len()];
            Dense { x, weight, add: out, out, which: ALL_ROWS, ..products[i] }
        };
        let recorded = self.launches.len();
        for turn in 0..turns {
            let together: Vec<Dense> = (0..products.len()).map(|i| product(turn, i)).collect();
            own(self, &together)?;
        }
        let launches = self.launches.split_off(recorded);
        let own_seconds = time(&context, &launches)? / turns as f64;
        let (mut seconds, mut best) = (0.0, Vec::new());
        for (i, plans) in plans.into_iter().enumerate() {
            let timed = plans.into_iter().map(Arc::new).filter_map(|plan| {
                let calls: Vec<Work> = (0..turns).map(|turn| product(turn, i).call(&plan, workspace)).collect();
                // An algorithm that fails is none.
                Some((time(&context, &calls).ok()? / turns as f64, plan))
            });
            let Some((least, plan)) = timed.min_by(|a, b| a.0.total_cmp(&b.0)) else { return Ok(None) };
            seconds += least;
            best.push(plan);
        }
        let shapes: Shapes = shapes().collect();
        tracing::debug!(?shapes, own_us = own_seconds * 1e6, library_us = seconds * 1e6, "timed a product");
        let wins = seconds < MARGIN * own_seconds || context.candidates.mode == Mode::Always;
        Ok(wins.then_some(best))
    }

    /// Addresses of the program's weights of one shape: as many as it has, so that a timing finds them where a step does.
    fn weights_like(&self, p: &Dense) -> Result<Vec<u64>> {
        let Shape { width, inner, transposed, dtype, .. } = p.shape;
        let size = if transposed { (width, inner) } else { (inner, width) };
        let mut list = Vec::new();
        for id in self.program.ids() {
            let decl = self.decl(id);
            if decl.place == Place::Weight && (decl.rows, decl.cols) == size && decl.dtype == dtype {
                list.push(self.at(id)?);
            }
        }
        if list.is_empty() {
            list.push(p.weight);
        }
        Ok(list)
    }
}

/// Seconds of the launches one after another: the better of two rounds, after one that loads kernels and wakes the chip.
fn time(context: &Context, launches: &[Work]) -> Result<f64> {
    let round = || launches.iter().try_for_each(|launch| launch.submit(context));
    round()?;
    // The host runs ahead of the device while that is busy with the round before.
    let first = context.time(round)?;
    round()?;
    Ok(first.min(context.time(round)?))
}
