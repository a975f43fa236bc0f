//! The models' MoE blocks for programs that use mlx-rs: stock, and patched with fused kernels.
//!
//! A program keeps its own model and replaces one block of a layer by a call:
//!
//! ```no_run
//! # use std::path::Path;
//! use zmlx_kernels::mlx::{Array, MlxBackend, Numerics};
//! use zmlx_models::{Checkpoint, mlx};
//!
//! # fn run(x: Array) -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open(Path::new("GLM-4.7-Flash-4bit"))?;
//! let backend = MlxBackend::new(Numerics::Exact)?;
//! let block = mlx::moe_block(&checkpoint, 1, &backend)?;
//! let y = block.forward(&x)?; // [batch, tokens, hidden], as the layer's own block
//! # Ok(())
//! # }
//! ```

use zmlx_kernels::mlx::{Array, MlxBackend, MlxWeight};
use zmlx_kernels::{Backend, ExpertFusion, Fusion, Switch};

use crate::loader::Loader;
use crate::{Checkpoint, Error, ModelConfig, Result, glm4_moe_lite, qwen3_moe};

/// A set of fusions and why it was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FusionChoice {
    /// The fusions.
    pub fusion: Fusion,
    /// The reason, in words.
    pub reason: String,
}

/// The fusions that a model uses on this backend unless told otherwise.
///
/// | backend | model | experts | combine | dense_swiglu | route | add_rms_norm, qkv |
/// |---|---|---|---|---|---|---|
/// | MLX without Metal | any | stock | off | off | off | off |
/// | MLX with Metal | GLM | fused | on | on | on | off |
/// | MLX with Metal | Qwen | fused | on | off | on | off |
///
/// - *experts*: of a token, `top_k` experts of `moe_intermediate_size` rows each are read. Stock takes two gathers, SiLU and
///   a product, each waiting for the one before; the kernel is one launch, and gate and up never go to memory. GLM's
///   4 × 1536 and Qwen's 8 × 768 are 6,144 rows either way: enough threadgroups to fill a GPU, with groups of 64 that
///   a kernel's lanes share evenly. Concatenation would save a launch, too, but holds gate and up of every layer twice.
/// - *combine*: `top_k` partial results of the hidden width are summed where they are computed instead of being written.
/// - *dense_swiglu*: only GLM has shared experts and a dense layer.
/// - *route*: one launch of a few hundred values instead of six.
/// - *add_rms_norm* and *qkv* have no kernel on Metal: the first is the composition, the second copies the projections.
///
/// Without Metal every fused op is the composition of the same stock ops, so nothing is to be gained. In exact numerics
/// the results have the same bits whichever is chosen. No speed on Metal has been measured; the choice rests on counts.
pub fn default_fusion(config: &ModelConfig, backend: &MlxBackend) -> FusionChoice {
    if !backend.runtime().has_metal() {
        let reason = "MLX runs without Metal: fused ops would be compositions of the same stock ops";
        return FusionChoice { fusion: Fusion::STOCK, reason: reason.to_owned() };
    }
    let (top_k, inter, n_shared) = match config {
        ModelConfig::Glm4MoeLite(c) => (c.num_experts_per_tok, c.moe_intermediate_size, c.n_shared_experts),
        ModelConfig::Qwen3Moe(c) => (c.num_experts_per_tok, c.moe_intermediate_size, 0),
    };
    let fusion = Fusion {
        experts: ExpertFusion::Fused,
        combine: Switch::On,
        dense_swiglu: if n_shared > 0 { Switch::On } else { Switch::Off },
        route: Switch::On,
        ..Fusion::STOCK
    };
    let rows = top_k * inter;
    let reason = format!(
        "{top_k} experts of {inter} rows per token: one launch over {rows} rows of gate and up instead of four dependent ones"
    );
    FusionChoice { fusion, reason }
}

/// A layer's mixture of experts on MLX, for any mlx-rs model of the same architecture.
#[derive(Debug)]
pub struct MoeBlock {
    block: zmlx_moe::MoeBlock<MlxWeight>,
    backend: MlxBackend,
    fusion: Fusion,
}

/// The block of layer `layer_idx` of a checkpoint, with [`default_fusion`], which is logged.
///
/// # Errors
/// [`Error::Parameter`] if the layer does not exist or has no experts; as [`crate::Model::load`] for its weights.
pub fn moe_block(checkpoint: &Checkpoint, layer_idx: usize, backend: &MlxBackend) -> Result<MoeBlock> {
    let config = checkpoint.config();
    if layer_idx >= config.num_hidden_layers() || !config.is_moe_layer(layer_idx) {
        let want = "a layer with experts";
        return Err(Error::Parameter { field: "layer_idx", want, got: layer_idx.to_string() });
    }
    let mut loader = Loader::new(backend, checkpoint);
    let block = match config {
        ModelConfig::Glm4MoeLite(c) => glm4_moe_lite::moe(&mut loader, c, layer_idx)?,
        ModelConfig::Qwen3Moe(c) => qwen3_moe::moe(&mut loader, c, layer_idx)?,
    };
    // The rest of the model is the caller's.
    loader.reader.ignore("model");
    loader.reader.ignore("lm_head");
    loader.reader.finish()?;
    let FusionChoice { fusion, reason } = default_fusion(config, backend);
    tracing::info!(layer_idx, %fusion, reason, "fusions of a MoE block");
    Ok(MoeBlock { block, backend: backend.clone(), fusion })
}

impl MoeBlock {
    /// A block of weights that the program has already.
    pub fn new(block: zmlx_moe::MoeBlock<MlxWeight>, backend: MlxBackend, fusion: Fusion) -> Self {
        Self { block, backend, fusion }
    }

    /// The fusions in use.
    pub fn fusion(&self) -> &Fusion {
        &self.fusion
    }

    /// The same block with other fusions.
    #[must_use]
    pub fn with_fusion(self, fusion: Fusion) -> Self {
        Self { fusion, ..self }
    }

    /// The patched block. **Shapes** x `[.., hidden]` → as x.
    ///
    /// # Errors
    /// If the width is not the model's.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        self.run(x, &self.fusion)
    }

    /// The block as mlx-lm computes it. **Shapes** as [`MoeBlock::forward`].
    ///
    /// # Errors
    /// As [`MoeBlock::forward`].
    pub fn forward_stock(&self, x: &Array) -> Result<Array> {
        self.run(x, &Fusion::STOCK)
    }

    fn run(&self, x: &Array, fusion: &Fusion) -> Result<Array> {
        let b = &self.backend;
        let shape = b.shape(x);
        let hidden = shape.last().copied().unwrap_or(0);
        let n_tokens = x.size() / hidden.max(1);
        let y = self.block.forward(b, &b.reshape(x, &[n_tokens, hidden])?, fusion)?;
        Ok(b.reshape(&y, &shape)?)
    }
}
