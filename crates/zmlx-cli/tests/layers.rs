//! Checks the layers of the workspace: a crate depends only on crates of lower layers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;

use cargo_metadata::{DependencyKind, MetadataCommand, Package};

/// Each crate with the crates of this workspace on which it may depend.
const LAYERS: &[(&str, &[&str])] = &[
    ("zmlx-core", &[]),
    ("zmlx-cpu", &["zmlx-core"]),
    ("zmlx-cuda", &["zmlx-core"]),
    ("zmlx-kernels", &["zmlx-core", "zmlx-cpu", "zmlx-cuda"]),
    ("zmlx-conformance", &["zmlx-core", "zmlx-oracle"]),
    ("zmlx-moe", &["zmlx-kernels"]),
    ("zmlx-models", &["zmlx-kernels", "zmlx-moe"]),
    ("zmlx-serve", &["zmlx-kernels", "zmlx-models"]),
    ("zmlx-oracle", &[]),
    ("zmlx-bench", &["zmlx-kernels", "zmlx-models", "zmlx-oracle"]),
    ("zmlx-hub", &[]),
    (
        "zmlx-cli",
        &["zmlx-bench", "zmlx-hub", "zmlx-kernels", "zmlx-moe", "zmlx-models", "zmlx-oracle", "zmlx-serve"],
    ),
];

/// The dependencies within the workspace: those of these kinds, which may be all kinds or only those which users build.
fn zmlx_dependencies(package: &Package, kinds: &[DependencyKind]) -> BTreeSet<String> {
    let of_kind = package.dependencies.iter().filter(|d| kinds.contains(&d.kind));
    of_kind.map(|d| d.name.clone()).filter(|n| n.starts_with("zmlx")).collect()
}

#[test]
fn arrows_point_downwards() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap();
    let crates = metadata.packages.iter().filter(|p| p.manifest_path.as_str().contains("/crates/"));
    let mut seen = BTreeSet::new();
    for package in crates {
        let name = package.name.as_str();
        let (_, allowed) = LAYERS
            .iter()
            .find(|(n, _)| *n == name)
            .unwrap_or_else(|| panic!("{name} has no layer: add it to this test and to the architecture"));
        seen.insert(name);
        let built = zmlx_dependencies(package, &[DependencyKind::Normal, DependencyKind::Build]);
        for dependency in &built {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
        // Tests may use the oracle and the conformance suite, but no other crate of a higher layer.
        for dependency in zmlx_dependencies(package, &[DependencyKind::Development]) {
            let is_for_tests = ["zmlx-oracle", "zmlx-conformance"].contains(&dependency.as_str());
            let ok = is_for_tests || allowed.contains(&dependency.as_str());
            assert!(ok && dependency != name, "the tests of {name} must not depend on {dependency}");
        }
    }
    assert_eq!(seen.len(), LAYERS.len(), "crates found: {seen:?}");
}

#[test]
fn the_folder_is_named_as_the_crate() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap();
    for package in metadata.packages.iter().filter(|p| p.manifest_path.as_str().contains("/crates/")) {
        let folder = package.manifest_path.parent().and_then(|p| p.file_name());
        assert_eq!(folder, Some(package.name.as_str()));
    }
}
