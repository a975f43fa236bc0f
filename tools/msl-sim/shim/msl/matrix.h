// simdgroup_matrix of 8x8: two elements per lane, in the layout that thread_elements() shows on Apple's hardware.
#pragma once

namespace metal {

template <class T, int R, int C>
struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "only 8x8 matrices exist");
  vec<T, 2> e;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T v) : e(v) {}
  vec<T, 2>& thread_elements() { return e; }
  const vec<T, 2>& thread_elements() const { return e; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
template <class T, int R, int C>
inline simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T v) {
  return simdgroup_matrix<T, R, C>(v);
}

struct MatrixPosition {
  int row, column;  // of the lane's first element; the second stands right of it
};
inline MatrixPosition matrix_position(int lane) {
  int quad = lane / 4;
  return {(quad & 4) + (lane / 2) % 4, (quad & 2) * 2 + (lane % 2) * 2};
}

template <class T>
inline void simdgroup_load(simdgroup_matrix<T, 8, 8>& m, const T* p, ulong stride = 8, ulong2 origin = ulong2(0),
                           bool transpose = false) {
  auto at = matrix_position(msl_rt_lane());
  p += origin.y * stride + origin.x;
  for (int k = 0; k < 2; k++)
    m.e[k] = transpose ? p[(at.column + k) * stride + at.row] : p[at.row * stride + at.column + k];
}
template <class T>
inline void simdgroup_store(simdgroup_matrix<T, 8, 8> m, T* p, ulong stride = 8, ulong2 origin = ulong2(0),
                            bool transpose = false) {
  auto at = matrix_position(msl_rt_lane());
  p += origin.y * stride + origin.x;
  for (int k = 0; k < 2; k++)
    (transpose ? p[(at.column + k) * stride + at.row] : p[at.row * stride + at.column + k]) = m.e[k];
}

// d = a b + c in float, summed in order beginning with the first product; rounded once.
template <class D, class A, class B, class C>
struct MultiplyAccumulate {
  vec<A, 2> a;
  vec<B, 2> b;
  vec<C, 2> c;
  static void run(const void* const* in, void* const* out, const uint32_t*, uint32_t mask) {
    if (mask != ~0u) msl_rt_partial_simdgroup("simdgroup_multiply_accumulate");
    float a[8][8] = {}, b[8][8] = {};
    MSL_LANES(mask) {
      auto at = matrix_position(l);
      auto* m = (const MultiplyAccumulate*)in[l];
      for (int k = 0; k < 2; k++) {
        a[at.row][at.column + k] = float(m->a[k]);
        b[at.row][at.column + k] = float(m->b[k]);
      }
    }
    MSL_LANES(mask) {
      auto at = matrix_position(l);
      auto* m = (const MultiplyAccumulate*)in[l];
      vec<D, 2> d;
      for (int k = 0; k < 2; k++) {
        float s = float(m->c[k]);
        for (int i = 0; i < 8; i++) s += a[at.row][i] * b[i][at.column + k];
        d[k] = D(s);
      }
      *(vec<D, 2>*)out[l] = d;
    }
  }
};
template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                                          simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c, MSL_SITE) {
  MultiplyAccumulate<D, A, B, C> m{a.e, b.e, c.e};
  vec<D, 2> result;
  msl_rt_collective(&MultiplyAccumulate<D, A, B, C>::run, &m, &result, 0, site, "simdgroup_multiply_accumulate");
  d.e = result;
}
template <class D, class A, class B>
inline void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                               simdgroup_matrix<B, 8, 8> b, MSL_SITE) {
  simdgroup_multiply_accumulate(d, a, b, simdgroup_matrix<float, 8, 8>(0.0f), site);
}

}  // namespace metal
