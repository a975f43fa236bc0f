//! Intermediate results of a pass.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::layers::{KvCache, to_f32};
use crate::Result;
use crate::ops::Routing;

/// A matrix of `f32`, row-major: one row for each token.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// `rows · cols` elements.
    pub data: Vec<f32>,
}

impl Matrix {
    /// One row.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    /// The last row; empty if there is none.
    #[must_use]
    pub fn last_row(&self) -> &[f32] {
        if self.rows == 0 { &[] } else { self.row(self.rows - 1) }
    }

    pub(super) fn from_tensor(tensor: &Tensor) -> Result<Self> {
        let (rows, cols) = tensor.dims2()?;
        Ok(Self { rows, cols, data: tensor.flatten_all()?.to_vec1()? })
    }
}

/// The intermediate results of one pass, named as in the recordings:
///
/// | name | shape | what |
/// |---|---|---|
/// | `embed` | `[n_tokens, hidden]` | after the embedding |
/// | `layers.I.attn` | `[n_tokens, hidden]` | residual stream after layer I's attention |
/// | `layers.I.out` | `[n_tokens, hidden]` | residual stream after layer I |
/// | `layers.I.router_logits` | `[n_tokens, n_experts]` | layers with experts: before softmax or sigmoid |
/// | `layers.I.expert_indices` | `[n_tokens, top_k]` | chosen experts, best first ([`Self::routing`]) |
/// | `layers.I.expert_weights` | `[n_tokens, top_k]` | the weights that multiply their outputs, in that order |
/// | `layers.I.conv_state` | one row | layers with a convolution: its last inputs, `[kernel - 1, n_channels]` |
/// | `layers.I.recurrent_state` | one row | layers with a delta rule: its state, `[n_v_heads, v_dim, k_dim]` |
/// | `norm` | `[n_tokens, hidden]` | after the final norm |
/// | `logits` | `[n_tokens, vocab_size]` | logits |
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    floats: BTreeMap<String, Matrix>,
    routings: BTreeMap<String, Routing>,
    /// `[n_tokens, vocab_size]`.
    pub logits: Matrix,
}

impl Trace {
    /// A float result by name (every result except the expert indices).
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Matrix> {
        if name == "logits" { Some(&self.logits) } else { self.floats.get(name) }
    }

    /// `layers.I.expert_indices`, `[n_tokens, top_k]`.
    #[must_use]
    pub fn indices(&self, name: &str) -> Option<&[u32]> {
        let layer = name.strip_prefix("layers.")?.strip_suffix(".expert_indices")?;
        Some(&self.routing(layer.parse().ok()?)?.indices)
    }

    /// The router's choice in a layer with experts, with margins.
    #[must_use]
    pub fn routing(&self, layer_idx: usize) -> Option<&Routing> {
        self.routings.get(&format!("layers.{layer_idx}"))
    }

    /// The names of all results, floats and indices.
    pub fn names(&self) -> impl Iterator<Item = String> {
        let floats = self.floats.keys().cloned().chain(["logits".to_owned()]);
        floats.chain(self.routings.keys().map(|layer| format!("{layer}.expert_indices")))
    }
}

/// Collects results, or drops them if they are not wanted.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    kept: Option<(BTreeMap<String, Matrix>, BTreeMap<String, Routing>)>,
}

impl Recorder {
    pub(super) fn keeping() -> Self {
        Self { kept: Some(Default::default()) }
    }

    pub(super) fn record(&mut self, name: impl Into<String>, tensor: &Tensor) -> Result<()> {
        if let Some((floats, _)) = &mut self.kept {
            floats.insert(name.into(), Matrix::from_tensor(tensor)?);
        }
        Ok(())
    }

    /// The state of a layer after these tokens, if it has one.
    pub(super) fn record_state(&mut self, layer_idx: usize, cache: &KvCache) {
        let Some((floats, _)) = &mut self.kept else { return };
        let mut keep = |what: &str, data: Vec<f32>| {
            if !data.is_empty() {
                let state = Matrix { rows: 1, cols: data.len(), data };
                floats.insert(format!("layers.{layer_idx}.{what}"), state);
            }
        };
        keep("conv_state", cache.conv.clone());
        keep("recurrent_state", to_f32(&cache.state));
    }

    pub(super) fn record_routing(&mut self, layer_idx: usize, top_k: usize, routing: &Routing) {
        if let Some((floats, routings)) = &mut self.kept {
            let layer = format!("layers.{layer_idx}");
            let data: Vec<f32> = routing.weights.iter().map(|&w| w as f32).collect();
            let rows = data.len().checked_div(top_k).unwrap_or(0);
            floats.insert(format!("{layer}.expert_weights"), Matrix { rows, cols: top_k, data });
            routings.insert(layer, routing.clone());
        }
    }

    pub(super) fn finish(self, logits: Matrix) -> Trace {
        let (floats, routings) = self.kept.unwrap_or_default();
        Trace { floats, routings, logits }
    }
}
