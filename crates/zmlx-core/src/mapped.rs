//! Files as host memory: mapped read-only and shared by every weight cut from them.

#[cfg(unix)]
mod guard;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
#[cfg(unix)]
pub use guard::on_lost_file;

/// The contents of the file at `path`, mapped read-only. Pages are read when first touched, and the system can drop
/// them at any time, so weights used in place cost no memory beyond the page cache.
///
/// A program that writes to the file or cuts it short while it is mapped changes these bytes, or takes them away: see
/// [`on_lost_file`]. Programs that replace whole files, as downloaders do, leave existing mappings as they are.
///
/// # Errors
/// Any error of opening or mapping the file. Pipes, devices and folders are refused. An empty file gives empty bytes.
pub fn map_file(path: &Path) -> io::Result<Bytes> {
    let file = open_regular(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is private and read-only. Another process that truncates or rewrites the file while it
    // is mapped would break the assumption that the bytes do not change; that hazard is inherent to mapping and
    // shared by every engine that maps its weights.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    #[cfg(unix)]
    let map = guard::Known::new(map, path);
    Ok(Bytes::from_owner(map))
}

/// The text of the file at `path`.
///
/// # Errors
/// Any error of reading it. Folders are refused, and so are pipes and devices, which may never end.
pub fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open_regular(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// The bytes of the file at `path`.
///
/// # Errors
/// As [`read_text`].
pub fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn open_regular(path: &Path) -> io::Result<File> {
    // This comes before the file is opened, because opening a pipe waits for a writer.
    if !path.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    File::open(path)
}

/// Asks the system to read bytes of a mapped file that will soon be used, all at once. If pages are touched one by one
/// in several places in turns, the system sees no order and reads little at a time. The call has no effect on other
/// memory.
pub fn will_need(bytes: &[u8]) {
    #[cfg(unix)]
    {
        use nix::sys::mman::{MmapAdvise, madvise};
        // Not more than a system reads ahead at a time, because it would leave out the rest. A multiple of all page
        // sizes.
        const PIECE: usize = 128 * 1024;
        let start = bytes.as_ptr();
        let lead = start.addr() % PIECE;
        for offset in (0..lead + bytes.len()).step_by(PIECE) {
            let piece = start.wrapping_sub(lead).wrapping_add(offset);
            let Some(at) = std::ptr::NonNull::new(piece.cast_mut().cast()) else { continue };
            // SAFETY: this advice changes no memory. Pages that are not mapped are an error, which does not matter.
            let _ = unsafe { madvise(at, PIECE, MmapAdvise::MADV_WILLNEED) };
        }
    }
    #[cfg(not(unix))]
    let _ = bytes;
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x"), "text").unwrap();
        assert_eq!(read_text(&dir.path().join("x")).unwrap(), "text");
        assert_eq!(read_bytes(&dir.path().join("x")).unwrap(), b"text");
        let mut odd = vec![dir.path().to_owned()];
        #[cfg(unix)]
        {
            let pipe = dir.path().join("pipe");
            assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
            odd.extend([pipe, "/dev/zero".into()]);
        }
        for path in odd {
            assert!(map_file(&path).is_err() && read_text(&path).is_err(), "{}", path.display());
        }
    }

    #[test]
    fn advice_is_taken_for_any_memory_and_changes_none() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..300_000).map(|i| (i % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let mapped = map_file(file.path()).unwrap();
        for bytes in [&mapped[..], &mapped[5..7], &mapped[299_999..], &content[..], &[]] {
            will_need(bytes);
        }
        assert_eq!(mapped[..], content[..]);
    }
}
