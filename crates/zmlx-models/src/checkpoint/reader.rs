//! Taking the model's tensors out of a checkpoint, with one report of everything that does not fit.

mod conv;
mod experts;
mod global_scale;

use std::collections::HashSet;

use bytes::Bytes;
use zmlx_kernels::{DType, HostWeight, QuantMode, QuantSpec, WeightBytes, WeightFormat};

use super::Checkpoint;
use super::root::WRAPPED;
use super::shard::Entry;
use crate::architecture::{HeadSpec, MatrixSpec, Split, Storage, VectorSpec};
use crate::config::QuantOverride;
use crate::{Error, Result, WeightProblem};

/// Hands out a checkpoint's tensors, by their names in the text model ([`Checkpoint::name_in_model`]).
///
/// The getters never fail: they note what is missing or does not fit and return a placeholder, so that
/// [`finish`](Self::finish) can report everything at once. Use nothing that was read unless it succeeds.
#[derive(Debug)]
pub struct TensorReader<'a> {
    checkpoint: &'a Checkpoint,
    used: HashSet<&'a str>,
    problems: Vec<WeightProblem>,
}

/// The shape of a weight: the name's leading dimension exists only for stacks.
#[derive(Clone, Copy, Debug)]
pub(super) struct WeightShape {
    pub(super) n_mats: Option<usize>,
    pub(super) n_out: usize,
    pub(super) n_in: usize,
    /// How a random one is made.
    pub(super) storage: Storage,
}

impl WeightShape {
    fn matrix(n_out: usize, n_in: usize) -> Self {
        Self { n_mats: None, n_out, n_in, storage: Storage::Model }
    }

    fn stack([n_mats, n_out, n_in]: [usize; 3]) -> Self {
        Self { n_mats: Some(n_mats), ..Self::matrix(n_out, n_in) }
    }

    fn with_last(self, last: usize) -> Vec<usize> {
        self.n_mats.into_iter().chain([self.n_out, last]).collect()
    }
}

