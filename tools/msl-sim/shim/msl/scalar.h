// Scalar types of Metal: half is the compiler's _Float16, bfloat a class that rounds after every operation.
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define METAL_FUNC inline __attribute__((always_inline))
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_PI_H half(3.14159265358979323846f)
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.43429448190325182765f
#define M_LN10_F 2.30258509299404568402f
#define M_LN2_F 0.69314718055994530942f
#define M_SQRT2_F 1.41421356237309504880f
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.1920929e-07f
#define HALF_MAX 65504.0f
#define MAXFLOAT FLT_MAX

namespace msl {

// 0: not arithmetic, 1: integer, 2: floating point (bfloat excluded)
template <class T>
struct Arithmetic {
  static constexpr int kind = 0;
};
#define MSL_KIND(T, K)            \
  template <>                     \
  struct Arithmetic<T> {          \
    static constexpr int kind = K; \
  };
MSL_KIND(bool, 1)
MSL_KIND(char, 1)
MSL_KIND(signed char, 1)
MSL_KIND(unsigned char, 1)
MSL_KIND(short, 1)
MSL_KIND(unsigned short, 1)
MSL_KIND(int, 1)
MSL_KIND(unsigned, 1)
MSL_KIND(long, 1)
MSL_KIND(unsigned long, 1)
MSL_KIND(long long, 1)
MSL_KIND(unsigned long long, 1)
MSL_KIND(half, 2)
MSL_KIND(float, 2)
#undef MSL_KIND

template <bool B, class T>
struct When {};
template <class T>
struct When<true, T> {
  typedef T type;
};
template <class T, int K>
using OfKind = typename When<Arithmetic<T>::kind == K, int>::type;

}  // namespace msl

// bfloat with integers stays bfloat, with float or half it becomes float. float and half do not convert implicitly.
struct bfloat {
  uint16_t bits;

  bfloat() = default;
  template <class U, msl::OfKind<U, 1> = 0>
  constexpr bfloat(U v) : bits(round(float(v))) {}
  template <class U, msl::OfKind<U, 2> = 0>
  constexpr explicit bfloat(U v) : bits(round(float(v))) {}

  static constexpr bfloat from_bits(uint16_t b) {
    bfloat r{};
    r.bits = b;
    return r;
  }
  // Round to nearest even; NaN stays NaN.
  static constexpr uint16_t round(float f) {
    uint32_t u = __builtin_bit_cast(uint32_t, f);
    if ((u & 0x7fffffff) > 0x7f800000) return uint16_t(u >> 16 | 0x40);
    return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
  }
  constexpr operator float() const { return __builtin_bit_cast(float, uint32_t(bits) << 16); }

#define MSL_ASSIGN(op)                                          \
  template <class U>                                            \
  constexpr bfloat& operator op##=(U v) {                       \
    return *this = bfloat(float(*this) op float(v));            \
  }
  MSL_ASSIGN(+)
  MSL_ASSIGN(-)
  MSL_ASSIGN(*)
  MSL_ASSIGN(/)
#undef MSL_ASSIGN
};

#define MSL_BINARY(op)                                                                              \
  constexpr bfloat operator op(bfloat a, bfloat b) { return bfloat(float(a) op float(b)); }         \
  template <class U, msl::OfKind<U, 1> = 0>                                                         \
  constexpr bfloat operator op(bfloat a, U b) {                                                     \
    return bfloat(float(a) op float(b));                                                            \
  }                                                                                                 \
  template <class U, msl::OfKind<U, 1> = 0>                                                         \
  constexpr bfloat operator op(U a, bfloat b) {                                                     \
    return bfloat(float(a) op float(b));                                                            \
  }                                                                                                 \
  template <class U, msl::OfKind<U, 2> = 0>                                                         \
  constexpr float operator op(bfloat a, U b) {                                                      \
    return float(a) op float(b);                                                                    \
  }                                                                                                 \
  template <class U, msl::OfKind<U, 2> = 0>                                                         \
  constexpr float operator op(U a, bfloat b) {                                                      \
    return float(a) op float(b);                                                                    \
  }
MSL_BINARY(+)
MSL_BINARY(-)
MSL_BINARY(*)
MSL_BINARY(/)
#undef MSL_BINARY

#define MSL_COMPARE(op)                                                                 \
  constexpr bool operator op(bfloat a, bfloat b) { return float(a) op float(b); }       \
  template <class U, class = typename msl::When<msl::Arithmetic<U>::kind != 0, U>::type> \
  constexpr bool operator op(bfloat a, U b) {                                           \
    return float(a) op float(b);                                                        \
  }                                                                                     \
  template <class U, class = typename msl::When<msl::Arithmetic<U>::kind != 0, U>::type> \
  constexpr bool operator op(U a, bfloat b) {                                           \
    return float(a) op float(b);                                                        \
  }
MSL_COMPARE(<)
MSL_COMPARE(>)
MSL_COMPARE(<=)
MSL_COMPARE(>=)
MSL_COMPARE(==)
MSL_COMPARE(!=)
#undef MSL_COMPARE

constexpr bfloat operator-(bfloat a) { return bfloat::from_bits(a.bits ^ 0x8000); }

namespace metal {
using ::bfloat;
using ::half;
using ::int16_t;
using ::int32_t;
using ::int64_t;
using ::int8_t;
using ::ptrdiff_t;
using ::size_t;
using ::uchar;
using ::uint;
using ::uint16_t;
using ::uint32_t;
using ::uint64_t;
using ::uint8_t;
using ::ulong;
using ::ushort;
}  // namespace metal
