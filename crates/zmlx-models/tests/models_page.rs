//! `docs/MODELS.md` is generated from the list of families and from the fixtures. The test fails if the page is out of
//! date. `ZMLX_WRITE_DOCS=1 cargo test -p zmlx-models --test models_page` writes it.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use zmlx_kernels::{CacheKind, QuantSpec};
use zmlx_models::{Checkpoint, families};

const HEAD: &str = "\
# Which models run

This page is generated from the list of families and from the fixtures (`crates/zmlx-models/tests/models_page.rs`).

A family is a value of `model_type` in `config.json`. The column *caches* says what its layers store for earlier tokens: keys and values
of all tokens, keys and values of the last tokens (a window), latents, or states of a fixed size. The column *checked against* names the
tiny checkpoint in `fixtures` whose logits mlx-lm recorded. Tests compare the CPU backend and MLX on Linux with them. Families without a
checkpoint are compared with the reference in candle on random weights, or they are read as another family, which is tested. Nobody has
run the published checkpoints themselves.

| `model_type` | models | caches | checked against |
|---|---|---|---|
";

const BACKENDS: &str = "
## Backends

| backend | caches that it has |
|---|---|
| cpu | all |
| mlx | all |
| cuda | all |

A model with a cache that a backend lacks is refused when it is loaded, and the message says so. `--backend cpu` runs it.

## Formats

Each matrix has a format of its own, and every family takes all of them:

| mode | bits | groups |
|---|---|---|
";

/// The checkpoints in `fixtures`, by their `model_type`.
fn fixtures() -> BTreeMap<String, Vec<(String, Checkpoint)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let mut found = BTreeMap::<_, Vec<_>>::new();
    for folder in ["families", "models"] {
        let mut dirs: Vec<PathBuf> =
            std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
        dirs.sort();
        for dir in dirs.iter().filter(|dir| dir.join("config.json").exists()) {
            let checkpoint = Checkpoint::open(dir).unwrap();
            let name = format!("{folder}/{}", dir.file_name().unwrap().to_str().unwrap());
            let model_type = checkpoint.architecture().model_type.to_owned();
            found.entry(model_type).or_default().push((name, checkpoint));
        }
    }
    found
}

fn caches(checkpoint: &Checkpoint) -> BTreeSet<&'static str> {
    let kinds =
        checkpoint.architecture().layers.iter().filter_map(|layer| layer.mixer.cache_kind()).map(|kind| {
            match kind {
                CacheKind::Full { .. } => "keys and values",
                CacheKind::Window { .. } => "windows",
                CacheKind::Latent { .. } => "latents",
                CacheKind::Conv { .. } | CacheKind::Delta(_) => "states",
            }
        });
    kinds.collect()
}

fn page() -> String {
    let fixtures = fixtures();
    let mut page = HEAD.to_owned();
    for family in families() {
        let own = fixtures.get(family.model_type).map(Vec::as_slice).unwrap_or_default();
        let kinds: BTreeSet<_> = own.iter().flat_map(|(_, checkpoint)| caches(checkpoint)).collect();
        let kinds: Vec<_> = kinds.into_iter().collect();
        let names: Vec<_> = own.iter().map(|(name, _)| format!("`{name}`")).collect();
        let or = |text: String, other: &str| if text.is_empty() { other.to_owned() } else { text };
        writeln!(
            page,
            "| `{}` | {} | {} | {} |",
            family.model_type,
            family.models,
            or(kinds.join(", "), "–"),
            or(names.join(", "), "random weights")
        )
        .unwrap();
    }
    page += BACKENDS;
    let mut groups = BTreeMap::<(String, u32), BTreeSet<usize>>::new();
    for spec in QuantSpec::all() {
        let mode = format!("{:?}", spec.mode()).to_lowercase();
        groups.entry((mode, spec.bits() as u32)).or_default().insert(spec.group_size());
    }
    for ((mode, bits), sizes) in groups {
        let sizes: Vec<_> = sizes.iter().map(usize::to_string).collect();
        writeln!(page, "| {mode} | {bits} | {} |", sizes.join(", ")).unwrap();
    }
    page + "| dense: f32, f16, bf16 | 32, 16 | |\n"
}

#[test]
fn the_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/MODELS.md");
    let page = page();
    if std::env::var_os("ZMLX_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/MODELS.md is out of date: ZMLX_WRITE_DOCS=1 cargo test -p zmlx-models --test models_page"
    );
}

#[test]
fn families_stand_in_the_order_of_the_alphabet() {
    let types: Vec<_> = families().iter().map(|family| family.model_type).collect();
    assert!(types.is_sorted(), "{types:?}");
}
