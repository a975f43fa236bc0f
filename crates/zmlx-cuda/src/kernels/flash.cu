// Attention of many tokens over cached keys and values, one pass on tensor cores: `attention` where a step has more than one
// token of a sequence.
//
// A block has up to 64 rows, which are heads of consecutive tokens that share a key head, 16 of each warp. It goes through
// tiles of 32 positions, which it brings from the cache into shared memory as fragments. Queries, keys, probabilities and
// values are sums of two bf16 values each; of the four products the one of both low parts is left out.
//
// Set from outside: STEPS, the head's width divided by 16.

#include "device.cuh"
#include "position.cuh"
#include "tensor_core.cuh"

#define N_WARPS 4
#define TILE 32
#define WIDTH (16 * STEPS)
#define BROUGHT (TILE * WIDTH / 4 / (32 * N_WARPS)) // fragments of keys, and of values, that a thread brings

struct FlashArgs {
    const float* queries; // [n_tokens, n_heads, WIDTH]
    const uint2* tiles;   // first token and number of tokens of each block, all of one sequence
    Step step;
    Cache cache;
    u32 n_heads;
    u32 heads_per_key;
    float scale;
    u32 window;         // most positions that a token sees, its own included; 0: all
    const float* sinks; // [n_heads], or null
    float* y;           // [n_tokens, n_heads, WIDTH]
};

// Where a thread's fragment i of keys comes from: a position and four columns.
__device__ __forceinline__ u32 key_position(u32 i) { return (threadIdx.x + 32 * N_WARPS * i) / (WIDTH / 4); }
__device__ __forceinline__ u32 key_quad(u32 i) { return (threadIdx.x + 32 * N_WARPS * i) % (WIDTH / 4); }
// Of values: a column, and the positions 2·q, 2·q + 1, 2·q + 8 and 2·q + 9 of 16.
__device__ __forceinline__ u32 value_column(u32 i) { return (threadIdx.x + 32 * N_WARPS * i) % WIDTH; }
__device__ __forceinline__ u32 value_quad(u32 i) { return (threadIdx.x + 32 * N_WARPS * i) / WIDTH; }

// Four values as pairs of high parts and pairs of low parts.
__device__ __forceinline__ uint4 split_four(float4 v) {
    uint4 y;
    split_pair(v.x, v.y, y.x, y.z);
    split_pair(v.z, v.w, y.y, y.w);
    return y;
}

extern "C" __global__ void __launch_bounds__(32 * N_WARPS, 2) flash(const __grid_constant__ FlashArgs a) {
    // Steps are padded, and columns of values mixed, so that writes fall into different banks.
    __shared__ uint4 keys[STEPS][TILE * 4 + 4], values[TILE / 16][WIDTH][4];
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, r = lane / 4, q = lane % 4, key_head = blockIdx.x;
    wait_for_inputs();
    const uint2 of_block = a.tiles[gridDim.y - 1 - blockIdx.y]; // the longest first
    const u32 n_rows = of_block.y * a.heads_per_key, last_token = of_block.x + of_block.y - 1;
    const u32 slot = a.step.slots[of_block.x], first_end = a.step.positions[of_block.x] + 1, last_end = a.step.positions[last_token] + 1;
    const u32 first_tile = a.window && first_end > a.window ? (first_end - a.window) / TILE : 0, n_tiles = (last_end + TILE - 1) / TILE;

    // Rows past the end are read as the last one and not written.
    u32 heads[2], ends[2];
    u32 query[2][STEPS][4]; // high and low parts
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const u32 row = min(16 * warp + 8 * half + r, n_rows - 1), token = of_block.x + row / a.heads_per_key;
        heads[half] = token * a.n_heads + key_head * a.heads_per_key + row % a.heads_per_key;
        ends[half] = a.step.positions[token] + 1;
        const float4* x = (const float4*)(a.queries + (u64)heads[half] * WIDTH);
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            float4 v = x[4 * s + q];
            v.x *= a.scale, v.y *= a.scale, v.z *= a.scale, v.w *= a.scale;
            const uint4 parts = split_four(v);
            query[0][s][half] = parts.x, query[0][s][half + 2] = parts.y;
            query[1][s][half] = parts.z, query[1][s][half + 2] = parts.w;
        }
    }

    float4 key_values[BROUGHT], value_values[BROUGHT];
    auto ask = [&](u32 tile) {
        // Positions past the end: the last one, which is masked out.
        const u32 last = min((u32)TILE, last_end - tile * TILE) - 1;
        const float* page = a.cache.page(slot, tile * TILE);
        const float* of_keys = page + (u64)(tile * TILE % PAGE_TOKENS) * a.cache.key_stride + key_head * WIDTH;
        const float* of_values = page + a.cache.values_at + (u64)(tile * TILE % PAGE_TOKENS) * a.cache.value_stride + key_head * WIDTH;
#pragma unroll
        for (int i = 0; i < BROUGHT; ++i) {
            key_values[i] = *(const float4*)(of_keys + (u64)min(key_position(i), last) * a.cache.key_stride + 4 * key_quad(i));
            const u32 at = value_quad(i) / 4 * 16 + 2 * (value_quad(i) % 4);
            const float* column = of_values + value_column(i);
            value_values[i].x = column[(u64)min(at, last) * a.cache.value_stride], value_values[i].y = column[(u64)min(at + 1, last) * a.cache.value_stride];
            value_values[i].z = column[(u64)min(at + 8, last) * a.cache.value_stride], value_values[i].w = column[(u64)min(at + 9, last) * a.cache.value_stride];
        }
    };

    float sum[2 * STEPS][4] = {}, most[2] = {-infinity(), -infinity()}, total[2] = {};
    ask(first_tile);
    for (u32 tile = first_tile; tile < n_tiles; ++tile) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < BROUGHT; ++i) {
            keys[key_quad(i) / 4][key_position(i) * 4 + key_quad(i) % 4] = split_four(key_values[i]);
            const u32 column = value_column(i);
            values[value_quad(i) / 4][column][value_quad(i) % 4 ^ column / 2 % 4] = split_four(value_values[i]);
        }
        __syncthreads();
        if (tile + 1 < n_tiles) ask(tile + 1);

        float score[TILE / 8][4] = {};
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            uint4 k[TILE / 8];
#pragma unroll
            for (int j = 0; j < TILE / 8; ++j) k[j] = keys[s][(8 * j + r) * 4 + q];
