// Gate and up of one simdgroup, and where their SwiGLU goes.

namespace zmlx {

// The lane's sums of TILE rows of x, from `tile` on, with ROWS rows each of gate and up, from `row` on. Rows of x past `n_rows`
// repeat the last; their sums are never stored.
template <typename T, int MODE, int BITS, int GROUP, int VALUES, int N_IN, int ROWS, int TILE, bool EXACT, typename S>
inline void add_gate_up(
    const device T* x, int tile, int n_rows, const device uchar* gate_w, S gate_scales, S gate_biases,
    const device uchar* up_w, S up_scales, S up_biases, int last, int row, uint lane, thread float (&gate)[TILE][ROWS],
    thread float (&up)[TILE][ROWS]) {
  using Sum = metal::conditional_t<EXACT, T, float>;
  ZMLX_UNROLL_STEPS
  for (int k = int(lane) * VALUES; k < N_IN; k += 32 * VALUES) {
    float xs[TILE][VALUES], sums[TILE];
    for (int m = 0; m < TILE; m++) {
      const device T* at = x + metal::min(tile + m, n_rows - 1) * N_IN + k;
      sums[m] = load_activations<T, Sum, MODE, BITS, VALUES>(at, xs[m]);
    }
    add_products<MODE, BITS, GROUP, VALUES, N_IN, TILE, ROWS>(
        gate_w, gate_scales, gate_biases, last, row, k, xs, sums, gate);
    add_products<MODE, BITS, GROUP, VALUES, N_IN, TILE, ROWS>(up_w, up_scales, up_biases, last, row, k, xs, sums, up);
  }
}

// The SwiGLU of sum lane % ROWS of row lane / ROWS: every lane gets all sums, keeps its own and works beside the others.
template <typename T, int ROWS, int TILE, bool EXACT>
inline T my_swiglu(const thread float (&gate)[TILE][ROWS], const thread float (&up)[TILE][ROWS], uint lane) {
  float my_gate = 0, my_up = 0;
  for (int m = 0; m < TILE; m++) {
    for (int r = 0; r < ROWS; r++) {
      const float g = simd_sum(gate[m][r]), u = simd_sum(up[m][r]);
      if (int(lane) == m * ROWS + r) {
        my_gate = g;
        my_up = u;
      }
    }
  }
  return swiglu<T, EXACT>(my_gate, my_up);
}

} // namespace zmlx
