// Templates, function constants, atomics, namespaces.
#include <metal_stdlib>
using namespace metal;

constant bool negate [[function_constant(0)]];
constant int offset [[function_constant(1)]];
constant constexpr int TABLE[4] = {10, 20, 30, 40};
constant float third = 1.0 / 3;

namespace tools {
template <typename T, int N>
struct Scale {
  static constexpr constant int n = N;
  T operator()(T x) const { return x * T(N); }
};
}  // namespace tools

struct Params {
  uint n;
  float scale;
};

template <typename T, int N, bool ADD>
[[kernel]] void scaled(const device T* x [[buffer(0)]], device T* y [[buffer(1)]], constant Params& p [[buffer(2)]],
                       uint i [[thread_position_in_grid]]) {
  if (i >= p.n) return;
  tools::Scale<T, N> scale;
  T v = scale(x[i]);
  if (ADD) v = T(v + T(TABLE[i % 4]));
  y[i] = v;
}
template [[host_name("scaled_half_3")]] [[kernel]] decltype(scaled<half, 3, false>) scaled<half, 3, false>;
template [[host_name("scaled_" "int_2")]] [[kernel]] decltype(scaled<int, 2, true>) scaled<int, 2, true>;

kernel void constants(device float* y [[buffer(0)]]) {
  y[0] = negate ? -1 : 1;
  y[1] = offset;
  y[2] = TABLE[offset];
  y[3] = third;
  y[4] = is_function_constant_defined(negate);
}

kernel void histogram(const device uchar* in [[buffer(0)]], device atomic_uint* out [[buffer(1)]],
                      device atomic_int* low [[buffer(2)]], device atomic<float>* sum [[buffer(3)]],
                      constant uint& n [[buffer(4)]], threadgroup atomic_uint* bins [[threadgroup(0)]],
                      uint i [[thread_position_in_grid]], uint t [[thread_index_in_threadgroup]],
                      uint width [[threads_per_threadgroup]]) {
  for (uint k = t; k < 16; k += width) atomic_store_explicit(&bins[k], 0, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (i < n) {
    atomic_fetch_add_explicit(&bins[in[i] % 16], 1, memory_order_relaxed);
    atomic_fetch_min_explicit(low, int(in[i]), memory_order_relaxed);
    atomic_fetch_add_explicit(sum, float(in[i]), memory_order_relaxed);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint k = t; k < 16; k += width) {
    uint c = atomic_load_explicit(&bins[k], memory_order_relaxed);
    atomic_fetch_add_explicit(&out[k], c, memory_order_relaxed);
  }
}
