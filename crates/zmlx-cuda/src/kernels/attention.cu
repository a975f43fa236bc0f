// Attention over cached keys and values, one pass: `attention`, and with values that are the first part of the keys
// `latent_attention`.
//
// A block serves one token and up to 8 query heads of one key head, a warp each. It goes through tiles of 32 positions: a lane
// has a position for scores, and columns of the values for their sum. Long sequences are split among blocks; the last block
// to end merges what the others found. Set from outside: VECTORS, of 4 values, that a lane sums up; FUSED: where each sequence
// has one new token, norms and rotations of queries and keys, and putting keys and values into the cache, are done here.

#include "device.cuh"
#include "position.cuh"

#define TILE 32
#define MAX_SPLITS 64
#define MERGED_AT_ONCE (VECTORS > 2 ? 4 : 8)

struct AttentionArgs {
    const float* queries; // [n_tokens, n_heads, key_width]
    Step step;
    Cache cache;
    u32 n_heads;
    u32 heads_per_key;  // query heads that share a key head
    u32 key_width;      // multiples of 8
    u32 value_width;
    u32 y_width;        // values of a head that are wanted
    float scale;
    u32 window;         // most positions that a token sees, its own included; 0: all
    const float* sinks; // [n_heads], or null
    float* y;           // [n_tokens, n_heads, y_width]
    float* partial;     // [n_tokens, n_heads, n_splits, value_width + 4], where there are several splits
    u32* n_done;        // for each token and block of heads, zero between calls
    Source q, q_more, k, k_more, v; // where FUSED
};

// A tile of cached rows, as f32 in shared memory.
__device__ __forceinline__ void load_rows(float4* to, u32 to_stride, const u16* from, u32 from_stride, u32 n_rows, u32 n_vectors) {
    for (u32 at = threadIdx.x; at < n_rows * (n_vectors / 2); at += blockDim.x) {
        const u32 row = at / (n_vectors / 2), i = at % (n_vectors / 2);
        const uint4 v = *(const uint4*)(from + (u64)row * from_stride + 8 * i);
        float4* y = to + row * to_stride + 2 * i;
        y[0] = make_float4(f16_to_f32((u16)v.x), f16_to_f32((u16)(v.x >> 16)), f16_to_f32((u16)v.y), f16_to_f32((u16)(v.y >> 16)));
        y[1] = make_float4(f16_to_f32((u16)v.z), f16_to_f32((u16)(v.z >> 16)), f16_to_f32((u16)v.w), f16_to_f32((u16)(v.w >> 16)));
    }
}

// Rounds a new row to what the cache has of it, and puts it there unless `kept` is null; one warp's work.
__device__ __forceinline__ void round_and_keep(float* row, u16* kept, u32 width) {
    for (u32 i = threadIdx.x & 31; i < width; i += 32) {
        u16 bits;
        put_value(&bits, row[i]);
        row[i] = f16_to_f32(bits);
        if (kept) kept[i] = bits;
    }
}

