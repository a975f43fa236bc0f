// out[m, n] = x[m]·w[n]
//
// x [M, K], w [N, words], scales and biases [N, groups] → out [M, N]. A format without biases passes its scales in their
// place: they are not read.
// Template: T, MODE, BITS, GROUP, VALUES, N_IN (K), ROWS, SIMDGROUPS, TILE.
// One threadgroup: SIMDGROUPS of ROWS rows of w each, for TILE rows of x.
// Grid: (tiles of M, blocks of SIMDGROUPS · ROWS rows of w, 1).

const int n_rows = x_shape[0], n_out = w_shape[0];
const int row = (int(threadgroup_position_in_grid.y) * SIMDGROUPS + int(simdgroup_index_in_threadgroup)) * ROWS;
if (row >= n_out) {
  return;
}
const int lane = int(thread_index_in_simdgroup);
const int tile = int(threadgroup_position_in_grid.x) * TILE;

float acc[TILE][ROWS] = {};
ZMLX_UNROLL_STEPS
for (int k = lane * VALUES; k < N_IN; k += 32 * VALUES) {
  float xs[TILE][VALUES], sums[TILE];
  for (int m = 0; m < TILE; m++) {
    const device T* at = x + size_t(metal::min(tile + m, n_rows - 1)) * N_IN + k;
    sums[m] = zmlx::load_activations<T, float, MODE, BITS, VALUES>(at, xs[m]);
  }
  zmlx::add_products<MODE, BITS, GROUP, VALUES, N_IN, TILE, ROWS>(
      (const device uchar*)w, scales, biases, n_out - 1, row, k, xs, sums, acc);
}

// Every lane gets all sums; lane m · ROWS + r keeps its own.
float mine = 0;
for (int m = 0; m < TILE; m++) {
  for (int r = 0; r < ROWS; r++) {
    const float sum = simd_sum(acc[m][r]);
    mine = lane == m * ROWS + r ? sum : mine;
  }
}
const int m = tile + lane / ROWS, n = row + lane % ROWS;
if (lane < TILE * ROWS && m < n_rows && n < n_out) {
  out[size_t(m) * n_out + n] = T(mine);
}
