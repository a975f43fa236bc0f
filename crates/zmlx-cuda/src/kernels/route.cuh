// Routers: choosing the best of a row, by one warp.

// PER_LANE is set from outside: values that a lane holds. Rows have up to 32 times as many.

// The `k` best of the values whose keys the lanes hold (value `32·i + lane` in `keys[i]`; larger is better, 0 is no value): bit i
// says that `keys[i]` is one of them. Of equal keys the lower index is chosen.
__device__ __forceinline__ u32 best_of(const u32 (&keys)[PER_LANE], u32 n, u32 k) {
    const u32 lane = threadIdx.x & 31;
    u32 taken = 0;
    for (u32 round = 0; round < k; ++round) {
        u32 best = 0, at = 0xffffffffu;
#pragma unroll
        for (u32 i = 0; i < PER_LANE; ++i) {
            u32 index = 32 * i + lane;
            if (index < n && !(taken >> i & 1) && (at == 0xffffffffu || keys[i] > best)) {
                best = keys[i];
                at = index;
            }
        }
        u32 most = __reduce_max_sync(FULL_WARP, at == 0xffffffffu ? 0 : best);
        u32 chosen = __reduce_min_sync(FULL_WARP, best == most ? at : 0xffffffffu);
        if ((chosen & 31) == lane) taken |= 1u << (chosen / 32);
    }
    return taken;
}

// Writes the indices of the values that were taken, in ascending order, and their `values`, unless that is null.
__device__ __forceinline__ void put_taken(u32 taken, u32 n, const float (&of_lane)[PER_LANE], u32* indices, float* values) {
    const u32 lane = threadIdx.x & 31;
    u32 n_before = 0;
#pragma unroll
    for (u32 i = 0; i < PER_LANE; ++i) {
        if (32 * i >= n) break;
        const u32 all = __ballot_sync(FULL_WARP, taken >> i & 1);
        if (taken >> i & 1) {
            const u32 at = n_before + __popc(all & ((1u << lane) - 1));
            indices[at] = 32 * i + lane;
            if (values) values[at] = of_lane[i];
        }
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
    u32* n_done; // of each row, zero between calls; for Logits::route
};

// Softmax, the best, their weights: `route_softmax_top_k`, of the logits at `x`.
__device__ __forceinline__ void softmax_top_k(const RouteArgs& a, u32 row, const float* x) {
    __shared__ float chosen[32 * PER_LANE];
    const u32 lane = threadIdx.x & 31;
    float p[PER_LANE], most = -infinity(), sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < PER_LANE; ++i) {
        p[i] = 32 * i + lane < a.width ? x[32 * i + lane] : -infinity();
        most = max_or_nan(most, p[i]);
    }
    most = warp_max(most);
#pragma unroll
    for (u32 i = 0; i < PER_LANE; ++i) {
        p[i] = expf(p[i] - most);
        if (32 * i + lane < a.width) sum += p[i];
    }
    sum = warp_sum(sum);
    // Chosen from the probabilities, as the op is defined: different logits may have equal ones. One division for all: of very
    // small numbers it takes hundreds of cycles.
    const float inverse = 1.0f / sum;
    u32 keys[PER_LANE];
#pragma unroll
    for (u32 i = 0; i < PER_LANE; ++i) {
        p[i] *= inverse;
        keys[i] = 32 * i + lane < a.width ? ordered(p[i]) : 0;
    }
    put_taken(best_of(keys, a.width, a.top_k), a.width, p, a.experts + (u64)row * a.top_k, chosen);
    float of_chosen = 0.0f; // summed up as div_by_sum does
    for (u32 s = lane; s < a.top_k; s += 32) of_chosen += chosen[s];
    of_chosen = warp_sum(of_chosen);
    for (u32 s = lane; s < a.top_k; s += 32)
        a.weights[(u64)row * a.top_k + s] = a.renormalize ? chosen[s] / of_chosen : chosen[s];
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

// Sigmoid, groups, the best, their weights: `route_noaux_tc`, of the logits at `x`.
__device__ __forceinline__ void noaux_tc(const RouteArgs& a, u32 row, const float* x) {
    __shared__ float chosen[32 * PER_LANE];
    __shared__ float sel[32 * PER_LANE];
    __shared__ float scores[64];
    const u32 lane = threadIdx.x & 31;
    float p[PER_LANE];
#pragma unroll
    for (u32 i = 0; i < PER_LANE; ++i) {
        if (32 * i + lane < a.width) {
            p[i] = sigmoid_of(x[32 * i + lane]);
            sel[32 * i + lane] = p[i] + a.bias[32 * i + lane];
        }
    }
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
    put_taken(best_of(keys, a.width, a.top_k), a.width, p, a.experts + (u64)row * a.top_k, chosen);
    float sum = 0.0f;
    for (u32 s = lane; s < a.top_k; s += 32) sum += chosen[s];
    sum = warp_sum(sum);
    for (u32 s = lane; s < a.top_k; s += 32) {
        float weight = chosen[s];
        if (a.renormalize && a.top_k > 1) weight = weight / (sum + a.eps);
        a.weights[(u64)row * a.top_k + s] = weight * a.factor;
    }
}

#define ROUTE_SOFTMAX 1
#define ROUTE_NOAUX 2

__device__ __forceinline__ void route_row(const RouteArgs& a, u32 row, const float* x, int rule) {
    if (rule == ROUTE_SOFTMAX) softmax_top_k(a, row, x);
    if (rule == ROUTE_NOAUX) noaux_tc(a, row, x);
}

// The end of kernels whose blocks along y compute the logits of row `row` together. CLUSTER, set from outside: these blocks
// are a cluster, whose first block gets all logits in its shared memory.
struct Logits {
#if CLUSTER && __CUDA_ARCH__ >= 900
    u32 first; // address of the first block's

    __device__ __forceinline__ Logits(float* of_block) {
        asm("mapa.shared::cluster.u32 %0, %1, 0;" : "=r"(first) : "r"((u32)__cvta_generic_to_shared(of_block)));
        // The first block has started before another one writes to it.
        asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    }
    // Before the first call of `put`.
    __device__ __forceinline__ void wait() const { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }
    __device__ __forceinline__ void put(u32 index, float v) const {
        asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(first + 4 * index), "f"(v) : "memory");
    }
    // All threads call this when they have put their logits; the first block chooses.
    __device__ __forceinline__ void route(const RouteArgs& a, u32 row, const float* of_block, int rule) const {
        asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
        asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
        if (blockIdx.y == 0 && threadIdx.x < 32) route_row(a, row, of_block, rule);
    }
#else
    __device__ __forceinline__ Logits(float*) {}
    __device__ __forceinline__ void wait() const {}
    __device__ __forceinline__ void put(u32, float) const {}
    // As above, where the logits are in memory; the last block to get here chooses.
    __device__ __forceinline__ void route(const RouteArgs& a, u32 row, const float*, int rule) const {
        __shared__ u32 is_last;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            is_last = atomicAdd(a.n_done + row, 1u) == gridDim.y - 1;
            if (is_last) a.n_done[row] = 0;
        }
        __syncthreads();
        if (!is_last || threadIdx.x >= 32) return;
        __threadfence();
        route_row(a, row, a.x + (u64)row * a.width, rule);
    }
#endif
};
