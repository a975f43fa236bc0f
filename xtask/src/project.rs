//! The paths of the project, and a function to run programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::{CargoOpt, MetadataCommand};

/// The version of MLX for which the mlx-c in mlx-sys is made, and which `tools/mlx-linux/requirements.txt` installs.
pub(crate) const MLX_VERSION: &str = "0.32.2";

/// The root of the repository.
pub(crate) fn root() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.context("xtask lies in the repository")?.canonicalize().context("the repository's folder")
}

/// The sources of mlx-c, which are in the mlx-sys that `Cargo.lock` pins. They are fetched if necessary.
pub(crate) fn mlx_c_sources(root: &Path) -> Result<PathBuf> {
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .features(CargoOpt::AllFeatures)
        // Crates for other platforms are not fetched.
        .other_options(["--locked", "--filter-platform", &host()?].map(str::to_owned))
        .exec()?;
    let mlx_sys = metadata.packages.iter().find(|p| p.name.as_str() == "mlx-sys");
    let manifest = &mlx_sys.context("Cargo.lock has no mlx-sys")?.manifest_path;
    let sources = manifest.parent().context("a package has a folder")?.join("src/mlx-c").into_std_path_buf();
    let cmake = sources.join("CMakeLists.txt");
    let text = std::fs::read_to_string(&cmake).with_context(|| cmake.display().to_string())?;
    ensure!(
        text.contains(&format!("GIT_TAG v{MLX_VERSION})")),
        "{} requires another version of MLX than {MLX_VERSION}",
        cmake.display()
    );
    Ok(sources)
}

/// The target triple of this machine, as rustc calls it.
pub(crate) fn host() -> Result<String> {
    let out = Command::new("rustc").arg("-vV").output().context("rustc -vV")?;
    let text = String::from_utf8(out.stdout)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV prints no host")?.to_owned())
}

/// Installs what a file of requirements names, with its hashes and nothing beside, into a folder.
///
/// Uses pip instead of a download of our own, because pip respects the user's proxy, mirror and certificates.
pub(crate) fn pip_install(requirements: &Path, target: &Path) -> Result<()> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]);
    pip.args(["--no-deps", "--only-binary=:all:", "--require-hashes", "--upgrade", "--target"]).arg(target);
    run(pip.arg("--requirement").arg(requirements)).context("python3 with pip is needed")
}

/// Runs a program; its failure is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        bail!("{name} failed: {status} ({command:?})");
    }
    Ok(())
}
