// Attention of one new token of each sequence over cached keys and values, on tensor cores: `attention` in a step that decodes.
// Norms and rotations of queries and keys, and putting keys and values into the cache, are done here.
//
// A block serves one token and up to 8 query heads of one key head. Its warps go through tiles of 16 positions each, whose keys
// and values go from the cache into registers as fragments: nothing is read twice, and what is cached is asked for before the
// kernel waits for its inputs. Queries and weights are sums of two f16 values each: rows 0 to 7 of a fragment are the high parts,
// rows 8 to 15 the low ones. Long sequences are split among blocks, which
// are a cluster and read each other's shared memory at the end; without clusters the last block to end merges what the others
// left in memory.
//
// Set from outside: STEPS, the head's width divided by 16 (a multiple of 2); CLUSTER, whether the blocks of a sequence are one.

#include "device.cuh"
#include "position.cuh"
#include "tensor_core.cuh"

#define N_WARPS 8
#define TILE 16
#define WIDTH (16 * STEPS)
#define MAX_SPLITS 64

struct FlashOneArgs {
    Step step;
    Cache cache;
    u32 n_heads;
    u32 heads_per_key;
    float scale;
    u32 window;         // most positions that a token sees, its own included; 0: all
    const float* sinks; // [n_heads], or null
    float* y;           // [n_tokens, n_heads, WIDTH]
    float* partial;     // [n_tokens, n_heads, n_splits, WIDTH + 4], where there are several splits
    u32* n_done;        // for each token and block of heads, zero between calls
    Source q, k, v;
};

#if CLUSTER && __CUDA_ARCH__ >= 900
#define MOST_BLOCKS 16
__device__ __forceinline__ void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// A value in the shared memory of another block, which has it where this one has `own`.
__device__ __forceinline__ u32 remote(const void* own, u32 block) {
    u32 at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"((u32)__cvta_generic_to_shared(own)), "r"(block));
    return at;
}
__device__ __forceinline__ float2 load_remote(const float2& own, u32 block) {
    float2 v;
    asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(remote(&own, block)) : "memory");
    return v;
}
__device__ __forceinline__ float4 load_remote(const float4& own, u32 block) {
    float4 v;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(remote(&own, block)) : "memory");
    return v;
}
#endif

// What some positions gave for a head.
struct Found {
    float most, total;
};

