// Vectors of two, three and four components with constructors, swizzles and elementwise operators.
// msl/swizzle.h, which names every swizzle, is generated.
#pragma once

namespace metal {

template <class T, int N>
struct vec;

// A swizzle is a view of the vector's own storage, so that it can also be assigned to.
template <class T, int N, int... I>
struct swizzle {
  T d[N];
  static constexpr int K = sizeof...(I);
  operator vec<T, K>() const { return vec<T, K>(d[I]...); }
  swizzle& operator=(const swizzle& o) { return *this = vec<T, K>(o); }
  swizzle& operator=(vec<T, K> v) {
    int k = 0;
    ((d[I] = v[k++]), ...);
    return *this;
  }
  T operator[](int i) const {
    const int index[] = {I...};
    return d[index[i]];
  }
#define MSL_ASSIGN(op)                                  \
  template <class U>                                    \
  swizzle& operator op##=(U u) {                        \
    return *this = vec<T, K>(*this) op u;               \
  }
  MSL_ASSIGN(+)
  MSL_ASSIGN(-)
  MSL_ASSIGN(*)
  MSL_ASSIGN(/)
#undef MSL_ASSIGN
};

}  // namespace metal

#include "msl/swizzle.h"

namespace metal {

template <class X>
struct is_swizzle : false_type {};
template <class T, int N, int... I>
struct is_swizzle<swizzle<T, N, I...>> : true_type {};

// The number of components that a constructor argument contributes.
template <class X>
struct components {
  static constexpr int n = 1;
};
template <class T, int N>
struct components<vec<T, N>> {
  static constexpr int n = N;
};
template <class T, int N, int... I>
struct components<swizzle<T, N, I...>> {
  static constexpr int n = sizeof...(I);
};

template <class T, class U>
constexpr void append(T* d, int& k, const U& s) {
  if constexpr (components<U>::n == 1) {
    d[k++] = T(s);
  } else {
    for (int i = 0; i < components<U>::n; i++) d[k++] = T(s[i]);
  }
}

#define MSL_VECTOR_BINARY(T, N, op)                             \
  friend vec operator op(vec a, vec b) {                        \
    vec r;                                                      \
    for (int i = 0; i < N; i++) r.d[i] = T(a.d[i] op b.d[i]);   \
    return r;                                                   \
  }                                                             \
  vec& operator op##=(vec b) {                                  \
    for (int i = 0; i < N; i++) d[i] = T(d[i] op b.d[i]);       \
    return *this;                                               \
  }
#define MSL_VECTOR_COMPARE(T, N, op)                            \
  friend vec<bool, N> operator op(vec a, vec b) {               \
    vec<bool, N> r;                                             \
    for (int i = 0; i < N; i++) r.d[i] = a.d[i] op b.d[i];      \
    return r;                                                   \
  }
