// The caches of latent_attention_parts: those of up to eight sequences. Where there are fewer, the first stands again.
#define ZMLX_CACHES {cache0, cache1, cache2, cache3, cache4, cache5, cache6, cache7}
