//! Ctrl-C: the first ends the work in progress cleanly, the second ends the process.

use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::Result;

/// Nothing is in progress that could be ended cleanly.
const IDLE: u8 = 0;
const BUSY: u8 = 1;
/// Ctrl-C came while busy.
const ASKED: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// Work was ended by Ctrl-C before it had a result.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Takes Ctrl-C over. Until [`begin`] and after [`Busy`] is dropped it still ends the process.
pub(crate) fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        if STATE.compare_exchange(BUSY, ASKED, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            std::process::exit(130);
        }
    })?;
    Ok(())
}

/// From here Ctrl-C is only noted.
pub(crate) fn begin() -> Busy {
    STATE.store(BUSY, Ordering::SeqCst);
    Busy
}

/// Work in progress; ends when dropped.
#[derive(Debug)]
pub(crate) struct Busy;

impl Busy {
    /// True once Ctrl-C was pressed.
    pub(crate) fn is_asked(&self) -> bool {
        STATE.load(Ordering::SeqCst) == ASKED
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        STATE.store(IDLE, Ordering::SeqCst);
    }
}
