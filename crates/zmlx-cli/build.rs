//! Facts about the build which a capsule records: commit, compiler, target and features.

use std::path::Path;
use std::process::Command;

fn main() {
    let cargo = |name: &str| std::env::var(name).unwrap_or_default();
    let rustc = text(Command::new(cargo("RUSTC")).arg("-V")).unwrap_or_default();
    tell("RUSTC", &rustc);
    tell("TARGET", &cargo("TARGET"));
    tell("PROFILE", &cargo("PROFILE"));
    // Cargo separates the flags by this byte.
    tell("RUSTFLAGS", &cargo("CARGO_ENCODED_RUSTFLAGS").replace('\u{1f}', " "));
    let features = std::env::vars().filter_map(|(name, _)| {
        let name = name.strip_prefix("CARGO_FEATURE_")?.to_lowercase().replace('_', "-");
        (name != "default").then_some(name)
    });
    tell("FEATURES", &features.collect::<Vec<_>>().join(" "));

    // An archive of the sources has no git repository, hence no commit.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        text(git.arg("-C").arg(&root).arg("--no-optional-locks").args(args))
    };
    let is_ours = git(&["ls-files", "Cargo.lock"]).is_some_and(|files| !files.is_empty());
    let commit = git(&["rev-parse", "HEAD"]).filter(|_| is_ours).unwrap_or_default();
    tell("COMMIT", &commit);
    let parts = ["crates", "Cargo.toml", "Cargo.lock", "fixtures/models"];
    let status = [&["status", "--porcelain", "--untracked-files=no", "--"][..], &parts].concat();
    let is_dirty = is_ours && git(&status).is_some_and(|changes| !changes.is_empty());
    tell("DIRTY", if is_dirty { "yes" } else { "" });

    // A commit changes no source file, but it changes git's log of HEAD.
    let log = git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]);
    for path in log.into_iter().filter(|_| is_ours).chain(parts.map(|p| root.join(p).display().to_string())) {
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}

/// Passes a value to the crate, as `ZMLX_BUILD_<name>`.
fn tell(name: &str, value: &str) {
    println!("cargo::rustc-env=ZMLX_BUILD_{name}={value}");
}

/// What a program prints to stdout; `None` if it cannot be started or fails.
fn text(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
