// The parts of latent_attention_parts as one: out = Σ exp(m_p - m) · parts_p / Σ exp(m_p - m) · total_p, with m = max m_p.
//
// parts [n, heads, splits, rank] and stats [n, heads, splits, 2] in float → out [heads, n, rank].
// Template: T.
// One threadgroup per head of a token, a thread per 4 values, whole simdgroups. Grid: (1, heads, n).
// All in float, rounded once.

constexpr int READS = 4;
const int n = parts_shape[0], n_heads = parts_shape[1], splits = parts_shape[2], rank = parts_shape[3];
const int head = int(threadgroup_position_in_grid.y), token = int(threadgroup_position_in_grid.z);
const int first = int(thread_position_in_threadgroup.x) * READS;
const size_t at = (size_t(token) * n_heads + head) * splits;

float most = -INFINITY;
for (int p = 0; p < splits; p++) {
  most = metal::max(most, stats[2 * (at + p)]);
}
float total = 0, values[READS] = {};
for (int p = 0; p < splits; p++) {
  const float factor = metal::precise::exp(stats[2 * (at + p)] - most);
  total += factor * stats[2 * (at + p) + 1];
  for (int i = 0; i < READS; i++) {
    values[i] += first + i < rank ? factor * parts[(at + p) * rank + first + i] : 0.0f;
  }
}
for (int i = 0; i < READS; i++) {
  if (first + i < rank) {
    out[(size_t(head) * n + token) * rank + first + i] = T(values[i] / total);
  }
}
