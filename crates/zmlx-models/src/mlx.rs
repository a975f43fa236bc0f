//! The models' MoE blocks for programs that use mlx-rs: stock, and with fused kernels.
//!
//! A program keeps its own model and replaces one block of a layer with a call:
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

use zmlx_kernels::mlx::{Array, Gpu, MlxBackend, MlxWeight};
use zmlx_kernels::{Backend, ExpertFusion, Fusion, Switch};

use crate::loader::Loader;
use crate::{Architecture, Checkpoint, Error, Result};

/// A set of fused ops, and why it was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FusionChoice {
    /// The fusions.
    pub fusion: Fusion,
    /// The reason, in words.
    pub reason: String,
}

/// The fused ops that a model uses on this backend by default.
///
/// | backend | model | experts, combine, route | dense_swiglu | qkv, add_rms_norm |
/// |---|---|---|---|---|
/// | MLX without a GPU | any | stock | off | off |
/// | MLX with CUDA | with experts | fused experts | off | off |
/// | MLX with CUDA | without | stock | off | off |
/// | MLX with Metal | with experts | fused | on if it has shared experts or dense layers | on |
/// | MLX with Metal | without | stock | on | on |
///
/// - *experts*: each token reads `top_k` experts of `moe_intermediate_size` rows. Stock takes two gathers, SiLU and a
///   product, each of which waits for the one before. The kernel is one launch, and gate and up never go to memory.
///   GLM-4.7-Flash's 4 × 1536 and Qwen3-30B-A3B's 8 × 768 are both 6,144 rows: enough threadgroups to fill a GPU, with
///   groups of 64 that a kernel's lanes share evenly. Concatenation would also save a launch, but it holds gate and up of
///   every layer twice.
/// - *combine*: `top_k` partial results of the hidden width are summed where they are computed, instead of being
///   written.
/// - *dense_swiglu*: the same for the MLPs that every token goes through.
/// - *route*: one launch of a few hundred values instead of six.
/// - *qkv*: a token's projections in one product over rows that are stored side by side. Several tokens take one product for each
///   of them, as stock does. Queries and keys are normed and rotated in one launch instead of four. Latent attention of up to
///   eight new tokens is three launches between its products instead of ten.
/// - *add_rms_norm*: one launch instead of two, twice a layer.
///
/// Without a GPU every fused op is the composition of the same stock ops, so nothing is gained. In exact numerics the
/// results have the same bits with any choice, except that *qkv* computes latent attention in f32 on Metal, where stock rounds
/// scores and probabilities. No speed on Metal has been measured; the choice is based on counts.
pub fn default_fusion(architecture: &Architecture, backend: &MlxBackend) -> FusionChoice {
    let Some(gpu) = backend.runtime().gpu() else {
        let reason = "MLX runs without a GPU: fused ops would be compositions of the same stock ops";
        return FusionChoice { fusion: Fusion::STOCK, reason: reason.to_owned() };
    };
    if gpu == Gpu::Cuda {
        return match architecture.moe_layers().next() {
            Some(_) => FusionChoice {
                fusion: Fusion { experts: ExpertFusion::Fused, ..Fusion::STOCK },
                reason: "one kernel for gate, up and SwiGLU of the experts: the only fused kernel for CUDA"
                    .to_owned(),
            },
            None => FusionChoice {
                fusion: Fusion::STOCK,
                reason: "there are no experts, and the only fused kernel for CUDA is theirs".to_owned(),
            },
        };
    }
    let has_mlps = architecture.layers.iter().any(|layer| layer.dense_mlp().is_some());
    let dense_swiglu = if has_mlps { Switch::On } else { Switch::Off };
    let Some((_, moe)) = architecture.moe_layers().next() else {
        let reason = "one launch over gate and up of each MLP instead of three".to_owned();
        return FusionChoice {
            fusion: Fusion { dense_swiglu, qkv: Switch::On, add_rms_norm: Switch::On, ..Fusion::STOCK },
            reason,
        };
    };
    let fusion = Fusion {
        experts: ExpertFusion::Fused,
        combine: Switch::On,
        dense_swiglu,
        route: Switch::On,
        qkv: Switch::On,
        add_rms_norm: Switch::On,
        ..Fusion::STOCK
    };
    let (top_k, inter) = (moe.router.top_k(), moe.experts.inter);
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

/// The block of layer `layer_idx` of a checkpoint, with [`default_fusion`]. The choice is logged.
///
/// # Errors
/// [`Error::Parameter`] if the layer does not exist or has no experts; as [`crate::Model::load`] for its weights.
pub fn moe_block(checkpoint: &Checkpoint, layer_idx: usize, backend: &MlxBackend) -> Result<MoeBlock> {
    let architecture = checkpoint.architecture();
    let Some(spec) = architecture.layers.get(layer_idx).and_then(|layer| layer.moe()) else {
        let want = "a layer with experts";
        return Err(Error::Parameter { field: "layer_idx", want, got: layer_idx.to_string() });
    };
    let mut loader = Loader::new(backend, checkpoint);
    let block = loader.moe(spec)?;
    // The caller has the rest of the model.
    loader.reader.ignore_rest();
    loader.reader.finish()?;
    let FusionChoice { fusion, reason } = default_fusion(architecture, backend);
    tracing::info!(layer_idx, %fusion, reason, "fusions of a MoE block");
    Ok(MoeBlock { block, backend: backend.clone(), fusion })
}

impl MoeBlock {
    /// A block of weights that the program already has.
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

    /// Computes the block. **Shapes** x `[.., hidden]` → as x.
    ///
    /// # Errors
    /// If the width is not the model's.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        self.run(x, &self.fusion)
    }

    /// Computes the block as mlx-lm does. **Shapes** as [`MoeBlock::forward`].
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
