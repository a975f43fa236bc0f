// Kernels that do not end, or not well.
#include <metal_stdlib>
using namespace metal;

kernel void endless(device volatile uint* flag [[buffer(0)]]) {
  while (flag[0] == 0) {
  }
}
// Waits for a thread that cannot run: threads make no progress side by side, on the GPU neither.
kernel void spin_lock(device atomic_uint* flag [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  if (i == 31) atomic_store_explicit(flag, 1u, memory_order_relaxed);
  while (atomic_load_explicit(flag, memory_order_relaxed) == 0) {
  }
}
kernel void null_pointer(device uint* out [[buffer(0)]]) {
  device uint* p = out - (ulong)out / 4;
  p[out[0]] = 1;
}
inline uint depth(uint n, device uint* out) {
  volatile uint room[64];
  room[n % 64] = n;
  out[0] = n;
  return out[1] == 7 ? 0 : depth(n + 1, out) + room[(n + 1) % 64];
}
kernel void recursion(device uint* out [[buffer(0)]]) { out[0] = depth(0, out); }
