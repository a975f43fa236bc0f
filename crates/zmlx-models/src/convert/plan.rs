//! What will be written, and where. This is decided before anything is written, because safetensors files begin with
//! the sizes of all their tensors.

use safetensors::Dtype;
use serde_json::{Map, Value, json};
use zmlx_kernels::{DType, QuantMode, WeightFormat};

use super::config::{self, Config};
use super::encode::Encoding;
use super::recipe::Chooser;
use super::source::{self, Part, PartName};
use super::{Action, ConvertOptions, wrong_parameter};
use crate::architecture::Module;
use crate::{Checkpoint, Error, Result};

/// The whole conversion.
pub(super) struct Plan {
    /// Every module with its weights, in the order of writing.
    pub(super) modules: Vec<(Module, Vec<Weight>)>,
    pub(super) shards: Vec<Shard>,
    /// The text of `config.json`.
    pub(super) config: String,
    /// The text of the index.
    pub(super) index: String,
    /// Bytes of all tensors.
    pub(super) total_bytes: u64,
    pub(super) n_parameters: u64,
}

/// A weight. Its one to three tensors are all in one shard.
pub(super) struct Weight {
    /// Its path or name in the files.
    pub(super) name: String,
    pub(super) encoding: Encoding,
    pub(super) n_mats: usize,
    /// Number of values in a matrix.
    pub(super) mat_len: usize,
    pub(super) shard_idx: usize,
    pub(super) tensors: Vec<Tensor>,
}

/// A tensor as a header describes it.
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) n_bytes: u64,
    /// The offset of its bytes, counted from the end of the header.
    pub(super) offset: u64,
}

/// A file of weights.
pub(super) struct Shard {
    pub(super) name: String,
    /// All bytes before those of the tensors.
    pub(super) header: Vec<u8>,
    /// Bytes of its tensors.
    pub(super) data_bytes: u64,
}

impl Shard {
    /// The file's size.
    pub(super) fn n_bytes(&self) -> u64 {
        self.header.len() as u64 + self.data_bytes
    }
}

/// Vectors that keep their type, because small differences would choose other experts or change states.
const KEEP_THEIR_TYPE: [&str; 3] = ["e_score_correction_bias", "expert_bias", "A_log"];

impl Plan {
    /// Looks at every tensor of the source and decides how to write it.
    ///
    /// # Errors
    /// As [`convert`](super::convert), except for errors of writing.
    pub(super) fn new(source: &Checkpoint, options: &ConvertOptions) -> Result<Self> {
        let mut config = Config::read(source)?;
        let float = float_type(options.dtype, &config)?;
        let architecture = source.architecture();
        let mut chooser = match options.action {
            Action::Quantize(quantize) => {
                let layers_path = source.written(architecture.layers_path);
                let names_all = config.is_quantized();
                Some(Chooser::new(quantize, &layers_path, architecture.layers.len(), names_all)?)
            }
            Action::Keep | Action::Dequantize => None,
        };
        let mut planner = Planner { source, options, float, sizes: Vec::new() };
        let mut modules = Vec::new();
        source::each(source, |module, parts, is_sound| {
            if is_sound {
                let weights = parts.iter().map(|part| planner.weight(part, chooser.as_mut()));
                modules.push((module, weights.collect::<Result<Vec<_>>>()?));
            }
            Ok(())
        })?;
        match (options.action, chooser) {
            (Action::Quantize(_), Some(chooser)) => config.quantized(&chooser),
            (Action::Dequantize, _) => config.dequantized(),
            _ => {}
        }
        let shards = shards(&modules, &planner.sizes)?;
        let total_bytes = planner.sizes.iter().sum();
        let n_of = |w: &Weight| (w.n_mats as u64).saturating_mul(w.mat_len as u64);
        let n_parameters = modules.iter().flat_map(|(_, weights)| weights).map(n_of).sum();
        let index = index(&modules, &shards, total_bytes, n_parameters);
        Ok(Self { modules, shards, config: config.text(), index, total_bytes, n_parameters })
    }
}

/// The type that floats are rounded to, if any.
fn float_type(asked: Option<DType>, config: &Config) -> Result<Option<DType>> {
    match asked {
        Some(dtype) if !dtype.is_float() => {
            Err(wrong_parameter("dtype", "f32, f16 or bf16", format!("{dtype:?}")))
        }
        Some(dtype) => Ok(Some(dtype)),
        None => Ok(config.dtype()),
    }
}

struct Planner<'a> {
    source: &'a Checkpoint,
    options: &'a ConvertOptions,
    float: Option<DType>,
    /// Bytes of the tensors that each shard has so far.
    sizes: Vec<u64>,
}

