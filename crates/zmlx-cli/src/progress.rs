//! Progress bars that appear only where someone waits for them.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
#[cfg(feature = "proof")]
use zmlx_bench::Work;

use crate::output;

/// Work that takes less time shows no bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// A progress bar on stderr. It is shown if both stdout and stderr are terminals, the user did not ask for quiet, and
/// the work takes longer than a second.
#[derive(Debug)]
pub(crate) struct Progress {
    label: &'static str,
    started: Instant,
    is_shown: bool,
    template: &'static str,
    bar: Option<ProgressBar>,
}

/// The templates of bars that count parts and of bars that count bytes.
const COUNT: &str = "{msg} {wide_bar} {pos}/{len} {eta}";
const BYTES: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";

impl Progress {
    pub(crate) fn new(label: &'static str) -> Self {
        let are_terminals = std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        let is_shown = are_terminals && !output::is_quiet();
        Self { label, started: Instant::now(), is_shown, template: COUNT, bar: None }
    }

    /// A bar that counts bytes.
    pub(crate) fn bytes(label: &'static str) -> Self {
        Self { template: BYTES, ..Self::new(label) }
    }

    /// Reports that `done` of `of` parts are done. After the last part the bar is removed.
    pub(crate) fn update(&mut self, done: usize, of: usize) {
        if done >= of {
            if let Some(bar) = self.bar.take() {
                bar.finish_and_clear();
            }
        } else if self.is_shown && self.started.elapsed() > PATIENCE {
            let (label, template) = (self.label, self.template);
            let bar = self.bar.get_or_insert_with(|| {
                let bar = ProgressBar::new(of as u64).with_message(label);
                // If the template does not parse, the default style is used.
                let style = ProgressStyle::with_template(template);
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar
            });
            bar.set_position(done as u64);
        }
    }
}

/// A bar for several kinds of work, one after the other.
#[cfg(feature = "proof")]
#[derive(Debug, Default)]
pub(crate) struct WorkProgress(Option<(Work, Progress)>);

#[cfg(feature = "proof")]
impl WorkProgress {
    /// Reports that `done` of `of` parts of the work are done.
    pub(crate) fn update(&mut self, work: Work, done: usize, of: usize) {
        let label = match work {
            Work::Loading => "Loading",
            Work::FillingCaches => "Filling caches",
            Work::Measuring => "Measuring",
            Work::Hashing => "Hashing",
        };
        match &mut self.0 {
            Some((current, progress)) if *current == work => progress.update(done, of),
            other => other.insert((work, Progress::new(label))).1.update(done, of),
        }
    }
}
