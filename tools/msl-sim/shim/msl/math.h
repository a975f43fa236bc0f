// Scalar functions with their elementwise vector forms.
//
// Transcendental functions are evaluated in double and rounded once, so that they are correctly rounded in almost all
// cases. Apple's own are within a few ulp of that; those in `fast::` are less accurate and are not modelled.
#pragma once

namespace metal {

#define MSL_ELEMENTWISE(expr)             \
  vec<T, N> r;                            \
  for (int i = 0; i < N; i++) r[i] = expr; \
  return r;

#define MSL_FUNCTION_1(name, expr)        \
  inline float name(float x) {            \
    return float(expr);                   \
  }                                       \
  inline half name(half h) {              \
    float x = h;                          \
    return half(float(expr));             \
  }                                       \
  inline bfloat name(bfloat h) {          \
    float x = h;                          \
    return bfloat(float(expr));           \
  }                                       \
  template <class T, int N>               \
  inline vec<T, N> name(vec<T, N> v) {    \
    MSL_ELEMENTWISE(name(v[i]))           \
  }                                       \
  MSL_TAKES_SWIZZLES(name)
#define MSL_FUNCTION_2(name, expr)                    \
  inline float name(float x, float y) {               \
    return float(expr);                               \
  }                                                   \
  inline half name(half h, half k) {                  \
    float x = h, y = k;                               \
    return half(float(expr));                         \
  }                                                   \
  inline bfloat name(bfloat h, bfloat k) {            \
    float x = h, y = k;                               \
    return bfloat(float(expr));                       \
  }                                                   \
  template <class T, int N>                           \
  inline vec<T, N> name(vec<T, N> v, vec<T, N> w) {   \
    MSL_ELEMENTWISE(name(v[i], w[i]))                 \
  }                                                   \
  MSL_TAKES_SWIZZLES(name)
#define MSL_IN_DOUBLE(name) MSL_FUNCTION_1(name, __builtin_##name(double(x)))
#define MSL_EXACT(name) MSL_FUNCTION_1(name, __builtin_##name##f(x))

#define MSL_MATH                                                            \
  MSL_IN_DOUBLE(exp)                                                        \
  MSL_IN_DOUBLE(exp2)                                                       \
  MSL_IN_DOUBLE(log)                                                        \
  MSL_IN_DOUBLE(log2)                                                       \
  MSL_IN_DOUBLE(log10)                                                      \
  MSL_IN_DOUBLE(sin)                                                        \
  MSL_IN_DOUBLE(cos)                                                        \
  MSL_IN_DOUBLE(tan)                                                        \
  MSL_IN_DOUBLE(asin)                                                       \
  MSL_IN_DOUBLE(acos)                                                       \
  MSL_IN_DOUBLE(atan)                                                       \
  MSL_IN_DOUBLE(sinh)                                                       \
  MSL_IN_DOUBLE(cosh)                                                       \
  MSL_IN_DOUBLE(tanh)                                                       \
  MSL_IN_DOUBLE(asinh)                                                      \
  MSL_IN_DOUBLE(acosh)                                                      \
  MSL_IN_DOUBLE(atanh)                                                      \
  MSL_FUNCTION_1(exp10, __builtin_pow(10.0, double(x)))                     \
  MSL_FUNCTION_1(rsqrt, 1.0 / __builtin_sqrt(double(x)))                    \
  MSL_FUNCTION_1(cospi, __builtin_cos(3.14159265358979323846 * double(x)))  \
  MSL_FUNCTION_1(sinpi, __builtin_sin(3.14159265358979323846 * double(x)))  \
  MSL_EXACT(sqrt)                                                           \
  MSL_EXACT(floor)                                                          \
  MSL_EXACT(ceil)                                                           \
  MSL_EXACT(trunc)                                                          \
  MSL_EXACT(round)                                                          \
  MSL_EXACT(rint)                                                           \
  MSL_EXACT(fabs)                                                           \
  MSL_FUNCTION_1(fract, x - __builtin_floorf(x))                            \
  MSL_FUNCTION_1(sign, x > 0 ? 1.0f : x < 0 ? -1.0f : 0.0f)                 \
  MSL_FUNCTION_1(saturate, x > 1 ? 1.0f : x > 0 ? x : 0.0f)                 \
  MSL_FUNCTION_2(pow, __builtin_pow(double(x), double(y)))                  \
  MSL_FUNCTION_2(powr, __builtin_pow(double(x), double(y)))                 \
  MSL_FUNCTION_2(atan2, __builtin_atan2(double(x), double(y)))              \
  MSL_FUNCTION_2(divide, x / y)                                             \
  MSL_FUNCTION_2(fmod, __builtin_fmodf(x, y))                               \
  MSL_FUNCTION_2(copysign, __builtin_copysignf(x, y))                       \
  MSL_FUNCTION_2(fmin, __builtin_fminf(x, y))                               \
  MSL_FUNCTION_2(fmax, __builtin_fmaxf(x, y))                               \
  MSL_FUNCTION_2(fdim, __builtin_fdimf(x, y))                               \
  MSL_FUNCTION_2(step, y < x ? 0.0f : 1.0f)

MSL_MATH
namespace fast {
MSL_MATH
}
namespace precise {
MSL_MATH
}
#undef MSL_MATH

inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
// The product of two halves is exact in float and the sum exact in double: one rounding.
inline half fma(half a, half b, half c) { return half(double(a) * double(b) + double(c)); }
inline bfloat fma(bfloat a, bfloat b, bfloat c) { return bfloat(__builtin_fmaf(float(a), float(b), float(c))); }
template <class T, int N>
inline vec<T, N> fma(vec<T, N> a, vec<T, N> b, vec<T, N> c) {
  MSL_ELEMENTWISE(fma(a[i], b[i], c[i]))
}

inline float ldexp(float x, int e) { return __builtin_ldexpf(x, e); }
inline half ldexp(half x, int e) { return half(__builtin_ldexpf(float(x), e)); }

inline bool signbit(float x) { return as_type<uint>(x) >> 31; }
inline bool isnan(float x) { return x != x; }
inline bool isnan(half x) { return x != x; }
inline bool isnan(bfloat x) { return float(x) != float(x); }
inline bool isinf(float x) { return x == INFINITY || x == -INFINITY; }
inline bool isinf(half x) { return isinf(float(x)); }
inline bool isinf(bfloat x) { return isinf(float(x)); }
inline bool isfinite(float x) { return !isnan(x) && !isinf(x); }
inline bool isfinite(half x) { return isfinite(float(x)); }
inline bool isfinite(bfloat x) { return isfinite(float(x)); }

#define MSL_COMMON(T)                                                       \
  inline T clamp(T x, T lo, T hi) { return min(max(x, lo), hi); }           \
  inline T select(T a, T b, bool c) { return c ? b : a; }                   \
  inline T abs(T a) { return a < T(0) ? T(-a) : a; }                        \
  inline T min3(T a, T b, T c) { return min(a, min(b, c)); }                \
  inline T max3(T a, T b, T c) { return max(a, max(b, c)); }
#define MSL_INTEGER_COMMON(T)                                               \
  inline T min(T a, T b) { return b < a ? b : a; }                          \
  inline T max(T a, T b) { return a < b ? b : a; }                          \
  MSL_COMMON(T)
// If one operand is NaN, the result is the other one.
#define MSL_FLOAT_COMMON(T)                                                 \
  inline T min(T a, T b) { return b < a || a != a ? b : a; }                \
  inline T max(T a, T b) { return a < b || a != a ? b : a; }                \
  MSL_COMMON(T)                                                             \
  inline T mix(T a, T b, T t) { return T(a + (b - a) * t); }
MSL_INTEGER_COMMON(char)
MSL_INTEGER_COMMON(int8_t)
MSL_INTEGER_COMMON(uchar)
MSL_INTEGER_COMMON(short)
MSL_INTEGER_COMMON(ushort)
MSL_INTEGER_COMMON(int)
MSL_INTEGER_COMMON(uint)
MSL_INTEGER_COMMON(long)
MSL_INTEGER_COMMON(ulong)
MSL_FLOAT_COMMON(float)
MSL_FLOAT_COMMON(half)
MSL_FLOAT_COMMON(bfloat)
#undef MSL_COMMON
#undef MSL_INTEGER_COMMON
#undef MSL_FLOAT_COMMON

template <class T, int N>
inline vec<T, N> min(vec<T, N> a, vec<T, N> b) {
  MSL_ELEMENTWISE(min(a[i], b[i]))
}
template <class T, int N>
inline vec<T, N> max(vec<T, N> a, vec<T, N> b) {
  MSL_ELEMENTWISE(max(a[i], b[i]))
}
template <class T, int N>
inline vec<T, N> abs(vec<T, N> a) {
  MSL_ELEMENTWISE(abs(a[i]))
}
template <class T, int N>
inline vec<T, N> clamp(vec<T, N> x, vec<T, N> lo, vec<T, N> hi) {
  MSL_ELEMENTWISE(clamp(x[i], lo[i], hi[i]))
}
template <class T, int N>
inline vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<bool, N> c) {
  MSL_ELEMENTWISE(c[i] ? b[i] : a[i])
}
template <class T, int N>
inline vec<T, N> mix(vec<T, N> a, vec<T, N> b, vec<T, N> t) {
  MSL_ELEMENTWISE(mix(a[i], b[i], t[i]))
}
// Summed in order, beginning with the first component.
template <class T, int N>
inline T dot(vec<T, N> a, vec<T, N> b) {
  T s = T(a[0] * b[0]);
  for (int i = 1; i < N; i++) s = T(s + a[i] * b[i]);
  return s;
}
template <class T, int N>
inline T length(vec<T, N> a) {
  return sqrt(dot(a, a));
}
template <class T, int N>
inline vec<T, N> normalize(vec<T, N> a) {
  return a * rsqrt(dot(a, a));
}
template <int N>
inline bool any(vec<bool, N> a) {
  bool r = false;
  for (int i = 0; i < N; i++) r |= a[i];
  return r;
}
template <int N>
inline bool all(vec<bool, N> a) {
  bool r = true;
  for (int i = 0; i < N; i++) r &= a[i];
  return r;
}
#undef MSL_ELEMENTWISE
MSL_TAKES_SWIZZLES(abs)
MSL_TAKES_SWIZZLES(all)
MSL_TAKES_SWIZZLES(any)
MSL_TAKES_SWIZZLES(clamp)
MSL_TAKES_SWIZZLES(dot)
MSL_TAKES_SWIZZLES(fma)
MSL_TAKES_SWIZZLES(length)
MSL_TAKES_SWIZZLES(max)
MSL_TAKES_SWIZZLES(min)
MSL_TAKES_SWIZZLES(mix)
MSL_TAKES_SWIZZLES(normalize)
MSL_TAKES_SWIZZLES(select)

