//! Packs every crate that can be published, in the form that crates.io would receive.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand, Package};

use crate::project;

/// Packs the crates, each after its dependencies, and prints that order, in which they must be published.
pub(crate) fn run() -> Result<()> {
    let root = project::root()?;
    let metadata = MetadataCommand::new().manifest_path(root.join("Cargo.toml")).no_deps().exec()?;
    let mut waiting: Vec<&Package> = metadata.packages.iter().filter(|p| is_published(p)).collect();
    let mut order: Vec<&str> = Vec::new();
    while !waiting.is_empty() {
        let names: Vec<&str> = waiting.iter().map(|p| p.name.as_str()).collect();
        let (ready, later): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|p| {
            let built = p.dependencies.iter().filter(|d| d.kind != DependencyKind::Development);
            built.into_iter().all(|d| !names.contains(&d.name.as_str()))
        });
        ensure!(!ready.is_empty(), "the crates depend on each other: {names:?}");
        order.extend(ready.iter().map(|p| p.name.as_str()));
        waiting = later;
    }
    for package in metadata.packages.iter().filter(|p| is_published(p)) {
        check(package).with_context(|| package.name.to_string())?;
    }
    let mut cargo = Command::new(env!("CARGO"));
    // Verification would compile everything again. The build of the workspace is enough.
    cargo.args(["package", "--quiet", "--no-verify", "--allow-dirty", "--locked"]).current_dir(&root);
    for name in &order {
        cargo.args(["--package", name]);
    }
    project::run(&mut cargo)?;
    println!("packed in target/package, to be published in this order: {}", order.join(", "));
    Ok(())
}

fn is_published(package: &Package) -> bool {
    package.publish.as_ref().is_none_or(|registries| !registries.is_empty())
}

/// Checks that a crate has everything that crates.io and docs.rs show.
fn check(package: &Package) -> Result<()> {
    ensure!(package.description.as_ref().is_some_and(|d| !d.is_empty()), "no description");
    ensure!(package.license.is_some(), "no licence");
    ensure!((1..=5).contains(&package.keywords.len()), "one to five keywords, got {:?}", package.keywords);
    ensure!(package.keywords.iter().all(|k| k.len() <= 20), "a keyword has more than 20 letters");
    ensure!(package.readme.is_some(), "no readme");
    let dir = package.manifest_path.parent().context("a package has a folder")?;
    for file in ["LICENSE-MIT", "LICENSE-APACHE", "README.md"] {
        ensure!(dir.join(file).exists(), "no {file}");
    }
    Ok(())
}
