//! How much of a recorded program to hand to a GPU at once, so that it is done by a deadline.
//!
//! A GPU cannot be stopped, so a program goes to it in parts, each as long as half of the time that is left. How long a unit of a
//! program takes is learned from the parts: a first guess, then what was measured, unit by unit.

use std::ops::Range;
use std::time::Duration;

/// Time that a part takes beside its units: handing it over, and hearing that it is done.
const ROUND_TRIP: f32 = 50e-6;

/// Expected times of a program's units: stretches between which it may stop.
pub struct Pace {
    seconds: Vec<f32>,
    /// Units below this were measured.
    measured: usize,
}

impl Pace {
    /// A first guess of each unit's time.
    pub fn new(guesses: impl Iterator<Item = f32>) -> Self {
        Self { seconds: guesses.collect(), measured: 0 }
    }

    /// Units of the program.
    pub fn units(&self) -> usize {
        self.seconds.len()
    }

    /// The end of a part that begins with unit `first`, one unit at least: all that is left of the program where that fits into
    /// the time that is left. Of units that were never measured no more than were measured so far, so that a wrong guess costs
    /// little.
    pub fn end(&self, first: usize, left: Duration) -> usize {
        let known = self.measured.max(first);
        self.fitting(first, left).min(known + self.measured.max(1))
    }

    fn fitting(&self, first: usize, left: Duration) -> usize {
        let left = left.as_secs_f32();
        let rest: f32 = self.seconds[first..].iter().sum();
        if rest + ROUND_TRIP <= left {
            return self.units();
        }
        let mut sum = 0.0;
        let fits = self.seconds[first..].iter().take_while(|seconds| {
            sum += **seconds;
            sum <= left / 2.0
        });
        first + fits.count().max(1)
    }

    /// Whether a part is worth beginning in the time that is left.
    pub fn is_over(&self, left: Duration) -> bool {
        left.as_secs_f32() <= ROUND_TRIP
    }

    /// Takes note of what a part took.
    pub fn took(&mut self, units: Range<usize>, time: Duration) {
        let sum: f32 = self.seconds[units.clone()].iter().sum();
        let own = (time.as_secs_f32() - ROUND_TRIP).max(1e-6);
        // A part that something else held up counts for a little only.
        let ratio = (own / sum.max(1e-9)).clamp(1e-3, if self.measured < units.end { 1e3 } else { 1.5 });
        self.seconds[units.clone()].iter_mut().for_each(|seconds| *seconds *= ratio);
        if units.end > self.measured {
            // What was guessed in the same way is wrong in the same way.
            self.seconds[units.end..].iter_mut().for_each(|seconds| *seconds *= ratio);
            self.measured = units.end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs 100 units of `actual` seconds in slices of 2 ms; how long the slices took, in seconds.
    fn slices(pace: &mut Pace, actual: f32) -> Vec<f32> {
        let (mut at, mut slices) = (0, Vec::new());
        while at < pace.units() {
            let mut took = 0.0;
            loop {
                let left = Duration::from_secs_f32((2e-3f32 - took).max(0.0));
                let end = pace.end(at, left);
                let part = (end - at) as f32 * actual + ROUND_TRIP;
                pace.took(at..end, Duration::from_secs_f32(part));
                (at, took) = (end, took + part);
                if at == pace.units() || pace.is_over(Duration::from_secs_f32((2e-3f32 - took).max(0.0))) {
                    break;
                }
            }
            slices.push(took);
        }
        slices
    }

    #[test]
    fn slices_keep_to_their_budget_once_units_are_known() {
        for actual in [1e-6, 30e-6, 100e-6] {
            let mut pace = Pace::new((0..100).map(|_| 20e-6));
            slices(&mut pace, actual);
            let again = slices(&mut pace, actual);
            assert!(again.iter().all(|took| *took <= 2.5e-3), "{actual}: {again:?}");
            let ideal = (100.0 * actual / 2e-3).ceil() as usize;
            assert!(again.len() <= 2 * ideal, "{actual}: {} slices", again.len());
        }
        let mut slow = Pace::new((0..100).map(|_| 20e-6));
        let first = slices(&mut slow, 5e-3);
        assert!(first.iter().all(|took| *took <= 5.1e-3), "a unit at a time: {first:?}");
    }
}
