// Routers, and the plain ops that they are composed of. A warp per row; the fused ones give the bits of the others.

#include "device.cuh"
#include "route.cuh"

struct RouteArgs {
    const float* x; // [n, width]
    u32* experts;   // [n, top_k]
    float* weights; // [n, top_k]
    const float* bias; // [width]
    u32 n;
    u32 width;
    u32 top_k;
    u32 n_group;
    u32 topk_group;
    u32 renormalize;
    float factor;
    float eps;
    float* y; // of keep_top_groups
};

__device__ __forceinline__ u32 row_of_warp() { return (blockIdx.x * blockDim.x + threadIdx.x) >> 5; }

extern "C" __global__ void __launch_bounds__(32) top_k(const __grid_constant__ RouteArgs a) {
    wait_for_inputs();
    const u32 row = row_of_warp(), lane = threadIdx.x & 31;
    const float* x = a.x + (u64)row * a.width;
    u32 keys[PER_LANE];
#pragma unroll
    for (u32 i = 0; i < PER_LANE; ++i) keys[i] = 32 * i + lane < a.width ? ordered(x[32 * i + lane]) : 0;
    choose_top_k(keys, a.width, a.top_k, a.experts + (u64)row * a.top_k);
}

extern "C" __global__ void __launch_bounds__(32) softmax_top_k(const __grid_constant__ RouteArgs a) {
    wait_for_inputs();
    const u32 row = row_of_warp(), lane = threadIdx.x & 31;
    const float* x = a.x + (u64)row * a.width;
    u32* experts = a.experts + (u64)row * a.top_k;
    float p[PER_LANE], most = -infinity(), sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < PER_LANE; ++i) {
        p[i] = 32 * i + lane < a.width ? x[32 * i + lane] : -infinity();
        most = max_or_nan(most, p[i]);
    }
    most = warp_max(most);
    u32 keys[PER_LANE];
#pragma unroll
    for (u32 i = 0; i < PER_LANE; ++i) {
        if (32 * i + lane < a.width) sum += expf(p[i] - most);
    }
    sum = warp_sum(sum);
    // Chosen from the probabilities, as the op is defined: different logits may have equal ones.
#pragma unroll
    for (u32 i = 0; i < PER_LANE; ++i)
        keys[i] = 32 * i + lane < a.width ? ordered(expf(p[i] - most) / sum) : 0;
    choose_top_k(keys, a.width, a.top_k, experts);
    float of_chosen = 0.0f; // summed up as div_by_sum does
    for (u32 s = lane; s < a.top_k; s += 32) of_chosen += expf(x[experts[s]] - most) / sum;
    of_chosen = warp_sum(of_chosen);
    for (u32 s = lane; s < a.top_k; s += 32) {
        float weight = expf(x[experts[s]] - most) / sum;
        a.weights[(u64)row * a.top_k + s] = a.renormalize ? weight / of_chosen : weight;
    }
}

// Which groups stay: bit g of the result.
__device__ __forceinline__ u64 best_groups(const float* sel, u32 width, u32 n_group, u32 topk_group, float* scores) {
    const u32 lane = threadIdx.x & 31, size = width / n_group;
    for (u32 g = lane; g < n_group; g += 32) {
        float first = -infinity(), second = -infinity();
        for (u32 i = 0; i < size; ++i) {
            float v = sel[g * size + i];
            if (v > first) second = first, first = v;
            else if (v > second) second = v;
        }
        scores[g] = first + second;
    }
    __syncwarp();
    u64 kept = 0;
    for (u32 g = 0; g < n_group; ++g) {
        u32 n_better = 0;
        for (u32 o = lane; o < n_group; o += 32) {
            u32 other = ordered(scores[o]), own = ordered(scores[g]);
            n_better += other > own || (other == own && o < g);
        }
        if (__reduce_add_sync(FULL_WARP, n_better) < topk_group) kept |= 1ull << g;
    }
    return kept;
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

extern "C" __global__ void __launch_bounds__(32) noaux_tc(const __grid_constant__ RouteArgs a) {
    __shared__ float sel[32 * PER_LANE];
    __shared__ float scores[64];
    wait_for_inputs();
    const u32 row = row_of_warp(), lane = threadIdx.x & 31;
    const float* x = a.x + (u64)row * a.width;
    u32* experts = a.experts + (u64)row * a.top_k;
    for (u32 i = lane; i < a.width; i += 32) sel[i] = sigmoid_of(x[i]) + a.bias[i];
    __syncwarp();
    u64 kept = ~0ull;
    u32 size = a.width;
    if (a.n_group > 1) {
        kept = best_groups(sel, a.width, a.n_group, a.topk_group, scores);
        size = a.width / a.n_group;
    }
    u32 keys[PER_LANE];
#pragma unroll
    for (u32 i = 0; i < PER_LANE; ++i) {
        u32 index = 32 * i + lane;
        keys[i] = index < a.width ? ordered(kept >> (index / size) & 1 ? sel[index] : 0.0f) : 0;
    }
    choose_top_k(keys, a.width, a.top_k, experts);
    float sum = 0.0f;
    for (u32 s = lane; s < a.top_k; s += 32) sum += sigmoid_of(x[experts[s]]);
    sum = warp_sum(sum);
    for (u32 s = lane; s < a.top_k; s += 32) {
        float weight = sigmoid_of(x[experts[s]]);
        if (a.renormalize && a.top_k > 1) weight = weight / (sum + a.eps);
        a.weights[(u64)row * a.top_k + s] = weight * a.factor;
    }
}
