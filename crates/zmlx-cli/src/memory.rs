//! How much memory the process has used.

/// The largest resident size so far; none where the system does not tell.
#[cfg(unix)]
pub(crate) fn peak_bytes() -> Option<u64> {
    use nix::sys::resource::{UsageWho, getrusage};
    // Apple counts bytes, everyone else KiB.
    let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
    let max = getrusage(UsageWho::RUSAGE_SELF).ok()?.max_rss();
    u64::try_from(max).ok().map(|n| n * unit)
}

/// The largest resident size so far; none where the system does not tell.
#[cfg(not(unix))]
pub(crate) fn peak_bytes() -> Option<u64> {
    None
}