impl Planner<'_> {
    fn weight(&mut self, part: &Part, chooser: Option<&mut Chooser>) -> Result<Weight> {
        let (name, keeps_type, may_be_quantized) = match &part.name {
            PartName::Path(path) => (self.source.written(path), false, true),
            PartName::Tensor(name) => {
                (self.source.written(name), KEEP_THEIR_TYPE.iter().any(|kept| name.contains(kept)), false)
            }
        };
        let weight = &part.weight;
        if weight.has_factors() {
            let want = "a weight without a second scale (global_scale)".to_owned();
            return Err(Error::Unconvertible { name, want, got: weight.format().to_string() });
        }
        let float = |own: DType| if keeps_type { own } else { self.float.unwrap_or(own) };
        let chosen = match (chooser, weight.format()) {
            (Some(chooser), WeightFormat::Dense(_)) if may_be_quantized => {
                chooser.choose(&name, weight.n_in(), part.storage)?
            }
            _ => None,
        };
        let encoding = match (weight.format(), chosen) {
            (WeightFormat::Dense(from), Some(spec)) => Encoding::Quantize { from, via: float(from), spec },
            (WeightFormat::Dense(from), None) => Encoding::Dense { from, to: float(from) },
            (WeightFormat::Quantized { spec, scale_dtype: from }, _) => {
                // The scales of the float modes are not floats.
                let to = if spec.mode() == QuantMode::Affine { float(from) } else { from };
                if self.options.action == Action::Dequantize {
                    Encoding::Dequantize { from, via: to, spec }
                } else {
                    Encoding::Packed { from, to, spec }
                }
            }
        };
        let is_tensor = matches!(part.name, PartName::Tensor(_));
        let mut tensors = tensors(&name, is_tensor, part, encoding);
        let n_bytes = tensors.iter().fold(0u64, |sum, t| sum.saturating_add(t.n_bytes));
        let is_full =
            self.sizes.last().is_none_or(|&size| size.saturating_add(n_bytes) > self.options.max_shard_bytes);
        if is_full {
            self.sizes.push(0);
        }
        let shard_idx = self.sizes.len() - 1;
        if let Some(size) = self.sizes.last_mut() {
            for tensor in &mut tensors {
                tensor.offset = *size;
                *size = size.saturating_add(tensor.n_bytes);
            }
        }
        let mat_len = weight.n_out() * weight.n_in();
        Ok(Weight { name, encoding, n_mats: weight.n_mats(), mat_len, shard_idx, tensors })
    }
}

/// The tensors of a weight, all with offset 0.
fn tensors(name: &str, is_tensor: bool, part: &Part, encoding: Encoding) -> Vec<Tensor> {
    let tensor = |suffix: &str, dtype: Dtype, shape: Vec<usize>| {
        let name = if is_tensor { name.to_owned() } else { format!("{name}.{suffix}") };
        let n = shape.iter().fold(1u64, |n, &d| n.saturating_mul(d as u64));
        let n_bytes = n.saturating_mul(dtype.bitsize() as u64) / 8;
        Tensor { name, dtype, shape, n_bytes, offset: 0 }
    };
    let Some((spec, scales)) = encoding.quantized() else {
        return vec![tensor("weight", file_dtype(encoding.dense_dtype()), part.shape.clone())];
    };
    let (before, n_in) = (&part.shape[..part.shape.len().saturating_sub(1)], part.weight.n_in());
    let with_last = |last: usize| [before, &[last]].concat();
    let mut tensors = vec![tensor("weight", Dtype::U32, with_last(spec.packed_bytes(n_in) / 4))];
    let per_group = with_last(n_in / spec.group_size());
    tensors.push(tensor("scales", file_dtype(scales), per_group.clone()));
    if spec.has_biases() {
        tensors.push(tensor("biases", file_dtype(scales), per_group));
    }
    tensors
}

fn file_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::U8 => Dtype::U8,
        DType::U32 => Dtype::U32,
    }
}

fn shards(modules: &[(Module, Vec<Weight>)], sizes: &[u64]) -> Result<Vec<Shard>> {
    let mut headers = vec![Map::new(); sizes.len()];
    for header in &mut headers {
        header.insert("__metadata__".to_owned(), json!({ "format": "mlx" }));
    }
    for weight in modules.iter().flat_map(|(_, weights)| weights) {
        for tensor in &weight.tensors {
            let (start, end) = (tensor.offset, tensor.offset + tensor.n_bytes);
            let entry = json!({ "dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": [start, end] });
            headers[weight.shard_idx].insert(tensor.name.clone(), entry);
        }
    }
    let of = sizes.len();
    let shard = |(i, (header, &data_bytes)): (usize, (Map<String, Value>, &u64))| {
        let name = match of {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{of:05}.safetensors", i + 1),
        };
        let file = name.clone();
        let mut json = serde_json::to_vec(&header).map_err(|source| Error::Json { file, source })?;
        // The tensors begin at a multiple of 8 bytes.
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.append(&mut json);
        Ok(Shard { name, header, data_bytes })
    };
    headers.into_iter().zip(sizes).enumerate().map(shard).collect()
}

/// `model.safetensors.index.json`.
fn index(modules: &[(Module, Vec<Weight>)], shards: &[Shard], total_bytes: u64, n_parameters: u64) -> String {
    let weights = modules.iter().flat_map(|(_, weights)| weights);
    let file_of = |w: &Weight| Value::from(shards[w.shard_idx].name.clone());
    let entries = weights.flat_map(|w| w.tensors.iter().map(move |t| (t.name.clone(), file_of(w))));
    let map = config::sorted(entries.collect());
    let metadata = json!({ "total_size": total_bytes, "total_parameters": n_parameters });
    config::python_json(&json!({ "metadata": metadata, "weight_map": map }))
}
