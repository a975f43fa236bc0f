//! How much memory a command has used.

use zmlx_kernels::Instrumented;

/// The most bytes that computing has taken at once: what the backend counts, if it does, else what the process has had.
pub(crate) fn peak_bytes<B: Instrumented>(backend: &B) -> Option<u64> {
    backend.peak_memory_bytes().or_else(peak_resident_bytes)
}

/// The largest resident size of this program so far, in bytes; `None` where the system does not tell.
///
/// Linux counts it in `/proc`, anew for each program that a process executes. What `getrusage` counts there includes the
/// program that the process was before: a small command started by a large shell script would seem large.
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

/// The largest resident size of this process so far, in bytes; `None` where the system does not tell.
#[cfg(all(unix, not(target_os = "linux")))]
pub(crate) fn peak_resident_bytes() -> Option<u64> {
    use nix::sys::resource::{UsageWho, getrusage};
    // Apple counts bytes, other systems KiB.
    let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
    let max = getrusage(UsageWho::RUSAGE_SELF).ok()?.max_rss();
    u64::try_from(max).ok().map(|n| n * unit)
}

/// The largest resident size so far; `None` where the system does not tell.
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
