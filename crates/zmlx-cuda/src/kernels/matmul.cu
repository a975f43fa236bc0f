// Products of quantised matrices with many rows of activations, on tensor cores: the ops of matvec.cu but for the sum over
// experts.
//
// A block takes JOBS jobs (rows of activations, of one expert where there are experts) and 4 warps' rows of the matrix: 32 of a
// warp, or 16 of gate and 16 of up. Codes go from memory into registers, where they become weights, rounded to f16; activations
// come through shared memory from where to_f16.cu has put them. Both come in chunks of columns, some chunks ahead; a lane has LANE
// consecutive columns of a chunk. Each row of the matrix is multiplied by a power of two, so that its scales and biases lie below
// 2^-9, and its sums are divided by it.
//
// Where that gives few blocks the warps of a block share a warp's rows instead: each takes every fourth chunk, for itself, and the
// first one adds up what all have.
//
// Set from outside: the format (BITS 4 or 8, CODE, SCALES, GROUP 32, 64 or 128) and STREAMS, as in matvec.cu; JOBS, 8, 16, 32 or 64;
// TILES, tiles of 16 rows of a warp, 1 or 2; LANE, 16, 32 or 64 (with few jobs memory limits, which likes long runs of a row);
// SHARED_ROWS, whether warps share rows (JOBS is at most 16 then).

#include "device.cuh"
#include "format.cuh"
#include "tensor_core.cuh"

#define N_WARPS 4
#define N8 (JOBS / 8) // tiles of 8 jobs
#define STAGES 3
#define PIPES (SHARED_ROWS ? N_WARPS : 1) // of activations on their way
#define CHUNK (4 * LANE)
#define CHUNK_WORDS (CHUNK * BITS / 32)
#define PIECE_WORDS (LANE * BITS / 32) // of a lane, in a row's chunk
#define PAIRS (LANE / 8)               // of steps of 16 columns, 4 of each lane
#define GROUPS (LANE > GROUP ? LANE / GROUP : 1) // of a lane, in a row's chunk

struct Part {
    const u32* data;
    const ScaleWord* scales;
    const float* row_factors; // what multiplies each row of each matrix
    u32 first_row; // in the output
    u32 n_rows;
};

#define MAX_PARTS 4

struct MatmulArgs {
    Part parts[MAX_PARTS]; // as in matvec.cuh
    u32 n_parts;
    u32 n_out;
    u32 n_chunks; // of a row
    u32 n_jobs;
    u32 jobs_per_x; // so many jobs in turn use the same row of activations
    const uint4* x; // as to_f16.cu writes them
    const float* x_factors;
    const uint4* tiles; // as group.cu writes them, or null: all jobs in order
    const u32* n_tiles;
    const u32* jobs;
    const float* residual; // added to the result, or null
    float* y;
    u32 y_stride;
};

// A group's scale and bias, as pairs of equal f16 values. A code in the lowest bits of an f16 stands for 2^-24 of itself, four
// bits higher for 2^-20.
struct Group {
    u32 scale, scale_of_upper, bias;
};

__device__ __forceinline__ Group group_of(ScaleWord word, float row_factor) {
    const float scale = scale_of(word, 0) * row_factor, bias = bias_of(word) * row_factor;
    if constexpr (CODE == CODE_FP4) return {f16_pair(scale * 0x1p14f, scale * 0x1p14f), 0, 0};
    const float of_lowest = scale * 0x1p24f, of_upper = scale * 0x1p20f;
    return {f16_pair(of_lowest, of_lowest), f16_pair(of_upper, of_upper), f16_pair(bias, bias)};
}

__device__ __forceinline__ u32 fma_pairs(u32 a, u32 b, u32 c) {
    u32 y;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
    return y;
}
__device__ __forceinline__ u32 multiply_pairs(u32 a, u32 b) {
    u32 y;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}

// The part of step `s` in a row's piece: weights, as two pairs.
__device__ __forceinline__ void fragment_of(const u32 (&piece)[PIECE_WORDS], const int s, const Group& g, u32& first, u32& second) {
    if constexpr (BITS == 8) {
        first = fma_pairs(__byte_perm(piece[s], 0, 0x4140), g.scale, g.bias);
        second = fma_pairs(__byte_perm(piece[s], 0, 0x4342), g.scale, g.bias);
    } else {
        const u32 w = piece[s / 2] >> (8 * (s % 2));
        if constexpr (CODE == CODE_FP4) {
            // Exponent and mantissa where f16 has them, for 2^-14 of the value.
            first = multiply_pairs((w & 0x00070007u) << 9 | (w & 0x00080008u) << 12, g.scale);
            second = multiply_pairs((w & 0x00700070u) << 5 | (w & 0x00800080u) << 8, g.scale);
        } else {
            first = fma_pairs(w & 0x000f000fu, g.scale, g.bias);
            second = fma_pairs(w & 0x00f000f0u, g.scale_of_upper, g.bias);
        }
    }
}

