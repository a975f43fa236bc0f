// SwiGLU of two sums, in the two numerics modes.

namespace zmlx {

// sigmoid as MLX's unary op: in T, every operation rounded.
template <typename T>
inline T sigmoid(T x) {
  T y = T(1) / T(T(1) + T(metal::exp(metal::abs(x))));
  return x < T(0) ? y : T(T(1) - y);
}

// Exact: the rounding of four ops. Gate and up leave their products rounded to T, then sigmoid, then two products.
// Accurate: float until the one rounding at the end.
template <typename T, bool EXACT>
inline T swiglu(float gate, float up) {
  if constexpr (EXACT) {
    const T g = T(gate), u = T(up);
    return T(T(g * sigmoid(g)) * u);
  } else {
    return T(gate / (1.0f + metal::precise::exp(-gate)) * up);
  }
}

} // namespace zmlx
