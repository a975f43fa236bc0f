//! Whether the machine has room for what is about to be allocated.
//!
//! Systems promise more memory than they have, and kill a process that uses what was promised. So large sizes are
//! compared with the free memory first.

use crate::{Error, Result};

/// Smaller sizes, in bytes, are not checked: allocating them fails early enough.
const LARGE: usize = 256 << 20;

/// Refuses a size that the machine's free memory does not hold.
///
/// # Errors
/// [`Error::Memory`], naming `op`.
pub fn ensure_memory(op: &'static str, n_bytes: usize) -> Result<()> {
    if n_bytes < LARGE || available_bytes().is_none_or(|free| n_bytes as u64 <= free) {
        return Ok(());
    }
    Err(Error::Memory { op, n_bytes })
}

/// Bytes that programs can still allocate without swapping; `None` if the system does not report them.
pub fn available_bytes() -> Option<u64> {
    let text =
        if cfg!(target_os = "linux") { std::fs::read_to_string("/proc/meminfo").ok()? } else { return None };
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_has_is_refused() {
        assert!(ensure_memory("test", 1 << 20).is_ok());
        assert!(!cfg!(target_os = "linux") || ensure_memory("test", 1 << 60).is_err());
    }
}
