// out[p, n] = silu(x[t]·gate[e, n]) · (x[t]·up[e, n]) for the pairs p of a token and a chosen expert, with e = rhs[p] and
// t = p / (pairs / tokens); and shared_out[t, n], the same of the one matrix that every token meets.
//
// x [tokens, K], weights [E, N, words], scales and biases [E, N, groups], those of the shared matrix [1, ..], rhs [P] → out [P, N],
// shared_out [tokens, N]. Formats without biases pass their scales in their place: they are not read.
// Template: T, MODE, BITS, GROUP, VALUES, N_IN (K), ROWS, SIMDGROUPS, EXACT.
// One threadgroup: SIMDGROUPS of ROWS gate rows and the same up rows each.
// Grid: (1, blocks of SIMDGROUPS · ROWS rows, pairs and then tokens).

const int n_out = gate_w_shape[1];
const int row = (int(threadgroup_position_in_grid.y) * SIMDGROUPS + int(simdgroup_index_in_threadgroup)) * ROWS;
if (row >= n_out) {
  return;
}
const uint lane = thread_index_in_simdgroup;
const uint n_pairs = rhs_shape[0], job = threadgroup_position_in_grid.z;
const bool is_shared = job >= n_pairs;
const uint token = is_shared ? job - n_pairs : job / (n_pairs / x_shape[0]);
const uint expert = is_shared ? 0 : rhs[job];
// A choice outside the bank must not be read; its result is no number.
const bool known = is_shared || expert < uint(gate_w_shape[0]);

float gate[1][ROWS] = {}, up[1][ROWS] = {};
if (known) {
  const size_t matrix = size_t(expert) * n_out;
  const size_t bytes = matrix * (N_IN * BITS / 8), groups = matrix * (N_IN / GROUP);
  zmlx::add_gate_up<T, MODE, BITS, GROUP, VALUES, N_IN, ROWS, 1, EXACT>(
      x + size_t(token) * N_IN, 0, 1, (const device uchar*)(is_shared ? shared_gate_w : gate_w) + bytes,
      (is_shared ? shared_gate_scales : gate_scales) + groups, (is_shared ? shared_gate_biases : gate_biases) + groups,
      (const device uchar*)(is_shared ? shared_up_w : up_w) + bytes, (is_shared ? shared_up_scales : up_scales) + groups,
      (is_shared ? shared_up_biases : up_biases) + groups, n_out - 1, row, lane, gate, up);
}
const T y = zmlx::my_swiglu<T, ROWS, 1, EXACT>(gate, up, lane);
const int n = row + int(lane);
if (int(lane) < ROWS && n < n_out) {
  if (is_shared) {
    shared_out[size_t(token) * n_out + n] = y;
  } else {
    out[size_t(job) * n_out + n] = known ? y : T(NAN);
  }
}
