// Attention over cached latents, on tensor cores: `latent_attention`. All heads share one key, and values are its first part.
//
// A block has 32 rows, which are heads of consecutive tokens of one sequence. It goes through tiles of 32 positions, whose keys
// it reads once into shared memory: as pairs of bf16 values in two planes, as are queries and weights; of the four products
// the one of both low parts is left out. Each of the 8 warps computes the scores of 16 rows and 8 positions, the weights of 4
// rows, and the sums of an eighth of the columns. Long sequences are split among blocks, and `latent_merge` puts together what
// these found.
//
// Set from outside: STEPS, the key's width divided by 16, rounded up to an even number; TILES, the value's width divided by 64,
// rounded up.

#include "device.cuh"
#include "position.cuh"
#include "tensor_core.cuh"

#define N_WARPS 8
#define N_ROWS 32
#define TILE 32
#define PITCH (16 * STEPS + 8) // of a row in shared memory: rows fall into different banks
#define WEIGHT_PITCH (TILE + 8)

struct LatentArgs {
    const float* queries; // [n_tokens, n_heads, key_width]
    const uint2* tiles;   // first token and number of tokens of each block, all of one sequence
    Step step;
    Cache cache;
    u32 n_heads;
    u32 key_width;   // a multiple of 4
    u32 value_width; // a multiple of 8
    float scale;
    u32 is_early;   // each sequence has one token in this step: all older ones may be read before the kernel waits
    float* y;       // [n_tokens, n_heads, value_width]
    float* partial; // [n_tokens, n_heads, n_splits, value_width + 4], where there are several splits
};

__device__ __forceinline__ void load_matrices(const u16* row, u32 (&v)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}
__device__ __forceinline__ void load_transposed(const u16* row, u32 (&v)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}

// Two planes of rows.
struct Planes {
    u16 high[N_ROWS][PITCH], low[N_ROWS][PITCH];
    __device__ __forceinline__ void put(u32 row, u32 column, float4 v) {
        uint2 h, l;
        split_pair(v.x, v.y, h.x, l.x);
        split_pair(v.z, v.w, h.y, l.y);
        *(uint2*)&high[row][column] = h, *(uint2*)&low[row][column] = l;
    }
};

struct Shared {
    Planes queries, keys;
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
    const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

    // Columns past the width are zero, rows past the end too.
    constexpr u32 QUADS = 4 * STEPS, LANE_QUADS = (QUADS + 31) / 32;
    // A warp brings every eighth row, a lane every 32nd vector of it.
    float4 brought[N_ROWS / N_WARPS][LANE_QUADS];
    // The rows from `begin` on and before `end`; others stay as they are, or are zero where they have not been brought.
    auto ask = [&](u32 tile, u32 begin, u32 end) {
        const float* page = a.cache.page(slot, tile * TILE) + (u64)(tile * TILE % PAGE_TOKENS) * a.cache.key_stride;
#pragma unroll
        for (u32 i = 0; i < N_ROWS / N_WARPS; ++i) {
            const u32 row = warp + N_WARPS * i, position = tile * TILE + row;
            const float4* from = (const float4*)(page + (u64)row * a.cache.key_stride) + lane;
            const u32 n_quads = position < end ? a.key_width / 4 : 0;
#pragma unroll
            for (u32 j = 0; j < LANE_QUADS; ++j)
                if (position >= begin) brought[i][j] = lane + 32 * j < n_quads ? from[32 * j] : zero;
        }
    };

    const u32 n_old = a.is_early ? last_end - 1 : last_end;
    if (tile_begin < tile_end) ask(tile_begin, 0, n_old);
    if (a.is_early) {
        wait_for_inputs();
        if (tile_begin < tile_end && tile_begin == n_tiles - 1) ask(tile_begin, n_old, last_end);
    }
    const float4* const queries = (const float4*)(a.queries + ((u64)of_block.x * a.n_heads + row0) * a.key_width);
#pragma unroll 1
    for (u32 row = warp; row < N_ROWS; row += N_WARPS) {
        const u32 n_quads = row < n_rows ? a.key_width / 4 : 0;
        float4 v[LANE_QUADS];
#pragma unroll
        for (u32 j = 0; j < LANE_QUADS; ++j) v[j] = lane + 32 * j < n_quads ? queries[row * (a.key_width / 4) + lane + 32 * j] : zero;
#pragma unroll
        for (u32 j = 0; j < LANE_QUADS; ++j) {
            v[j].x *= a.scale, v[j].y *= a.scale, v[j].z *= a.scale, v[j].w *= a.scale;
            if (lane + 32 * j < QUADS) shared.queries.put(row, 4 * (lane + 32 * j), v[j]);
        }
    }
    if (threadIdx.x < N_ROWS) shared.most[threadIdx.x] = -infinity(), shared.total[threadIdx.x] = 0.0f;
    float sum[2][TILES][4] = {};
    for (u32 tile = tile_begin; tile < tile_end; ++tile) {
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < N_ROWS / N_WARPS; ++i)
#pragma unroll
            for (u32 j = 0; j < LANE_QUADS; ++j)
                if (lane + 32 * j < QUADS) shared.keys.put(warp + N_WARPS * i, 4 * (lane + 32 * j), brought[i][j]);
        __syncthreads();
        if (tile + 1 < tile_end) ask(tile + 1, 0, last_end);