extern "C" __global__ void __launch_bounds__(32 * N_WARPS, 1) flash_one(const __grid_constant__ FlashOneArgs a) {
    __shared__ __align__(16) float queries[N_WARPS][WIDTH + 4];
    __shared__ __align__(16) u16 new_key[WIDTH], new_value[WIDTH];
    __shared__ __align__(16) float of_warps[N_WARPS][N_WARPS][WIDTH];
    __shared__ __align__(8) Found found[N_WARPS][N_WARPS];
    __shared__ u32 is_last;
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, r = lane / 4, q = lane % 4;
    const u32 blocks_of_heads = (a.heads_per_key + N_WARPS - 1) / N_WARPS;
    const u32 key_head = blockIdx.x / blocks_of_heads, token = blockIdx.z, split = blockIdx.y, n_splits = gridDim.y;
    const u32 head0 = key_head * a.heads_per_key + blockIdx.x % blocks_of_heads * N_WARPS;
    const u32 n_here = min((u32)N_WARPS, (key_head + 1) * a.heads_per_key - head0);

    // What the cache and the step hold is older than the kernel in front: it is read before the wait.
    const u32 slot = a.step.slots[token], end = a.step.positions[token] + 1, own = end - 1;
    const u32 begin = a.window && end > a.window ? end - a.window : 0;
    const u32 first_tile = begin / TILE, n_tiles = (end + TILE - 1) / TILE - first_tile;
    const u32 per_split = (n_tiles + n_splits - 1) / n_splits;
    const u32 tile_begin = first_tile + min(n_tiles, split * per_split), tile_end = first_tile + min(n_tiles, (split + 1) * per_split);

    // Fragments of keys: positions r and 8 + r, columns 16·s + 4·q and the next three. Of values: positions 2·q, 2·q + 1, 2·q + 8
    // and 2·q + 9, columns 32·p + 4·r and the next three.
    uint2 key[2][STEPS], value[4][STEPS / 2];
    const uint2 none = make_uint2(0, 0);
    auto value_position = [&](u32 tile, int i) { return tile * TILE + 2 * q + i % 2 + i / 2 * 8; };
    auto ask_keys = [&](u32 tile) {
        const u16* page = a.cache.page(slot, tile * TILE);
        const u32 at = tile * TILE % PAGE_TOKENS;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const uint2* row = (const uint2*)(page + (u64)(at + 8 * j + r) * a.cache.key_stride + key_head * WIDTH);
            const bool is_cached = tile * TILE + 8 * j + r < own;
#pragma unroll
            for (int s = 0; s < STEPS; ++s) key[j][s] = is_cached ? row[4 * s + q] : none;
        }
    };
    auto ask_values = [&](u32 tile) {
        const u16* page = a.cache.page(slot, tile * TILE) + a.cache.values_at + key_head * WIDTH;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const u32 position = value_position(tile, i);
            const uint2* row = (const uint2*)(page + (u64)(position % PAGE_TOKENS) * a.cache.value_stride);
#pragma unroll
            for (int p = 0; p < STEPS / 2; ++p) value[i][p] = position < own ? row[8 * p + r] : none;
        }
    };
    u32 tile = tile_begin + warp;
    if (tile < tile_end) ask_keys(tile), ask_values(tile);
    // A warp makes a query, and two of them the new key or value.
    const Source& more = warp == 0 ? a.k : a.v;
    const bool has_new = tile_end == first_tile + n_tiles && tile_begin < tile_end, has_more = has_new && warp < 2;
    Turn turns[2];
    turns[0] = turn_of(a.q, own);
    if (has_more) turns[1] = turn_of(more, own);
    wait_for_inputs();

    float heads[2][STEPS / 2];
    if (warp < n_here) load_head(a.q, token * a.n_heads + head0 + warp, heads[0]);
    if (has_more) load_head(more, token * (a.n_heads / a.heads_per_key) + key_head, heads[1]);
    if (warp < n_here) finish_head(a.q, heads[0], turns[0], queries[warp]);
    else
        for (u32 i = lane; i < WIDTH; i += 32) queries[warp][i] = 0.0f; // rows of heads that there are not
    if (has_more) {
        u16* const made = warp == 0 ? new_key : new_value;
        finish_head(more, heads[1], turns[1], made);
        // Every block of a key head makes the new key and value for itself; the first one keeps them.
        __syncwarp();
        u16* const page = a.cache.page(slot, own);
        u16* const kept = (warp == 0 ? page + (u64)(own % PAGE_TOKENS) * a.cache.key_stride
                                       : page + a.cache.values_at + (u64)(own % PAGE_TOKENS) * a.cache.value_stride) + key_head * WIDTH;
        if (blockIdx.x % blocks_of_heads == 0)
            for (u32 i = lane; i < WIDTH; i += 32) kept[i] = made[i];
    }
    __syncthreads();

    float most = -infinity(), total = 0.0f; // of head r
    if (tile < tile_end) {
        u32 query[STEPS][4];
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            float4 v = *(const float4*)&queries[r][16 * s + 4 * q];
            v.x *= a.scale, v.y *= a.scale, v.z *= a.scale, v.w *= a.scale;
            split_f16(v.x, v.y, query[s][0], query[s][1]);
            split_f16(v.z, v.w, query[s][2], query[s][3]);
        }
        float sum[2 * STEPS][4] = {};
        while (true) {
            float score[2][4] = {};
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const bool is_new = tile * TILE + 8 * j + r == own;
#pragma unroll
                for (int s = 0; s < STEPS; ++s) {
                    const uint2 v = is_new ? *(const uint2*)&new_key[16 * s + 4 * q] : key[j][s];
                    multiply(score[j], query[s], v.x, v.y);
                }
            }
            // The next tile's are asked for as soon as nobody needs these.
            const u32 next = tile + N_WARPS;
            if (next < tile_end) ask_keys(next);
            // Of head r, positions 2·q, 2·q + 1 of each 8.
            float weight[4], now = most;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const u32 position = value_position(tile, i);
                weight[i] = score[i / 2][i % 2] + score[i / 2][2 + i % 2];
                if (position >= end || position < begin) weight[i] = -infinity();
                now = max_or_nan(now, weight[i]);
            }
            now = max_or_nan(now, __shfl_xor_sync(FULL_WARP, now, 1));
            now = max_or_nan(now, __shfl_xor_sync(FULL_WARP, now, 2));
            const float shrink = now == -infinity() ? 1.0f : expf(most - now);
            most = now;
            total *= shrink;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                weight[i] = weight[i] == -infinity() ? 0.0f : expf(weight[i] - now);
                total += weight[i];
            }
