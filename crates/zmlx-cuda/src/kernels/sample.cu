// Choosing tokens from rows of logits, and saying how probable they were: repetition penalty, top-k, top-p, min-p, temperature, and
// a number by chance.
//
// Rows are independent. The 8 blocks of a cluster share one row, whose values stay in registers. Each filter keeps the first tokens
// of the ranking, so a key says how far the shortest of these goes: it is found two bits at a time, from how many values have at
// least that key and how probable they are together. Sums are made in an order that never changes, so equal inputs give equal tokens.
//
// Set from outside: PER_THREAD, values of a thread. Needs compute capability 9.0: before that there are no clusters.

#include "device.cuh"

#define THREADS 1024
#define N_BLOCKS 8
#define MAX_ROWS 16 // of one launch; as in sample.rs
#define CHUNK (PER_THREAD * THREADS) // values of a block

struct Row {
    const float* x;
    u32 top_k;   // at least 1
    float top_p; // 1 or more: no such filter
    float floor; // of min-p: logits below the largest plus this are left out
    float inverse_temperature; // 0: the most probable token
    float chance; // from 0 to 1
    float penalty; // 1: none
    const u32* recent;
    u32 n_recent;
    const u32* last; // one more recent token, or null
    u32* y; // the token; `stride` words on its log-probability; as far on by how much the largest value exceeds the second largest
};

struct SampleArgs {
    u32 width;
    u32 stride;
    Row rows[MAX_ROWS];
};

#if __CUDA_ARCH__ >= 900

// What the blocks of a cluster tell each other: a value of each, in the shared memory of all.
struct Shared {
    u64 best[N_BLOCKS];
    float4 found[2][N_BLOCKS][2]; // in turns, so that nobody writes what another still reads
    u32 recent[CHUNK / 32];
    float of_warps[THREADS / 32][8];
    u32 chosen;
};

__device__ __forceinline__ u32 remote(const void* p, u32 block) {
    u32 at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"((u32)__cvta_generic_to_shared(p)), "r"(block));
    return at;
}
__device__ __forceinline__ void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The float whose key `ordered` gives; infinite or no number past the ends.
__device__ __forceinline__ float value_of(u32 key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// `e^x`, for sums that say how far a filter goes.
__device__ __forceinline__ float mass_of(float x) { return power_of_two(x * LOG2_E); }

// Sums of six numbers over all threads of all blocks; `turn` alternates.
__device__ __forceinline__ void sum_of_all(Shared& shared, u32 turn, float (&v)[6]) {
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int i = 0; i < 6; ++i) {
        v[i] = warp_sum(v[i]);
        if (lane == 0) shared.of_warps[warp][i] = v[i];
    }
    __syncthreads();
    if (warp == 0) {
#pragma unroll
        for (int i = 0; i < 6; ++i) v[i] = warp_sum(shared.of_warps[lane][i]);
        if (lane < N_BLOCKS) {
            const u32 at = remote(&shared.found[turn % 2][blockIdx.y][0], lane);
            asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]) : "memory");
            asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(at + 16), "f"(v[4]), "f"(v[5]) : "memory");
        }
    }
    sync_cluster();