extern "C" __global__ void __launch_bounds__(320) attention(const __grid_constant__ AttentionArgs a) {
    extern __shared__ float4 shared[];
    __shared__ u32 is_last;
    // Where FUSED, two more warps make the new key and value.
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = (blockDim.x >> 5) - (FUSED ? 2 : 0);
    const u32 tiles_of_heads = (a.heads_per_key + n_warps - 1) / n_warps;
    const u32 key_head = blockIdx.x / tiles_of_heads, token = blockIdx.y, split = blockIdx.z, n_splits = gridDim.z;
    const u32 in_group = blockIdx.x % tiles_of_heads * n_warps + warp;
    const bool has_head = warp < n_warps && in_group < a.heads_per_key;
    const u32 head = key_head * a.heads_per_key + (has_head ? in_group : 0);

    // Rows of keys are padded by a vector, so that the lanes' positions fall into different banks.
    const u32 key_vectors = a.key_width / 4, value_vectors = a.value_width / 4;
    const bool values_are_keys = a.cache.values_at == 0;
    float4* q = shared + (has_head ? warp : 0) * key_vectors;
    float4* keys = shared + n_warps * key_vectors;
    float4* values = values_are_keys ? keys : keys + TILE * (key_vectors + 1);
    const u32 value_row = values_are_keys ? key_vectors + 1 : value_vectors;

    // Where FUSED, what the cache and the step hold is older than the kernel in front: it is read before the wait.
    if (!FUSED) wait_for_inputs();
    const u32 slot = a.step.slots[token], end = a.step.positions[token] + 1;
    const u32 begin = a.window && end > a.window ? end - a.window : 0;
    const u32 first_tile = begin / TILE, n_tiles = (end + TILE - 1) / TILE - first_tile;
    const u32 per_split = (n_tiles + n_splits - 1) / n_splits;
    const u32 tile_begin = first_tile + min(n_tiles, split * per_split), tile_end = first_tile + min(n_tiles, (split + 1) * per_split);

    float4 sum[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) sum[v] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float most = -infinity(), total = 0.0f;

    bool has_query = false;
    HeadTurn new_turn = {};
    for (u32 tile = tile_begin; tile < tile_end || !has_query; ++tile) {
        const bool is_real = tile < tile_end; // a split without tiles still waits for its inputs
        const u32 tile_at = tile * TILE, n_here = is_real ? min((u32)TILE, end - tile_at) : 0;
        const bool has_new = FUSED && is_real && tile_at + n_here == end;
        const u32 n_cached = has_new ? n_here - 1 : n_here, in_page = tile_at % PAGE_TOKENS;
        u16* page = is_real ? a.cache.page(slot, tile_at) : nullptr;
        if (has_query) __syncthreads();
        if (is_real) {
            load_rows(keys, key_vectors + 1, page + (u64)in_page * a.cache.key_stride + key_head * a.key_width, a.cache.key_stride, n_cached, key_vectors);
            if (!values_are_keys)
                load_rows(values, value_row, page + a.cache.values_at + (u64)in_page * a.cache.value_stride + key_head * a.value_width,
                          a.cache.value_stride, n_cached, value_vectors);
        }
        if (!has_query) {
            HeadTurn turn = {};
            if (FUSED) {
                // The last warp but one makes the new key.
                const bool is_key = warp == n_warps;
                turn = head_turn(is_key ? a.k : a.q, is_key ? a.k_more : a.q_more, end - 1);
                wait_for_inputs();
            }
            new_turn = turn;
            if (has_head && FUSED) {
                put_head(a.q, a.q_more, token * a.n_heads + head, end - 1, turn, (float*)q, a.key_width);
            } else if (has_head) {
                const float4* query = (const float4*)(a.queries + ((u64)token * a.n_heads + head) * a.key_width);
                for (u32 i = lane; i < key_vectors; i += 32) q[i] = query[i];
            }
            has_query = true;
        }
        if (has_new && warp >= n_warps) {
            // Every block of a key head makes the new key for itself; the first one keeps it.
            const u32 row = token * (a.n_heads / a.heads_per_key) + key_head;
            const bool keeps = blockIdx.x % tiles_of_heads == 0;
            if (warp == n_warps) {
                float* own = (float*)(keys + n_cached * (key_vectors + 1));
                put_head(a.k, a.k_more, row, end - 1, new_turn, own, a.key_width);
                __syncwarp();
                round_and_keep(own, keeps ? page + (u64)(in_page + n_cached) * a.cache.key_stride + key_head * a.key_width : nullptr, a.key_width);
            } else if (!values_are_keys) {
                float* own = (float*)(values + n_cached * value_row);
                const Source none = {};
                put_head(a.v, none, row, end - 1, HeadTurn(), own, a.value_width);
                __syncwarp();
                u16* kept = page + a.cache.values_at + (u64)(in_page + n_cached) * a.cache.value_stride + key_head * a.value_width;
                round_and_keep(own, keeps ? kept : nullptr, a.value_width);
            }
        }
        __syncthreads();
        if (!has_head || !is_real) continue;

        float score = -infinity();
        if (lane < n_here && tile_at + lane >= begin) {
            float4 partial = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
            for (u32 i = 0; i < key_vectors; ++i) {
                float4 k = keys[lane * (key_vectors + 1) + i], x = q[i];
                partial.x = fmaf(k.x, x.x, partial.x), partial.y = fmaf(k.y, x.y, partial.y);
                partial.z = fmaf(k.z, x.z, partial.z), partial.w = fmaf(k.w, x.w, partial.w);
            }
            score = a.scale * ((partial.x + partial.y) + (partial.z + partial.w));
        }
        const float now = max_or_nan(most, warp_max(score));
        const float shrink = now == -infinity() ? 1.0f : expf(most - now);
        const float weight = score == -infinity() ? 0.0f : expf(score - now);
        most = now;
        total = fmaf(total, shrink, warp_sum(weight));
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) sum[v].x *= shrink, sum[v].y *= shrink, sum[v].z *= shrink, sum[v].w *= shrink;
#pragma unroll 8
        for (u32 j = 0; j < n_here; ++j) {
            float w = __shfl_sync(FULL_WARP, weight, j);
#pragma unroll
            for (int v = 0; v < VECTORS; ++v) {
                u32 column = lane + 32 * v;
                if (column < value_vectors) {
                    float4 x = values[j * value_row + column];
                    sum[v].x = fmaf(w, x.x, sum[v].x), sum[v].y = fmaf(w, x.y, sum[v].y);
                    sum[v].z = fmaf(w, x.z, sum[v].z), sum[v].w = fmaf(w, x.w, sum[v].w);
                }
            }
        }
    }

    if (n_splits > 1) {
        const u32 row = a.value_width + 4;
        float* partial = a.partial + ((u64)token * a.n_heads + head) * n_splits * row;
        if (has_head) {
            float* own = partial + split * row;
#pragma unroll
            for (int v = 0; v < VECTORS; ++v)
                if (lane + 32 * v < value_vectors) ((float4*)own)[lane + 32 * v] = sum[v];
            if (lane == 0) *(float2*)(own + a.value_width) = make_float2(most, total);
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
        // A lane has the largest score and the total of some splits; those that saw nothing have -inf and 0.
        float2 of_lane[MAX_SPLITS / 32];
        most = -infinity(), total = 0.0f;
#pragma unroll
        for (u32 i = 0; i < MAX_SPLITS / 32; ++i) {
            u32 s = lane + 32 * i;
            of_lane[i] = s < n_splits ? __ldcg((const float2*)(partial + s * row + a.value_width)) : make_float2(-infinity(), 0.0f);
            most = max_or_nan(most, of_lane[i].x);
        }
        most = warp_max(most);
#pragma unroll
        for (u32 i = 0; i < MAX_SPLITS / 32; ++i) {
            of_lane[i].x = of_lane[i].x == -infinity() ? 0.0f : expf(of_lane[i].x - most);
            total = fmaf(of_lane[i].y, of_lane[i].x, total);
        }
        total = warp_sum(total);
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) sum[v] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (u32 i = 0; i < MAX_SPLITS / 32; ++i) {
            const u32 n = n_splits > 32 * i ? min(n_splits - 32 * i, 32u) : 0;
            // Several splits are asked for before the first one is used.
            for (u32 first = 0; first < n; first += MERGED_AT_ONCE) {
                float4 x[MERGED_AT_ONCE][VECTORS];
#pragma unroll
                for (u32 s = 0; s < MERGED_AT_ONCE; ++s) {
                    const float4* other = (const float4*)(partial + (32 * i + min(first + s, n - 1)) * row);
#pragma unroll
                    for (int v = 0; v < VECTORS; ++v) x[s][v] = __ldcg(other + min(lane + 32 * v, value_vectors - 1));
                }
#pragma unroll
                for (u32 s = 0; s < MERGED_AT_ONCE; ++s) {
                    const float factor = __shfl_sync(FULL_WARP, of_lane[i].x, min(first + s, n - 1));
                    if (first + s < n) {
#pragma unroll
                        for (int v = 0; v < VECTORS; ++v) {
                            sum[v].x = fmaf(x[s][v].x, factor, sum[v].x), sum[v].y = fmaf(x[s][v].y, factor, sum[v].y);
                            sum[v].z = fmaf(x[s][v].z, factor, sum[v].z), sum[v].w = fmaf(x[s][v].w, factor, sum[v].w);
                        }
                    }
                }
            }
        }
    }

    if (!has_head) return;
    if (a.sinks) {
        // A sink takes part in the sum of weights only.
        float sink = a.sinks[head], now = max_or_nan(most, sink), shrink = expf(most - now);
        total = fmaf(total, shrink, expf(sink - now));
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) sum[v].x *= shrink, sum[v].y *= shrink, sum[v].z *= shrink, sum[v].w *= shrink;
    }
    float* y = a.y + ((u64)token * a.n_heads + head) * a.y_width;
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        u32 at = 4 * (lane + 32 * v);
        if (at < a.y_width) y[at] = sum[v].x / total;
        if (at + 1 < a.y_width) y[at + 1] = sum[v].y / total;
        if (at + 2 < a.y_width) y[at + 2] = sum[v].z / total;
        if (at + 3 < a.y_width) y[at + 3] = sum[v].w / total;
    }
}
