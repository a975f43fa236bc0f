// Simdgroups, barriers and threadgroup memory.
#include <metal_stdlib>
using namespace metal;

kernel void reductions(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                       uint i [[thread_position_in_grid]]) {
  float v = in[i];
  device float* o = out + 12 * i;
  o[0] = simd_sum(v);
  o[1] = simd_max(v);
  o[2] = simd_min(v);
  o[3] = float(simd_sum(half(v)));
  o[4] = float(simd_sum(uint(v)));
  o[5] = float(simd_or(1u << (i % 32)) == (i / 32 == 2 ? 0x3u : ~0u));
  o[6] = simd_prefix_inclusive_sum(v);
  o[7] = simd_prefix_exclusive_sum(v);
  o[8] = quad_sum(v);
  o[9] = simd_all(v >= 0) + 2 * simd_any(v > 40);
  o[10] = float(popcount(uint(uint64_t(simd_ballot(i % 2 == 0)))));
  o[11] = float(simd_sum(bfloat(v)));
}

kernel void shuffles(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                     uint i [[thread_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  float v = in[i];
  device float* o = out + 8 * i;
  o[0] = simd_shuffle(v, ushort(31 - lane));
  o[1] = simd_shuffle_xor(v, 5);
  o[2] = simd_shuffle_down(v, 3);
  o[3] = simd_shuffle_up(v, 3);
  o[4] = simd_broadcast(v, 7);
  o[5] = simd_broadcast_first(v);
  o[6] = simd_shuffle_rotate_down(v, 1);
  o[7] = simd_shuffle_and_fill_down(v, float(lane) + 0.5f, 2);
}

// The sum of floats depends on the order: that of a butterfly from distance 16 down.
kernel void summation_order(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                            uint i [[thread_position_in_grid]]) {
  out[i] = simd_sum(in[i]);
}

// Lanes that returned take no part.
kernel void early_exit(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                       uint i [[thread_position_in_grid]]) {
  out[i] = -1;
  if (i % 32 >= 20) return;
  out[i] = simd_sum(in[i]);
}

// Every simdgroup leaves the loop at another time: uniform within a simdgroup, divergent across them.
kernel void divergent_loop(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                           uint i [[thread_position_in_grid]], uint sg [[simdgroup_index_in_threadgroup]]) {
  float v = in[i];
  for (uint n = 0; n < 3 * sg + 1; n++) v = simd_sum(v) * 0.03125f + 1;
  out[i] = v;
}

// Every lane leaves the loop at another time, with no simd operation inside.
kernel void lane_loop(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                      uint i [[thread_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  float v = 0;
  for (uint n = 0;; n++) {
    if (n > lane) break;
    if (n % 3 == 1) continue;
    v += in[n];
  }
  out[i] = simd_sum(v);
}

// A reduction of the whole threadgroup, twice, over the same memory.
kernel void group_reduction(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                            uint g [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]],
                            uint lane [[thread_index_in_simdgroup]], uint sg [[simdgroup_index_in_threadgroup]],
                            uint n_sg [[simdgroups_per_threadgroup]], uint n [[threads_per_threadgroup]]) {
  threadgroup float part[32], scratch[2][4];
  threadgroup half3 corner;
  float v = in[g * n + t];
  for (int round = 0; round < 2; round++) {
    float s = simd_sum(v);
    if (lane == 0) part[sg] = s;
    if (t < 4) scratch[round][t] = float(t);
    if (t == 0) corner = half3(1, 2, 3);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    s = simd_sum(lane < n_sg ? part[lane] : 0.0f);
    v = s + scratch[round][t % 4] + float(corner.z);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  out[g * n + t] = v;
}

// A tree in dynamically sized threadgroup memory.
kernel void tree(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                 threadgroup float* memory [[threadgroup(0)]], uint g [[threadgroup_position_in_grid]],
                 uint t [[thread_index_in_threadgroup]], uint3 n [[threads_per_threadgroup]]) {
  memory[t] = in[g * n.x + t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint d = n.x / 2; d > 0; d /= 2) {
    if (t < d) memory[t] += memory[t + d];
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (t == 0) out[g] = memory[0];
}

// Positions of a two-dimensional grid that is no multiple of the threadgroup.
kernel void positions(device uint* out [[buffer(0)]], uint3 at [[thread_position_in_grid]],
                      uint2 in_group [[thread_position_in_threadgroup]], uint2 group [[threadgroup_position_in_grid]],
                      uint2 n [[threads_per_threadgroup]], uint2 grid [[threads_per_grid]],
                      ushort index [[thread_index_in_threadgroup]]) {
  out[at.y * grid.x + at.x] = in_group.x + 10 * in_group.y + 100 * group.x + 1000 * group.y + 10000 * (n.x * n.y) +
                              1000000 * uint(index);
}

// Hands a value to the next simdgroup of the group through device memory.
kernel void through_device(device float* scratch [[buffer(0)]], device float* out [[buffer(1)]],
                           uint t [[thread_index_in_threadgroup]]) {
  scratch[t] = float(t);
  threadgroup_barrier(mem_flags::mem_device);
  out[t] = scratch[(t + 32) % 64];
}

kernel void matrices(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]],
                     device float* out [[buffer(2)]]) {
  simdgroup_float8x8 A, B, C(0.5f);
  simdgroup_load(A, a, 8);
  simdgroup_load(B, b, 8, 0, true);
  simdgroup_multiply_accumulate(C, A, B, C);
  simdgroup_store(C, out, 8);
}