namespace fast {
using metal::abs;
using metal::clamp;
using metal::fma;
using metal::max;
using metal::min;
}  // namespace fast
namespace precise {
using metal::abs;
using metal::clamp;
using metal::fma;
using metal::max;
using metal::min;
}  // namespace precise

// An offset or width beyond the word is undefined in Metal; here it yields zero bits.
inline uint popcount(uint x) { return __builtin_popcount(x); }
inline uint clz(uint x) { return x ? __builtin_clz(x) : 32; }
inline uint ctz(uint x) { return x ? __builtin_ctz(x) : 32; }
inline uint low_bits(uint n) { return n == 0 ? 0 : n >= 32 ? ~0u : (1u << n) - 1; }
inline uint extract_bits(uint x, uint offset, uint n) { return offset > 31 ? 0 : (x >> offset) & low_bits(n); }
inline int extract_bits(int x, uint offset, uint n) {
  if (n == 0 || offset + n > 32) return 0;
  return int(uint(x) << (32 - offset - n)) >> (32 - n);
}
inline uint insert_bits(uint base, uint value, uint offset, uint n) {
  uint m = low_bits(n) << offset;
  return (base & ~m) | ((value << offset) & m);
}
inline uint reverse_bits(uint x) {
  uint r = 0;
  for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
  return r;
}
inline uint mulhi(uint a, uint b) { return uint(uint64_t(a) * b >> 32); }
inline int mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
inline uint rotate(uint x, uint n) { return x << (n & 31) | x >> ((32 - n) & 31); }

}  // namespace metal
