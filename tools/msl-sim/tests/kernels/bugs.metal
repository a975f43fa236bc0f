// Seeded bugs: the detector must find each of them, and nothing in the correct kernels.
#include <metal_stdlib>
using namespace metal;
#define ARGS                                                                                        \
  device const float* in [[buffer(0)]], device float* out [[buffer(1)]],                            \
      uint tid [[thread_index_in_threadgroup]], uint gid [[thread_position_in_grid]],               \
      uint lane [[thread_index_in_simdgroup]], uint sg [[simdgroup_index_in_threadgroup]]
#define BARRIER threadgroup_barrier(mem_flags::mem_threadgroup)

kernel void correct(ARGS) {
  threadgroup float s[128];
  s[tid] = in[gid];
  BARRIER;
  out[gid] = s[127 - tid];
}
kernel void correct_within_simdgroup(ARGS) {
  threadgroup float s[128];
  s[tid] = in[gid];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  out[gid] = s[sg * 32 + 31 - lane];
}
kernel void correct_reuse(ARGS) {
  threadgroup float s[128];
  float v = in[gid];
  for (int i = 0; i < 3; i++) {
    s[tid] = v;
    BARRIER;
    v = s[(tid + 1) % 128];
    BARRIER;
  }
  out[gid] = v;
}
kernel void correct_shared_reads(ARGS) {
  threadgroup float s[4];
  if (tid < 4) s[tid] = in[tid];
  BARRIER;
  float v = s[0] + s[1] + s[2] + s[3];
  BARRIER;
  if (tid == 0) s[0] = v;
  BARRIER;
  out[gid] = s[0] + in[0];
}

kernel void missing_barrier(ARGS) {
  threadgroup float s[128];
  s[tid] = in[gid];
  out[gid] = s[127 - tid];
}
kernel void wrong_flag(ARGS) {
  threadgroup float s[128];
  s[tid] = in[gid];
  threadgroup_barrier(mem_flags::mem_device);
  out[gid] = s[127 - tid];
}
kernel void only_simd_barrier(ARGS) {
  threadgroup float s[128];
  s[tid] = in[gid];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  out[gid] = s[127 - tid];
}
kernel void write_after_read(ARGS) {
  threadgroup float s[128];
  s[tid] = in[gid];
  BARRIER;
  float v = s[127 - tid];
  s[tid] = v;
  BARRIER;
  out[gid] = s[tid];
}
kernel void write_after_shared_read(ARGS) {
  threadgroup float s[4];
  if (tid < 4) s[tid] = in[tid];
  BARRIER;
  float v = s[0];
  if (tid == 64) s[0] = 2;
  out[gid] = v;
}
kernel void uninitialised(ARGS) {
  threadgroup float s[128];
  if (tid < 64) s[tid] = in[gid];
  BARRIER;
  out[gid] = s[127 - tid];
}
kernel void device_out_of_bounds(ARGS) { out[gid] = in[gid + 1]; }
kernel void device_write_out_of_bounds(ARGS) { out[gid + 1] = in[gid]; }
kernel void threadgroup_out_of_bounds(ARGS) {
  threadgroup float s[128];
  threadgroup float* p = s;
  p[tid + 1] = in[gid];
  BARRIER;
  out[gid] = s[tid];
}
kernel void wild_pointer(ARGS) { out[gid] = in[gid + 100000000]; }
kernel void device_race(ARGS) { out[tid] = in[gid]; }
kernel void device_update_race(ARGS) { out[0] += in[gid]; }
kernel void atomic_and_plain(ARGS) {
  threadgroup atomic_uint count[1];
  if (tid == 0) atomic_store_explicit(count, 0u, memory_order_relaxed);
  BARRIER;
  atomic_fetch_add_explicit(count, 1u, memory_order_relaxed);
  out[gid] = ((threadgroup uint*)count)[0] + in[gid];
}
kernel void atomic_out_of_bounds(ARGS) {
  device atomic_uint* p = (device atomic_uint*)out;
  atomic_fetch_add_explicit(p + gid + 1, 1u, memory_order_relaxed);
}
kernel void writes_an_input(ARGS) { ((device float*)in)[gid] = 1; }
kernel void divergent_barrier(ARGS) {
  threadgroup float s[128];
  s[tid] = in[gid];
  if (tid < 64) BARRIER;
  out[gid] = s[tid];
}
kernel void two_barriers(ARGS) {
  threadgroup float s[128];
  s[tid] = in[gid];
  if (tid < 64)
    BARRIER;
  else
    BARRIER;
  out[gid] = s[tid];
}
kernel void return_before_barrier(ARGS) {
  threadgroup float s[128];
  s[tid] = 1;
  if (tid >= 100) return;
  BARRIER;
  out[gid] = s[tid];
}
kernel void divergent_simd_sum(ARGS) {
  float v = in[gid];
  if (lane < 16)
    v = simd_sum(v);
  else
    v = simd_max(v);
  out[gid] = v;
}
kernel void divergent_loop_sum(ARGS) {
  float v = in[gid];
  for (uint i = 0; i < lane % 3; i++) v = simd_sum(v) * 0.01f;
  out[gid] = simd_max(v);
}
kernel void bad_shuffle(ARGS) { out[gid] = simd_shuffle(in[gid], ushort(lane + 1)); }
kernel void too_much_threadgroup_memory(ARGS) {
  threadgroup float s[9000];
  s[tid] = in[gid];
  BARRIER;
  out[gid] = s[tid];
}
kernel void array_index(ARGS) {
  float own[4] = {in[0], in[1], in[2], in[3]};
  out[gid] = own[uint(in[gid]) % 8];
}
kernel void misaligned(ARGS) { out[gid] = ((device const float4*)(in + 1))[gid / 8].x; }
kernel void divides_by_zero(ARGS) { out[gid] = float(int(gid) / (int(in[gid]) - int(in[gid]))); }
