// The TOP_K experts of each row with the largest sigmoid(logit) + bias, and their weights without the bias.
//
// logits [rows, E], bias [E], factors f32 [2] → indices u32 and weights f32 [rows, TOP_K], by descending score, of
// equal ones the lower index first. Weights: sigmoid(logit), divided by their sum + factors[1] if NORMALIZE, times
// factors[0].
// Template: T, TOP_K, NORMALIZE.
// One threadgroup per row, a thread per 4 logits, whole simdgroups. Grid: (1, rows, 1).

const int n_experts = logits_shape[1];
const uint row = threadgroup_position_in_grid.y;
const uint lane = thread_index_in_simdgroup, group = simdgroup_index_in_threadgroup;
const int first = int(thread_position_in_threadgroup.x) * zmlx::READS;
threadgroup float scores[zmlx::MAX_EXPERTS], chosen[zmlx::MAX_TOP_K];

float s[zmlx::READS];
for (int i = 0; i < zmlx::READS && first + i < n_experts; i++) {
  s[i] = zmlx::sigmoid(float(logits[size_t(row) * n_experts + first + i]));
  scores[first + i] = s[i] + float(bias[first + i]);
}
threadgroup_barrier(metal::mem_flags::mem_threadgroup);

for (int i = 0; i < zmlx::READS && first + i < n_experts; i++) {
  const int rank = zmlx::rank_of<false, false>(scores, n_experts, first + i);
  if (rank < TOP_K) {
    indices[row * TOP_K + rank] = uint(first + i);
    chosen[rank] = s[i];
  }
}
threadgroup_barrier(metal::mem_flags::mem_threadgroup);

if (group == 0 && lane < TOP_K) {
  const float v = chosen[lane];
  const float weight = NORMALIZE ? v / (zmlx::sum_of<float>(chosen, TOP_K) + factors[1]) : v;
  weights[row * TOP_K + lane] = weight * factors[0];
}
