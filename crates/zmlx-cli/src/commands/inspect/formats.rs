//! The weights of a checkpoint, each with its storage format.

use std::collections::BTreeMap;

use serde::Serialize;
use zmlx_kernels::QuantSpec;
use zmlx_models::Checkpoint;
use zmlx_models::architecture::WeightUses;
use zmlx_models::checkpoint::TensorInfo;
use zmlx_models::config::QuantOverride;

/// A weight: one dense tensor, or the two or three tensors of a quantised matrix.
#[derive(Clone, Debug, Serialize)]
pub(super) struct WeightEntry {
    /// The name of the tensor, without `.weight`.
    pub(super) path: String,
    /// The format, such as `affine 4-bit g64` or `BF16`.
    pub(super) format: String,
    /// The shape of the weights themselves, not of the packed words.
    pub(super) shape: Vec<usize>,
    /// The number of weights.
    pub(super) n_elements: u64,
    /// The size in bytes, including scales and biases.
    pub(super) n_bytes: u64,
}

/// Weights whose paths differ only in the numbers of layers or experts.
#[derive(Debug, Serialize)]
pub(super) struct Group {
    /// The path with `*` in place of the numbers.
    pub(super) path: String,
    pub(super) format: String,
    pub(super) shape: Vec<usize>,
    pub(super) count: usize,
    pub(super) n_bytes: u64,
}

/// All weights, sorted by path.
pub(super) fn entries(checkpoint: &Checkpoint) -> Vec<WeightEntry> {
    let tensors: BTreeMap<&str, TensorInfo<'_>> = checkpoint.tensors().map(|t| (t.name, t)).collect();
    let part_of = |path: &str, part: &str| tensors.get(format!("{path}.{part}").as_str());
    let uses = checkpoint.architecture().weight_uses();
    let mut entries = Vec::new();
    for tensor in tensors.values() {
        let path = tensor.name.strip_suffix(".weight").unwrap_or(tensor.name);
        let is_part = |suffix: &str| {
            let owner = tensor.name.strip_suffix(suffix);
            owner.is_some_and(|o| part_of(o, "scales").is_some() && part_of(o, "weight").is_some())
        };
        if is_part(".scales") || is_part(".biases") {
            continue;
        }
        let mut entry = WeightEntry {
            path: path.to_owned(),
            format: tensor.dtype.to_string(),
            shape: tensor.shape.to_vec(),
            n_elements: 0,
            n_bytes: tensor.n_bytes as u64,
        };
        if let (true, Some(scales)) = (tensor.name.ends_with(".weight"), part_of(path, "scales")) {
            let biases = part_of(path, "biases").map_or(0, |b| b.n_bytes);
            entry.n_bytes += (scales.n_bytes + biases) as u64;
            match spec((checkpoint, &uses), path, tensor, scales) {
                Some((spec, n_in)) => {
                    entry.format = spec.to_string();
                    if let Some(last) = entry.shape.last_mut() {
                        *last = n_in;
                    }
                }
                None => entry.format = format!("unknown ({} with {} scales)", tensor.dtype, scales.dtype),
            }
        }
        entry.n_elements = entry.shape.iter().fold(1u64, |n, &d| n.saturating_mul(d as u64));
        entries.push(entry);
    }
    entries
}

/// The groups of the weights, in the order of the first weight of each group.
pub(super) fn groups(entries: &[WeightEntry]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut known = BTreeMap::new();
    for e in entries {
        let path: Vec<&str> =
            e.path.split('.').map(|p| if p.parse::<usize>().is_ok() { "*" } else { p }).collect();
        let path = path.join(".");
        let at = *known.entry((path.clone(), e.format.clone(), e.shape.clone())).or_insert(groups.len());
        if at == groups.len() {
            let (format, shape) = (e.format.clone(), e.shape.clone());
            groups.push(Group { path, format, shape, count: 0, n_bytes: 0 });
        }
        groups[at].count += 1;
        groups[at].n_bytes += e.n_bytes;
    }
    groups
}

/// Format and width of a quantised weight: the only format that fits its tensors and the width that the model expects.
/// For a weight that the model does not use, it is the format in the config if that fits the tensors.
fn spec(
    (checkpoint, uses): (&Checkpoint, &WeightUses),
    path: &str,
    words: &TensorInfo<'_>,
    scales: &TensorInfo<'_>,
) -> Option<(QuantSpec, usize)> {
    let (n_words, n_groups) = (*words.shape.last()?, *scales.shape.last()?);
    let has_codes = scales.dtype.to_string() == "U8";
    let width = |spec: QuantSpec| {
        let n_in = n_groups.checked_mul(spec.group_size())?;
        let fits = n_in.checked_mul(spec.bits())? == n_words.checked_mul(32)?;
        (fits && spec.has_biases() != has_codes).then_some((spec, n_in))
    };
    let in_model = checkpoint.name_in_model(path).and_then(|path| uses.get(&path));
    if let Some(weight) = in_model {
        let fits = |found: &(QuantSpec, usize)| found.1 == weight.n_in;
        return QuantSpec::all().into_iter().filter_map(width).find(fits);
    }
    let config = checkpoint.quantization();
    let said = match config.get(path) {
        Some(QuantOverride::Spec(spec)) => Some(spec),
        _ => config.global(),
    };
    said.and_then(width)
}