#define MSL_VECTOR_BODY(T, N)                                                                  \
  vec() = default;                                                                             \
  constexpr vec(const vec& o) : d{} {                                                          \
    for (int i = 0; i < N; i++) d[i] = o.d[i];                                                 \
  }                                                                                            \
  constexpr vec& operator=(const vec& o) {                                                     \
    for (int i = 0; i < N; i++) d[i] = o.d[i];                                                 \
    return *this;                                                                              \
  }                                                                                            \
  constexpr vec(T s) : d{} {                                                                   \
    for (int i = 0; i < N; i++) d[i] = s;                                                      \
  }                                                                                            \
  template <class U>                                                                           \
  constexpr explicit vec(const vec<U, N>& o) : d{} {                                           \
    for (int i = 0; i < N; i++) d[i] = T(o.d[i]);                                              \
  }                                                                                            \
  template <class A, class B, class... R>                                                      \
  constexpr vec(const A& a, const B& b, const R&... rest) : d{} {                              \
    static_assert(components<A>::n + components<B>::n + (0 + ... + components<R>::n) == N,     \
                  "vector constructor: wrong number of components");                           \
    int k = 0;                                                                                 \
    append(d, k, a);                                                                           \
    append(d, k, b);                                                                           \
    (append(d, k, rest), ...);                                                                 \
  }                                                                                            \
  T& operator[](int i) { return d[i]; }                                                        \
  constexpr const T& operator[](int i) const { return d[i]; }                                  \
  MSL_VECTOR_BINARY(T, N, +)                                                                   \
  MSL_VECTOR_BINARY(T, N, -)                                                                   \
  MSL_VECTOR_BINARY(T, N, *)                                                                   \
  MSL_VECTOR_BINARY(T, N, /)                                                                   \
  MSL_VECTOR_BINARY(T, N, %)                                                                   \
  MSL_VECTOR_BINARY(T, N, &)                                                                   \
  MSL_VECTOR_BINARY(T, N, |)                                                                   \
  MSL_VECTOR_BINARY(T, N, ^)                                                                   \
  MSL_VECTOR_BINARY(T, N, <<)                                                                  \
  MSL_VECTOR_BINARY(T, N, >>)                                                                  \
  MSL_VECTOR_COMPARE(T, N, ==)                                                                 \
  MSL_VECTOR_COMPARE(T, N, !=)                                                                 \
  MSL_VECTOR_COMPARE(T, N, <)                                                                  \
  MSL_VECTOR_COMPARE(T, N, >)                                                                  \
  MSL_VECTOR_COMPARE(T, N, <=)                                                                 \
  MSL_VECTOR_COMPARE(T, N, >=)                                                                 \
  friend vec operator-(vec a) {                                                                \
    vec r;                                                                                     \
    for (int i = 0; i < N; i++) r.d[i] = T(-a.d[i]);                                           \
    return r;                                                                                  \
  }                                                                                            \
  friend vec operator~(vec a) {                                                                \
    vec r;                                                                                     \
    for (int i = 0; i < N; i++) r.d[i] = T(~a.d[i]);                                           \
    return r;                                                                                  \
  }                                                                                            \
  friend vec<bool, N> operator!(vec a) {                                                       \
    vec<bool, N> r;                                                                            \
    for (int i = 0; i < N; i++) r.d[i] = !a.d[i];                                              \
    return r;                                                                                  \
  }

template <class T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  union {
    T d[2];
    struct {
      T x, y;
    };
    struct {
      T r, g;
    };
    MSL_SWIZZLES_2
  };
  MSL_VECTOR_BODY(T, 2)
};
// As in Metal, a vector of three components has the size of four.
template <class T>
struct alignas(4 * sizeof(T)) vec<T, 3> {
  union {
    T d[3];
    struct {
      T x, y, z;
    };
    struct {
      T r, g, b;
    };
    MSL_SWIZZLES_3
  };
  MSL_VECTOR_BODY(T, 3)
};
template <class T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  union {
    T d[4];
    struct {
      T x, y, z, w;
    };
    struct {
      T r, g, b, a;
    };
    MSL_SWIZZLES_4
  };
  MSL_VECTOR_BODY(T, 4)
};

#define MSL_SWIZZLE_BINARY(op)                                                                          \
  template <class T, int N, int... I, class R>                                                          \
  enable_if_t<!is_swizzle<R>::value, decltype(vec<T, sizeof...(I)>() op vec<T, sizeof...(I)>())>        \
  operator op(const swizzle<T, N, I...>& a, const R& b) {                                               \
    return vec<T, sizeof...(I)>(a) op vec<T, sizeof...(I)>(b);                                          \
  }                                                                                                     \
  template <class T, int N, int... I, class L>                                                          \
  enable_if_t<!is_swizzle<L>::value, decltype(vec<T, sizeof...(I)>() op vec<T, sizeof...(I)>())>        \
  operator op(const L& a, const swizzle<T, N, I...>& b) {                                               \
    return vec<T, sizeof...(I)>(a) op vec<T, sizeof...(I)>(b);                                          \
  }                                                                                                     \
  template <class T, int N, int... I, int M, int... J>                                                  \
  auto operator op(const swizzle<T, N, I...>& a, const swizzle<T, M, J...>& b) {                        \
    return vec<T, sizeof...(I)>(a) op vec<T, sizeof...(J)>(b);                                          \
  }
