// Routers: choosing the best of a row, by one warp.

// PER_LANE is set from outside: values that a lane holds. Rows have up to 32 times as many.

// Marks the `k` best of the values whose keys the lanes hold (value `32·i + lane` in `keys[i]`; larger is better, 0 is no
// value) and writes their indices in ascending order. Of equal keys the lower index is chosen.
__device__ __forceinline__ void choose_top_k(const u32 (&keys)[PER_LANE], u32 n, u32 k, u32* indices) {
    const u32 lane = threadIdx.x & 31, n_each = (n + 31) / 32;
    u32 taken = 0; // bit i: keys[i]
    for (u32 round = 0; round < k; ++round) {
        u32 best = 0, at = 0xffffffffu;
#pragma unroll
        for (u32 i = 0; i < PER_LANE; ++i) {
            u32 index = 32 * i + lane;
            if (i < n_each && index < n && !(taken >> i & 1) && (at == 0xffffffffu || keys[i] > best)) {
                best = keys[i];
                at = index;
            }
        }
        u32 most = __reduce_max_sync(FULL_WARP, at == 0xffffffffu ? 0 : best);
        u32 chosen = __reduce_min_sync(FULL_WARP, best == most ? at : 0xffffffffu);
        if ((chosen & 31) == lane) taken |= 1u << (chosen / 32);
    }
    u32 n_before = 0;
    for (u32 i = 0; i < n_each; ++i) {
        u32 all = __ballot_sync(FULL_WARP, taken >> i & 1);
        if (taken >> i & 1) indices[n_before + __popc(all & ((1u << lane) - 1))] = 32 * i + lane;
        n_before += __popc(all);
    }
    __syncwarp();
}

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
    u32* n_done; // of each row, zero between calls; for route_by_last_block
};

// Softmax, the best, their weights: `route_softmax_top_k`.
__device__ __forceinline__ void softmax_top_k(const RouteArgs& a, u32 row) {
    const u32 lane = threadIdx.x & 31;
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

// Sigmoid, groups, the best, their weights: `route_noaux_tc`.
__device__ __forceinline__ void noaux_tc(const RouteArgs& a, u32 row) {
    __shared__ float sel[32 * PER_LANE];
    __shared__ float scores[64];
    const u32 lane = threadIdx.x & 31;
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

#define ROUTE_SOFTMAX 1
#define ROUTE_NOAUX 2

// For kernels whose blocks compute the logits of row `row` together, `n_blocks` of them: the last one to get here chooses.
// All threads of a block call this, when they have written their logits.
__device__ __forceinline__ void route_by_last_block(const RouteArgs& a, u32 row, u32 n_blocks, int rule) {
    __shared__ u32 is_last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        is_last = atomicAdd(a.n_done + row, 1u) == n_blocks - 1;
        if (is_last) a.n_done[row] = 0;
    }
    __syncthreads();
    if (!is_last || threadIdx.x >= 32) return;
    __threadfence();
    if (rule == ROUTE_SOFTMAX) softmax_top_k(a, row);
    if (rule == ROUTE_NOAUX) noaux_tc(a, row);
}