#pragma unroll
    for (int i = 0; i < 6; ++i) v[i] = 0.0f;
    for (u32 b = 0; b < N_BLOCKS; ++b) {
        const float4 first = shared.found[turn % 2][b][0], second = shared.found[turn % 2][b][1];
        v[0] += first.x, v[1] += first.y, v[2] += first.z, v[3] += first.w, v[4] += second.x, v[5] += second.y;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) sample(const __grid_constant__ SampleArgs args) {
    __shared__ Shared shared;
    const Row& a = args.rows[blockIdx.x];
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, block = blockIdx.y, first = block * CHUNK;
    const bool has_recent = a.penalty != 1.0f;
    for (u32 i = threadIdx.x; has_recent && i < CHUNK / 32; i += THREADS) shared.recent[i] = 0;
    if (threadIdx.x == 0) shared.chosen = 0xffffffffu;
    __syncthreads();
    wait_for_inputs();
    if (has_recent) {
        const u32 n = a.n_recent + (a.last ? 1 : 0);
        for (u32 i = threadIdx.x; i < n; i += THREADS) {
            const u32 at = (i < a.n_recent ? a.recent[i] : *a.last) - first;
            if (at < CHUNK) atomicOr(shared.recent + at / 32, 1u << at % 32);
        }
        __syncthreads();
    }
    float v[PER_THREAD], two[2] = {-infinity(), -infinity()}; // the largest values before the penalty
    bool is_bad = false;
    u64 best = 0;
#pragma unroll
    for (u32 j = 0; j < PER_THREAD; ++j) {
        const u32 at = threadIdx.x + THREADS * j;
        v[j] = first + at < args.width ? a.x[first + at] : -infinity();
        is_bad |= !(v[j] < infinity());
        two[1] = fmaxf(two[1], fminf(two[0], v[j])), two[0] = fmaxf(two[0], v[j]);
        if (has_recent && shared.recent[at / 32] >> at % 32 & 1) v[j] = v[j] > 0.0f ? v[j] / a.penalty : v[j] * a.penalty;
        const u64 key = (u64)ordered(v[j]) << 32 | (u32)~(first + at); // of equal values the lower index
        if (first + at < args.width) best = key > best ? key : best;
    }
    // The most probable token.
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
        const u64 other = __shfl_xor_sync(FULL_WARP, best, offset);
        best = other > best ? other : best;
    }
    u64* const of_warps = (u64*)shared.of_warps;
    if (lane == 0) of_warps[warp] = best;
    __syncthreads();
    best = of_warps[lane];
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
        const u64 other = __shfl_xor_sync(FULL_WARP, best, offset);
        best = other > best ? other : best;
    }
    __syncthreads(); // all have read what is written again
    sync_cluster(); // all blocks have started
    if (threadIdx.x < N_BLOCKS)
        asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(remote(&shared.best[block], threadIdx.x)), "l"(best) : "memory");
    sync_cluster();
    for (u32 b = 0; b < N_BLOCKS; ++b) best = shared.best[b] > best ? shared.best[b] : best;
    const u32 best_key = (u32)(best >> 32), best_at = ~(u32)best;
    const float most = value_of(best_key);
    // The largest two of all, and whether one is no number.
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
        const float first_of = __shfl_xor_sync(FULL_WARP, two[0], offset), second_of = __shfl_xor_sync(FULL_WARP, two[1], offset);
        two[1] = fmaxf(fminf(two[0], first_of), fmaxf(two[1], second_of)), two[0] = fmaxf(two[0], first_of);
    }
    is_bad = __any_sync(FULL_WARP, is_bad);
    if (lane == 0) shared.of_warps[warp][0] = two[0], shared.of_warps[warp][1] = two[1], shared.of_warps[warp][2] = is_bad;
    __syncthreads();
    two[0] = shared.of_warps[lane][0], two[1] = shared.of_warps[lane][1], is_bad = __any_sync(FULL_WARP, shared.of_warps[lane][2] != 0.0f);
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
        const float first_of = __shfl_xor_sync(FULL_WARP, two[0], offset), second_of = __shfl_xor_sync(FULL_WARP, two[1], offset);
        two[1] = fmaxf(fminf(two[0], first_of), fmaxf(two[1], second_of)), two[0] = fmaxf(two[0], first_of);
    }
    __syncthreads(); // all have read what is written again
    u32 turn = 0;
    float total[6] = {};
#pragma unroll
    for (u32 j = 0; j < PER_THREAD; ++j) total[0] += v[j] == v[j] ? mass_of(v[j] - most) : 0.0f;
    sum_of_all(shared, turn++, total);
    if (threadIdx.x < N_BLOCKS)
        asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(remote(&shared.found[turn % 2][block][0], threadIdx.x)), "f"(two[0]), "f"(two[1]), "f"(is_bad ? 1.0f : 0.0f), "f"(0.0f) : "memory");
    sync_cluster();
    two[0] = two[1] = -infinity(), is_bad = false;
    for (u32 b = 0; b < N_BLOCKS; ++b) {
        const float4 of = shared.found[turn % 2][b][0];
        two[1] = fmaxf(fminf(two[0], of.x), fmaxf(two[1], of.y)), two[0] = fmaxf(two[0], of.x);
        is_bad |= of.z != 0.0f;
    }
    ++turn;
    const float margin = is_bad ? nan_f32() : two[0] - two[1];
    auto put = [&](u32 token, float value) {
        a.y[0] = token;
        ((float*)a.y)[args.stride] = value - most - logf(total[0]);
        ((float*)a.y)[2 * args.stride] = margin;
    };
    if (a.inverse_temperature == 0.0f || best_key == 0) {
        if (block == 0 && threadIdx.x == 0) put(best_at, most);
        return;
    }

    const float mass = a.top_p < 1.0f ? a.top_p * total[0] : infinity();
    const float n_most = (float)min(a.top_k, args.width);
    // The largest key with enough values from there on; 0 takes all.
    u32 key = 0;
    float above[2] = {}; // how many values are above the key, and their mass
    float from_key = (float)args.width; // how many are not below it
    bool is_between = false; // the key lies between two values
    if (n_most < (float)args.width || mass < infinity()) {
        for (int shift = 30; shift >= 0; shift -= 2) {
            float least[3], sums[6] = {}; // count and mass from each of three keys on
#pragma unroll
            for (u32 i = 0; i < 3; ++i) least[i] = value_of(key + ((i + 1) << shift));
#pragma unroll
            for (u32 j = 0; j < PER_THREAD; ++j) {
                const float weight = mass_of(v[j] - most);
#pragma unroll
                for (u32 i = 0; i < 3; ++i)
                    if (v[j] >= least[i]) sums[2 * i] += 1.0f, sums[2 * i + 1] += weight;
            }
            sum_of_all(shared, turn++, sums);
            u32 digit = 0;
#pragma unroll
            for (u32 i = 0; i < 3; ++i)
                if (sums[2 * i] >= n_most || sums[2 * i + 1] >= mass) digit = i + 1;
#pragma unroll
            for (u32 i = 0; i < 3; ++i)
                if (digit == i) above[0] = sums[2 * i], above[1] = sums[2 * i + 1];
#pragma unroll
            for (u32 i = 0; i < 3; ++i)
                if (digit == i + 1) from_key = sums[2 * i];
            key += digit << shift;
            is_between = key && from_key - above[0] == 1.0f;
            if (is_between) break; // what is left of the key would tell one value from none
        }
    }
    // Of the values with just that key the first ones by index, as many as are wanted.
    float n_equal = infinity();
    if (key && !is_between) {
        const float weight = mass_of(value_of(key) - most);
        n_equal = fminf(n_most - above[0], weight > 0.0f ? ceilf((mass - above[1]) / weight) : infinity());
        n_equal = fmaxf(n_equal, 1.0f);
    }
    u32 end = args.width; // of those indices
    if (n_equal < infinity()) {
        u32 from = 0, to = args.width;
        float sums[6] = {};
#pragma unroll
        for (u32 j = 0; j < PER_THREAD; ++j) sums[0] += first + threadIdx.x + THREADS * j < args.width && ordered(v[j]) == key;
        sum_of_all(shared, turn++, sums);
        if (sums[0] > n_equal) {
            while (to - from > 1) {
                const u32 middle = from + (to - from) / 2;
                float before[6] = {};
#pragma unroll
                for (u32 j = 0; j < PER_THREAD; ++j) before[0] += first + threadIdx.x + THREADS * j < middle && ordered(v[j]) == key;
                sum_of_all(shared, turn++, before);
                if (before[0] >= n_equal) to = middle;
                else from = middle;
            }
            end = to;
        }
    }

    // Weights of what is left, and where in their sum each thread and block begins.
    const u32 least = ordered(most + a.floor);
    float own = 0.0f;
    auto weight_of = [&](u32 j) {
        const u32 at = first + threadIdx.x + THREADS * j, of = ordered(v[j]);
        const bool is_kept = at < args.width && of && of >= least && (of > key || (of == key && (is_between || at < end)));
        return is_kept ? expf((v[j] - most) * a.inverse_temperature) : 0.0f;
    };
