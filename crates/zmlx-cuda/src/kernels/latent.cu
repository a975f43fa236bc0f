// Attention over cached latents, on tensor cores: `latent_attention`. All heads share one key, and values are its first part.
//
// A block has N_ROWS rows, which are heads of consecutive tokens of one sequence. It goes through tiles of TILE positions, whose
// keys it copies into shared memory, one tile ahead. Queries and weights are sums of two f16 values each. Each of the 8 warps
// computes the scores of 16 rows and 8 positions, the weights of an eighth of the rows, and the sums of an eighth of the columns.
// Long sequences are split among blocks, and `latent_merge` or the product behind it puts together what these found.
//
// Set from outside: STEPS, the key's width divided by 16, rounded up to an even number; TILES, the value's width divided by 64,
// rounded up; N_ROWS and TILE, 32 and 32 or, of many tokens, 64 and 16, which is as much as shared memory has room for.

#include "device.cuh"
#include "position.cuh"
#include "tensor_core.cuh"

#define N_WARPS 8
#define PITCH (16 * STEPS + 8) // of a row in shared memory: rows fall into different banks
#define WEIGHT_PITCH (TILE + 8)
#define M_TILES (N_ROWS / 16)

struct LatentArgs {
    const float* queries; // [n_tokens, n_heads, key_width]
    const uint2* tiles;   // first token and number of tokens of each block, all of one sequence
    Step step;
    Cache cache;
    u32 n_heads;
    u32 key_width;   // a multiple of 8
    u32 value_width; // a multiple of 8
    float scale;
    u32 is_early;   // each sequence has one token in this step: all older ones may be read before the kernel waits
    float* y;       // [n_tokens, n_heads, value_width]
    float* partial; // [n_tokens, n_heads, n_splits, value_width + 4], where there are several splits
};

struct Shared {
    u16 queries[2][N_ROWS][PITCH]; // high and low parts
    u16 keys[2][TILE][PITCH];
    u16 weights[2][N_ROWS][WEIGHT_PITCH];
    float scores[N_ROWS][TILE + 4];
    float shrink[N_ROWS], most[N_ROWS], total[N_ROWS];
};

extern "C" __global__ void __launch_bounds__(32 * N_WARPS, 1) latent(const __grid_constant__ LatentArgs a) {
    extern __shared__ __align__(16) u8 bytes[];
    Shared& shared = *(Shared*)bytes;
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, r = lane / 4, q = lane % 4;
    if (!a.is_early) wait_for_inputs();
    const uint2 of_block = a.tiles[gridDim.y - 1 - blockIdx.y]; // the longest first
    const u32 row0 = blockIdx.x * N_ROWS, n_rows = min(of_block.y * a.n_heads - row0, (u32)N_ROWS), split = blockIdx.z, n_splits = gridDim.z;
    const u32 slot = a.step.slots[of_block.x], last_end = a.step.positions[of_block.x + (row0 + n_rows - 1) / a.n_heads] + 1;
    const u32 n_tiles = (last_end + TILE - 1) / TILE, per_split = (n_tiles + n_splits - 1) / n_splits;
    const u32 tile_begin = min(n_tiles, split * per_split), tile_end = min(n_tiles, (split + 1) * per_split);

    // Columns past the width are zero, rows past the end too. Rows from `begin` on and before `end` are copied.
    constexpr u32 VECTORS = 2 * STEPS; // of 8 values, in a row
    auto bring = [&](u32 tile, u32 begin, u32 end) {
        const u16* page = a.cache.page(slot, tile * TILE) + (u64)(tile * TILE % PAGE_TOKENS) * a.cache.key_stride;
        for (u32 row = warp; row < TILE; row += N_WARPS) {
            const u32 position = tile * TILE + row;
            if (position < begin) continue;
            for (u32 i = lane; i < VECTORS; i += 32) {
                u16* const to = &shared.keys[tile % 2][row][8 * i];
                if (position < end && 8 * i < a.key_width) copy_async<16>(to, page + (u64)row * a.cache.key_stride + 8 * i);
                else *(uint4*)to = make_uint4(0, 0, 0, 0);
            }
        }
    };

    const u32 n_old = a.is_early ? last_end - 1 : last_end;
    if (tile_begin < tile_end) bring(tile_begin, 0, n_old);
    if (a.is_early) {
        wait_for_inputs();
        if (tile_begin < tile_end && tile_begin == n_tiles - 1) bring(tile_begin, n_old, last_end);
    }
    end_of_copies();
    const float* const queries = a.queries + ((u64)of_block.x * a.n_heads + row0) * a.key_width;
    // So many vectors of a thread are asked for before the first is used.
    constexpr u32 QUADS = 4 * STEPS, AT_ONCE = 6;
    for (u32 base = threadIdx.x; base < N_ROWS * QUADS; base += AT_ONCE * 32 * N_WARPS) {
        float4 v[AT_ONCE];
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) {
            const u32 at = base + 32 * N_WARPS * i, row = at / QUADS, column = 4 * (at % QUADS);
            v[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (row < n_rows && column < a.key_width) v[i] = *(const float4*)(queries + (u64)row * a.key_width + column);
        }
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) {
            const u32 at = base + 32 * N_WARPS * i, row = at / QUADS, column = 4 * (at % QUADS);
            uint2 high, low;
            split_f16(v[i].x * a.scale, v[i].y * a.scale, high.x, low.x);
            split_f16(v[i].z * a.scale, v[i].w * a.scale, high.y, low.y);
            if (row < N_ROWS) *(uint2*)&shared.queries[0][row][column] = high, *(uint2*)&shared.queries[1][row][column] = low;
        }
    }
    if (threadIdx.x < N_ROWS) shared.most[threadIdx.x] = -infinity(), shared.total[threadIdx.x] = 0.0f;
    // A thread weighs one position of so many rows; where their tokens' sight ends. Rows past the end are like the last one.
    constexpr u32 WEIGHED = N_ROWS * TILE / (32 * N_WARPS);
    u32 ends[WEIGHED];