#pragma unroll
            for (int n8 = 0; n8 < 2 * STEPS; ++n8) sum[n8][0] *= shrink, sum[n8][1] *= shrink, sum[n8][2] *= shrink, sum[n8][3] *= shrink;
            u32 parts[4];
            split_f16(weight[0], weight[1], parts[0], parts[1]);
            split_f16(weight[2], weight[3], parts[2], parts[3]);
#pragma unroll
            for (int p = 0; p < STEPS / 2; ++p) {
                u32 of[4][2];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const uint2 v = value_position(tile, i) == own ? *(const uint2*)&new_value[32 * p + 4 * r] : value[i][p];
                    of[i][0] = v.x, of[i][1] = v.y;
                }
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    // Of column c, two positions each.
                    const u32 first = __byte_perm(of[0][c / 2], of[1][c / 2], c % 2 ? 0x7632 : 0x5410);
                    const u32 second = __byte_perm(of[2][c / 2], of[3][c / 2], c % 2 ? 0x7632 : 0x5410);
                    multiply(sum[4 * p + c], parts, first, second);
                }
            }
            tile = next;
            if (tile >= tile_end) break;
            ask_values(tile);
        }
        total += __shfl_xor_sync(FULL_WARP, total, 1);
        total += __shfl_xor_sync(FULL_WARP, total, 2);
#pragma unroll
        for (int n8 = 0; n8 < 2 * STEPS; ++n8)
#pragma unroll
            for (int i = 0; i < 2; ++i) of_warps[warp][r][n8 / 4 * 32 + 4 * (2 * q + i) + n8 % 4] = sum[n8][i] + sum[n8][2 + i];
    }
    if (q == 0) found[warp][r] = {most, total};
    __syncthreads();

    // Each warp merges one head: lane l has columns 4·l to 4·l + 3.
    const u32 head = token * a.n_heads + head0 + warp;
    const bool has_head = warp < n_here, has_columns = 4 * lane < WIDTH;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (has_head) {
        most = -infinity(), total = 0.0f;
#pragma unroll
        for (int w = 0; w < N_WARPS; ++w) most = max_or_nan(most, found[w][warp].most);
#pragma unroll
        for (int w = 0; w < N_WARPS; ++w) {
            const Found of = found[w][warp];
            if (of.most == -infinity()) continue; // it saw nothing and wrote nothing
            const float factor = expf(of.most - most);
            total = fmaf(of.total, factor, total);
            if (has_columns) {
                const float4 x = *(const float4*)&of_warps[w][warp][4 * lane];
                sum.x = fmaf(x.x, factor, sum.x), sum.y = fmaf(x.y, factor, sum.y);
                sum.z = fmaf(x.z, factor, sum.z), sum.w = fmaf(x.w, factor, sum.w);
            }
        }
    }
