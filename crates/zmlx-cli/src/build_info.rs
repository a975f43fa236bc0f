//! How this program was built, as recorded by the build script.

use zmlx_bench::capsule::Build;

/// The build of this program.
pub(crate) fn build() -> Build {
    let commit = env!("ZMLX_BUILD_COMMIT");
    Build {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: (!commit.is_empty()).then(|| commit.to_owned()),
        dirty: !env!("ZMLX_BUILD_DIRTY").is_empty(),
        profile: env!("ZMLX_BUILD_PROFILE").to_owned(),
        target: env!("ZMLX_BUILD_TARGET").to_owned(),
        rustc: env!("ZMLX_BUILD_RUSTC").to_owned(),
        rustflags: env!("ZMLX_BUILD_RUSTFLAGS").to_owned(),
        features: env!("ZMLX_BUILD_FEATURES").split_whitespace().map(str::to_owned).collect(),
    }
}
