// out[t, n] = Σ_s weights[t, s] · (x[t, s]·w[rhs[t, s], n])
//
// x [tokens, top_k, K], w [E, N, words], scales and biases [E, N, groups], rhs and weights [tokens, top_k] → out
// [tokens, N]. A format without biases passes its scales in their place: they are not read.
// Template: T, W (the type of the routing weights), MODE, BITS, GROUP, VALUES, N_IN (K), ROWS, EXACT.
// One threadgroup: one simdgroup per slot, ROWS rows of w. Grid: (1, blocks of ROWS rows, tokens).

constexpr int MAX_TOP_K = 16;
// Exact: a product has the type that MLX gives T times W, and sums stay in it. Accurate: float.
using Product = metal::conditional_t<EXACT && !metal::is_same_v<W, float>, T, float>;
const int top_k = x_shape[1], n_out = w_shape[1];
const int row = int(threadgroup_position_in_grid.y) * ROWS;
const uint lane = thread_index_in_simdgroup, token = threadgroup_position_in_grid.z;
const int slot = int(simdgroup_index_in_threadgroup);
const uint choice = token * top_k + slot;
const uint expert = rhs[choice];
// A choice outside the bank must not be read; its result is no number.
const bool known = expert < uint(w_shape[0]);

float mine = 0;
if (known) {
  const size_t matrix = size_t(expert) * n_out;
  const size_t bytes = matrix * (N_IN * BITS / 8), groups = matrix * (N_IN / GROUP);
  mine = zmlx::my_product<T, MODE, BITS, GROUP, VALUES, N_IN, ROWS, EXACT>(
      x + size_t(choice) * N_IN, (const device uchar*)w + bytes, scales + groups, biases + groups, n_out - 1, row, lane);
}

// Products go through threadgroup memory, so that none is fused with an addition.
threadgroup Product products[MAX_TOP_K * ROWS];
if (lane < ROWS) {
  const Product v = EXACT ? Product(T(mine)) : Product(mine);
  products[slot * ROWS + lane] = known ? Product(v * Product(weights[choice])) : Product(NAN);
}
threadgroup_barrier(metal::mem_flags::mem_threadgroup);
if (slot == 0 && lane < ROWS && row + int(lane) < n_out) {
  out[size_t(token) * n_out + row + lane] = T(zmlx::sum_of_slots(products + lane, top_k, ROWS));
}