#pragma unroll
    for (u32 i = 0; i < WEIGHED; ++i) {
        const u32 row = threadIdx.x / TILE + i * (32 * N_WARPS / TILE);
        ends[i] = a.step.positions[of_block.x + (row0 + min(row, n_rows - 1)) / a.n_heads] + 1;
    }
    float sum[M_TILES][TILES][4] = {};
    for (u32 tile = tile_begin; tile < tile_end; ++tile) {
        wait_for_copies<0>();
        __syncthreads(); // the tile is there, and nobody needs the one before it
        if (tile + 1 < tile_end) bring(tile + 1, 0, last_end);
        end_of_copies();
        const u16 (&keys)[TILE][PITCH] = shared.keys[tile % 2];

        {
            const u32 n8 = warp % (TILE / 8) * 8, m = warp / (TILE / 8) * 16;
            float score[4][4] = {}; // parts that do not wait for each other
#pragma unroll 3
            for (u32 s = 0; s < STEPS; s += 2) {
                u32 k[4];
                load_matrices(&keys[n8 + lane % 8][16 * s + lane / 8 * 8], k);
#pragma unroll
                for (u32 i = 0; i < 2; ++i) {
                    u32 high[4], low[4];
                    load_matrices(&shared.queries[0][m + lane % 16][16 * (s + i) + lane / 16 * 8], high);
                    load_matrices(&shared.queries[1][m + lane % 16][16 * (s + i) + lane / 16 * 8], low);
                    multiply(score[2 * i], high, k[2 * i], k[2 * i + 1]);
                    multiply(score[2 * i + 1], low, k[2 * i], k[2 * i + 1]);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) shared.scores[m + 8 * (i / 2) + r][n8 + 2 * q + i % 2] = (score[0][i] + score[2][i]) + (score[1][i] + score[3][i]);
        }
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < WEIGHED; ++i) {
            const u32 row = threadIdx.x / TILE + i * (32 * N_WARPS / TILE), column = lane % TILE;
            const float score = tile * TILE + column < ends[i] ? shared.scores[row][column] : -infinity();
            float now = score;
#pragma unroll
            for (int offset = TILE / 2; offset > 0; offset >>= 1) now = max_or_nan(now, __shfl_xor_sync(FULL_WARP, now, offset));
            const float before = shared.most[row];
            now = max_or_nan(before, now);
            const float weight = score == -infinity() ? 0.0f : expf(score - now), shrink = now == -infinity() ? 1.0f : expf(before - now);
            float of_tile = weight;
#pragma unroll
            for (int offset = TILE / 2; offset > 0; offset >>= 1) of_tile += __shfl_xor_sync(FULL_WARP, of_tile, offset);
            __syncwarp(); // all lanes have read what the first ones write
            u32 high, low;
            split_f16(weight, 0.0f, high, low);
            shared.weights[0][row][column] = (u16)high, shared.weights[1][row][column] = (u16)low;
            if (column == 0) {
                shared.most[row] = now, shared.shrink[row] = shrink;
                shared.total[row] = fmaf(shared.total[row], shrink, of_tile);
            }
        }
        __syncthreads();
#pragma unroll
        for (int m = 0; m < M_TILES; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float shrink = shared.shrink[16 * m + 8 * half + r];
#pragma unroll
                for (int t = 0; t < TILES; ++t) sum[m][t][2 * half] *= shrink, sum[m][t][2 * half + 1] *= shrink;
            }
#pragma unroll
        for (int k = 0; k < TILE; k += 16) {
            u32 high[M_TILES][4], low[M_TILES][4];
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) {
                load_matrices(&shared.weights[0][16 * m + lane % 16][k + lane / 16 * 8], high[m]);
                load_matrices(&shared.weights[1][16 * m + lane % 16][k + lane / 16 * 8], low[m]);
            }
#pragma unroll
            for (int t = 0; t < TILES; t += 2) {
                const u32 column = 8 * (warp * TILES + t);
                if (column >= a.value_width) continue;
                u32 v[4];
                load_transposed(&keys[k + lane % 16][column + lane / 16 * 8], v);
#pragma unroll
                for (int i = 0; i < 2 && t + i < TILES; ++i)
#pragma unroll
                    for (int m = 0; m < M_TILES; ++m) {
                        multiply(sum[m][t + i], high[m], v[2 * i], v[2 * i + 1]);
                        multiply(sum[m][t + i], low[m], v[2 * i], v[2 * i + 1]);
                    }
            }
        }
    }
    __syncthreads();

