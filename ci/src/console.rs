//! The terminal: the guest's lines on standard output, the harness's own remarks and its progress on standard error.
//!
//! On a terminal progress is a spinner below the last line; in a pipe it is a plain line now and then.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// In a pipe, how long nothing is printed before a line says that the run still goes on.
const SILENCE: Duration = Duration::from_secs(10);

/// Shows one guest's run as it goes.
pub(crate) struct Console {
    spinner: Option<ProgressBar>,
    live: bool,
    last: Instant,
    begun: Instant,
}

impl Console {
    /// `live`: the guest's lines are shown as they come.
    pub(crate) fn new(live: bool) -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {elapsed} {msg}");
            ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        });
        let now = Instant::now();
        Self { spinner, live, last: now, begun: now }
    }

    /// A line of the guest.
    pub(crate) fn guest(&mut self, line: &str) {
        if !self.live {
            return;
        }
        self.last = Instant::now();
        match &self.spinner {
            Some(spinner) => spinner.suspend(|| println!("{line}")),
            None => println!("{line}"),
        }
    }

    /// Says what is going on, if there is a way to say it now.
    pub(crate) fn progress(&mut self, doing: impl FnOnce() -> String) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(doing());
            spinner.tick();
        } else if self.last.elapsed() >= SILENCE {
            self.last = Instant::now();
            eprintln!("... {} s: {}", self.begun.elapsed().as_secs(), doing());
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}