        {
            // Scores of 16 rows and 8 positions.
            const u32 m = warp / 4 * 16, n8 = warp % 4 * 8;
            const u32 row_of_a = m + lane % 16, column_of_a = lane / 16 * 8, row_of_b = n8 + lane % 8, column_of_b = lane / 8 * 8;
            float score[2][4] = {};
#pragma unroll 2
            for (u32 s = 0; s < STEPS; s += 2) {
                u32 high_k[4], low_k[4];
                load_matrices(&shared.keys.high[row_of_b][16 * s + column_of_b], high_k);
                load_matrices(&shared.keys.low[row_of_b][16 * s + column_of_b], low_k);
#pragma unroll
                for (u32 i = 0; i < 2; ++i) {
                    u32 high[4], low[4];
                    load_matrices(&shared.queries.high[row_of_a][16 * (s + i) + column_of_a], high);
                    load_matrices(&shared.queries.low[row_of_a][16 * (s + i) + column_of_a], low);
                    multiply(score[i], high, high_k[2 * i], high_k[2 * i + 1]);
                    multiply(score[i], low, high_k[2 * i], high_k[2 * i + 1]);
                    multiply(score[i], high, low_k[2 * i], low_k[2 * i + 1]);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) shared.scores[m + 8 * (i / 2) + r][n8 + 2 * q + i % 2] = score[0][i] + score[1][i];
        }
        __syncthreads();
#pragma unroll
        for (u32 row = warp; row < N_ROWS; row += N_WARPS) {
            // A lane has a position. Rows past the end are like the last one, and not written.
            const u32 token = of_block.x + (row0 + min(row, n_rows - 1)) / a.n_heads, end = a.step.positions[token] + 1;
            const float score = tile * TILE + lane < end ? shared.scores[row][lane] : -infinity();
            const float before = shared.most[row], now = max_or_nan(before, warp_max(score));
            const float weight = score == -infinity() ? 0.0f : expf(score - now), shrink = now == -infinity() ? 1.0f : expf(before - now);
            const float of_tile = warp_sum(weight);
            __syncwarp(); // all lanes have read what the first one writes
            u32 high, low;
            split_pair(weight, 0.0f, high, low);
            shared.weights[0][row][lane] = (u16)high, shared.weights[1][row][lane] = (u16)low;
            if (lane == 0) {
                shared.most[row] = now, shared.shrink[row] = shrink;
                shared.total[row] = fmaf(shared.total[row], shrink, of_tile);
            }
        }
        __syncthreads();
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float shrink = shared.shrink[16 * m + 8 * half + r];
#pragma unroll
                for (int t = 0; t < TILES; ++t) sum[m][t][2 * half] *= shrink, sum[m][t][2 * half + 1] *= shrink;
            }
#pragma unroll
        for (int k = 0; k < TILE; k += 16) {
            u32 high[2][4], low[2][4];
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                load_matrices(&shared.weights[0][16 * m + lane % 16][k + lane / 16 * 8], high[m]);
                load_matrices(&shared.weights[1][16 * m + lane % 16][k + lane / 16 * 8], low[m]);
            }
#pragma unroll
            for (int t = 0; t < TILES; t += 2) {
                const u32 column = 8 * (warp * TILES + t);
                if (column >= a.value_width) continue;
                u32 high_v[4], low_v[4];
                load_transposed(&shared.keys.high[k + lane % 16][column + lane / 16 * 8], high_v);
                load_transposed(&shared.keys.low[k + lane % 16][column + lane / 16 * 8], low_v);
#pragma unroll
                for (int i = 0; i < 2 && t + i < TILES; ++i)
#pragma unroll
                    for (int m = 0; m < 2; ++m) {
                        multiply(sum[m][t + i], high[m], high_v[2 * i], high_v[2 * i + 1]);
                        multiply(sum[m][t + i], low[m], high_v[2 * i], high_v[2 * i + 1]);
                        multiply(sum[m][t + i], high[m], low_v[2 * i], low_v[2 * i + 1]);
                    }
            }
        }
    }
    __syncthreads();

#pragma unroll
    for (int m = 0; m < 2; ++m)
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
