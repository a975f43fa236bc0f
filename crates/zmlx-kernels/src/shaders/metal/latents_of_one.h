// The caches of latent_attention_parts: those of one sequence.
#define ZMLX_LATENTS {kv0}
#define ZMLX_KEYS {k_pe0}
