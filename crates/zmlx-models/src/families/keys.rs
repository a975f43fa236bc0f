//! Keys that several families read in the same way.

mod frame;
mod hybrid;
mod layer_types;
mod mixers;
mod rope;

pub(super) use frame::Frame;
pub(super) use hybrid::{DeltaLayout, HybridFamily, SparseKeys, hybrid};
pub(super) use layer_types::{LayerType, layer_types};
pub(super) use mixers::{Biases, Grouped, HeadNorms, Latent, NoauxMoe, SoftmaxMoe};
pub(super) use rope::{RopeKeys, RopeOf};

use zmlx_kernels::{NoauxTc, Renormalize, RopePairing};

use crate::Result;
use crate::fields::Fields;

/// Tensors that a model may have without being used: those for other inputs, and those of a head that predicts several
/// tokens at once.
pub(super) const LEFT_OVER: &[&str] = &[
    "rotary_emb",
    "vision_tower",
    "vision_embedder",
    "visual",
    "audio_tower",
    "embed_vision",
    "embed_audio",
    "multi_modal_projector",
    "mtp",
];

/// A config with more layers is considered broken. Without a limit, an error would list the missing tensors of each
/// layer.
const MAX_LAYERS: usize = 4096;

/// Reads `num_hidden_layers`.
pub(super) fn n_layers(f: &Fields<'_>) -> Result<usize> {
    const KEY: &str = "num_hidden_layers";
    let n = f.dim(KEY)?;
    f.ensure(n <= MAX_LAYERS, KEY, format!("at most {MAX_LAYERS}"), n)?;
    Ok(n)
}

/// Reads `num_attention_heads`, and `num_key_value_heads`, which must divide it.
pub(super) fn heads(f: &Fields<'_>) -> Result<(usize, usize)> {
    const KEY: &str = "num_key_value_heads";
    let (n_heads, n_kv_heads) = (f.dim("num_attention_heads")?, f.dim(KEY)?);
    let want = format!("a divisor of the {n_heads} heads");
    f.ensure(n_heads.is_multiple_of(n_kv_heads), KEY, want, n_kv_heads)?;
    Ok((n_heads, n_kv_heads))
}

/// Reads `head_dim`, which must be even. The default is `hidden_size` divided by the number of heads.
pub(super) fn head_dim(f: &Fields<'_>, n_heads: usize) -> Result<usize> {
    const KEY: &str = "head_dim";
    if f.get(KEY).is_some() {
        return even_dim(f, KEY);
    }
    let hidden = f.dim("hidden_size")?;
    let want = format!("twice a multiple of the {n_heads} heads, as there is no head_dim");
    f.ensure(hidden.is_multiple_of(2 * n_heads), "hidden_size", want, hidden)?;
    Ok(hidden / n_heads)
}

/// Reads `rope_traditional`: which dimensions of a head form a pair.
pub(super) fn pairing(f: &Fields<'_>) -> Result<RopePairing> {
    let is_traditional = f.bool_or("rope_traditional", false)?;
    Ok(if is_traditional { RopePairing::Interleaved } else { RopePairing::HalfSplit })
}

/// Reads a width that rope divides into pairs, so it must be even.
pub(super) fn even_dim(f: &Fields<'_>, key: &str) -> Result<usize> {
    let dim = f.dim(key)?;
    f.ensure(dim.is_multiple_of(2), key, "an even number (rope pairs)", dim)?;
    Ok(dim)
}

/// Reads the number of experts per token, which is at most the number of experts.
pub(super) fn top_k(f: &Fields<'_>, (n_experts_key, n_experts): (&str, usize)) -> Result<usize> {
    const KEY: &str = "num_experts_per_tok";
    let top_k = f.dim(KEY)?;
    let want = format!("at most {n_experts_key} = {n_experts}");
    f.ensure(n_experts == 0 || top_k <= n_experts, KEY, want, top_k)?;
    Ok(top_k)
}

/// The router without auxiliary loss over `n_routed_experts`. `eps` is that of the family. Refuses groups from which
/// the experts cannot be chosen.
pub(super) fn noaux_tc(
    f: &Fields<'_>,
    n_experts: usize,
    (norm_topk_prob, routed_scaling_factor, eps): (bool, f64, f32),
) -> Result<NoauxTc> {
    f.only("scoring_func", "sigmoid")?;
    f.only("topk_method", "noaux_tc")?;
    let top_k = top_k(f, ("n_routed_experts", n_experts))?;
    let (n_group, topk_group) = (f.dim_or("n_group", 1)?, f.dim_or("topk_group", 1)?);
    let want = format!("a divisor of n_routed_experts = {n_experts}");
    f.ensure(n_experts.is_multiple_of(n_group), "n_group", want, n_group)?;
    f.ensure(topk_group <= n_group, "topk_group", format!("at most n_group = {n_group}"), topk_group)?;
    let group = n_experts / n_group;
    let want = "at least two experts in each group, whose best two are its score";
    f.ensure(n_group == 1 || group >= 2, "n_group", want, n_group)?;
    let reach = topk_group.saturating_mul(group);
    let want = format!("at most the {reach} experts of topk_group = {topk_group} groups");
    f.ensure(top_k <= reach, "num_experts_per_tok", want, top_k)?;
    Ok(NoauxTc {
        top_k,
        n_group,
        topk_group,
        renormalize: renormalize(norm_topk_prob),
        eps,
        routed_scaling_factor: routed_scaling_factor as f32,
    })
}

/// The value of `norm_topk_prob` in the type that routers take.
pub(super) fn renormalize(norm_topk_prob: bool) -> Renormalize {
    if norm_topk_prob { Renormalize::Yes } else { Renormalize::No }
}
