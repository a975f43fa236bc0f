//! Small random checkpoints in MLX's format, written to a folder.

use std::collections::BTreeMap;
use std::path::Path;

use half::bf16;
use safetensors::tensor::{Dtype, TensorView};
use zmlx_oracle::quant::{Format, Mode, Scales, StorageDtype, quantize};
use zmlx_oracle::testing::random_f32;

/// Tensors by name.
pub(crate) struct Builder {
    seed: u64,
    pub(crate) tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    /// The format of quantised weights; `None` for a dense model.
    pub(crate) format: Option<Format>,
    pub(crate) scale_dtype: StorageDtype,
}

impl Builder {
    pub(crate) fn new(seed: u64, format: Option<Format>) -> Self {
        Self { seed, tensors: BTreeMap::new(), format, scale_dtype: StorageDtype::BF16 }
    }

    fn values(&mut self, n: usize, std_dev: f64) -> Vec<f32> {
        self.seed += 1;
        random_f32(n, std_dev, self.seed)
    }

    /// A weight of the model's format: a matrix, or a stack of matrices.
    pub(crate) fn weight(&mut self, path: &str, shape: &[usize]) {
        self.weight_in(path, shape, self.format);
    }

    pub(crate) fn weight_in(&mut self, path: &str, shape: &[usize], format: Option<Format>) {
        let n_in = shape[shape.len() - 1];
        let w = self.values(shape.iter().product(), (n_in as f64).sqrt().recip());
        let with_last = |last: usize| [&shape[..shape.len() - 1], &[last]].concat();
        let Some(format) = format else {
            let bytes = w.iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes()).collect();
            self.tensors.insert(format!("{path}.weight"), (Dtype::BF16, shape.to_vec(), bytes));
            return;
        };
        let q = quantize(&w, n_in, format, self.scale_dtype).unwrap();
        let words = (Dtype::U32, with_last(n_in * format.bits / 32), q.packed);
        self.tensors.insert(format!("{path}.weight"), words);
        let groups = with_last(n_in / format.group_size);
        let (dtype, scale_dtype) = match self.scale_dtype {
            StorageDtype::F32 => (Dtype::F32, StorageDtype::F32),
            StorageDtype::F16 => (Dtype::F16, StorageDtype::F16),
            StorageDtype::BF16 => (Dtype::BF16, StorageDtype::BF16),
        };
        let floats = |v: &[f32]| v.iter().flat_map(|v| scale_dtype.bytes(*v)).collect::<Vec<u8>>();
        let scales = match &q.scales {
            Scales::Float(v) => (dtype, groups.clone(), floats(v)),
            Scales::Codes(codes) => (Dtype::U8, groups.clone(), codes.clone()),
        };
        self.tensors.insert(format!("{path}.scales"), scales);
        if let Some(biases) = &q.biases {
            self.tensors.insert(format!("{path}.biases"), (dtype, groups, floats(biases)));
        }
    }

    /// Gate, up and down projections.
    pub(crate) fn mlp(&mut self, path: &str, inter: usize, hidden: usize) {
        self.weight(&format!("{path}.gate_proj"), &[inter, hidden]);
        self.weight(&format!("{path}.up_proj"), &[inter, hidden]);
        self.weight(&format!("{path}.down_proj"), &[hidden, inter]);
    }

    /// Stacked experts.
    pub(crate) fn experts(&mut self, path: &str, n: usize, inter: usize, hidden: usize) {
        self.weight(&format!("{path}.switch_mlp.gate_proj"), &[n, inter, hidden]);
        self.weight(&format!("{path}.switch_mlp.up_proj"), &[n, inter, hidden]);
        self.weight(&format!("{path}.switch_mlp.down_proj"), &[n, hidden, inter]);
    }

    /// Splits stacked experts into one tensor each. `names` are those of gate, down and up.
    pub(crate) fn unstack_experts(&mut self, [gate, down, up]: [&str; 3]) {
        for name in self.names_with("switch_mlp") {
            let (dtype, shape, bytes) = self.tensors.remove(&name).unwrap();
            for (e, bytes) in bytes.chunks_exact(bytes.len() / shape[0]).enumerate() {
                let name = name.replace("switch_mlp", &format!("experts.{e}"));
                let name = name.replace("gate_proj", gate).replace("down_proj", down).replace("up_proj", up);
                self.tensors.insert(name, (dtype, shape[1..].to_vec(), bytes.to_vec()));
            }
        }
    }

    /// Puts gate and up of all experts into one stack, gate's rows first, and all experts under `module`. The weight's
    /// name ends in `suffix`. If that is empty, the names of the other parts are appended after an underscore.
    pub(crate) fn join_gate_up(&mut self, module: &str, suffix: &str) {
        for name in self.names_with("switch_mlp") {
            if name.contains("up_proj") {
                continue; // goes with gate
            }
            let (dtype, mut shape, mut bytes) = self.tensors.remove(&name).unwrap();
            let mut renamed = name.replace("mlp.switch_mlp", module).replace("gate_proj", "gate_up_proj");
            if suffix.is_empty() {
                renamed = renamed.replace(".weight", "");
                renamed = renamed.replace(".scales", "_scales").replace(".biases", "_biases");
            }
            if name.contains("gate_proj") {
                let (_, _, up) = self.tensors.remove(&name.replace("gate_proj", "up_proj")).unwrap();
                let n_bytes = bytes.len() / shape[0];
                let pairs = bytes.chunks_exact(n_bytes).zip(up.chunks_exact(n_bytes));
                bytes = pairs.flat_map(|(gate, up)| [gate, up].concat()).collect();
                shape[1] *= 2;
            }
            self.tensors.insert(renamed, (dtype, shape, bytes));
        }
    }

    fn names_with(&self, part: &str) -> Vec<String> {
        self.tensors.keys().filter(|name| name.contains(part)).cloned().collect()
    }

    /// A bf16 norm weight near 1.
    pub(crate) fn norm(&mut self, name: &str, len: usize) {
        let values = self.values(len, 0.1);
        let bytes = values.iter().flat_map(|v| bf16::from_f32(1.0 + v).to_le_bytes()).collect();
        self.tensors.insert(name.to_owned(), (Dtype::BF16, vec![len], bytes));
    }

    /// An f32 vector.
    pub(crate) fn floats(&mut self, name: &str, len: usize, std_dev: f64) {
        let bytes = self.values(len, std_dev).iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensors.insert(name.to_owned(), (Dtype::F32, vec![len], bytes));
    }

    /// Writes config and weights. The weights are divided over `n_shards` files, next to an index that names other
    /// files.
    pub(crate) fn write(&self, dir: &Path, config: &serde_json::Value, n_shards: usize) {
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
        for shard in 0..n_shards {
            let tensors = self.tensors.iter().enumerate().filter(|(i, _)| i % n_shards == shard);
            let views = tensors.map(|(_, (name, (dtype, shape, bytes)))| {
                (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
            });
            let file = if n_shards == 1 {
                "model.safetensors".to_owned()
            } else {
                format!("model-{:05}-of-{n_shards:05}.safetensors", shard + 1)
            };
            std::fs::write(dir.join(file), safetensors::serialize(views, None).unwrap()).unwrap();
        }
        if n_shards > 1 {
            let stale =
                serde_json::json!({ "weight_map": { "lm_head.weight": "model-00009-of-00009.safetensors" } });
            std::fs::write(dir.join("model.safetensors.index.json"), stale.to_string()).unwrap();
        }
    }
}

/// The table for a format in `config.json`.
pub(crate) fn table(format: Format) -> serde_json::Value {
    let mode = match format.mode {
        Mode::Affine => "affine",
        Mode::Mxfp4 => "mxfp4",
        Mode::Mxfp8 => "mxfp8",
        Mode::Nvfp4 => "nvfp4",
    };
    serde_json::json!({ "group_size": format.group_size, "bits": format.bits, "mode": mode })
}
