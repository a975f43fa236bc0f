//! Checkpoints: `config.json` and safetensors shards, with everything dequantised to `f32`.
//!
//! Tensors are requested by module path and shape. A path `P` is quantised if and only if the file holds `P.scales`.
//! Its format is then the override for `P` in config.json, or else the one that the shapes imply. An override that does
//! not fit the shapes is an error.
//!
//! The text model inside a wrapper is read as if it were alone: its names lose their `language_model.`, and tensors
//! without this prefix are left out. The prefix is at the start of a name or, in Hugging Face's own files, after
//! `model.`; in the latter files the head has no prefix.

mod files;
mod mla;
mod quantization;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};

use crate::families;
use crate::plan::Plan;
use crate::quant::float::{E2M1_MAX, E4M3_MAX};
use crate::quant::{Format, Mode, QuantizedMatrix, Scales};
use crate::{Error, Result};

pub use mla::KvBSplit;
pub use quantization::QuantizationConfig;

/// The prefix of the names of a text model inside a wrapper.
const TEXT_PREFIX: &str = "language_model.";

#[derive(Debug, Clone)]
struct RawTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A checkpoint in memory. Tensors of layers from `num_hidden_layers` on are left out.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    plan: Plan,
    quantization: QuantizationConfig,
    tensors: BTreeMap<String, RawTensor>,
    /// Parts of names in this family's files, and the names that are used here.
    renamed: &'static [(&'static str, &'static str)],
}