impl<'a> TensorReader<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, used: HashSet::new(), problems: Vec::new() }
    }

    /// True if the checkpoint has a tensor of that full name.
    pub fn contains(&self, name: &str) -> bool {
        self.checkpoint.tensors.contains_key(&self.full(name))
    }

    /// The name in the files.
    fn full(&self, name: &str) -> String {
        self.checkpoint.root.full(name).into_owned()
    }

    /// The name of a part (`weight`, `scales`, `biases`) of the weight at `path`. A tensor that is no module's has the bare
    /// path as its weight, and its other parts after an underscore.
    fn part(&self, path: &str, part: &str) -> String {
        let bare = if part == "weight" { path.to_owned() } else { format!("{path}_{part}") };
        if self.contains(&bare) { bare } else { format!("{path}.{part}") }
    }

    fn contains_weight(&self, path: &str) -> bool {
        self.contains(&self.part(path, "weight"))
    }

    /// The matrix `[n_out, n_in]` at `path` (the name without `.weight`): quantised if `path.scales` exists, dense
    /// in its own type otherwise.
    pub fn matrix(&mut self, path: &str, n_out: usize, n_in: usize) -> HostWeight {
        self.weight(path, path, WeightShape::matrix(n_out, n_in))
    }

    /// The shape in the file of the weight at `path`.
    pub(crate) fn shape_of(&self, path: &str) -> Option<&'a [usize]> {
        let name = self.full(&self.part(path, "weight"));
        self.checkpoint.tensors.get(&name).map(|entry| entry.shape.as_slice())
    }

    /// The matrix that a spec describes.
    pub fn matrix_of(&mut self, spec: &MatrixSpec) -> HostWeight {
        let (n_out, n_in) = match spec.split {
            Split::None => (spec.n_out, spec.n_in),
            Split::Rows(part) => (part.of, spec.n_in),
            Split::Columns(part) => (spec.n_out, part.of),
        };
        let shape = WeightShape { storage: spec.storage, ..WeightShape::matrix(n_out, n_in) };
        let n_problems = self.problems.len();
        let whole = self.weight(&spec.path, &spec.path, shape);
        self.part_of(&spec.path, (whole, n_problems), |whole| match spec.split {
            Split::None => Ok(whole),
            Split::Rows(part) => whole.rows(part.range(spec.n_out)),
            Split::Columns(part) => whole.columns(part.range(spec.n_in)),
        })
    }

    /// A rank's part of a weight, unless there was a problem with it: `n_problems` were there before.
    pub(super) fn part_of(
        &mut self,
        path: &str,
        (whole, n_problems): (HostWeight, usize),
        part: impl FnOnce(HostWeight) -> zmlx_kernels::Result<HostWeight>,
    ) -> HostWeight {
        if self.problems.len() > n_problems {
            return placeholder();
        }
        part(whole).unwrap_or_else(|e| {
            let (got, want) = (e.to_string(), "a weight that can be split among the ranks".to_owned());
            self.problem(WeightProblem::Format { name: path.into(), got, want })
        })
    }

    /// Weights of a row that share a scale: 1 for a dense matrix.
    pub(crate) fn group_size(&self, spec: &MatrixSpec) -> usize {
        self.group_size_at(&spec.path, spec.n_in, spec.storage)
    }

    pub(super) fn group_size_at(&self, path: &str, n_in: usize, storage: Storage) -> usize {
        if self.checkpoint.synthetic.is_some() {
            return self.checkpoint.random_format(path, n_in, storage).map_or(1, QuantSpec::group_size);
        }
        let scales = self.checkpoint.tensors.get(&self.full(&self.part(path, "scales")));
        let n_groups = scales.and_then(|scales| scales.shape.last().copied());
        n_groups.map_or(1, |n_groups| n_in / n_groups.max(1)).max(1)
    }

    /// The vector that a spec describes.
    pub fn vector_of(&mut self, spec: &VectorSpec) -> HostWeight {
        let n_problems = self.problems.len();
        let whole = self.vector(&spec.name, spec.slice.map_or(spec.len, |part| part.of));
        let weight = self.part_of(&spec.name, (whole, n_problems), |whole| match spec.slice {
            Some(part) => whole.columns(part.range(spec.len)),
            None => Ok(whole),
        });
        if spec.from_one_if_raw && self.checkpoint.is_raw() {
            self.plus_one(&spec.name, weight)
        } else {
            weight
        }
    }

    /// A bank of `n_mats` matrices: the stack at `stacked_path`, or else the matrices at `per_expert(i)`.
    pub fn bank(
        &mut self,
        stacked_path: &str,
        per_expert: impl Fn(usize) -> String,
        [n_mats, n_out, n_in]: [usize; 3],
    ) -> HostWeight {
        /// More missing experts than this are not listed.
        const MAX_LISTED: usize = 1000;
        let stacked = self.contains_weight(stacked_path);
        if stacked || n_mats == 0 || !self.contains_weight(&per_expert(0)) {
            return self.weight(stacked_path, stacked_path, WeightShape::stack([n_mats, n_out, n_in]));
        }
        let n_problems = self.problems.len();
        let mut parts = Vec::new();
        for i in 0..n_mats {
            parts.push(self.weight(&per_expert(i), stacked_path, WeightShape::matrix(n_out, n_in)));
            if self.problems.len() > n_problems + MAX_LISTED {
                break;
            }
        }
        if self.problems.len() > n_problems {
            return placeholder();
        }
        HostWeight::stack(parts).unwrap_or_else(|e| {
            let want = "experts of one format".to_owned();
            self.problem(WeightProblem::Format { name: stacked_path.into(), got: e.to_string(), want })
        })
    }

    /// One matrix `[n_out, n_in]` per head, stacked at `path`.
    pub fn heads(&mut self, path: &str, n_heads: usize, n_out: usize, n_in: usize) -> HostWeight {
        self.weight(path, path, WeightShape::stack([n_heads, n_out, n_in]))
    }

    /// The float vector called `name`, one row in its own type.
    pub fn vector(&mut self, name: &str, len: usize) -> HostWeight {
        let row = |dtype, data| {
            let bytes = WeightBytes { data, scales: Bytes::new(), biases: Bytes::new() };
            HostWeight::new(WeightFormat::Dense(dtype), [1, 1, len], bytes)
        };
        let weight = if let Some(seed) = self.checkpoint.synthetic {
            let values = self.checkpoint.random_vector(seed, name, len);
            row(DType::BF16, values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect())
        } else {
            let Some(entry) = self.take(name) else { return placeholder() };
            if !self.has_shape(name, entry, &[len]) {
                return placeholder();
            }
            match entry.kernel_dtype().filter(|d| d.is_float()) {
                Some(dtype) => row(dtype, entry.bytes.clone()),
                None => return self.wrong_dtype(name, entry, "F32, F16 or BF16"),
            }
        };
        weight.unwrap_or_else(|e| {
            let want = format!("a vector of {len}");
            self.problem(WeightProblem::Format { name: name.into(), got: e.to_string(), want })
        })
    }

    /// Lets the tensor of that name, and all those below it as a path, be left over.
    pub fn ignore(&mut self, name_or_path: &str) {
        let below =
            |n: &str| n.strip_prefix(name_or_path).is_some_and(|r| r.is_empty() || r.starts_with('.'));
        self.ignore_where(below);
    }

    /// Lets all tensors with this segment in their dotted name be left over.
    pub fn ignore_segment(&mut self, segment: &str) {
        self.ignore_where(|n| n.split('.').any(|s| s == segment));
    }

    /// Lets all tensors that were not taken be left over.
    pub fn ignore_rest(&mut self) {
        self.ignore_where(|_| true);
    }

    fn ignore_where(&mut self, holds: impl Fn(&str) -> bool) {
        let checkpoint = self.checkpoint;
        let names = checkpoint.tensors.keys().map(String::as_str);
        self.used.extend(names.filter(|n| checkpoint.name_in_model(n).is_some_and(|n| holds(&n))));
    }

    /// Lets the layers `path.I` with `I >= first` be left over: heads for multi-token prediction are stored as
    /// layers beyond the last.
    pub fn ignore_layers_from(&mut self, path: &str, first: usize) {
        let beyond = |n: &str| {
            let rest = n.strip_prefix(path).and_then(|r| r.strip_prefix('.'));
            let layer = rest.and_then(|r| r.split('.').next()).and_then(|l| l.parse::<usize>().ok());
            layer.is_some_and(|l| l >= first)
        };
        self.ignore_where(beyond);
    }

    /// Lets be left over what a file of the model may hold and the model does not use: a head where the embedding is the
    /// head, layers beyond the last, and what the architecture names.
    pub(crate) fn ignore_what_may_be_left(&mut self) {
        let architecture = self.checkpoint.architecture();
        if let HeadSpec::Tied(path) = &architecture.head {
            self.ignore(path);
        }
        self.ignore_layers_from(architecture.layers_path, architecture.layers.len());
        for segment in architecture.left_over {
            self.ignore_segment(segment);
        }
    }

    /// True if something was missing or did not fit so far.
    pub fn has_problems(&self) -> bool {
        !self.problems.is_empty()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`Error::Weights`] with everything that was missing or did not fit, and every tensor of the text model that was
    /// not taken.
    pub fn finish(mut self) -> Result<()> {
        let checkpoint = self.checkpoint;
        let names = checkpoint.tensors.keys().filter(|n| checkpoint.name_in_model(n).is_some());
        let extra = names.filter(|n| !self.used.contains(n.as_str()));
        let extra: Vec<_> = extra.map(|name| WeightProblem::Extra { name: name.clone() }).collect();
        self.problems.extend(extra);
        if self.problems.is_empty() {
            return Ok(());
        }
        Err(Error::Weights { model: self.checkpoint.name.clone(), problems: self.problems })
    }

    /// The weight at `path`; `module` is the path under which the config may give its format.
    pub(super) fn weight(&mut self, path: &str, module: &str, shape: WeightShape) -> HostWeight {
        if let Some(seed) = self.checkpoint.synthetic {
            return match self.checkpoint.random_weight(seed, path, shape) {
                Ok(weight) => {
                    self.checkpoint.note_random(path, &weight);
                    weight
                }
                Err(e) => {
                    let (got, want) = (e.to_string(), format!("{shape:?}"));
                    self.problem(WeightProblem::Format { name: path.into(), got, want })
                }
            };
        }
        let name = self.part(path, "weight");
        let Some(words) = self.take(&name) else { return placeholder() };
        if self.contains(&self.part(path, "scales")) {
            return self.quantized(path, module, words, shape);
        }
        let Some(dtype) = words.kernel_dtype().filter(|d| d.is_float()) else {
            return if words.kernel_dtype() == Some(DType::U32) {
                self.problem(WeightProblem::Missing { name: format!("{path}.scales") })
            } else {
                self.wrong_dtype(&name, words, "F32, F16, BF16, or U32 with scales")
            };
        };
        if !self.has_shape(&name, words, &shape.with_last(shape.n_in)) {
            return placeholder();
        }
        let bytes = WeightBytes { data: words.bytes.clone(), scales: Bytes::new(), biases: Bytes::new() };
        self.host_weight(path, WeightFormat::Dense(dtype), shape, bytes)
    }

    fn quantized(&mut self, path: &str, module: &str, words: &'a Entry, shape: WeightShape) -> HostWeight {
        let [w_name, s_name, b_name] = ["weight", "scales", "biases"].map(|part| self.part(path, part));
        let Some(scales) = self.take(&s_name) else { return placeholder() };
        let biases = if self.contains(&b_name) { self.take(&b_name) } else { None };
        let Some(global_scale) = self.take_global_scale(path, module) else { return placeholder() };
        if words.kernel_dtype() != Some(DType::U32) {
            return self.wrong_dtype(&w_name, words, "U32 beside scales");
        }
        let Some(scale_dtype) = scales.kernel_dtype().filter(|&d| d != DType::U32) else {
            return self.wrong_dtype(&s_name, scales, "F32, F16, BF16 or U8");
        };
        let spec = match self.spec(path, module, scale_dtype, [words, scales], shape.n_in) {
            Ok(spec) => spec,
            Err(want) => {
                let got = format!("weight {:?}, scales {} {:?}", words.shape, scales.dtype, scales.shape);
                return self.problem(WeightProblem::Format { name: path.into(), got, want });
            }
        };
        let per_row = shape.with_last(shape.n_in / spec.group_size());
        let words_fit = self.has_shape(&w_name, words, &shape.with_last(spec.packed_bytes(shape.n_in) / 4));
        if !(words_fit & self.has_shape(&s_name, scales, &per_row)) {
            return placeholder();
        }
        let bias_bytes = match (biases, spec.has_biases()) {
            (Some(biases), true) => {
                if !self.has_shape(&b_name, biases, &per_row) {
                    return placeholder();
                }
                if biases.dtype != scales.dtype {
                    return self.wrong_dtype(&b_name, biases, "the type of the scales");
                }
                biases.bytes.clone()
            }
            (None, true) => return self.problem(WeightProblem::Missing { name: b_name }),
            (Some(_), false) => return self.problem(WeightProblem::Extra { name: b_name }),
            (None, false) => Bytes::new(),
        };
        let Some(factors) = self.factors(global_scale, spec, shape) else { return placeholder() };
        let bytes =
            WeightBytes { data: words.bytes.clone(), scales: scales.bytes.clone(), biases: bias_bytes };
        let weight = self.host_weight(path, WeightFormat::Quantized { spec, scale_dtype }, shape, bytes);
        if factors.len() != weight.n_mats() {
            weight
        } else {
            weight.with_factors(factors).unwrap_or_else(|_| placeholder())
        }
    }

    /// The format of a quantised weight: the config's exception for its module, which the tensors must then fit;
    /// otherwise what the tensors' shapes and the scales' type imply, as the config's global format is wrong for
    /// some modules of some checkpoints. The error says what would have been right.
    fn spec(
        &self,
        path: &str,
        module: &str,
        scale_dtype: DType,
        [words, scales]: [&Entry; 2],
        n_in: usize,
    ) -> std::result::Result<QuantSpec, String> {
        let config = self.checkpoint.quantization();
        // A table may have been written with another root than the tensors.
        let wrapped = |path: &str| config.get(&format!("{WRAPPED}{path}"));
        let exception =
            |path: &str| config.get(&self.full(path)).or_else(|| config.get(path)).or_else(|| wrapped(path));
        let exception = exception(path).or_else(|| exception(module));
        let (n_words, n_groups) = (words.shape.last().copied(), scales.shape.last().copied());
        let inferred = infer(n_words.unwrap_or(0), n_groups.unwrap_or(0), n_in, scale_dtype);
        match (exception, inferred) {
            (None, Some(spec)) => Ok(spec),
            (Some(QuantOverride::Spec(spec)), Some(inferred)) if spec == inferred => Ok(spec),
            (Some(QuantOverride::Spec(spec)), _) => {
                Err(format!("{spec} of rows of {n_in}, as config.json says"))
            }
            (Some(QuantOverride::Dense), _) => Err("a dense weight, as config.json says".into()),
            (None, None) => Err(match config.global() {
                Some(spec) => format!("a quantised weight with rows of {n_in}, such as {spec}"),
                None => format!("a quantised weight with rows of {n_in}"),
            }),
        }
    }

    fn host_weight(
        &mut self,
        path: &str,
        format: WeightFormat,
        shape: WeightShape,
        bytes: WeightBytes,
    ) -> HostWeight {
        let dims = [shape.n_mats.unwrap_or(1), shape.n_out, shape.n_in];
        HostWeight::new(format, dims, bytes).unwrap_or_else(|e| {
            let want = format!("{format} {dims:?}");
            self.problem(WeightProblem::Format { name: path.into(), got: e.to_string(), want })
        })
    }

    /// Marks a tensor as wanted; a missing one is noted.
    fn take(&mut self, name: &str) -> Option<&'a Entry> {
        let checkpoint = self.checkpoint;
        let name = self.full(name);
        match checkpoint.tensors.get_key_value(&name) {
            Some((name, entry)) => {
                self.used.insert(name);
                Some(entry)
            }
            None => {
                self.problems.push(WeightProblem::Missing { name });
                None
            }
        }
    }

    fn has_shape(&mut self, name: &str, entry: &Entry, want: &[usize]) -> bool {
        if entry.shape != want {
            let (got, want) = (entry.shape.clone(), want.to_vec());
            self.problems.push(WeightProblem::Shape { name: name.into(), got, want });
        }
        entry.shape == want
    }

    fn wrong_dtype(&mut self, name: &str, entry: &Entry, want: &'static str) -> HostWeight {
        self.problem(WeightProblem::DType { name: name.into(), got: entry.dtype.to_string(), want })
    }

    pub(super) fn problem(&mut self, problem: WeightProblem) -> HostWeight {
        self.problems.push(problem);
        placeholder()
    }

    /// How many problems were noted so far.
    pub(super) fn n_problems(&self) -> usize {
        self.problems.len()
    }
}

/// Stands in for a weight that could not be read; never seen, as `finish` fails.
pub(super) fn placeholder() -> HostWeight {
    HostWeight::from_f32(&[0.0], 1, 1).expect("one float is a 1 by 1 matrix")
}

/// The one format in which a row of `n_in` weights has so many words and groups.
fn infer(n_words: usize, n_groups: usize, n_in: usize, scale_dtype: DType) -> Option<QuantSpec> {
    let n_bits = n_words.checked_mul(32)?;
    if n_in == 0 || n_groups == 0 || !n_bits.is_multiple_of(n_in) || !n_in.is_multiple_of(n_groups) {
        return None;
    }
    let (bits, group_size) = (n_bits / n_in, n_in / n_groups);
    let mode = match (scale_dtype, bits, group_size) {
        (DType::U8, 4, 16) => QuantMode::Nvfp4,
        (DType::U8, 4, _) => QuantMode::Mxfp4,
        (DType::U8, _, _) => QuantMode::Mxfp8,
        _ => QuantMode::Affine,
    };
    QuantSpec::new(mode, bits, group_size).ok()
}
