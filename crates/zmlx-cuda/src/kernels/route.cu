// Routers, and the plain ops that they are composed of. A warp per row; the fused ones give the bits of the others.

#define CLUSTER 0

#include "device.cuh"
#include "route.cuh"

__device__ __forceinline__ u32 row_of_warp() { return (blockIdx.x * blockDim.x + threadIdx.x) >> 5; }

extern "C" __global__ void __launch_bounds__(32) top_k(const __grid_constant__ RouteArgs a) {
    wait_for_inputs();
    const u32 row = row_of_warp(), lane = threadIdx.x & 31;
    const float* x = a.x + (u64)row * a.width;
    u32 keys[PER_LANE];
#pragma unroll
    for (u32 i = 0; i < PER_LANE; ++i) keys[i] = 32 * i + lane < a.width ? ordered(x[32 * i + lane]) : 0;
    const float none[PER_LANE] = {};
    put_taken(best_of(keys, a.width, a.top_k), a.width, none, a.experts + (u64)row * a.top_k, nullptr);
}

extern "C" __global__ void __launch_bounds__(32) keep_top_groups(const __grid_constant__ RouteArgs a) {
    __shared__ float scores[64];
    wait_for_inputs();
    const u32 row = row_of_warp(), size = a.width / a.n_group;
    const float* x = a.x + (u64)row * a.width;
    u64 kept = best_groups(x, a.width, a.n_group, a.topk_group, scores);
    for (u32 i = threadIdx.x; i < a.width; i += 32)
        a.y[(u64)row * a.width + i] = kept >> (i / size) & 1 ? x[i] : 0.0f;
}

extern "C" __global__ void __launch_bounds__(32) route_softmax_top_k(const __grid_constant__ RouteArgs a) {
    wait_for_inputs();
    const u32 row = row_of_warp();
    softmax_top_k(a, row, a.x + (u64)row * a.width);
}

extern "C" __global__ void __launch_bounds__(32) route_noaux_tc(const __grid_constant__ RouteArgs a) {
    wait_for_inputs();
    const u32 row = row_of_warp();
    noaux_tc(a, row, a.x + (u64)row * a.width);
}
