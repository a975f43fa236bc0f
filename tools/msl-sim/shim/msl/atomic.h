// Atomics. One threadgroup runs at a time, and a thread switches only at barriers and simd operations, so plain loads
// and stores are atomic here. The detector is told about them, and reports no race between two atomic accesses.
#pragma once

namespace metal {

enum memory_order {
  memory_order_relaxed,
  memory_order_acquire,
  memory_order_release,
  memory_order_acq_rel,
  memory_order_seq_cst
};
enum thread_scope {
  thread_scope_thread,
  thread_scope_simdgroup,
  thread_scope_threadgroup,
  thread_scope_device,
  thread_scope_system
};
inline void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device) {}

template <class T>
struct atomic {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "Metal has atomics of 32 bits and some of 64");
  T v;
};
template <class T>
using _atomic = atomic<T>;
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<ulong> atomic_ulong;

#define MSL_NO_DETECTOR __attribute__((no_sanitize("thread"), noinline))

// The value operand does not take part in the deduction of T, so that an int literal can be stored in an atomic<uint>.
template <class T>
struct as_given {
  typedef T type;
};

template <class T>
MSL_NO_DETECTOR T atomic_load_explicit(const volatile atomic<T>* p, memory_order) {
  msl_rt_atomic_access(p, sizeof(T), false);
  return p->v;
}
template <class T>
MSL_NO_DETECTOR void atomic_store_explicit(volatile atomic<T>* p, typename as_given<T>::type v, memory_order) {
  msl_rt_atomic_access(p, sizeof(T), true);
  p->v = v;
}
#define MSL_ATOMIC(name, expr)                                                                          \
  template <class T>                                                                                    \
  MSL_NO_DETECTOR T atomic_##name##_explicit(volatile atomic<T>* p, typename as_given<T>::type v, memory_order) { \
    msl_rt_atomic_access(p, sizeof(T), true);                                                           \
    T old = p->v;                                                                                       \
    p->v = T(expr);                                                                                     \
    return old;                                                                                         \
  }
MSL_ATOMIC(exchange, v)
MSL_ATOMIC(fetch_add, old + v)
MSL_ATOMIC(fetch_sub, old - v)
MSL_ATOMIC(fetch_min, v < old ? v : old)
MSL_ATOMIC(fetch_max, v > old ? v : old)
MSL_ATOMIC(fetch_and, old& v)
MSL_ATOMIC(fetch_or, old | v)
MSL_ATOMIC(fetch_xor, old ^ v)
#undef MSL_ATOMIC

// Compares representations, as the hardware does. It never fails spuriously here.
template <class T>
MSL_NO_DETECTOR bool atomic_compare_exchange_weak_explicit(volatile atomic<T>* p, T* expected,
                                                           typename as_given<T>::type v, memory_order, memory_order) {
  msl_rt_atomic_access(p, sizeof(T), true);
  T old = p->v;
  if (__builtin_memcmp(&old, expected, sizeof(T)) == 0) {
    p->v = v;
    return true;
  }
  *expected = old;
  return false;
}

}  // namespace metal
