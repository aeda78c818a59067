//! How requests and training share a device: whose turn it is, and for how long.

use std::time::Duration;

/// Keeps account of training's share of the time, while both want the device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shares {
    /// Seconds that training is behind (negative: ahead of) its share.
    debt: f64,
}

impl Shares {
    /// Whether training is next, where both could be.
    pub fn training_next(&self) -> bool {
        self.debt > 0.0
    }

    /// Takes note of a slice while both wanted to work. `share` is training's, from 0 to 1.
    pub fn note(&mut self, share: f64, training: bool, seconds: f64) {
        self.debt += share * seconds - if training { seconds } else { 0.0 };
        // What was missed a second ago is forgotten.
        self.debt = self.debt.clamp(-1.0, 1.0);
    }

    /// Seconds after which training would have its share.
    pub fn owed(&self, share: f64) -> f64 {
        if share < 1.0 { self.debt.max(0.0) / (1.0 - share) } else { f64::INFINITY }
    }
}

/// What a server promises to requests and to training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Training's share of the time while requests run, from 0 (only while none does) to 1.
    pub train_share: f64,
    /// Longest time from one token of an answer to the next that training may lead to; where both promises cannot be kept, this one
    /// is.
    pub itl_slo: Option<Duration>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { train_share: 0.5, itl_slo: None }
    }
}

impl Pace {
    /// Checks both.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] naming the option and what is accepted.
    pub fn validate(&self) -> crate::Result<()> {
        if !(0.0..=1.0).contains(&self.train_share) {
            let message = format!("train_share is {}, expected a number from 0 to 1", self.train_share);
            return Err(crate::Error::invalid(message));
        }
        if self.itl_slo.is_some_and(|slo| slo.is_zero()) {
            return Err(crate::Error::invalid("itl_slo_ms is 0, expected a number above 0"));
        }
        Ok(())
    }
}

/// Training's slice while no request runs: how long one that arrives waits at most, but for the device's smallest unit of work.
const IDLE_SLICE: Duration = Duration::from_millis(5);
/// Shortest and longest slice between two steps.
const SLICE: [f64; 2] = [0.0005, 0.05];

/// Decides whose turn it is, step by step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pacer {
    /// What was promised.
    pub pace: Pace,
    shares: Shares,
    /// Seconds of a step lately.
    step: f64,
    /// Seconds by which slices have passed their ends lately: the device's smallest unit.
    excess: f64,
}

impl Pacer {
    /// Nothing is known yet.
    pub fn new(pace: Pace) -> Self {
        Self { pace, ..Self::default() }
    }

    /// Training's next slice; `None`: it is the requests' turn.
    pub fn slice(&self, requests: bool) -> Option<Duration> {
        if !requests {
            return Some(IDLE_SLICE);
        }
        if !self.shares.training_next() {
            return None;
        }
        let mut seconds = self.shares.owed(self.pace.train_share).clamp(SLICE[0], SLICE[1]);
        if let Some(slo) = self.pace.itl_slo {
            let room = slo.as_secs_f64() - self.step - self.excess;
            if room <= 0.0 {
                return None;
            }
            seconds = seconds.min(room);
        }
        Some(Duration::from_secs_f64(seconds))
    }

    /// Takes note of a slice that training had while requests wanted to run.
    pub fn trained(&mut self, slice: Duration, took: Duration) {
        let (slice, took) = (slice.as_secs_f64(), took.as_secs_f64());
        self.excess += ((took - slice).max(0.0) - self.excess) / 8.0;
        self.shares.note(self.pace.train_share, true, took);
    }

    /// Takes note of a step that ran while training wanted to.
    pub fn stepped(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.step += (took - self.step) / 8.0;
        // A unit that was too long once may be shorter now.
        self.excess *= 0.98;
        self.shares.note(self.pace.train_share, false, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Training's share of the time, and its longest slice, over steps of 10 ms on a device whose smallest unit is `unit`.
    fn simulate(pace: Pace, unit: f64) -> (f64, f64) {
        let mut pacer = Pacer::new(pace);
        let (mut training, mut all, mut longest) = (0.0, 0.0, 0.0f64);
        for round in 0..20_000 {
            match pacer.slice(true) {
                Some(slice) => {
                    let took = (slice.as_secs_f64() / unit).ceil() * unit;
                    pacer.trained(slice, Duration::from_secs_f64(took));
                    training += took;
                    all += took;
                    // What a unit takes is learned from the first ones.
                    longest = if round > 1000 { longest.max(took) } else { longest };
                }
                None => {
                    pacer.stepped(Duration::from_millis(10));
                    all += 0.01;
                }
            }
        }
        (training / all, longest)
    }

    #[test]
    fn training_gets_its_share() {
        for share in [0.0, 0.1, 0.25, 0.5, 0.75, 0.9] {
            for unit in [0.0001, 0.001, 0.02] {
                let (got, _) = simulate(Pace { train_share: share, itl_slo: None }, unit);
                assert!((got - share).abs() < 0.01, "{share} in units of {unit}: {got}");
            }
        }
    }

    #[test]
    fn the_promise_to_requests_comes_first() {
        let pace = Pace { train_share: 0.5, itl_slo: Some(Duration::from_millis(13)) };
        let (share, longest) = simulate(pace, 0.001);
        assert!(longest <= 0.0031 && share > 0.15, "{longest} {share}");
        // A unit that never fits is not begun, but now and then to see whether it is shorter.
        let (share, _) = simulate(pace, 0.02);
        assert!(share < 0.1, "{share}");
        assert_eq!(Pacer::new(pace).slice(false), Some(IDLE_SLICE));
    }

    #[test]
    fn promises_are_checked() {
        assert!(Pace::default().validate().is_ok());
        for share in [-0.1, 1.1, f64::NAN] {
            assert!(Pace { train_share: share, itl_slo: None }.validate().is_err());
        }
        assert!(Pace { train_share: 0.5, itl_slo: Some(Duration::ZERO) }.validate().is_err());
    }
}
