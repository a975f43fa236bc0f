//! Libraries of CUDA's that are loaded at run time.

use libloading::Library;

/// Folders where CUDA's installers put libraries that the loader may not know.
const FOLDERS: [&str; 3] = ["/usr/local/cuda/lib64", "/opt/cuda/lib64", "/usr/lib/x86_64-linux-gnu"];

/// Loads the library at the path in the environment variable `variable`; if there is none, the first of `names` that the loader
/// or the usual folders have. Also returns its path.
pub(crate) fn find(variable: &str, names: &[&str]) -> Option<(String, Library)> {
    let mut paths: Vec<String> = std::env::var(variable).into_iter().collect();
    if paths.is_empty() {
        paths.extend(names.iter().map(ToString::to_string));
        for folder in FOLDERS {
            paths.extend(names.iter().map(|name| format!("{folder}/{name}")));
        }
    }
    paths.into_iter().find_map(|path| {
        // SAFETY: NVRTC and NCCL run no code of consequence when they are loaded.
        let library = unsafe { Library::new(&path) };
        let library = library.inspect_err(|error| tracing::debug!("{error}")).ok()?;
        Some((path, library))
    })
}