#if CLUSTER && __CUDA_ARCH__ >= 900
    if (n_splits > 1) {
        // What this block found, where the others read it. Block b merges the heads of every n_splits-th warp from b on.
        __syncwarp(); // all lanes have read what is written here
        if (has_head) {
            if (has_columns) *(float4*)&of_warps[0][warp][4 * lane] = sum;
            if (lane == 0) found[0][warp] = {most, total};
        }
        __syncwarp();
        sync_cluster();
        const bool merges = has_head && warp % n_splits == split;
        if (merges) {
            Found of = {-infinity(), 0.0f}; // of a block each
            if (lane < n_splits) {
                const float2 v = load_remote(*(const float2*)&found[0][warp], lane);
                of = {v.x, v.y};
            }
            most = warp_max(of.most);
            const float of_lane = of.most == -infinity() ? 0.0f : expf(of.most - most);
            total = warp_sum(of.total * of_lane);
            sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            const u32 column = min(4 * lane, WIDTH - 4);
            float4 x[MOST_BLOCKS]; // asked for before the first is used
#pragma unroll
            for (u32 s = 0; s < MOST_BLOCKS; ++s)
                if (s < n_splits) x[s] = load_remote(*(const float4*)&of_warps[0][warp][column], s);
#pragma unroll
            for (u32 s = 0; s < MOST_BLOCKS; ++s) {
                const float factor = __shfl_sync(FULL_WARP, of_lane, s);
                if (s >= n_splits) continue;
                sum.x = fmaf(x[s].x, factor, sum.x), sum.y = fmaf(x[s].y, factor, sum.y);
                sum.z = fmaf(x[s].z, factor, sum.z), sum.w = fmaf(x[s].w, factor, sum.w);
            }
        }
        sync_cluster(); // nobody ends while others still read its memory
        if (!merges) return;
    }
#else
    if (n_splits > 1) {
        const u32 row = WIDTH + 4;
        float* const partial = a.partial + (u64)head * n_splits * row;
        if (has_head) {
            if (has_columns) *(float4*)(partial + split * row + 4 * lane) = sum;
            if (lane == 0) *(float2*)(partial + split * row + WIDTH) = make_float2(most, total);
        }
        __threadfence();
        __syncthreads();
        u32* n_done = a.n_done + token * gridDim.x + blockIdx.x;
        if (threadIdx.x == 0) {
            is_last = atomicAdd(n_done, 1u) == n_splits - 1;
            if (is_last) *n_done = 0;
        }
        __syncthreads();
        if (!is_last || !has_head) return;
        __threadfence();
        // A lane has the largest score and the total of some splits.
        float2 of_lane[MAX_SPLITS / 32];
        most = -infinity(), total = 0.0f;
#pragma unroll
        for (u32 i = 0; i < MAX_SPLITS / 32; ++i) {
            const u32 s = lane + 32 * i;
            of_lane[i] = s < n_splits ? __ldcg((const float2*)(partial + s * row + WIDTH)) : make_float2(-infinity(), 0.0f);
            most = max_or_nan(most, of_lane[i].x);
        }
        most = warp_max(most);
#pragma unroll
        for (u32 i = 0; i < MAX_SPLITS / 32; ++i) {
            of_lane[i].x = of_lane[i].x == -infinity() ? 0.0f : expf(of_lane[i].x - most);
            total = fmaf(of_lane[i].y, of_lane[i].x, total);
        }
        total = warp_sum(total);
        sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const u32 column = min(4 * lane, WIDTH - 4);
#pragma unroll
        for (u32 i = 0; i < MAX_SPLITS / 32; ++i) {
            for (u32 s0 = 32 * i; s0 < min(n_splits, 32 * i + 32); s0 += 8) {
                float4 x[8]; // asked for before the first is used
#pragma unroll
                for (u32 s = 0; s < 8; ++s) x[s] = __ldcg((const float4*)(partial + min(s0 + s, n_splits - 1) * row + column));
#pragma unroll
                for (u32 s = 0; s < 8; ++s) {
                    const float factor = __shfl_sync(FULL_WARP, of_lane[i].x, (s0 + s) % 32);
                    if (s0 + s >= n_splits) continue;
                    sum.x = fmaf(x[s].x, factor, sum.x), sum.y = fmaf(x[s].y, factor, sum.y);
                    sum.z = fmaf(x[s].z, factor, sum.z), sum.w = fmaf(x[s].w, factor, sum.w);
                }
            }
        }
    }
#endif
    if (!has_head) return;
    float shrink = 1.0f;
    if (a.sinks) {
        // A sink takes part in the sum of weights only.
        const float sink = a.sinks[head0 + warp], now = max_or_nan(most, sink);
        shrink = expf(most - now);
        total = fmaf(total, shrink, expf(sink - now));
    }
    const float factor = shrink / total;
    if (has_columns) *(float4*)(a.y + (u64)head * WIDTH + 4 * lane) = make_float4(sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor);
}