impl Checkpoint {
    /// Reads `config.json` and the shards of a folder. The shards are the files that `model.safetensors.index.json`
    /// names, if all of them exist and hold the tensors that it lists; otherwise they are every `model*.safetensors`.
    ///
    /// # Errors
    /// Unreadable or broken files, a folder without shards, an unknown `model_type`, or a configuration that makes no
    /// sense.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { path, source }
        };
        let config_path = dir.join("config.json");
        let config = std::fs::read_to_string(&config_path).map_err(io(&config_path))?;
        let mut checkpoint = Self::parse(&config)?;
        for (path, bytes) in files::shards(dir)? {
            checkpoint.add_shard(&path.display().to_string(), &bytes)?;
        }
        Ok(checkpoint)
    }

    /// As [`Self::open`], from the text of `config.json` and the bytes of the shards.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes(config_json: &str, shards: &[&[u8]]) -> Result<Self> {
        let mut checkpoint = Self::parse(config_json)?;
        for (shard_idx, bytes) in shards.iter().enumerate() {
            checkpoint.add_shard(&format!("shard {shard_idx}"), bytes)?;
        }
        Ok(checkpoint)
    }

    fn parse(config_json: &str) -> Result<Self> {
        let value = files::parse_config(config_json)
            .map_err(|source| Error::Json { what: "config.json".into(), source })?;
        let plan = families::plan(&value)?;
        let quantization = QuantizationConfig::from_json(&families::text_model(&value))?;
        let renamed = families::renamed(&value);
        Ok(Self { plan, quantization, tensors: BTreeMap::new(), renamed })
    }

    fn add_shard(&mut self, what: &str, bytes: &[u8]) -> Result<()> {
        let file = SafeTensors::deserialize(bytes)
            .map_err(|source| Error::SafeTensors { what: what.to_owned(), source })?;
        let is_wrapped = file.names().iter().any(|name| name.starts_with(TEXT_PREFIX));
        for (name, view) in file.iter() {
            let unwrapped = match name.strip_prefix("model.").and_then(|name| name.strip_prefix(TEXT_PREFIX))
            {
                Some(inner) => format!("model.{inner}"),
                None => match name.strip_prefix(TEXT_PREFIX) {
                    Some(name) => name.to_owned(),
                    None if is_wrapped => continue,
                    None => name.to_owned(),
                },
            };
            let renamed = self.renamed.iter().fold(unwrapped, |name, (from, to)| name.replace(from, to));
            let name = renamed.as_str();
            if name.split('.').any(|part| part == "mtp") {
                continue;
            }
            let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
            if layer.and_then(|n| n.parse().ok()).is_some_and(|n: usize| n >= self.plan.layers.len()) {
                continue;
            }
            let tensor =
                RawTensor { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
            self.tensors.insert(name.to_owned(), tensor);
        }
        Ok(())
    }

    /// The plan that follows from the configuration.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The names of the tensors in the file, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether the file holds a tensor of exactly this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Whether `path.weight` is quantised.
    #[must_use]
    pub fn is_quantized(&self, path: &str) -> bool {
        self.contains(&self.part(path, "scales"))
    }

    /// The weight of the module `path` with `shape` (`[.., out, in]`) as `f32`, dequantised if it is quantised.
    ///
    /// # Errors
    /// A missing tensor, another shape, or parts that do not belong together.
    pub fn weight(&self, path: &str, shape: &[usize]) -> Result<Tensor> {
        let values = if self.is_quantized(path) {
            let mut values = self.quantized(path, shape)?.dequantize();
            self.scale_globally(path, &mut values)?;
            values
        } else {
            self.floats(&self.part(path, "weight"), shape)?
        };
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    /// Whether the quantised module `path` has nvfp4's second scale.
    #[must_use]
    pub fn has_global_scale(&self, path: &str) -> bool {
        self.contains(&self.part(path, "global_scale"))
    }

    /// Multiplies the values of each matrix by its second scale, if there is one. A weight of nvfp4 is
    /// `element · scale · global_scale / (6 · 448)`, where the divisor is the largest element times the largest scale.
    fn scale_globally(&self, path: &str, values: &mut [f32]) -> Result<()> {
        if !self.has_global_scale(path) {
            return Ok(());
        }
        let name = self.part(path, "global_scale");
        let scales = self.raw(&name)?.floats(&name)?;
        let n_values = values.len();
        let len = n_values.checked_div(scales.len()).filter(|len| len * scales.len() == n_values && *len > 0);
        let Some(len) = len else {
            let why = format!("{} global scales for {n_values} weights", scales.len());
            return Err(Error::Quantized { name: path.to_owned(), why });
        };
        for (matrix, scale) in values.chunks_exact_mut(len).zip(scales) {
            let factor = f64::from(scale) / f64::from(E2M1_MAX * E4M3_MAX);
            matrix.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
        }
        Ok(())
    }

    /// A tensor of floats with exactly this name and shape.
    ///
    /// # Errors
    /// A missing tensor, another shape or dtype.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let raw = self.raw(name)?;
        check_shape(name, &raw.shape, shape)?;
        raw.floats(name)
    }

    /// The weight of a convolution with one filter for each channel, `[n_channels, kernel]`. Converted files store it
    /// as `[.., kernel, 1]`, Hugging Face's files as `[.., 1, kernel]`.
    ///
    /// # Errors
    /// As [`Self::floats`].
    pub fn conv(&self, name: &str, n_channels: usize, kernel: usize) -> Result<Vec<f32>> {
        let raw = self.raw(name)?;
        let other = [n_channels, 1, kernel];
        let shape = if raw.shape == other { other } else { [n_channels, kernel, 1] };
        self.floats(name, &shape)
    }

    /// The weight of a norm. If a file stores a convolution in Hugging Face's layout, none of its tensors are
    /// converted. Then norms whose weights are stored as differences from 1, which are all except those of delta rules,
    /// get the 1 added.
    ///
    /// # Errors
    /// As [`Self::floats`].
    pub fn norm(&self, name: &str, n: usize) -> Result<Vec<f32>> {
        let is_raw = |(name, tensor): (&String, &RawTensor)| {
            name.ends_with("conv1d.weight") && tensor.shape.last() != Some(&1)
        };
        let mut weight = self.floats(name, &[n])?;
        if self.tensors.iter().any(is_raw) && !name.ends_with("linear_attn.norm.weight") {
            weight.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(weight)
    }

    /// The parts of the quantised module `path` with a weight of logical `shape` (`[.., out, in]`).
    ///
    /// # Errors
    /// Missing tensors, other shapes, or parts that do not belong together.
    pub fn quantized(&self, path: &str, shape: &[usize]) -> Result<QuantizedMatrix> {
        let name = |part: &str| self.part(path, part);
        let (weight, scales) = (self.raw(&name("weight"))?, self.raw(&name("scales"))?);
        let biases = self.tensors.get(&name("biases"));
        let format = self.format(path, shape)?;
        let with_last = |last: usize| -> Vec<usize> {
            let mut dims = shape.to_vec();
            if let Some(dim) = dims.last_mut() {
                *dim = last;
            }
            dims
        };
        let cols = shape.last().copied().unwrap_or(0);
        check_shape(&name("weight"), &weight.shape, &with_last(format.row_words(cols)))?;
        check_shape(&name("scales"), &scales.shape, &with_last(format.row_groups(cols)))?;
        if let Some(biases) = biases {
            check_shape(&name("biases"), &biases.shape, &scales.shape)?;
        }
        if weight.dtype != Dtype::U32 {
            return Err(weight.wrong_dtype(&name("weight"), "U32"));
        }
        let matrix = QuantizedMatrix {
            format,
            rows: shape.iter().take(shape.len().saturating_sub(1)).product(),
            cols,
            packed: weight.bytes.clone(),
            scales: match scales.dtype {
                Dtype::U8 => Scales::Codes(scales.bytes.clone()),
                _ => Scales::Float(scales.floats(&name("scales"))?),
            },
            biases: biases.map(|raw| raw.floats(&name("biases"))).transpose()?,
        };
        matrix.check().map_err(|error| match error {
            Error::Quantized { why, .. } => Error::Quantized { name: path.to_owned(), why },
            other => other,
        })?;
        Ok(matrix)
    }

    /// The format of the quantised module `path` with a weight of logical `shape`.
    ///
    /// # Errors
    /// Missing tensors, or no known format that fits the shapes.
    pub fn format(&self, path: &str, shape: &[usize]) -> Result<Format> {
        let part = |part: &str| self.raw(&self.part(path, part));
        let (weight, scales) = (part("weight")?, part("scales")?);
        let last = |dims: &[usize]| dims.last().copied().unwrap_or(0);
        let (words, n_groups, cols) = (last(&weight.shape), last(&scales.shape), last(shape));
        let codes = scales.dtype == Dtype::U8;
        let format = match self.quantization.format(path) {
            // A file without a mode may still hold a floating-point format. Scales of u8 decide.
            Some(format) if codes == (format.mode != Mode::Affine) => format,
            _ => {
                let bits = (words * 32).checked_div(cols).unwrap_or(0);
                let group_size = cols.checked_div(n_groups).unwrap_or(0);
                let mode = match (codes, bits, group_size) {
                    (false, ..) => Mode::Affine,
                    (true, 8, _) => Mode::Mxfp8,
                    (true, _, 16) => Mode::Nvfp4,
                    (true, ..) => Mode::Mxfp4,
                };
                Format { mode, bits, group_size }
            }
        };
        format.check()?;
        Ok(format)
    }

    /// The gate, up and down projections of the experts at `prefix`, stacked: `[n_experts, inner, hidden]` twice and
    /// `[n_experts, hidden, inner]`.
    ///
    /// Files store them stacked (`switch_mlp.gate_proj`), one by one (`experts.E.gate_proj` or `.w1`), or with gate and
    /// up in one stack (`experts.gate_up_proj`), in which the first half of the rows are gate's.
    ///
    /// # Errors
    /// As [`Self::weight`], for any expert.
    pub fn experts(&self, prefix: &str, [n, inner, hidden]: [usize; 3]) -> Result<[Tensor; 3]> {
        if self.contains(&format!("{prefix}.experts.gate_up_proj_blocks")) {
            return self.experts_in_blocks(prefix, [n, inner, hidden]);
        }
        let down = self.projection(prefix, "down_proj", [n, hidden, inner])?;
        let is_fused = |module: &&&str| self.has_weight(&format!("{prefix}.{module}.gate_up_proj"));
        if let Some(module) = ["switch_mlp", "experts", "experts.switch_glu"].iter().find(is_fused) {
            let path = format!("{prefix}.{module}.gate_up_proj");
            let both = self.weight(&path, &[n, 2 * inner, hidden])?;
            let half = |first: usize| both.narrow(1, first, inner)?.contiguous();
            return Ok([half(0)?, half(inner)?, down]);
        }
        let [gate, up] =
            ["gate_proj", "up_proj"].map(|proj| self.projection(prefix, proj, [n, inner, hidden]));
        Ok([gate?, up?, down])
    }

    /// The biases of [`Self::experts`], `[n_experts, inner]` twice and `[n_experts, hidden]`; `None` if the file has none.
    ///
    /// # Errors
    /// Another shape; some of the three, but not all.
    pub fn expert_biases(&self, prefix: &str, [n, inner, hidden]: [usize; 3]) -> Result<Option<[Tensor; 3]>> {
        let tensor = |values: Vec<f32>, len: usize| Tensor::from_vec(values, (n, len), &Device::Cpu);
        let joined = format!("{prefix}.experts.gate_up_proj_bias");
        if self.contains(&joined) {
            let both = self.floats(&joined, &[n, 2 * inner])?;
            let of = |turn: usize| both.iter().copied().skip(turn).step_by(2).collect::<Vec<f32>>();
            let down = self.floats(&format!("{prefix}.experts.down_proj_bias"), &[n, hidden])?;
            return Ok(Some([tensor(of(0), inner)?, tensor(of(1), inner)?, tensor(down, hidden)?]));
        }
        let name = |module: &str, proj: &str| format!("{prefix}.{module}.{proj}.bias");
        let modules = ["switch_mlp", "experts", "experts.switch_glu"];
        let Some(module) = modules.into_iter().find(|module| self.contains(&name(module, "gate_proj")))
        else {
            return Ok(None);
        };
        let bias = |proj: &str, len: usize| -> Result<Tensor> {
            Ok(tensor(self.floats(&name(module, proj), &[n, len])?, len)?)
        };
        Ok(Some([bias("gate_proj", inner)?, bias("up_proj", inner)?, bias("down_proj", hidden)?]))
    }

    /// The weights at `path_blocks` and `path_scales`: rows of blocks of 32 values. Each block is 16 bytes of mxfp4 and
    /// one scale.
    fn blocks(&self, path: &str, shape: [usize; 3]) -> Result<Vec<f32>> {
        let [n, rows, cols] = shape;
        let names = ["blocks", "scales"].map(|part| format!("{path}_{part}"));
        let (packed, scales) = (self.raw(&names[0])?, self.raw(&names[1])?);
        check_shape(&names[0], &packed.shape, &[n, rows, cols / 32, 16])?;
        check_shape(&names[1], &scales.shape, &[n, rows, cols / 32])?;
        for (name, raw) in names.iter().zip([packed, scales]) {
            if raw.dtype != Dtype::U8 {
                return Err(raw.wrong_dtype(name, "U8"));
            }
        }
        let matrix = QuantizedMatrix {
            format: Format::of_mode(Mode::Mxfp4),
            rows: n * rows,
            cols,
            packed: packed.bytes.clone(),
            scales: Scales::Codes(scales.bytes.clone()),
            biases: None,
        };
        matrix.check()?;
        Ok(matrix.dequantize())
    }

    /// The experts in the form in which gpt-oss was released: blocks of mxfp4, with the rows of gate and up in turns.
    fn experts_in_blocks(&self, prefix: &str, [n, inner, hidden]: [usize; 3]) -> Result<[Tensor; 3]> {
        let both = self.blocks(&format!("{prefix}.experts.gate_up_proj"), [n, 2 * inner, hidden])?;
        let down = self.blocks(&format!("{prefix}.experts.down_proj"), [n, hidden, inner])?;
        let of = |turn: usize| -> Result<Tensor> {
            let rows = both.chunks_exact(hidden).skip(turn).step_by(2);
            Ok(Tensor::from_vec(rows.flatten().copied().collect(), (n, inner, hidden), &Device::Cpu)?)
        };
        Ok([of(0)?, of(1)?, Tensor::from_vec(down, (n, hidden, inner), &Device::Cpu)?])
    }

    fn projection(&self, prefix: &str, proj: &str, shape: [usize; 3]) -> Result<Tensor> {
        let short = match proj {
            "gate_proj" => "w1",
            "down_proj" => "w2",
            _ => "w3",
        };
        for name in [proj, short] {
            if self.has_weight(&format!("{prefix}.experts.0.{name}")) {
                let experts = (0..shape[0])
                    .map(|e| self.weight(&format!("{prefix}.experts.{e}.{name}"), &shape[1..]))
                    .collect::<Result<Vec<_>>>()?;
                return Ok(Tensor::stack(&experts, 0)?);
            }
        }
        for stacked in ["experts.switch_glu", "experts"].map(|module| format!("{prefix}.{module}.{proj}")) {
            if self.has_weight(&stacked) {
                return self.weight(&stacked, &shape);
            }
        }
        self.weight(&format!("{prefix}.switch_mlp.{proj}"), &shape)
    }

    fn has_weight(&self, path: &str) -> bool {
        self.contains(path) || self.contains(&format!("{path}.weight"))
    }

    /// The name of a part of the module `path`. A tensor that belongs to no module has the bare path as its weight, and
    /// its scales and biases after an underscore.
    fn part(&self, path: &str, part: &str) -> String {
        match part {
            "weight" if self.contains(path) => path.to_owned(),
            _ if self.contains(&format!("{path}_{part}")) => format!("{path}_{part}"),
            _ => format!("{path}.{part}"),
        }
    }

    fn raw(&self, name: &str) -> Result<&RawTensor> {
        self.tensors.get(name).ok_or_else(|| Error::Missing { name: name.to_owned() })
    }
}

impl RawTensor {
    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        Ok(match self.dtype {
            Dtype::F32 => self.bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F16 => {
                self.bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect()
            }
            Dtype::BF16 => {
                self.bytes.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect()
            }
            _ => return Err(self.wrong_dtype(name, "F32, F16 or BF16")),
        })
    }

    fn wrong_dtype(&self, name: &str, want: &'static str) -> Error {
        Error::Dtype { name: name.to_owned(), got: self.dtype.to_string(), want }
    }
}

fn check_shape(name: &str, got: &[usize], want: &[usize]) -> Result<()> {
    if got == want {
        return Ok(());
    }
    Err(Error::Shape { name: name.to_owned(), got: got.to_vec(), want: want.to_vec() })
}
