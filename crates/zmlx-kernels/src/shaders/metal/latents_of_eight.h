// The caches of latent_attention_parts: those of up to eight sequences. Where there are fewer, the first stands again.
#define ZMLX_LATENTS {kv0, kv1, kv2, kv3, kv4, kv5, kv6, kv7}
#define ZMLX_KEYS {k_pe0, k_pe1, k_pe2, k_pe3, k_pe4, k_pe5, k_pe6, k_pe7}
