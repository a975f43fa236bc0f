//! The layers of Gemma 4.

use zmlx_kernels::{Rope, RopePairing};

use super::super::keys::{Biases, Grouped, HeadNorms, LayerType, RopeKeys, RopeOf};
use super::Config;
use crate::Result;
use crate::architecture::{
    Activation, BesideSpec, ExpertsSpec, FeedForwardSpec, GqaSpec, LayerExtras, LayerSpec, LinearSpec,
    MatrixSpec, MixerSpec, MlpSpec, MoeSpec, PerLayerInputSpec, RouterSpec, ScaledNorm, SharedGqaSpec,
    SoftmaxOfChosen, Storage, VectorSpec,
};
use crate::fields::Fields;

/// The rope of the layers of a type. If the config does not give it, layers with a window have the usual one, and the
/// others rotate a quarter of each head's pairs.
pub(super) fn rope(keys: &RopeKeys<'_, '_>, head_dim: usize, layer_type: LayerType) -> Result<Rope> {
    let theta = keys.theta(Some(if layer_type == LayerType::Full { 1e6 } else { 1e4 }))?;
    let of = RopeOf { dims: head_dim, theta, pairing: RopePairing::HalfSplit };
    if layer_type == LayerType::Full && !keys.has_settings() {
        return Ok(of.proportional(0.25));
    }
    if !keys.is_proportional()? {
        keys.whole_heads()?;
    }
    keys.rope(of)
}

/// What all layers are built from.
pub(super) struct Layers<'a> {
    pub(super) config: &'a Config,
    /// The rope of layers with a window, then that of the others.
    pub(super) ropes: [Rope; 2],
}

impl Layers<'_> {
    /// All layers.
    pub(super) fn all(&self, f: &Fields<'_>) -> Result<Vec<LayerSpec>> {
        let c = self.config;
        let n_own = c.num_hidden_layers.saturating_sub(c.num_kv_shared_layers);
        let mut layers = Vec::with_capacity(c.num_hidden_layers);
        for (layer_idx, layer_type) in c.layer_types.iter().enumerate() {
            let of_layer = if layer_idx < n_own {
                None
            } else {
                let earlier = c.layer_types[..n_own].iter().rposition(|earlier| earlier == layer_type);
                let want = "so few that a layer of each type has keys and values";
                f.ensure(earlier.is_some(), "num_kv_shared_layers", want, c.num_kv_shared_layers)?;
                earlier
            };
            layers.push(self.layer(layer_idx, *layer_type, of_layer));
        }
        Ok(layers)
    }

    fn layer(&self, layer_idx: usize, layer_type: LayerType, of_layer: Option<usize>) -> LayerSpec {
        let (c, hidden) = (self.config, self.config.hidden_size);
        let at = |name: &str| format!("model.layers.{layer_idx}.{name}");
        let norm = |name: &str| VectorSpec::new(at(&format!("{name}.weight")), hidden);
        let is_wide = of_layer.is_some() && c.use_double_wide_mlp;
        let inter = if is_wide { c.intermediate_size.saturating_mul(2) } else { c.intermediate_size };
        let mlp = MlpSpec { activation: Activation::GeGlu, ..MlpSpec::swiglu(&at("mlp"), inter, hidden) };
        let width = c.hidden_size_per_layer_input;
        let per_layer_input = (width > 0).then(|| PerLayerInputSpec {
            gate: MatrixSpec::new(at("per_layer_input_gate"), width, hidden),
            projection: MatrixSpec::new(at("per_layer_projection"), hidden, width),
            norm: norm("post_per_layer_input_norm"),
        });
        LayerSpec {
            input_norm: norm("input_layernorm"),
            mixer: self.mixer(at("self_attn"), layer_type, of_layer),
            post_norm: norm("pre_feedforward_layernorm"),
            feed_forward: if c.enable_moe_block {
                FeedForwardSpec::Beside(Box::new(BesideSpec {
                    mlp,
                    mlp_norm: norm("post_feedforward_layernorm_1"),
                    moe: self.moe(format!("model.layers.{layer_idx}")),
                    moe_input_norm: norm("pre_feedforward_layernorm_2"),
                    moe_norm: norm("post_feedforward_layernorm_2"),
                }))
            } else {
                FeedForwardSpec::dense(mlp)
            },
            extras: LayerExtras {
                mixer_norm: Some(norm("post_attention_layernorm")),
                feed_forward_norm: Some(norm("post_feedforward_layernorm")),
                per_layer_input,
                factor: Some(VectorSpec::new(at("layer_scalar"), 1)),
            },
        }
    }

    fn mixer(&self, path: String, layer_type: LayerType, of_layer: Option<usize>) -> MixerSpec {
        let (c, [sliding, full]) = (self.config, &self.ropes);
        let is_full = layer_type == LayerType::Full;
        // Keys are also the values.
        let is_joint = is_full && c.attention_k_eq_v;
        let grouped = Grouped {
            n_heads: c.num_attention_heads,
            n_kv_heads: if is_joint { c.num_global_key_value_heads } else { c.num_key_value_heads },
            head_dim: if is_full { c.global_head_dim } else { c.head_dim },
            hidden: c.hidden_size,
            biases: Biases::None,
            norms: HeadNorms::Each,
            eps: c.rms_norm_eps as f32,
            rope: if is_full { full.clone() } else { sliding.clone() },
        };
        let own = grouped.at(&path);
        let (scale, window) = (1.0, (!is_full).then_some(c.sliding_window));
        let Some(of_layer) = of_layer else {
            let v = own.v.filter(|_| !is_joint);
            return MixerSpec::Attention(GqaSpec { v, norms_values: true, scale, window, ..own });
        };
        let GqaSpec { n_heads, head_dim, q, q_norm, o, eps, rope, .. } = own;
        MixerSpec::Shared(SharedGqaSpec {
            path,
            of_layer,
            n_heads,
            head_dim,
            q,
            q_norm,
            o,
            eps,
            rope,
            scale,
            window,
        })
    }

    /// The router and experts at `path`.
    fn moe(&self, path: String) -> MoeSpec {
        let (c, hidden) = (self.config, self.config.hidden_size);
        let gate = MatrixSpec::new(format!("{path}.router.proj"), c.num_experts, hidden);
        MoeSpec {
            router: RouterSpec::SoftmaxOfChosen(Box::new(SoftmaxOfChosen {
                gate: LinearSpec { matrix: gate.stored(Storage::EightBit), bias: None },
                norm: Some(ScaledNorm {
                    weight: VectorSpec::new(format!("{path}.router.scale"), hidden),
                    factor: (hidden as f32).sqrt().recip(),
                    eps: c.rms_norm_eps as f32,
                }),
                factors: Some(VectorSpec::new(format!("{path}.router.per_expert_scale"), c.num_experts)),
                top_k: c.top_k_experts,
            })),
            experts: ExpertsSpec {
                module: "experts.switch_glu",
                activation: Activation::GeGlu,
                ..ExpertsSpec::swiglu(path, c.num_experts, [c.moe_intermediate_size, hidden])
            },
            shared: None,
            shared_gate: None,
        }
    }
}
