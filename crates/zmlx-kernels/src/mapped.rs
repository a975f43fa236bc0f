//! Files as host memory: mapped read-only and shared by every weight cut from them.

use std::fs::File;
use std::io;
use std::path::Path;

use bytes::Bytes;

/// The contents of the file at `path`, mapped read-only: pages are read when first touched and can be dropped
/// by the system at any time, so weights used in place cost no memory beyond the page cache.
///
/// # Errors
/// Whatever opening or mapping the file gives. An empty file gives empty bytes.
pub fn map_file(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is private and read-only. Another process that truncates or rewrites the file while it
    // is mapped would break the assumption that the bytes do not change; that hazard is inherent to mapping and
    // shared by every engine that maps its weights.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}
