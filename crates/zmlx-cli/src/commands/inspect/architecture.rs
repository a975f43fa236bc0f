//! The hyperparameters under the names that `config.json` gives them.

use serde_json::{Map, Value, json};
use zmlx_models::ModelConfig;

macro_rules! fields_of {
    ($c:expr; $($name:ident),* $(,)?) => {{
        let mut map = Map::new();
        $(map.insert(stringify!($name).to_owned(), json!($c.$name));)*
        map
    }};
}

/// Name and value of every hyperparameter, in the order of the model's configuration.
pub(super) fn fields(config: &ModelConfig) -> Map<String, Value> {
    match config {
        ModelConfig::Glm4MoeLite(c) => fields_of!(
            c; vocab_size, hidden_size, num_hidden_layers, num_attention_heads, q_lora_rank, kv_lora_rank,
            qk_nope_head_dim, qk_rope_head_dim, v_head_dim, intermediate_size, moe_intermediate_size,
            n_routed_experts, n_shared_experts, num_experts_per_tok, n_group, topk_group, norm_topk_prob,
            routed_scaling_factor, first_k_dense_replace, moe_layer_freq, rms_norm_eps, rope_theta,
            attention_scale, max_position_embeddings, tie_word_embeddings,
        ),
        ModelConfig::Qwen3Moe(c) => fields_of!(
            c; vocab_size, hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim,
            intermediate_size, moe_intermediate_size, num_experts, num_experts_per_tok, norm_topk_prob,
            decoder_sparse_step, mlp_only_layers, rms_norm_eps, rope_theta, max_position_embeddings,
            tie_word_embeddings,
        ),
        _ => Map::new(),
    }
}
