// The caches of latent_attention_parts: that of one sequence.
#define ZMLX_CACHES {cache0}