#pragma unroll
            for (int j = 0; j < TILE / 8; ++j) multiply(score[j], query[0][s], k[j].x, k[j].y);
#pragma unroll
            for (int j = 0; j < TILE / 8; ++j) multiply(score[j], query[1][s], k[j].x, k[j].y);
#pragma unroll
            for (int j = 0; j < TILE / 8; ++j) multiply(score[j], query[0][s], k[j].z, k[j].w);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float now = most[half];
#pragma unroll
            for (int j = 0; j < TILE / 8; ++j)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const u32 position = tile * TILE + 8 * j + 2 * q + i;
                    float& s = score[j][2 * half + i];
                    if (position >= ends[half] || (a.window && position + a.window < ends[half])) s = -infinity();
                    now = max_or_nan(now, s);
                }
            now = max_or_nan(now, __shfl_xor_sync(FULL_WARP, now, 1));
            now = max_or_nan(now, __shfl_xor_sync(FULL_WARP, now, 2));
            const float shrink = now == -infinity() ? 1.0f : expf(most[half] - now);
            most[half] = now;
            float of_tile = 0.0f;
#pragma unroll
            for (int j = 0; j < TILE / 8; ++j)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float& s = score[j][2 * half + i];
                    s = s == -infinity() ? 0.0f : expf(s - now);
                    of_tile += s;
                }
            total[half] = fmaf(total[half], shrink, of_tile);
#pragma unroll
            for (int n8 = 0; n8 < 2 * STEPS; ++n8) sum[n8][2 * half] *= shrink, sum[n8][2 * half + 1] *= shrink;
        }
#pragma unroll
        for (int t = 0; t < TILE / 16; ++t) {
            u32 high[4], low[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) split_pair(score[2 * t + i / 2][2 * (i % 2)], score[2 * t + i / 2][2 * (i % 2) + 1], high[i], low[i]);
#pragma unroll
            for (int n8 = 0; n8 < 2 * STEPS; ++n8) {
                const u32 column = 8 * n8 + r;
                const uint4 v = values[t][column][q ^ column / 2 % 4];
                multiply(sum[n8], high, v.x, v.y);
                multiply(sum[n8], low, v.x, v.y);
                multiply(sum[n8], high, v.z, v.w);
            }
        }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        total[half] += __shfl_xor_sync(FULL_WARP, total[half], 1);
        total[half] += __shfl_xor_sync(FULL_WARP, total[half], 2);
        float shrink = 1.0f;
        if (a.sinks) {
            // A sink takes part in the sum of weights only.
            const float sink = a.sinks[heads[half] % a.n_heads], now = max_or_nan(most[half], sink);
            shrink = expf(most[half] - now);
            total[half] = fmaf(total[half], shrink, expf(sink - now));
        }
        if (16 * warp + 8 * half + r >= n_rows) continue;
        const float factor = shrink / total[half];
        float* y = a.y + (u64)heads[half] * WIDTH + 2 * q;
#pragma unroll
        for (int n8 = 0; n8 < 2 * STEPS; ++n8)
            *(float2*)(y + 8 * n8) = make_float2(sum[n8][2 * half] * factor, sum[n8][2 * half + 1] * factor);
    }
}
