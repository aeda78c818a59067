//! Progress: bars on a terminal, plain lines elsewhere.

use crate::common;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// A bar on stderr with this template; `None` where stderr is no terminal.
pub fn bar(total: u64, template: &str) -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::new(total);
    // A template is fixed text; should it ever be wrong, the default style does.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    Some(bar)
}

/// One file after the other.
#[derive(Default)]
pub struct Download {
    file: String,
    bar: Option<ProgressBar>,
}

impl Download {
    pub fn update(&mut self, file: &str, done: u64, total: u64) {
        if self.file != file {
            self.finish();
            self.file = file.to_owned();
            self.bar = bar(total, "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
            match &self.bar {
                Some(bar) => bar.set_message(self.file.clone()),
                None => eprintln!("{file}: {}", common::bytes(total)),
            }
        }
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }
}
