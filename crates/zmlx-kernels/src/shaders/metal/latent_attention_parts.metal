// Attention of each head's query to the latents of its sequence, a part of them per threadgroup. For the keys of a part, with
// s = scale · (q · latent + q_pe · key):
// stats = (m = max s, Σ exp(s - m)), parts = Σ exp(s - m) · latent.
//
// q [heads, n, RANK], q_pe [heads, n, DIMS], the cache [capacity, RANK + DIMS] of each sequence, latents and keys side by side,
// sequences u32 [n], which of them a token belongs to, positions u32 [n] → parts [n, heads, splits, RANK] and stats [n, heads, splits, 2] in
// float. A token sees all up to its own position; part p has keys p, p + splits, … of them, or none.
// Template: T, RANK, DIMS, HEADS, SCALE (the bits of a float).
// One simdgroup: HEADS heads, which read a key once. Simdgroups share nothing. Grid: (splits, blocks of HEADS heads, n).
// All in float.

constexpr int READS = 4, STRIDE = 32 * READS, WIDTH = RANK + DIMS;
constexpr int KEY = READS * ((WIDTH + STRIDE - 1) / STRIDE), LATENT = READS * ((RANK + STRIDE - 1) / STRIDE);
const int n_heads = q_shape[0], n = q_shape[1];
const int head = int(thread_position_in_grid.y) * HEADS;
if (head >= n_heads) {
  return;
}
const int lane = int(thread_index_in_simdgroup), token = int(threadgroup_position_in_grid.z);
const int split = int(threadgroup_position_in_grid.x), splits = int(threadgroups_per_grid.x);
const device T* const caches[] = ZMLX_CACHES;
const device T* cache = caches[sequences[token]];
const int n_seen = int(positions[token]) + 1;
// Lane l holds values 4·l to 4·l + 3 of each 128. Whole 128s are known to be within a row, which leaves plain loads.
const int mine = lane * READS;
#define ZMLX_IS_WITHIN(i, c, width) ((i / READS + 1) * STRIDE <= width || c < width)

float qs[HEADS][KEY], sums[HEADS][LATENT] = {}, most[HEADS], total[HEADS] = {};
for (int h = 0; h < HEADS; h++) {
  // Heads past the last repeat it; their sums are never stored.
  const size_t at = size_t(metal::min(head + h, n_heads - 1)) * n + token;
  most[h] = -INFINITY;
  for (int i = 0; i < KEY; i++) {
    const int c = i / READS * STRIDE + mine + i % READS;
    qs[h][i] = as_type<float>(SCALE)
        * (ZMLX_IS_WITHIN(i, c, RANK) ? float(q[at * RANK + c]) : c < WIDTH ? float(q_pe[at * DIMS + (c - RANK)]) : 0.0f);
  }
}
for (int k = split; k < n_seen; k += splits) {
  const device T* key = cache + size_t(k) * WIDTH;
  float ks[KEY];
  for (int i = 0; i < KEY; i++) {
    const int c = i / READS * STRIDE + mine + i % READS;
    ks[i] = ZMLX_IS_WITHIN(i, c, WIDTH) ? float(key[c]) : 0.0f;
  }
  for (int h = 0; h < HEADS; h++) {
    float score = 0;
    for (int i = 0; i < KEY; i++) {
      score += qs[h][i] * ks[i];
    }
    score = simd_sum(score);
    const float top = metal::max(most[h], score);
    const float old = metal::precise::exp(most[h] - top), now = metal::precise::exp(score - top);
    most[h] = top;
    total[h] = total[h] * old + now;
    for (int i = 0; i < LATENT; i++) {
      sums[h][i] = sums[h][i] * old + now * ks[i];
    }
  }
}
for (int h = 0; h < HEADS && head + h < n_heads; h++) {
  const size_t at = (size_t(token) * n_heads + head + h) * splits + split;
  for (int i = 0; i < LATENT; i++) {
    const int c = i / READS * STRIDE + mine + i % READS;
    if (ZMLX_IS_WITHIN(i, c, RANK)) {
      parts[at * RANK + c] = sums[h][i];
    }
  }
  if (lane == 0) {
    stats[2 * at] = most[h];
    stats[2 * at + 1] = total[h];
  }
}