__device__ __forceinline__ void load_piece(const u32* p, u32 (&piece)[PIECE_WORDS]) {
    if constexpr (PIECE_WORDS == 2) {
        const uint2 v = load_weight((const uint2*)p);
        piece[0] = v.x, piece[1] = v.y;
    } else {
#pragma unroll
        for (int i = 0; i < PIECE_WORDS; i += 4) {
            const uint4 v = load_weight((const uint4*)(p + i));
            piece[i] = v.x, piece[i + 1] = v.y, piece[i + 2] = v.z, piece[i + 3] = v.w;
        }
    }
}

extern "C" __global__ void __launch_bounds__(32 * N_WARPS, JOBS <= 16 && LANE * BITS <= 128 ? 4 : 3) matmul(const __grid_constant__ MatmulArgs a) {
    typedef uint4 Stage[PAIRS][JOBS][4]; // two steps each, as lanes take them
    extern __shared__ __align__(16) char shared[];
    Stage (&x)[PIPES][STAGES] = *(Stage (*)[PIPES][STAGES])shared;
    __shared__ float x_factors[JOBS];
    __shared__ u32 x_rows[JOBS], jobs[JOBS];
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, r = lane / 4, q = lane % 4;
    if (a.tiles) wait_for_inputs();
    // With several matrices and no experts, job j has matrix j % n_mats: a block takes one matrix's jobs, z says which.
    u32 mat = blockIdx.z, first = blockIdx.y * JOBS, n = min((u32)JOBS, a.n_jobs / gridDim.z - first);
    if (a.tiles) {
        if (blockIdx.y >= *a.n_tiles) return;
        const uint4 tile = a.tiles[blockIdx.y];
        mat = tile.x, first = tile.y, n = tile.z;
    }
    if (threadIdx.x < JOBS) {
        const u32 at = first + min(threadIdx.x, n - 1); // past the end: the last one, not written
        const u32 job = a.tiles ? a.jobs[at] : at * gridDim.z + blockIdx.z;
        jobs[threadIdx.x] = job, x_rows[threadIdx.x] = job / a.jobs_per_x;
    }
    __syncthreads();

    // Tiles of 16 rows past the end are read as the last one and not written. No tile has rows of two parts.
    constexpr u32 ROWS = 16 * TILES / STREAMS;
    const u32 row0 = (SHARED_ROWS ? blockIdx.x : blockIdx.x * N_WARPS + warp) * ROWS, n_groups = a.n_chunks * CHUNK / GROUP;
    const u32* data[TILES];
    const ScaleWord* scales[TILES];
    float row_factors[TILES][2];
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
        u32 row = min(row0 + 16 * m % ROWS, a.n_out - 16), p = 16 * m / ROWS;
        if (STREAMS == 1) {
            while (p + 1 < a.n_parts && row >= a.parts[p + 1].first_row) ++p;
            row -= a.parts[p].first_row;
        }
        const u64 at = (u64)mat * a.parts[p].n_rows + row + r;
        data[m] = a.parts[p].data + at * a.n_chunks * CHUNK_WORDS + q * PIECE_WORDS;
        scales[m] = a.parts[p].scales + at * n_groups;
        row_factors[m][0] = a.parts[p].row_factors[at], row_factors[m][1] = a.parts[p].row_factors[at + 8];
    }

    // Chunks that the warp takes, by their order.
    const u32 n_own = SHARED_ROWS ? (a.n_chunks + N_WARPS - 1 - warp) / N_WARPS : a.n_chunks, pipe = SHARED_ROWS ? warp : 0;
    auto chunk_of = [&](u32 i) { return SHARED_ROWS ? warp + N_WARPS * i : i; };
    // A thread brings 16 bytes of one job, or of some.
    constexpr u32 N_THREADS = SHARED_ROWS ? 32 : 32 * N_WARPS, STAGE_VECTORS = PAIRS * JOBS * 4;
    constexpr u32 N_COPIES = (STAGE_VECTORS + N_THREADS - 1) / N_THREADS;
    // Behind so many copies a thread has the same job again.
    constexpr u32 N_JOBS = 4 * JOBS > N_THREADS ? 4 * JOBS / N_THREADS : 1;
    const u32 thread = SHARED_ROWS ? lane : threadIdx.x;
    const uint4* from[N_JOBS];
