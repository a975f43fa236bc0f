// Attention of many tokens over cached keys and values, one pass on tensor cores: `attention` where a step has more than one
// token of a sequence.
//
// A block has up to 64 rows, which are heads of consecutive tokens that share a key head, 16 of each warp. It goes through
// tiles of 64 positions, which it copies from the cache into shared memory one tile ahead. Queries, weights,
// keys and values are f16.
//
// Set from outside: STEPS, the head's width divided by 16.

#include "device.cuh"
#include "position.cuh"
#include "tensor_core.cuh"

#define N_WARPS 4
#define TILE 64
#define WIDTH (16 * STEPS)
#define PITCH (WIDTH + 8) // of a row in shared memory: rows fall into different banks

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

extern "C" __global__ void __launch_bounds__(32 * N_WARPS, 2) flash(const __grid_constant__ FlashArgs a) {
    typedef u16 Tile[TILE][PITCH];
    extern __shared__ __align__(16) u8 shared[];
    Tile (&keys)[2] = *(Tile (*)[2])shared, (&values)[2] = *(Tile (*)[2])(shared + 2 * sizeof(Tile));
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, r = lane / 4, q = lane % 4, key_head = blockIdx.x;
    wait_for_inputs();
    const uint2 of_block = a.tiles[gridDim.y - 1 - blockIdx.y]; // the longest first
    const u32 n_rows = of_block.y * a.heads_per_key, last_token = of_block.x + of_block.y - 1;
    const u32 slot = a.step.slots[of_block.x], first_end = a.step.positions[of_block.x] + 1, last_end = a.step.positions[last_token] + 1;
    const u32 first_tile = a.window && first_end > a.window ? (first_end - a.window) / TILE : 0, n_tiles = (last_end + TILE - 1) / TILE;

    // Scores are in units of ln 2, so that weights are powers of two.
    const float scale = a.scale * LOG2_E;
    // Rows past the end are read as the last one and not written.
    u32 heads[2], ends[2];
    u32 query[STEPS][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const u32 row = min(16 * warp + 8 * half + r, n_rows - 1), token = of_block.x + row / a.heads_per_key;
        heads[half] = token * a.n_heads + key_head * a.heads_per_key + row % a.heads_per_key;
        ends[half] = a.step.positions[token] + 1;
        const float* x = a.queries + (u64)heads[half] * WIDTH + 2 * q;
#pragma unroll
        for (int s = 0; s < STEPS; ++s)
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                const float2 v = *(const float2*)(x + 16 * s + 8 * k);
                query[s][half + 2 * k] = f16_pair(v.x * scale, v.y * scale);
            }
    }

    auto bring = [&](u32 tile) {
        // Positions past the end: the last one, which is masked out.
        const u32 last = min((u32)TILE, last_end - tile * TILE) - 1;
        const u16* page = a.cache.page(slot, tile * TILE);
        const u16* of_keys = page + (u64)(tile * TILE % PAGE_TOKENS) * a.cache.key_stride + key_head * WIDTH;
        const u16* of_values = page + a.cache.values_at + (u64)(tile * TILE % PAGE_TOKENS) * a.cache.value_stride + key_head * WIDTH;
        // 16 bytes of each thread, in as many rounds as a row has steps.
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            const u32 at = threadIdx.x + 32 * N_WARPS * i, row = at / (WIDTH / 8), column = at % (WIDTH / 8) * 8, from = min(row, last);
            copy_async<16>(&keys[tile % 2][row][column], of_keys + from * a.cache.key_stride + column);
            copy_async<16>(&values[tile % 2][row][column], of_values + from * a.cache.value_stride + column);
        }
        end_of_copies();
    };

    float sum[2 * STEPS][4] = {}, most[2] = {-infinity(), -infinity()}, total[2] = {};
    bring(first_tile);
    for (u32 tile = first_tile; tile < n_tiles; ++tile) {
        wait_for_copies<0>();
        __syncthreads(); // the tile is there, and nobody needs the one before it
        if (tile + 1 < n_tiles) bring(tile + 1);
        const u16 (&key)[TILE][PITCH] = keys[tile % 2], (&value)[TILE][PITCH] = values[tile % 2];

        float score[TILE / 8][4] = {};
#pragma unroll
        for (int s = 0; s < STEPS; s += 2)
#pragma unroll
            for (int j = 0; j < TILE / 8; ++j) {
                u32 k[4]; // of two steps
                load_matrices(&key[8 * j + lane % 8][min(16 * s + lane / 8 * 8, WIDTH - 8)], k);
#pragma unroll
                for (int i = 0; i < 2 && s + i < STEPS; ++i) multiply(score[j], query[s + i], k[2 * i], k[2 * i + 1]);
            }
        // Most tiles lie in the sight of all rows.
        if (tile * TILE + TILE > first_end || (a.window && tile * TILE + a.window < last_end)) {
#pragma unroll
            for (int j = 0; j < TILE / 8; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const u32 position = tile * TILE + 8 * j + 2 * q + i % 2, end = ends[i / 2];
                    if (position >= end || (a.window && position + a.window < end)) score[j][i] = -infinity();
                }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float now = most[half];
#pragma unroll
            for (int j = 0; j < TILE / 8; ++j) now = max_or_nan(now, max_or_nan(score[j][2 * half], score[j][2 * half + 1]));
            now = max_or_nan(now, __shfl_xor_sync(FULL_WARP, now, 1));
            now = max_or_nan(now, __shfl_xor_sync(FULL_WARP, now, 2));
            // Before a row sees something, its weights are those of 0.
            const float least = now == -infinity() ? 0.0f : now, shrink = power_of_two(most[half] - least);
            most[half] = now;
            float of_tile = 0.0f;
#pragma unroll
            for (int j = 0; j < TILE / 8; ++j)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float& s = score[j][2 * half + i];
                    s = power_of_two(s - least);
                    of_tile += s;
                }
            total[half] = fmaf(total[half], shrink, of_tile);
            if (__any_sync(FULL_WARP, shrink != 1.0f))
#pragma unroll
                for (int n8 = 0; n8 < 2 * STEPS; ++n8) sum[n8][2 * half] *= shrink, sum[n8][2 * half + 1] *= shrink;
        }
#pragma unroll
        for (int t = 0; t < TILE / 16; ++t) {
            u32 weight[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) weight[i] = f16_pair(score[2 * t + i / 2][2 * (i % 2)], score[2 * t + i / 2][2 * (i % 2) + 1]);
#pragma unroll
            for (int n8 = 0; n8 < 2 * STEPS; n8 += 2) {
                u32 v[4]; // of two times 8 columns
                load_transposed(&value[16 * t + lane % 16][8 * n8 + lane / 16 * 8], v);
#pragma unroll
                for (int i = 0; i < 2; ++i) multiply(sum[n8 + i], weight, v[2 * i], v[2 * i + 1]);
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
            const float sink = a.sinks[heads[half] % a.n_heads] * LOG2_E, now = max_or_nan(most[half], sink);
            shrink = power_of_two(most[half] - now);
            total[half] = fmaf(total[half], shrink, power_of_two(sink - now));
        }
        if (16 * warp + 8 * half + r >= n_rows) continue;
        const float factor = shrink / total[half];
        float* y = a.y + (u64)heads[half] * WIDTH + 2 * q;
#pragma unroll
        for (int n8 = 0; n8 < 2 * STEPS; ++n8)
            *(float2*)(y + 8 * n8) = make_float2(sum[n8][2 * half] * factor, sum[n8][2 * half + 1] * factor);
    }
}
