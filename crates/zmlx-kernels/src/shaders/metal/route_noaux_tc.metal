// The TOP_K experts of each row with the largest sigmoid(logit) + bias, and their weights without the bias.
//
// logits [rows, E], bias [E], factors f32 [2] → indices u32 and weights f32 [rows, TOP_K], by descending score, of
// equal ones the lower index first. Weights: sigmoid(logit), divided by their sum + factors[1] if NORMALIZE, times
// factors[0].
// Template: T, TOP_K, PER_LANE (scores for each lane that chooses), NORMALIZE.
// One threadgroup per row, a thread per 4 logits, whole simdgroups. Grid: (1, rows, 1).

const int n_experts = logits_shape[1];
const uint row = threadgroup_position_in_grid.y;
const uint lane = thread_index_in_simdgroup, group = simdgroup_index_in_threadgroup;
const int first = int(thread_position_in_threadgroup.x) * zmlx::READS;
threadgroup float scores[zmlx::MAX_EXPERTS], chosen[zmlx::MAX_TOP_K];

for (int i = first; i < first + zmlx::READS && i < n_experts; i++) {
  scores[i] = zmlx::sigmoid(float(logits[size_t(row) * n_experts + i])) + float(bias[i]);
}
threadgroup_barrier(metal::mem_flags::mem_threadgroup);

// One simdgroup chooses.
if (group != 0) {
  return;
}
const uint expert = zmlx::choose<TOP_K, PER_LANE, false, false>(scores, n_experts, lane);
float v = 0;
if (lane < TOP_K) {
  v = zmlx::sigmoid(float(logits[size_t(row) * n_experts + expert]));
  indices[row * TOP_K + lane] = expert;
  chosen[lane] = v;
}
simdgroup_barrier(metal::mem_flags::mem_threadgroup);
if (lane < TOP_K) {
  const float weight = NORMALIZE ? v / (zmlx::sum_of<float>(chosen, TOP_K) + factors[1]) : v;
  weights[row * TOP_K + lane] = weight * factors[0];
}
