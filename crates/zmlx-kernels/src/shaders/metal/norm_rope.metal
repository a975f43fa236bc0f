// Each head's norm and its rotation: rope(w · (x / rms(x))), of queries and keys at once.
//
// q [n, heads, d], k [n, kv_heads, d], q_norm and k_norm [d], positions u32 [n], periods f32 [DIMS / 2] or any → rotated_q and
// rotated_k as q and k, all but positions and periods in T.
// Template: T, DIMS (rotated dimensions), INTERLEAVED (pairs of neighbours, else of halves), GIVEN (periods are given), and the
// bits of floats: EPS, BASE (log2 of theta, without periods), SCALE (of positions).
// One threadgroup per head, a thread per 4 values, whole simdgroups. Grid: (1, heads + kv_heads, n).
// The normed values are rounded to T before they turn, as in MLX's two ops.

constexpr int READS = 4, MAX_WIDTH = 1024, HALF = DIMS / 2;
const int d = q_shape[2], n_heads = q_shape[1], n_kv_heads = k_shape[1];
const int head = int(threadgroup_position_in_grid.y), token = int(threadgroup_position_in_grid.z);
const bool is_query = head < n_heads;
const size_t at = (is_query ? size_t(token) * n_heads + head : size_t(token) * n_kv_heads + (head - n_heads)) * d;
const int thread_ = int(thread_position_in_threadgroup.x);
threadgroup float sums[32], normed[MAX_WIDTH];

float values[READS], sum = 0;
for (int i = 0; i < READS; i++) {
  const int c = thread_ * READS + i;
  values[i] = c >= d ? 0.0f : is_query ? float(q[at + c]) : float(k[at + c]);
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
const float scale = metal::precise::rsqrt(sum / float(d) + as_type<float>(EPS));
for (int i = 0; i < READS; i++) {
  const int c = thread_ * READS + i;
  if (c < d) {
    const T w = is_query ? q_norm[c] : k_norm[c];
    const T v = w * T(values[i] * scale);
    normed[c] = float(v);
    if (c >= DIMS) {
      if (is_query) {
        rotated_q[at + c] = v;
      } else {
        rotated_k[at + c] = v;
      }
    }
  }
}
threadgroup_barrier(metal::mem_flags::mem_threadgroup);

const float position = as_type<float>(SCALE) * float(positions[token]);
for (int i = thread_; i < HALF; i += int(threads_per_threadgroup.x)) {
  const float part = float(i) / float(HALF);
  const float frequency = GIVEN ? 1.0f / periods[GIVEN ? i : 0] : metal::exp2(-part * as_type<float>(BASE));
  const float theta = position * frequency;
  const float c = metal::fast::cos(theta), s = metal::fast::sin(theta);
  const int first = INTERLEAVED ? 2 * i : i, second = INTERLEAVED ? 2 * i + 1 : i + HALF;
  const float x1 = normed[first], x2 = normed[second];
  const T y1 = T(x1 * c - x2 * s), y2 = T(x1 * s + x2 * c);
  if (is_query) {
    rotated_q[at + first] = y1;
    rotated_q[at + second] = y2;
  } else {
    rotated_k[at + first] = y1;
    rotated_k[at + second] = y2;
  }
}
