// One row of activations with ROWS rows of a matrix.

namespace zmlx {

// The product with row `row` + lane, in the first ROWS lanes: the simdgroup computes all of them together.
template <typename T, int MODE, int BITS, int GROUP, int VALUES, int N_IN, int ROWS, bool EXACT, typename S>
inline float my_product(const device T* x, const device uchar* w, S scales, S biases, int last, int row, uint lane) {
  using Sum = metal::conditional_t<EXACT, T, float>;
  float acc[1][ROWS] = {};
  ZMLX_UNROLL_STEPS
  for (int k = int(lane) * VALUES; k < N_IN; k += 32 * VALUES) {
    float xs[1][VALUES];
    const float sums[1] = {load_activations<T, Sum, MODE, BITS, VALUES>(x + k, xs[0])};
    add_products<MODE, BITS, GROUP, VALUES, N_IN, 1, ROWS>(w, scales, biases, last, row, k, xs, sums, acc);
  }
  float mine = 0;
  for (int r = 0; r < ROWS; r++) {
    const float v = simd_sum(acc[0][r]);
    mine = int(lane) == r ? v : mine;
  }
  return mine;
}

// Left to right; from the ninth slot on as MLX's column reduction does it: eight partial sums of every eighth slot. The products
// of a slot are `apart` from those of the next.
template <typename P>
inline P sum_of_slots(const threadgroup P* products, int top_k, int apart) {
  constexpr int SUMMANDS = 8;
  P total = P(0);
  for (int s = 0; s < top_k && s < SUMMANDS; s++) {
    P part = P(0);
    for (int i = s; i < top_k; i += SUMMANDS) {
      part = products[i * apart] + part;
    }
    total = s == 0 ? part : P(part + total);
  }
  return total;
}

} // namespace zmlx
