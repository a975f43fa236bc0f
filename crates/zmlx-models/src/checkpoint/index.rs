//! Decides which files of a folder are shards of the model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use bytes::Bytes;
use safetensors::SafeTensors;

use super::read_optional;
use crate::fields::parse_json;
use crate::{Error, Result};

const INDEX: &str = "model.safetensors.index.json";

/// The names and contents of the shards in `dir`, sorted by name, so that the order does not depend on the file system.
///
/// # Errors
/// If the folder or a shard cannot be read.
pub(super) fn shards(dir: &Path) -> Result<Vec<(String, Bytes)>> {
    let found = shard_names(dir)?;
    if let Some(map) = weight_map(dir) {
        let named: BTreeSet<&str> = map.values().map(String::as_str).collect();
        let absent: Vec<_> = named.iter().filter(|file| !is_in(dir, file)).collect();
        for file in absent.iter().take(8) {
            tracing::warn!(file, "listed in {INDEX}, but not in the folder");
        }
        if absent.is_empty() && !named.is_empty() {
            let shards = map_all(dir, named.iter().copied())?;
            if holds(&shards, &map) {
                for file in found.iter().filter(|file| !named.contains(file.as_str())).take(8) {
                    tracing::warn!(file, "left alone: {INDEX} is complete without it");
                }
                return Ok(shards);
            }
        }
    }
    map_all(dir, found.iter().map(String::as_str))
}

/// The file of each tensor according to the index; `None` without a readable index.
fn weight_map(dir: &Path) -> Option<BTreeMap<String, String>> {
    let text = match read_optional(&dir.join(INDEX)) {
        Ok(text) => text?,
        Err(error) => {
            tracing::warn!(%error, "ignored");
            return None;
        }
    };
    let map = parse_json(INDEX, &text).ok().and_then(|index| {
        let files = index.get("weight_map")?.as_object()?.iter();
        files.map(|(tensor, file)| Some((tensor.clone(), file.as_str()?.to_owned()))).collect()
    });
    if map.is_none() {
        tracing::warn!(file = INDEX, "not valid JSON with a weight_map; ignored");
    }
    map
}

/// True if `file` is a path to a file below `dir`.
fn is_in(dir: &Path, file: &str) -> bool {
    let is_below = Path::new(file).components().all(|c| matches!(c, Component::Normal(_)));
    is_below && dir.join(file).is_file()
}

/// True if every tensor is in the file that the index names. A damaged file is refused later, with its name.
fn holds(shards: &[(String, Bytes)], map: &BTreeMap<String, String>) -> bool {
    let mut has = BTreeSet::new();
    for (file, bytes) in shards {
        let Ok((_, metadata)) = SafeTensors::read_metadata(bytes) else { return true };
        has.extend(metadata.tensors().into_keys().map(|tensor| (file.as_str(), tensor)));
    }
    map.iter().all(|(tensor, file)| has.contains(&(file.as_str(), tensor.clone())))
}

fn map_all<'n>(dir: &Path, names: impl Iterator<Item = &'n str>) -> Result<Vec<(String, Bytes)>> {
    let map = |name: &str| {
        let path = dir.join(name);
        let bytes = zmlx_kernels::map_file(&path)
            .map_err(|source| Error::Io { file: path.display().to_string(), source })?;
        Ok((name.to_owned(), bytes))
    };
    names.map(map).collect()
}

/// The names of all `model*.safetensors` in `dir`, sorted.
fn shard_names(dir: &Path) -> Result<Vec<String>> {
    let io = |source| Error::Io { file: dir.display().to_string(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
