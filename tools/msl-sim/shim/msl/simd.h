// Barriers and the operations of a simdgroup (32 lanes) and of a quad (4 lanes).
#pragma once

#include "abi.h"

namespace msl {

// As a default argument this names the place of the call.
#define MSL_SITE ::msl::Site site = {__builtin_FILE(), __builtin_LINE()}
#define MSL_LANES(mask) for (int l = 0; l < 32; l++) if (mask >> l & 1)

// A reduction in the order of an xor butterfly (distance 16, 8, 4, 2, 1) in groups of G lanes, the lower lane as the
// left operand. Lanes that take no part are skipped. Every lane of a group receives the same value, so that a tree
// over the lower halves is enough.
template <class T, class Op, int G>
void reduce(const void* const* in, void* const* out, const uint32_t*, uint32_t mask) {
  for (int base = 0; base < 32; base += G) {
    T v[G];
    bool has[G];
    for (int l = 0; l < G; l++) {
      has[l] = mask >> (base + l) & 1;
      if (has[l]) v[l] = *(const T*)in[base + l];
    }
    for (int d = G / 2; d; d /= 2) {
      for (int l = 0; l < d; l++) {
        if (has[l] && has[l + d]) v[l] = Op::apply(v[l], v[l + d]);
        else if (has[l + d]) v[l] = v[l + d];
        has[l] |= has[l + d];
      }
    }
    for (int l = base; l < base + G; l++)
      if (mask >> l & 1) *(T*)out[l] = v[0];
  }
}

#define MSL_OPERATOR(name, expr)     \
  struct name {                      \
    template <class T>               \
    static T apply(T a, T b) {       \
      return T(expr);                \
    }                                \
  };
MSL_OPERATOR(Add, a + b)
MSL_OPERATOR(Mul, a* b)
MSL_OPERATOR(Max, metal::max(a, b))
MSL_OPERATOR(Min, metal::min(a, b))
MSL_OPERATOR(And, a& b)
MSL_OPERATOR(Or, a | b)
MSL_OPERATOR(Xor, a ^ b)
#undef MSL_OPERATOR

// Prefix operation from lane 0 on; an exclusive one starts with the neutral element, given as `arg`.
template <class T, class Op, bool Exclusive>
void scan(const void* const* in, void* const* out, const uint32_t* arg, uint32_t mask) {
  T acc{};
  bool any = false;
  MSL_LANES(mask) {
    T v = *(const T*)in[l];
    if (Exclusive) *(T*)out[l] = any ? acc : T(int(arg[l]));
    acc = any ? Op::apply(acc, v) : v;
    if (!Exclusive) *(T*)out[l] = acc;
    any = true;
  }
}

enum class Move { To, Down, Up, Xor, RotateDown, RotateUp, First };

// Every lane receives the value of another lane of its group of G. If that lane lies outside the group, it keeps its
// own value.
template <class T, Move M, int G>
void shuffle(const void* const* in, void* const* out, const uint32_t* arg, uint32_t mask) {
  T r[32];
  MSL_LANES(mask) {
    int base = l & ~(G - 1), q = l - base, a = int(arg[l]), s = q;
    switch (M) {
      case Move::To: s = a; break;
      case Move::Down: s = q + a < G ? q + a : q; break;
      case Move::Up: s = q - a >= 0 ? q - a : q; break;
      case Move::Xor: s = q ^ a; break;
      case Move::RotateDown: s = (q + a) & (G - 1); break;
      case Move::RotateUp: s = (q - a) & (G - 1); break;
      case Move::First: s = __builtin_ctz(mask >> base); break;
    }
    s += base;
    if (s < base || s >= base + G || !(mask >> s & 1)) {
      msl_rt_bad_lane(s);
      s = l;
    }
    r[l] = *(const T*)in[s];
  }
  MSL_LANES(mask) *(T*)out[l] = r[l];
}

static void ballot(const void* const* in, void* const* out, const uint32_t*, uint32_t mask) {
  uint32_t b = 0;
  MSL_LANES(mask) b |= uint32_t(*(const bool*)in[l]) << l;
  MSL_LANES(mask) *(uint32_t*)out[l] = b;
}

template <class T>
T collective(CollectiveFn fn, T v, uint32_t arg, Site site, const char* what) {
  T result;
  msl_rt_collective(fn, &v, &result, arg, site, what);
  return result;
}

}  // namespace msl

namespace metal {

enum class mem_flags {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8
};
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }

inline void threadgroup_barrier(mem_flags f, MSL_SITE) { msl_rt_threadgroup_barrier(int(f), site); }
inline void simdgroup_barrier(mem_flags f, MSL_SITE) { msl_rt_simdgroup_barrier(int(f), site); }

