//! What ends the process from outside: Ctrl-C, other signals, and weights that vanish while they are read. The first
//! Ctrl-C ends the work in progress cleanly, the second ends the process. No temporary file is left behind.

use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::Result;

use crate::{output, ranks};

/// No work is in progress that could be ended cleanly.
const IDLE: u8 = 0;
const BUSY: u8 = 1;
/// Ctrl-C was pressed while work was in progress.
const ASKED: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// Ctrl-C ended the work before it had a result.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Installs the handler of Ctrl-C. Before [`begin`] and after [`Busy`] is dropped, Ctrl-C still ends the process.
pub(crate) fn install() -> Result<()> {
    if ranks::is_follower() {
        return Ok(());
    }
    ctrlc::set_handler(|| {
        if STATE.compare_exchange(BUSY, ASKED, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            output::remove_temporary();
            ranks::leave(130, Some("interrupted"));
            std::process::exit(130);
        }
    })?;
    Ok(())
}

/// Lets Ctrl-C pass, which a terminal sends to all ranks: rank 0 decides, and the others end with it. So does SIGTERM, which a
/// service manager may send to all, where no work is lost by it ([`take_signals`] has not been called).
pub(crate) fn leave_to_rank_0() -> Result<()> {
    ctrlc::set_handler(|| ())?;
    #[cfg(unix)]
    signal_hook::flag::register(signal_hook::consts::SIGTERM, std::sync::Arc::default())?;
    Ok(())
}

/// After this call the process ends with a message if a mapped file loses its bytes.
///
/// # Errors
/// If the system refuses to install the handler.
pub(crate) fn watch_files() -> Result<()> {
    #[cfg(unix)]
    zmlx_kernels::on_lost_file(|path| {
        output::remove_temporary();
        output::note(format_args!(
            "error: {}: the file was cut short or written over while it was in use",
            path.display()
        ));
        std::process::exit(2);
    })?;
    Ok(())
}

/// After this call the signals that ask a process to end first remove its temporary files.
///
/// # Errors
/// If the system refuses to install the handler.
pub(crate) fn take_signals() -> Result<()> {
    #[cfg(unix)]
    {
        use signal_hook::consts::{SIGHUP, SIGTERM};
        // A signal that is ignored, as under nohup, stays ignored.
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM])?;
        if !is_ignored(SIGHUP) {
            signals.add_signal(SIGHUP)?;
        }
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                output::remove_temporary();
                // Ends the process by the signal itself, as its parent expects.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        })?;
    }
    Ok(())
}

/// Whether this process was started with the signal ignored. Returns false if that cannot be found out.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

/// From here on Ctrl-C only sets a flag, until the returned value is dropped.
pub(crate) fn begin() -> Busy {
    STATE.store(BUSY, Ordering::SeqCst);
    Busy
}

/// Marks that work is in progress, until it is dropped.
#[derive(Debug)]
pub(crate) struct Busy;

impl Busy {
    /// True after Ctrl-C was pressed.
    pub(crate) fn is_asked(&self) -> bool {
        STATE.load(Ordering::SeqCst) == ASKED
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        STATE.store(IDLE, Ordering::SeqCst);
    }
}