MSL_SWIZZLE_BINARY(+)
MSL_SWIZZLE_BINARY(-)
MSL_SWIZZLE_BINARY(*)
MSL_SWIZZLE_BINARY(/)
MSL_SWIZZLE_BINARY(%)
MSL_SWIZZLE_BINARY(&)
MSL_SWIZZLE_BINARY(|)
MSL_SWIZZLE_BINARY(^)
MSL_SWIZZLE_BINARY(<<)
MSL_SWIZZLE_BINARY(>>)
MSL_SWIZZLE_BINARY(==)
MSL_SWIZZLE_BINARY(!=)
MSL_SWIZZLE_BINARY(<)
MSL_SWIZZLE_BINARY(>)
MSL_SWIZZLE_BINARY(<=)
MSL_SWIZZLE_BINARY(>=)
#undef MSL_SWIZZLE_BINARY

template <class T, int N>
struct packed_vec {
  T d[N];
  packed_vec() = default;
  packed_vec(vec<T, N> v) {
    for (int i = 0; i < N; i++) d[i] = v[i];
  }
  operator vec<T, N>() const {
    vec<T, N> v;
    for (int i = 0; i < N; i++) v[i] = d[i];
    return v;
  }
  T& operator[](int i) { return d[i]; }
  T operator[](int i) const { return d[i]; }
};

template <class T, size_t N>
struct array {
  T d[N];
  T& operator[](size_t i) { return d[i]; }
  const T& operator[](size_t i) const { return d[i]; }
  static constexpr size_t size() { return N; }
};

#define MSL_VECTOR_TYPES(T)                 \
  typedef vec<T, 2> T##2;                   \
  typedef vec<T, 3> T##3;                   \
  typedef vec<T, 4> T##4;                   \
  typedef packed_vec<T, 2> packed_##T##2;   \
  typedef packed_vec<T, 3> packed_##T##3;   \
  typedef packed_vec<T, 4> packed_##T##4;
#define MSL_FOR_ELEMENT_TYPES(M) \
  M(bool)                        \
  M(char)                        \
  M(uchar)                       \
  M(short)                       \
  M(ushort)                      \
  M(int)                         \
  M(uint)                        \
  M(long)                        \
  M(ulong)                       \
  M(half)                        \
  M(bfloat)                      \
  M(float)
MSL_FOR_ELEMENT_TYPES(MSL_VECTOR_TYPES)

}  // namespace metal

// Metal has its vector types at global scope.
using metal::packed_vec;
using metal::vec;
#define MSL_GLOBAL_NAMES(T)   \
  using metal::T##2;          \
  using metal::T##3;          \
  using metal::T##4;          \
  using metal::packed_##T##2; \
  using metal::packed_##T##3; \
  using metal::packed_##T##4;
MSL_FOR_ELEMENT_TYPES(MSL_GLOBAL_NAMES)

namespace metal {

// Converts a swizzle to a vector, and returns anything else unchanged.
template <class T>
constexpr const T& plain(const T& v) {
  return v;
}
template <class T, int N, int... I>
vec<T, sizeof...(I)> plain(const swizzle<T, N, I...>& s) {
  return s;
}
// Templates over vectors do not deduce from swizzles: for each of them, an overload that takes any swizzle.
#define MSL_TAKES_SWIZZLES(name)                                                                          \
  template <class... A, class = enable_if_t<(is_swizzle<A>::value || ...)>>                               \
  inline auto name(const A&... a) {                                                                       \
    return name(plain(a)...);                                                                             \
  }

}  // namespace metal

template <class D, class S>
inline D as_type(const S& swizzled) {
  auto s = metal::plain(swizzled);
  static_assert(sizeof(D) == sizeof(s), "as_type: sizes differ");
  D d;
  __builtin_memcpy(&d, &s, sizeof d);
  return d;
}
