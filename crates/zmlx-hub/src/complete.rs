//! Checks whether a snapshot is a complete model.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

use serde_json::Value;

/// The file that names the shards.
const INDEX: &str = "model.safetensors.index.json";

/// Headers of shards are read up to this size. The loader refuses larger ones.
const MAX_HEADER_BYTES: u64 = 128 << 20;

/// Checks that a snapshot has everything that a model needs: `config.json`, and all bytes of the shards that its index
/// names. It does not check their contents, which the loader does.
///
/// # Errors
/// A description of what is missing.
pub(crate) fn check(dir: &Path) -> Result<(), String> {
    if !dir.join("config.json").is_file() {
        return Err("config.json is missing".to_owned());
    }
    for name in shards(dir)? {
        let path = dir.join(&name);
        let Ok(metadata) = path.metadata() else { return Err(format!("{name} is missing")) };
        match wanted_bytes(&path) {
            Ok(want) if metadata.len() < want => {
                return Err(format!("{name} has {} of {want} bytes", metadata.len()));
            }
            Ok(_) => {}
            Err(error) => return Err(format!("{name}: {error}")),
        }
    }
    Ok(())
}

/// The shards: those that the index names, or else those that exist, which must be at least one.
fn shards(dir: &Path) -> Result<BTreeSet<String>, String> {
    if let Ok(text) = std::fs::read(dir.join(INDEX)) {
        let index: Value = serde_json::from_slice(&text).map_err(|e| format!("{INDEX}: {e}"))?;
        let files = index.get("weight_map").and_then(Value::as_object).into_iter().flat_map(|m| m.values());
        let mut names = BTreeSet::new();
        for name in files.filter_map(Value::as_str) {
            if names.contains(name) {
                continue;
            }
            let mut parts = Path::new(name).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(format!("{INDEX} names {name:?}, which is not a file in the same folder"));
            }
            names.insert(name.to_owned());
        }
        if !names.is_empty() {
            return Ok(names);
        }
    }
    let entries = std::fs::read_dir(dir).map_err(|e| e.to_string())?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let shards: BTreeSet<String> = names.filter(|name| name.ends_with(".safetensors")).collect();
    if shards.is_empty() { Err("model*.safetensors are missing".to_owned()) } else { Ok(shards) }
}

/// The size of a shard according to its header: 8 bytes with the header's length, the header, and the tensors up to the
/// last one. If the header makes no sense, this is only the file's own size.
fn wanted_bytes(path: &Path) -> std::io::Result<u64> {
    let mut file = File::open(path)?;
    let mut length = [0; 8];
    if let Err(error) = file.read_exact(&mut length) {
        let is_short = error.kind() == std::io::ErrorKind::UnexpectedEof;
        return if is_short { Ok(8) } else { Err(error) };
    }
    let n_header = u64::from_le_bytes(length);
    let data = n_header.saturating_add(8);
    if n_header > MAX_HEADER_BYTES {
        return Ok(8);
    }
    let mut header = Vec::new();
    file.take(n_header).read_to_end(&mut header)?;
    if (header.len() as u64) < n_header {
        return Ok(data);
    }
    let header: Value = serde_json::from_slice(&header).unwrap_or_default();
    let tensors = header.as_object().into_iter().flat_map(|tensors| tensors.values());
    let ends = tensors.filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64());
    Ok(data.saturating_add(ends.max().unwrap_or(0)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn shard(n_bytes: usize) -> Vec<u8> {
        let header = format!(r#"{{"w":{{"dtype":"U8","shape":[{n_bytes}],"data_offsets":[0,{n_bytes}]}}}}"#);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + n_bytes, 7);
        bytes
    }

    #[test]
    fn every_shard_must_be_there_in_full() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        let why = || check(dir.path()).unwrap_err();
        assert!(why().contains("config.json is missing"));
        put("config.json", b"{}");
        assert!(why().contains("safetensors are missing"));
        let whole = shard(100);
        put("model-1.safetensors", &whole);
        assert_eq!(check(dir.path()), Ok(()));
        put(
            "model.safetensors.index.json",
            br#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#,
        );
        assert_eq!(why(), "model-2.safetensors is missing");
        for n in [0, 7, 8, 20, whole.len() - 1] {
            put("model-2.safetensors", &whole[..n]);
            assert!(why().starts_with(&format!("model-2.safetensors has {n} of ")), "{n}: {}", why());
        }
        put("model-2.safetensors", &whole);
        assert_eq!(check(dir.path()), Ok(()));
        // The loader decides whether this is a valid shard.
        put("model-2.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\xffnonsense");
        assert_eq!(check(dir.path()), Ok(()));
        put("model.safetensors.index.json", br#"{"weight_map":{"a":"../model-1.safetensors"}}"#);
        assert!(why().contains("not a file in the same folder"));
        put("model.safetensors.index.json", br#"{"weight_map":"#);
        assert!(why().starts_with("model.safetensors.index.json: "));
    }
}
