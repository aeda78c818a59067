//! Stop strings in streamed text.

/// Cuts a stream of text at the first stop string, holding back what may still become one.
///
/// The first is the one that is complete first; of several that end at the same place, the one that
/// starts first. So the result does not depend on how the text is divided into pieces.
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

/// What [`StopMatcher::push`] lets out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// Text that is certainly not part of a stop string; may be empty.
    pub text: String,
    /// The stop string that ended the stream (its position in the list given); it is not in the text.
    pub stop: Option<usize>,
}

impl StopMatcher {
    /// Empty strings in `stops` never match.
    #[must_use]
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new(), stopped: false }
    }

    /// Takes the next piece of text. After a stop, nothing comes out any more.
    pub fn push(&mut self, text: &str) -> StopOutput {
        if self.stopped {
            return StopOutput::default();
        }
        self.held.push_str(text);
        let found = self
            .stops
            .iter()
            .enumerate()
            .filter(|(_, stop)| !stop.is_empty())
            .filter_map(|(i, stop)| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start, i)))
            .min();
        if let Some((_, start, i)) = found {
            self.stopped = true;
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return StopOutput { text, stop: Some(i) };
        }
        let keep = self.hold_from();
        let rest = self.held.split_off(keep);
        StopOutput { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// Ends the stream: what was held back is text after all.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Whether a stop string was found.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Where the longest ending begins that is the beginning of a stop string.
    fn hold_from(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        (from..self.held.len())
            .filter_map(|at| self.held.get(at..).map(|tail| (at, tail)))
            .find(|(_, tail)| self.stops.iter().any(|stop| stop.starts_with(tail)))
            .map_or(self.held.len(), |(at, _)| at)
    }
}