#pragma unroll
    for (int m = 0; m < M_TILES; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const u32 row = 16 * m + 8 * half + r;
            if (row >= n_rows) continue;
            const u64 head = (u64)of_block.x * a.n_heads + row0 + row;
            const float factor = n_splits == 1 ? 1.0f / shared.total[row] : 1.0f;
            float* y = n_splits == 1 ? a.y + head * a.value_width : a.partial + (head * n_splits + split) * (a.value_width + 4);
            if (n_splits > 1 && warp == 0 && q == 0) *(float2*)(y + a.value_width) = make_float2(shared.most[row], shared.total[row]);
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                const u32 column = 8 * (warp * TILES + t) + 2 * q;
                if (column < a.value_width) *(float2*)(y + column) = make_float2(sum[m][t][2 * half] * factor, sum[m][t][2 * half + 1] * factor);
            }
        }
}

struct LatentMergeArgs {
    const float* partial;
    float* y;
    u32 n_splits;
    u32 value_width;
};

// A block per head of a token; a thread has four columns.
extern "C" __global__ void __launch_bounds__(128) latent_merge(const __grid_constant__ LatentMergeArgs a) {
    wait_for_inputs();
    const u32 row = a.value_width + 4;
    const float* partial = a.partial + (u64)blockIdx.x * a.n_splits * row;
    float most = -infinity();
#pragma unroll 8
    for (u32 s = 0; s < a.n_splits; ++s) most = max_or_nan(most, partial[s * row + a.value_width]);
    for (u32 column = 4 * threadIdx.x; column < a.value_width; column += 4 * blockDim.x) {
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float total = 0.0f;
#pragma unroll 8
        for (u32 s = 0; s < a.n_splits; ++s) {
            const float2 of = *(const float2*)(partial + s * row + a.value_width);
            const float4 x = *(const float4*)(partial + s * row + column);
            const float factor = of.x == -infinity() ? 0.0f : expf(of.x - most);
            total = fmaf(of.y, factor, total);
            sum.x = fmaf(x.x, factor, sum.x), sum.y = fmaf(x.y, factor, sum.y);
            sum.z = fmaf(x.z, factor, sum.z), sum.w = fmaf(x.w, factor, sum.w);
        }
        *(float4*)(a.y + (u64)blockIdx.x * a.value_width + column) = make_float4(sum.x / total, sum.y / total, sum.z / total, sum.w / total);
    }
}
