//! The files of a checkpoint's folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;

use crate::{Error, Result};

/// The shards of a folder in the order of their names, read as a whole.
///
/// # Errors
/// An unreadable folder or file, or no shard.
pub(super) fn shards(dir: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    if let Some(shards) = indexed(dir) {
        return Ok(shards);
    }
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io(dir))? {
        let entry = entry.map_err(io(dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            paths.push(entry.path());
        }
    }
    if paths.is_empty() {
        return Err(Error::NoShards { path: dir.to_owned() });
    }
    paths.sort();
    paths.into_iter().map(|path| Ok((path.clone(), std::fs::read(&path).map_err(io(&path))?))).collect()
}

/// The files that `model.safetensors.index.json` names, if every file exists and holds the tensors that it should.
fn indexed(dir: &Path) -> Option<Vec<(PathBuf, Vec<u8>)>> {
    let text = std::fs::read_to_string(dir.join("model.safetensors.index.json")).ok()?;
    let index: Value = serde_json::from_str(&text).ok()?;
    let mut files: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, file) in index.get("weight_map")?.as_object()? {
        files.entry(file.as_str()?).or_default().push(tensor);
    }
    let mut shards = Vec::new();
    for (file, tensors) in files {
        let path = dir.join(file);
        let bytes = std::fs::read(&path).ok()?;
        if let Ok(shard) = SafeTensors::deserialize(&bytes)
            && tensors.iter().any(|tensor| shard.tensor(tensor).is_err())
        {
            return None;
        }
        shards.push((path, bytes));
    }
    (!shards.is_empty()).then_some(shards)
}

/// Parses `config.json`. Python writes `NaN` and `Infinity`, which JSON lacks; they are read as null.
pub(super) fn parse_config(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text).or_else(|error| {
        let mut out = String::new();
        // Every second piece between unescaped quotes is a string.
        let mut in_string = false;
        let mut piece = String::new();
        let mut end = |piece: &mut String, in_string: bool| {
            let rewritten =
                piece.replace("-Infinity", "null").replace("Infinity", "null").replace("NaN", "null");
            out.push_str(if in_string { piece } else { &rewritten });
            piece.clear();
        };
        let mut escaped = false;
        for c in text.chars() {
            if c == '"' && !escaped {
                end(&mut piece, in_string);
                in_string = !in_string;
            }
            escaped = c == '\\' && !escaped;
            piece.push(c);
        }
        end(&mut piece, in_string);
        serde_json::from_str(&out).map_err(|_| error)
    })
}
