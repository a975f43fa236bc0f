//! Finds models by name in the cache or downloads them, with progress for a person who waits.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use zmlx_hub::{Cache, Environment, Error, ModelName};

/// Whether the hub may be contacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Allowed,
    Forbidden,
}

/// The folder of a model, in the cache or after a download.
pub(crate) fn find(name: &ModelName, network: Network) -> Result<PathBuf> {
    let environment = Environment::of_process();
    let found = Cache::of(&environment)?.find(name);
    let lacking = match found {
        Err(error @ Error::NotCached { .. }) => format!("{error}, and there is no folder with that name"),
        Err(error @ Error::Incomplete { .. }) => error.to_string(),
        found => return Ok(found?),
    };
    let forbidden = match network {
        Network::Forbidden => Some("--offline"),
        Network::Allowed => environment.forbids_network(),
    };
    match forbidden {
        Some(by) => bail!("{lacking}; {by} is set, so nothing is downloaded"),
        None => download(name, &environment).context(lacking),
    }
}

#[cfg(not(feature = "hub"))]
fn download(_: &ModelName, _: &Environment) -> Result<PathBuf> {
    bail!("this zmlx is built without downloads: they need the feature `hub`")
}

#[cfg(feature = "hub")]
pub(crate) use downloads::download;

#[cfg(feature = "hub")]
mod downloads {
    use std::io::IsTerminal;
    use std::path::PathBuf;
    use std::sync::Mutex;

    use anyhow::Result;
    use indicatif::{ProgressBar, ProgressStyle};
    use zmlx_hub::{Environment, Hub, ModelName, Notice};

    use crate::output::{self, note};
    use zmlx_models::human_bytes;

    /// Downloads the files of a model that the cache lacks. Returns the model's folder.
    pub(crate) fn download(name: &ModelName, environment: &Environment) -> Result<PathBuf> {
        let told = Told { name, bar: Mutex::new(None) };
        let pulled = Hub::of(environment)?.pull(name, &|notice| told.tell(notice));
        told.with_bar(ProgressBar::finish_and_clear);
        Ok(pulled?.dir)
    }

    /// Reports the progress of a download on stderr, with a bar if stderr is a terminal.
    struct Told<'a> {
        name: &'a ModelName,
        bar: Mutex<Option<ProgressBar>>,
    }

    impl Told<'_> {
        fn tell(&self, notice: Notice<'_>) {
            if output::is_quiet() {
                return;
            }
            match notice {
                Notice::Begin { n_files, bytes, present_bytes } if present_bytes < bytes => {
                    let there = match present_bytes {
                        0 => String::new(),
                        n => format!("; {} are already in the cache", human_bytes(n)),
                    };
                    let size = human_bytes(bytes);
                    note(format_args!("Downloading {}: {n_files} files, {size}{there}", self.name));
                    if std::io::stderr().is_terminal()
                        && let Ok(mut bar) = self.bar.lock()
                    {
                        *bar = Some(new_bar(bytes, present_bytes));
                    }
                }
                Notice::Bytes(n) => self.with_bar(|bar| match u64::try_from(n) {
                    Ok(n) => bar.inc(n),
                    Err(_) => bar.dec(n.unsigned_abs()),
                }),
                Notice::Waiting { file } => {
                    self.say(&format!("{file}: waiting for another process that downloads it"))
                }
                Notice::Again { error, pause } if pause.is_zero() => {
                    self.say(&format!("{error}; continuing"))
                }
                Notice::Again { error, pause } => {
                    self.say(&format!("{error}; trying again in {:.1} s", pause.as_secs_f64()));
                }
                _ => {}
            }
        }

        /// Prints a line above the bar.
        fn say(&self, line: &str) {
            let mut is_said = false;
            self.with_bar(|bar| {
                bar.suspend(|| note(format_args!("{line}")));
                is_said = true;
            });
            if !is_said {
                note(format_args!("{line}"));
            }
        }

        fn with_bar(&self, act: impl FnOnce(&ProgressBar)) {
            if let Ok(bar) = self.bar.lock()
                && let Some(bar) = bar.as_ref()
            {
                act(bar);
            }
        }
    }

    fn new_bar(bytes: u64, present_bytes: u64) -> ProgressBar {
        let bar = ProgressBar::new(bytes);
        // If the template does not parse, the default style is used.
        let style = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_position(present_bytes);
        // Files that were already in the cache must not count towards the speed.
        bar.reset_eta();
        bar
    }
}
