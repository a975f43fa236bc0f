//! Conversions that are interrupted and resumed.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use zmlx_models::{Checkpoint, ConvertOptions, Converted, Error, Result, convert};

use crate::{affine, convert_to_end, sources};

/// Small shards, and one block at a time.
fn options() -> ConvertOptions {
    ConvertOptions { max_shard_bytes: 10_000, n_threads: Some(1), ..affine(4, 32) }
}

/// Every file of a folder.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries
        .map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(p).unwrap()))
        .collect()
}

/// Converts until `n_reports` reports of progress have come.
fn convert_for(source: &Path, dir: &Path, mut n_reports: usize) -> Result<Converted> {
    convert(&Checkpoint::open(source)?, dir, &options(), &mut |_, _| {
        n_reports = n_reports.saturating_sub(1);
        if n_reports == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

#[test]
fn what_was_finished_is_kept_and_the_result_is_the_same() {
    let (source, root) = (sources::source("qwen3-bf16"), tempfile::tempdir().unwrap());
    let whole = root.path().join("whole");
    let converted = convert_to_end(source.path(), &whole, &options()).unwrap();
    let whole = files(&whole);
    let names: Vec<&str> = whole.keys().map(String::as_str).collect();
    assert!(converted.shards.len() >= 4 && converted.n_kept_shards == 0, "{converted:?}");
    assert!(names.iter().all(|n| !n.ends_with(".part") && !n.starts_with('.')), "{names:?}");
    // Interrupts the conversion once at every block.
    let mut most_kept = 0;
    for n_reports in 1.. {
        let dir = root.path().join(format!("ended-{n_reports}"));
        match convert_for(source.path(), &dir, n_reports) {
            Err(Error::Stopped) => {}
            Ok(_) => break,
            Err(e) => panic!("{e}"),
        }
        assert!(!dir.join("config.json").exists() && Checkpoint::open(&dir).is_err(), "no model yet");
        let kept = convert_to_end(source.path(), &dir, &options()).unwrap().n_kept_shards;
        assert!(kept >= most_kept, "{kept} after {n_reports}, {most_kept} before");
        most_kept = kept;
        assert!(files(&dir) == whole, "ended after {n_reports} blocks");
    }
    assert_eq!(most_kept, converted.shards.len() - 1);
}

#[test]
fn a_finished_shard_that_changed_is_written_again() {
    let (source, root) = (sources::source("qwen3-bf16"), tempfile::tempdir().unwrap());
    let (whole, dir) = (root.path().join("whole"), root.path().join("dir"));
    let shards = convert_to_end(source.path(), &whole, &options()).unwrap().shards;
    let n_blocks = n_reports(source.path(), &root.path().join("count"));
    for damage in [Damage::Byte, Damage::Length, Damage::Gone] {
        assert!(matches!(convert_for(source.path(), &dir, n_blocks), Err(Error::Stopped)));
        let path = dir.join(&shards[1]);
        let mut bytes = std::fs::read(&path).unwrap();
        match damage {
            Damage::Byte => *bytes.last_mut().unwrap() ^= 1,
            Damage::Length => bytes.truncate(100),
            Damage::Gone => {}
        }
        std::fs::write(&path, bytes).unwrap();
        if damage == Damage::Gone {
            std::fs::remove_file(&path).unwrap();
        }
        let converted = convert_to_end(source.path(), &dir, &options()).unwrap();
        assert_eq!(converted.n_kept_shards, shards.len() - 2, "{damage:?}");
        assert!(files(&dir) == files(&whole), "{damage:?}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Damage {
    Byte,
    Length,
    Gone,
}

/// How often a conversion reports its progress.
fn n_reports(source: &Path, dir: &Path) -> usize {
    let mut n = 0;
    let source = Checkpoint::open(source).unwrap();
    convert(&source, dir, &options(), &mut |_, _| {
        n += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    n
}

#[test]
fn only_the_same_conversion_goes_on() {
    let (source, root) = (sources::source("qwen3-bf16"), tempfile::tempdir().unwrap());
    let dir = root.path().join("dir");
    assert!(matches!(convert_for(source.path(), &dir, 9), Err(Error::Stopped)));
    let before = files(&dir);
    let refused = |source: &Path, options: &ConvertOptions| {
        let error = convert_to_end(source, &dir, options).unwrap_err().to_string();
        assert!(error.contains("unfinished conversion of another source"), "{error}");
        assert!(files(&dir) == before, "nothing was touched");
    };
    refused(source.path(), &ConvertOptions { max_shard_bytes: 10_000, ..affine(3, 32) });
    refused(sources::source("qwen3-f32").path(), &options());
    // The same bytes are written again in the meantime.
    let weights = source.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, bytes).unwrap();
    refused(source.path(), &options());
}

#[test]
fn two_conversions_do_not_share_a_folder() {
    let (source, root) = (sources::source("qwen3-bf16"), tempfile::tempdir().unwrap());
    let dir = root.path().join("dir");
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let mut refusals = 0;
    convert(&checkpoint, &dir, &options(), &mut |_, _| {
        let error = convert_to_end(source.path(), &dir, &options()).unwrap_err().to_string();
        assert!(error.contains("another process converts"), "{error}");
        refusals += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(refusals > 3);
    assert_eq!(Checkpoint::open(&dir).unwrap().quantization().global().unwrap().bits(), 4);
}