#define MSL_REDUCTION(name, Op)                                                                             \
  template <class T>                                                                                        \
  inline T simd_##name(T v, MSL_SITE) {                                                                     \
    return msl::collective(&msl::reduce<T, msl::Op, 32>, v, 0, site, "simd_" #name);                        \
  }                                                                                                         \
  template <class T>                                                                                        \
  inline T quad_##name(T v, MSL_SITE) {                                                                     \
    return msl::collective(&msl::reduce<T, msl::Op, 4>, v, 0, site, "quad_" #name);                         \
  }
MSL_REDUCTION(sum, Add)
MSL_REDUCTION(product, Mul)
MSL_REDUCTION(max, Max)
MSL_REDUCTION(min, Min)
MSL_REDUCTION(and, And)
MSL_REDUCTION(or, Or)
MSL_REDUCTION(xor, Xor)
#undef MSL_REDUCTION

#define MSL_SCAN(name, Op, Exclusive, neutral)                                                              \
  template <class T>                                                                                        \
  inline T simd_prefix_##name(T v, MSL_SITE) {                                                              \
    return msl::collective(&msl::scan<T, msl::Op, Exclusive>, v, neutral, site, "simd_prefix_" #name);      \
  }
MSL_SCAN(inclusive_sum, Add, false, 0)
MSL_SCAN(exclusive_sum, Add, true, 0)
MSL_SCAN(inclusive_product, Mul, false, 1)
MSL_SCAN(exclusive_product, Mul, true, 1)
#undef MSL_SCAN

#define MSL_SHUFFLE(name, M)                                                                                \
  template <class T>                                                                                        \
  inline T simd_##name(T v, ushort a, MSL_SITE) {                                                           \
    return msl::collective(&msl::shuffle<T, msl::Move::M, 32>, v, a, site, "simd_" #name);                  \
  }                                                                                                         \
  template <class T>                                                                                        \
  inline T quad_##name(T v, ushort a, MSL_SITE) {                                                           \
    return msl::collective(&msl::shuffle<T, msl::Move::M, 4>, v, a, site, "quad_" #name);                   \
  }
MSL_SHUFFLE(shuffle, To)
MSL_SHUFFLE(broadcast, To)
MSL_SHUFFLE(shuffle_down, Down)
MSL_SHUFFLE(shuffle_up, Up)
MSL_SHUFFLE(shuffle_xor, Xor)
MSL_SHUFFLE(shuffle_rotate_down, RotateDown)
MSL_SHUFFLE(shuffle_rotate_up, RotateUp)
#undef MSL_SHUFFLE

template <class T>
inline T simd_broadcast_first(T v, MSL_SITE) {
  return msl::collective(&msl::shuffle<T, msl::Move::First, 32>, v, 0, site, "simd_broadcast_first");
}
// The lanes past the end take `fill` values, in rotation.
template <class T>
inline T simd_shuffle_and_fill_down(T v, T fill, ushort d, MSL_SITE) {
  T moved = simd_shuffle_down(v, d, site);
  T filled = msl::collective(&msl::shuffle<T, msl::Move::RotateDown, 32>, fill, d, site, "simd_shuffle_and_fill_down");
  return msl_rt_lane() + d < 32 ? moved : filled;
}
template <class T>
inline T simd_shuffle_and_fill_up(T v, T fill, ushort d, MSL_SITE) {
  T moved = simd_shuffle_up(v, d, site);
  T filled = msl::collective(&msl::shuffle<T, msl::Move::RotateUp, 32>, fill, d, site, "simd_shuffle_and_fill_up");
  return msl_rt_lane() >= d ? moved : filled;
}

struct simd_vote {
  typedef uint64_t vote_t;
  uint64_t v;
  explicit operator uint64_t() const { return v; }
  bool all() const { return (v & 0xffffffffu) == 0xffffffffu; }
  bool any() const { return v != 0; }
};
inline simd_vote simd_ballot(bool b, MSL_SITE) {
  uint32_t mask;
  msl_rt_collective(&msl::ballot, &b, &mask, 0, site, "simd_ballot");
  return simd_vote{mask};
}
inline bool simd_any(bool b, MSL_SITE) { return uint64_t(simd_ballot(b, site)) != 0; }
inline bool simd_all(bool b, MSL_SITE) { return uint64_t(simd_ballot(!b, site)) == 0; }
inline simd_vote simd_active_threads_mask(MSL_SITE) { return simd_ballot(true, site); }
inline bool simd_is_first(MSL_SITE) {
  return uint32_t(__builtin_ctzll(uint64_t(simd_ballot(true, site)))) == msl_rt_lane();
}

}  // namespace metal
