// out[p, m, n] = silu(x[l, m]·gate[e, n]) · (x[l, m]·up[e, n]) for the pairs p, with e = rhs[p] and l = p / (pairs / x's batch).
//
// x [L, M, K], weights [E, N, words], scales and biases [E, N, groups], rhs [P] → out [P, M, N]. Formats without biases
// pass their scales in their place: they are not read.
// Template: T, MODE, BITS, GROUP, VALUES, N_IN (K), ROWS, SIMDGROUPS, TILE, EXACT.
// One threadgroup: SIMDGROUPS of ROWS gate rows and the same up rows each, for TILE rows of x.
// Grid: (tiles of M, blocks of SIMDGROUPS · ROWS rows, pairs).

const int n_rows = x_shape[1], n_out = gate_w_shape[1];
const int row = (int(threadgroup_position_in_grid.y) * SIMDGROUPS + int(simdgroup_index_in_threadgroup)) * ROWS;
if (row >= n_out) {
  return;
}
const uint lane = thread_index_in_simdgroup;
const uint pair = threadgroup_position_in_grid.z;
const int tile = int(threadgroup_position_in_grid.x) * TILE;
const uint expert = rhs[pair];
// A choice outside the bank must not be read; its result is no number.
const bool known = expert < uint(gate_w_shape[0]);

float gate[TILE][ROWS] = {}, up[TILE][ROWS] = {};
if (known) {
  const size_t matrix = size_t(expert) * n_out;
  const size_t bytes = matrix * (N_IN * BITS / 8), groups = matrix * (N_IN / GROUP);
  const device T* rows = x + size_t(pair / (rhs_shape[0] / x_shape[0])) * n_rows * N_IN;
  zmlx::add_gate_up<T, MODE, BITS, GROUP, VALUES, N_IN, ROWS, TILE, EXACT>(
      rows, tile, n_rows, (const device uchar*)gate_w + bytes, gate_scales + groups, gate_biases + groups,
      (const device uchar*)up_w + bytes, up_scales + groups, up_biases + groups, n_out - 1, row, lane, gate, up);
}
const T y = zmlx::my_swiglu<T, ROWS, TILE, EXACT>(gate, up, lane);
const int m = tile + int(lane) / ROWS, n = row + int(lane) % ROWS;
if (int(lane) < TILE * ROWS && m < n_rows && n < n_out) {
  out[(size_t(pair) * n_rows + m) * n_out + n] = known ? y : T(NAN);
}
