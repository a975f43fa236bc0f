//! What happens when a mapped file loses the bytes that are being read: it was cut short or written over.
//!
//! The system then sends a signal to the reading thread, which cannot continue its computation. So a program that wants
//! to end cleanly handles the signal: the reading thread waits, and a hook in another thread ends the process.

use std::io::{PipeReader, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nix::libc;

/// The mapped files: the first address, the address after the last byte, and the path.
static MAPPED: Mutex<Vec<(usize, usize, PathBuf)>> = Mutex::new(Vec::new());
/// The address of the first fault, and whether that fault is outside of the mapped files.
static FAULT: AtomicUsize = AtomicUsize::new(0);
static IS_FOREIGN: AtomicBool = AtomicBool::new(false);
/// The pipe through which the handler reports a fault to the watching thread.
static PIPE: AtomicI32 = AtomicI32::new(-1);

fn mapped() -> MutexGuard<'static, Vec<(usize, usize, PathBuf)>> {
    MAPPED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A mapping that is listed in `MAPPED` until it is dropped.
pub(super) struct Known<T: AsRef<[u8]>> {
    bytes: T,
    start: usize,
}

impl<T: AsRef<[u8]>> Known<T> {
    pub(super) fn new(bytes: T, path: &Path) -> Self {
        let range = bytes.as_ref().as_ptr_range();
        let start = range.start.addr();
        mapped().push((start, range.end.addr(), path.to_owned()));
        Self { bytes, start }
    }
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Known<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

impl<T: AsRef<[u8]>> Drop for Known<T> {
    fn drop(&mut self) {
        mapped().retain(|(start, ..)| *start != self.start);
    }
}

/// Sets what happens when a mapped file loses bytes that are being read. Another thread calls `hook` with the file's
/// path while the reading thread waits, and `hook` ends the process. Without this call a signal kills the process. Only
/// the first call has an effect.
///
/// # Errors
/// If the system cannot create a thread or a pipe, or does not accept the signal handler.
pub fn on_lost_file(hook: fn(&Path)) -> std::io::Result<()> {
    static BEGUN: OnceLock<()> = OnceLock::new();
    if BEGUN.set(()).is_err() {
        return Ok(());
    }
    let (reader, writer) = std::io::pipe()?;
    PIPE.store(writer.as_raw_fd(), Ordering::SeqCst);
    std::mem::forget(writer); // the handler uses it as long as the process lives
    std::thread::Builder::new().name("zmlx-files".to_owned()).spawn(move || watch(reader, hook))?;
    // SAFETY: zeros are a valid `sigaction`, and the handler only does what a handler may do. On Linux it does not run
    // on the alternate stack: the threads' own stacks have room, and the runtime's alternate stack is too small for the
    // registers of some processors.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | if cfg!(target_os = "linux") { 0 } else { libc::SA_ONSTACK };
        if libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Reports the fault to the watching thread and waits. Returns if the fault is not in a mapped file.
extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: for a handler with SA_SIGINFO the system passes a valid `siginfo_t`.
    let at = unsafe { (*info).si_addr() } as usize;
    if FAULT.compare_exchange(0, at.max(1), Ordering::SeqCst, Ordering::SeqCst).is_ok() {
        let byte = 1u8;
        // SAFETY: one byte of this stack; `write` may be called by handlers.
        unsafe { libc::write(PIPE.load(Ordering::SeqCst), (&raw const byte).cast(), 1) };
    }
    while !IS_FOREIGN.load(Ordering::SeqCst) {
        // SAFETY: no descriptors; `poll` may be called by handlers.
        unsafe { libc::poll(std::ptr::null_mut(), 0, 10) };
    }
}

/// Waits for a fault. If it is in a mapped file, calls the hook. Any other fault then happens again and kills the
/// process, as it would have without the handler.
fn watch(mut reader: PipeReader, hook: fn(&Path)) {
    if reader.read_exact(&mut [0]).is_err() {
        return;
    }
    let at = FAULT.load(Ordering::SeqCst);
    let path =
        mapped().iter().find(|(start, end, _)| (*start..*end).contains(&at)).map(|(.., path)| path.clone());
    if let Some(path) = path {
        hook(&path);
    }
    // SAFETY: SIG_DFL is a valid action.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    IS_FOREIGN.store(true, Ordering::SeqCst);
}
