// What latent attention makes of its projections: queries split into their two parts, the second turned; the latent normed,
// w · (x / rms(x)), the shared key beside it turned.
//
// q [n, heads, nope + DIMS], kv_a [n, rank + DIMS], kv_norm [rank], positions u32 [n], periods f32 [DIMS / 2] or any → q_nope
// [heads, n, nope], q_pe [heads, n, DIMS], latents [n, rank + DIMS], all but positions and periods in T.
// Template: T, DIMS, INTERLEAVED (pairs of neighbours, else of halves), GIVEN (periods are given), and the bits of floats: EPS, BASE
// (log2 of theta, without periods), SCALE (of positions).
// One threadgroup per query head and one for the latent, a thread per 4 values of a latent, whole simdgroups.
// Grid: (1, heads + 1, n). Sums and roundings are those of MLX's two ops.

constexpr int READS = 4, HALF = DIMS / 2;
const int n = q_shape[0], n_heads = q_shape[1], nope = q_shape[2] - DIMS, rank = kv_a_shape[1] - DIMS;
const int head = int(threadgroup_position_in_grid.y), token = int(threadgroup_position_in_grid.z);
const bool is_query = head < n_heads;
const int thread_ = int(thread_position_in_threadgroup.x), n_threads = int(threads_per_threadgroup.x);
const size_t of_query = (size_t(token) * n_heads + head) * (nope + DIMS), of_latent = size_t(token) * (rank + DIMS);
const size_t to_query = size_t(head) * n + token;
threadgroup float sums[32];

if (is_query) {
  for (int c = thread_; c < nope; c += n_threads) {
    q_nope[to_query * nope + c] = q[of_query + c];
  }
} else {
  float values[READS], sum = 0;
  for (int i = 0; i < READS; i++) {
    const int c = thread_ * READS + i;
    values[i] = c < rank ? float(kv_a[of_latent + c]) : 0.0f;
    sum += values[i] * values[i];
  }
  sum = simd_sum(sum);
  if (simdgroup_index_in_threadgroup == 0) {
    sums[thread_index_in_simdgroup] = 0;
  }
  threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  if (thread_index_in_simdgroup == 0) {
    sums[simdgroup_index_in_threadgroup] = sum;
  }
  threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  sum = simd_sum(sums[thread_index_in_simdgroup]);
  const float scale = metal::precise::rsqrt(sum / float(rank) + as_type<float>(EPS));
  for (int i = 0; i < READS; i++) {
    const int c = thread_ * READS + i;
    if (c < rank) {
      latents[of_latent + c] = kv_norm[c] * T(values[i] * scale);
    }
  }
}

const float position = as_type<float>(SCALE) * float(positions[token]);
for (int i = thread_; i < HALF; i += n_threads) {
  const float part = float(i) / float(HALF);
  const float frequency = GIVEN ? 1.0f / periods[GIVEN ? i : 0] : metal::exp2(-part * as_type<float>(BASE));
  const float theta = position * frequency;
  const float c = metal::fast::cos(theta), s = metal::fast::sin(theta);
  const int first = INTERLEAVED ? 2 * i : i, second = INTERLEAVED ? 2 * i + 1 : i + HALF;
  const float x1 = is_query ? float(q[of_query + nope + first]) : float(kv_a[of_latent + rank + first]);
  const float x2 = is_query ? float(q[of_query + nope + second]) : float(kv_a[of_latent + rank + second]);
  const T y1 = T(x1 * c - x2 * s), y2 = T(x1 * s + x2 * c);
  if (is_query) {
    q_pe[to_query * DIMS + first] = y1;
    q_pe[to_query * DIMS + second] = y2;
  } else {
    latents[of_latent + rank + first] = y1;
    latents[of_latent + rank + second] = y2;
  }
}
