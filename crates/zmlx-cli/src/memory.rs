//! How much memory a command has used.

use zmlx_kernels::Instrumented;

/// The most bytes that computing has taken at once: what the backend counts, if it does, else what the process has had.
pub(crate) fn peak_bytes<B: Instrumented>(backend: &B) -> Option<u64> {
    backend.peak_memory_bytes().or_else(peak_resident_bytes)
}

/// The largest resident size of this program so far, in bytes; `None` if the system does not report it.
///
/// Linux counts it in `/proc` from the moment the program was executed. `getrusage` also includes the earlier program
/// of the same process: a small command that a large shell starts would seem large.
#[cfg(target_os = "linux")]
pub(crate) fn peak_resident_bytes() -> Option<u64> {
    high_water_mark(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// The line `VmHWM` of `/proc/self/status`.
#[cfg(any(target_os = "linux", test))]
fn high_water_mark(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

/// The largest resident size of this process so far, in bytes; `None` if the system does not report it.
#[cfg(all(unix, not(target_os = "linux")))]
pub(crate) fn peak_resident_bytes() -> Option<u64> {
    use nix::sys::resource::{UsageWho, getrusage};
    // Apple's systems report bytes, others KiB.
    let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
    let max = getrusage(UsageWho::RUSAGE_SELF).ok()?.max_rss();
    u64::try_from(max).ok().map(|n| n * unit)
}

/// The largest resident size so far; always `None`, because the system does not report it.
#[cfg(not(unix))]
pub(crate) fn peak_resident_bytes() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_line_of_the_status_file() {
        let status = "Name:\tzmlx\nVmPeak:\t  999 kB\nVmHWM:\t   21504 kB\nVmRSS:\t 1 kB\n";
        assert_eq!(super::high_water_mark(status), Some(21_504 * 1024));
        assert_eq!(super::high_water_mark("VmHWM:\tmany kB\n"), None);
        assert_eq!(super::high_water_mark(""), None);
    }
}