#pragma unroll
    for (int i = 0; i < N_JOBS; ++i) {
        const u32 at = thread + N_THREADS * i;
        from[i] = a.x + (u64)x_rows[at / 4 % JOBS] * a.n_chunks * (CHUNK / 8) + at / (4 * JOBS) * 4 + at % 4;
    }
    auto bring = [&](u32 i_chunk) {
        if (i_chunk < n_own) {
            uint4* const to = x[pipe][i_chunk % STAGES][0][0] + thread;
            const u32 first = chunk_of(i_chunk) * (CHUNK / 8);
#pragma unroll
            for (u32 i = 0; i < N_COPIES; ++i) {
                constexpr u32 PAIRS_APART = N_THREADS > 4 * JOBS ? N_THREADS / (4 * JOBS) : 1; // of copies of the same job
                if (STAGE_VECTORS % N_THREADS == 0 || thread + N_THREADS * i < STAGE_VECTORS)
                    copy_async<16>(to + N_THREADS * i, from[i % N_JOBS] + first + i / N_JOBS * PAIRS_APART * 4);
            }
        }
        end_of_copies();
    };
    // Codes and scales are asked for two chunks ahead.
    u32 pieces[2][TILES][2][PIECE_WORDS];
    ScaleWord words[2][TILES][2][GROUPS];
    auto ask = [&](u32 i_chunk, const int at) {
        const u32 chunk = min(chunk_of(i_chunk), a.n_chunks - 1), group = (chunk * CHUNK + q * LANE) / GROUP;
#pragma unroll
        for (int m = 0; m < TILES; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                load_piece(data[m] + (8 * half * a.n_chunks + chunk) * CHUNK_WORDS, pieces[at][m][half]);
#pragma unroll
                for (int i = 0; i < GROUPS; ++i) words[at][m][half][i] = __ldg(scales[m] + 8 * half * n_groups + group + i);
            }
    };
    ask(0, 0);
    ask(1, 1);
    if (!a.tiles) wait_for_inputs();
    if (threadIdx.x < JOBS) x_factors[threadIdx.x] = a.x_factors[x_rows[threadIdx.x]];
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) bring(s);
    float sum[TILES][N8][4] = {};
    auto compute = [&](u32 i_chunk, const int at) {
        wait_for_copies<STAGES - 2>();
        if (SHARED_ROWS) __syncwarp();
        else __syncthreads();
        bring(i_chunk + STAGES - 1);
        const Stage& stage = x[pipe][i_chunk % STAGES];
        Group groups[TILES][2][GROUPS];
#pragma unroll
        for (int m = 0; m < TILES; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
                for (int i = 0; i < GROUPS; ++i) groups[m][half][i] = group_of(words[at][m][half][i], row_factors[m][half]);
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
            const int group = GROUPS > 1 ? 8 * pair / GROUP : 0;
            uint4 b[N8];
#pragma unroll
            for (int n8 = 0; n8 < N8; ++n8) b[n8] = stage[pair][8 * n8 + r][q];
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                u32 w[TILES][4];
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    fragment_of(pieces[at][m][0], 2 * pair + s, groups[m][0][group], w[m][0], w[m][2]);
                    fragment_of(pieces[at][m][1], 2 * pair + s, groups[m][1][group], w[m][1], w[m][3]);
                }
#pragma unroll
                for (int m = 0; m < TILES; ++m)
#pragma unroll
                    for (int n8 = 0; n8 < N8; ++n8) multiply(sum[m][n8], w[m], s ? b[n8].z : b[n8].x, s ? b[n8].w : b[n8].y);
            }
        }
        ask(i_chunk + 2, at);
    };
    for (u32 i = 0; i < n_own; i += 2) {
        compute(i, 0);
        if (i + 1 < n_own) compute(i + 1, 1);
    }
#if SHARED_ROWS
    __shared__ float of_others[N_WARPS - 1][TILES * N8 * 4][32];
    if (warp > 0)
#pragma unroll
        for (int e = 0; e < TILES * N8 * 4; ++e) of_others[warp - 1][e][lane] = sum[e / (4 * N8)][e / 4 % N8][e % 4];
    __syncthreads();
    if (warp > 0) return;
#pragma unroll
    for (int e = 0; e < TILES * N8 * 4; ++e)
#pragma unroll
        for (int w = 0; w < N_WARPS - 1; ++w) sum[e / (4 * N8)][e / 4 % N8][e % 4] += of_others[w][e][lane];
#endif

#pragma unroll
    for (int m = 0; m < TILES / STREAMS; ++m)
#pragma unroll
        for (int n8 = 0; n8 < N8; ++n8)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const u32 row = row0 + 16 * m + 8 * (i / 2) + r, column = 8 * n8 + 2 * q + i % 2;
                float value = sum[m][n8][i] * x_factors[column] / row_factors[m][i / 2];
                if (STREAMS == 2) value = silu_times(value, sum[m + TILES / 2][n8][i] * x_factors[column] / row_factors[m + TILES / 2][i / 2]);
                if (row < a.n_out && column < n) {
                    const u64 at = (u64)jobs[column] * a.y_stride + row;
                    a.y[at] = a.residual ? value + a.residual[at] : value;
                }
            }
}
