//! A fixture's checkpoint in memory, which can be changed and loaded again.

use std::collections::BTreeMap;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde_json::Value;
use zmlx_oracle::Result;
use zmlx_oracle::checkpoint::Checkpoint;
use zmlx_oracle::model::Model;
use zmlx_oracle::quant::{QuantizedMatrix, Scales, StorageDtype};

use super::model_dir;

/// Dtype, shape and bytes.
pub(crate) type Parts = (Dtype, Vec<usize>, Vec<u8>);

pub(crate) struct Rewrite {
    pub(crate) config: Value,
    pub(crate) tensors: BTreeMap<String, Parts>,
}

impl Rewrite {
    pub(crate) fn of(model: &str) -> Self {
        let config = std::fs::read_to_string(model_dir(model).join("config.json")).unwrap();
        let bytes = std::fs::read(model_dir(model).join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let parts = |view: TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        let tensors = file.iter().map(|(name, view)| (name.to_owned(), parts(view))).collect();
        Self { config: serde_json::from_str(&config).unwrap(), tensors }
    }

    /// Every `n`th tensor from number `first` on, as a file.
    pub(crate) fn shard(&self, first: usize, n: usize) -> Vec<u8> {
        let chosen = self.tensors.iter().skip(first).step_by(n);
        let views = chosen.map(|(name, (dtype, shape, bytes))| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        serialize(views.collect::<Vec<_>>(), None).unwrap()
    }

    pub(crate) fn checkpoint(&self) -> Result<Checkpoint> {
        Checkpoint::from_bytes(&self.config.to_string(), &[&self.shard(0, 1)])
    }

    pub(crate) fn model(&self) -> Result<Model> {
        Model::from_bytes(&self.config.to_string(), &[&self.shard(0, 1)])
    }

    pub(crate) fn set_floats(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensors.insert(name.to_owned(), (Dtype::F32, shape.to_vec(), bytes));
    }

    /// Replaces the module's weight. Scales and biases are stored as bfloat16.
    pub(crate) fn set_quantized(&mut self, path: &str, shape: &[usize; 2], matrix: &QuantizedMatrix) {
        let bf16 =
            |values: &[f32]| values.iter().flat_map(|&x| StorageDtype::BF16.bytes(x)).collect::<Vec<u8>>();
        let words = vec![shape[0], matrix.format.row_words(shape[1])];
        let groups = vec![shape[0], matrix.format.row_groups(shape[1])];
        let scales = match &matrix.scales {
            Scales::Float(values) => (Dtype::BF16, groups.clone(), bf16(values)),
            Scales::Codes(codes) => (Dtype::U8, groups.clone(), codes.clone()),
        };
        self.tensors.insert(format!("{path}.weight"), (Dtype::U32, words, matrix.packed.clone()));
        self.tensors.insert(format!("{path}.scales"), scales);
        self.tensors.remove(&format!("{path}.biases"));
        if let Some(biases) = &matrix.biases {
            self.tensors.insert(format!("{path}.biases"), (Dtype::BF16, groups, bf16(biases)));
        }
    }
}
