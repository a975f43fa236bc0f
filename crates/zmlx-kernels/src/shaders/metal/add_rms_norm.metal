// total = x + residual, normed = w · (total / rms(total)), row by row.
//
// x and residual [rows, width], w [width] → total and normed [rows, width], all in T.
// Template: T, EPS (the bits of a float).
// One threadgroup per row, a thread per 4 values, whole simdgroups. Grid: (1, rows, 1).
// The sum is rounded to T before it is squared, and the normed value before it meets w, as in MLX's two ops.

constexpr int READS = 4;
const int width = x_shape[1];
const size_t row = size_t(threadgroup_position_in_grid.y) * width;
const int first = int(thread_position_in_threadgroup.x) * READS;
threadgroup float sums[32];

float values[READS], sum = 0;
for (int i = 0; i < READS; i++) {
  values[i] = 0;
  if (first + i < width) {
    const T v = x[row + first + i] + residual[row + first + i];
    total[row + first + i] = v;
    values[i] = float(v);
  }
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
const float scale = metal::precise::rsqrt(sum / float(width) + as_type<float>(EPS));
for (int i = 0; i < READS; i++) {
  if (first + i < width) {
    normed[row + first + i] = w[first + i] * T(values[i] * scale);
  }
}