#pragma unroll
    for (u32 j = 0; j < PER_THREAD; ++j) own += weight_of(j);
    float up_to = own; // in its warp
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        const float before = __shfl_up_sync(FULL_WARP, up_to, offset);
        if (lane >= offset) up_to += before;
    }
    if (lane == 31) shared.of_warps[warp][6] = up_to;
    __syncthreads();
    float start = 0.0f, of_block = 0.0f;
    for (u32 w = 0; w < THREADS / 32; ++w) {
        if (w == warp) start = of_block;
        of_block += shared.of_warps[w][6];
    }
    if (threadIdx.x < N_BLOCKS)
        asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote(&shared.found[turn % 2][block][0], threadIdx.x)), "f"(of_block) : "memory");
    sync_cluster();
    float all = 0.0f;
    for (u32 b = 0; b < N_BLOCKS; ++b) {
        if (b == block) start += all;
        all += shared.found[turn % 2][b][0].x;
    }
    const float target = fminf(a.chance * all, __uint_as_float(__float_as_uint(all) - 1));
    // Sums that were rounded may leave a gap between threads: the last thread that begins at the target or before it and has
    // something to choose from.
    const bool may_choose = own > 0.0f && start + (up_to - own) <= target;
    u64 candidate = may_choose ? (u64)(block * THREADS + threadIdx.x) + 1 : 0;
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
        const u64 other = __shfl_xor_sync(FULL_WARP, candidate, offset);
        candidate = other > candidate ? other : candidate;
    }
    if (lane == 0) of_warps[4 * warp] = candidate;
    __syncthreads();
    for (u32 w = 0; w < THREADS / 32; ++w) candidate = of_warps[4 * w] > candidate ? of_warps[4 * w] : candidate;
    if (threadIdx.x < N_BLOCKS)
        asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(remote(&shared.best[block], threadIdx.x)), "l"(candidate) : "memory");
    sync_cluster();
    for (u32 b = 0; b < N_BLOCKS; ++b) candidate = shared.best[b] > candidate ? shared.best[b] : candidate;
    if (candidate == 0) {
        // Nothing begins that early: only where the first sums are no numbers.
        if (block == 0 && threadIdx.x == 0) put(best_at, most);
    } else if (candidate == (u64)(block * THREADS + threadIdx.x) + 1) {
        float left = target - (start + (up_to - own));
        u32 chosen = best_at;
        float of_chosen = most;
        bool is_done = false;
#pragma unroll
        for (u32 j = 0; j < PER_THREAD; ++j) {
            const float weight = weight_of(j);
            if (weight > 0.0f && !is_done) {
                chosen = first + threadIdx.x + THREADS * j, of_chosen = v[j];
                is_done = left < weight;
                left -= weight;
            }
        }
        put(chosen, of_chosen);
    }
    sync_cluster(); // nobody ends while others may still write to its memory
}

#endif
