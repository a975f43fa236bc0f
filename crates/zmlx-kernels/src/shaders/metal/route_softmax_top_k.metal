// The TOP_K most probable experts of each row of logits, and their probabilities.
//
// logits [rows, E] → indices u32 and weights [rows, TOP_K].
// Template: T, W (the type of the weights: T in exact mode, float otherwise), TOP_K, PER_LANE (scores for each lane that
// chooses), NORMALIZE, EXACT.
// Exact: ascending probability, and of equal ones the higher index is chosen and stands last (MLX's stable sort, whose
// last TOP_K are taken). Accurate: descending probability, of equal ones the lower index first.
// One threadgroup per row, a thread per 4 logits, whole simdgroups. Grid: (1, rows, 1).

const int n_experts = logits_shape[1];
const uint row = threadgroup_position_in_grid.y;
const uint lane = thread_index_in_simdgroup, group = simdgroup_index_in_threadgroup;
const int first = int(thread_position_in_threadgroup.x) * zmlx::READS;
threadgroup float group_max[32], group_sum[32], scores[zmlx::MAX_EXPERTS], chosen[zmlx::MAX_TOP_K];

float p[zmlx::READS], most = -INFINITY;
for (int i = 0; i < zmlx::READS; i++) {
  p[i] = first + i < n_experts ? float(logits[size_t(row) * n_experts + first + i]) : -INFINITY;
  most = p[i] > most ? p[i] : most;
}
if (group == 0) {
  group_max[lane] = -INFINITY;
  group_sum[lane] = 0;
}
threadgroup_barrier(metal::mem_flags::mem_threadgroup);
most = simd_max(most);
if (lane == 0) {
  group_max[group] = most;
}
threadgroup_barrier(metal::mem_flags::mem_threadgroup);
most = simd_max(group_max[lane]);

float sum = 0;
for (int i = 0; i < zmlx::READS; i++) {
  p[i] = EXACT ? metal::fast::exp(p[i] - most) : metal::precise::exp(p[i] - most);
  sum += p[i];
}
sum = simd_sum(sum);
if (lane == 0) {
  group_sum[group] = sum;
}
threadgroup_barrier(metal::mem_flags::mem_threadgroup);
const float scale = 1 / simd_sum(group_sum[lane]);
for (int i = 0; i < zmlx::READS; i++) {
  p[i] = EXACT ? float(T(p[i] * scale)) : p[i] * scale;
  if (first + i < n_experts) {
    scores[first + i] = p[i];
  }
}
threadgroup_barrier(metal::mem_flags::mem_threadgroup);

// One simdgroup chooses.
if (group != 0) {
  return;
}
const uint expert = zmlx::choose<TOP_K, PER_LANE, EXACT, EXACT>(scores, n_experts, lane);
if (lane < TOP_K) {
  const uint at = EXACT ? TOP_K - 1 - lane : lane;
  indices[row * TOP_K + at] = expert;
  chosen[at] = scores[expert];
}
simdgroup_barrier(metal::mem_flags::mem_threadgroup);
if (lane < TOP_K) {
  using Sum = metal::conditional_t<EXACT, T, float>;
  const Sum v = Sum(chosen[lane]);
  weights[row * TOP_K + lane] = W(NORMALIZE ? Sum(v / zmlx::sum_of<Sum>(chosen, TOP_K)) : v);
}
