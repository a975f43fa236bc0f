// out[t, n] = Σ_s weights[t, s] · (x[t, s]·w[rhs[t, s], n]) + shared_x[t]·shared_w[n]
//
// x [tokens, top_k, K], shared_x [tokens, K], w [E, N, words], scales and biases [E, N, groups], those of the shared matrix [1, ..],
// rhs and weights [tokens, top_k] → out [tokens, N]. A format without biases passes its scales in their place: they are not read.
// Template: T, W (the type of the routing weights), MODE, BITS, GROUP, VALUES, N_IN (K), ROWS, EXACT.
// One threadgroup: one simdgroup per slot and one for the shared matrix, ROWS rows of each. Grid: (1, blocks of ROWS rows, tokens).

constexpr int MAX_TOP_K = 16;
// Exact: a product has the type that MLX gives T times W, and sums stay in it; the shared product, which has no weight, is added in
// T. Accurate: float.
using Product = metal::conditional_t<EXACT && !metal::is_same_v<W, float>, T, float>;
using Last = metal::conditional_t<EXACT, T, float>;
const int top_k = x_shape[1], n_out = w_shape[1];
const int row = int(threadgroup_position_in_grid.y) * ROWS;
const uint lane = thread_index_in_simdgroup, token = threadgroup_position_in_grid.z;
const int slot = int(simdgroup_index_in_threadgroup);
const bool is_shared = slot == top_k;
const uint choice = token * top_k + (is_shared ? 0 : slot);
const uint expert = is_shared ? 0 : rhs[choice];
// A choice outside the bank must not be read; its result is no number.
const bool known = expert < uint(w_shape[0]);

float mine = 0;
if (known) {
  const size_t matrix = size_t(expert) * n_out;
  const size_t bytes = matrix * (N_IN * BITS / 8), groups = matrix * (N_IN / GROUP);
  mine = zmlx::my_product<T, MODE, BITS, GROUP, VALUES, N_IN, ROWS, EXACT>(
      is_shared ? shared_x + size_t(token) * N_IN : x + size_t(choice) * N_IN,
      (const device uchar*)(is_shared ? shared_w : w) + bytes, (is_shared ? shared_scales : scales) + groups,
      (is_shared ? shared_biases : biases) + groups, n_out - 1, row, lane);
}

// Products go through threadgroup memory, so that none is fused with an addition.
threadgroup Product products[MAX_TOP_K * ROWS];
threadgroup Last shared_products[ROWS];
if (lane < ROWS) {
  if (is_shared) {
    shared_products[lane] = Last(mine);
  } else {
    const Product v = EXACT ? Product(T(mine)) : Product(mine);
    products[slot * ROWS + lane] = known ? Product(v * Product(weights[choice])) : Product(NAN);
  }
}
threadgroup_barrier(metal::mem_flags::mem_threadgroup);
if (slot == 0 && lane < ROWS && row + int(lane) < n_out) {
  const Last total = Last(zmlx::sum_of_slots(products + lane, top_k, ROWS));
  out[size_t(token) * n_out + row + lane] = T(total + shared_products[lane]);
}
