// Products of quantised matrices with many rows of activations, on tensor cores: the ops of matvec.cu but for the sum over
// experts.
//
// A block takes 32 jobs (rows of activations, of one expert where there are experts) and 4 warps' rows of the matrix: 64 of a
// warp, or 32 of gate and 32 of up. Both come through shared memory, some units of 64 columns ahead: activations from where
// split.cu has put them, codes as they are, to become bf16 in registers, exactly. The products of a span of weights are summed
// up before its scale and bias are applied, in f32.
//
// Set from outside: the format (BITS 4 or 8, CODE, SCALES, GROUP 32, 64 or 128) and STREAMS, as in matvec.cu.

#include "device.cuh"
#include "format.cuh"
#include "tensor_core.cuh"
#include "fragments.cuh"

#define N_WARPS 4
#define JOBS 32
#define STAGES 4
#define PIECE_WORDS (BITS / 2) // of a lane, in a row's unit
#define OFFSET (CODE == CODE_AFFINE && BITS == 4 ? 128.0f : 0.0f)

struct Part {
    const u32* data;
    const ScaleWord* scales;
    u32 first_row; // in the output
    u32 n_rows;
};

#define MAX_PARTS 4

struct MatmulArgs {
    Part parts[MAX_PARTS]; // as in matvec.cuh
    u32 n_parts;
    u32 n_out;
    u32 n_units; // of a row
    u32 n_jobs;
    u32 jobs_per_x; // so many jobs in turn use the same row of activations
    const uint4* x; // as split.cu writes them
    const float* x_sums;
    const uint4* tiles; // as group.cu writes them, or null: all jobs in order
    const u32* n_tiles;
    const u32* jobs;
    const float* residual; // added to the result, or null
    float* y;
    u32 y_stride;
};

// `(a & mask) | bits` in one instruction.
__device__ __forceinline__ u32 masked_or(u32 a, u32 mask, u32 bits) {
    u32 y;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(a), "r"(mask), "r"(bits));
    return y;
}

// The part of step `s` in a row's piece: codes plus OFFSET, as two pairs.
__device__ __forceinline__ void fragment_of(const u32 (&piece)[PIECE_WORDS], const int s, u32& first, u32& second) {
    if constexpr (BITS == 8) {
        // A byte below the bits of 2^23, minus 2^23, is an f32 whose upper half is exact.
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = __uint_as_float(__byte_perm(piece[s], 0x4b000000u, 0x7440 + i)) - 8388608.0f;
        first = __byte_perm(__float_as_uint(v[0]), __float_as_uint(v[1]), 0x7632);
        second = __byte_perm(__float_as_uint(v[2]), __float_as_uint(v[3]), 0x7632);
    } else if constexpr (CODE == CODE_FP4) {
        // Exponent and mantissa where bf16 has them, times 2^126.
        const u32 w = piece[s / 2] >> (8 * (s % 2));
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(first) : "r"((w & 0x00070007u) << 6 | (w & 0x00080008u) << 12), "r"(0x7e807e80u), "r"(0x80008000u));
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(second) : "r"((w & 0x00700070u) << 2 | (w & 0x00800080u) << 8), "r"(0x7e807e80u), "r"(0x80008000u));
    } else {
        const u32 w = piece[s / 2];
        first = masked_or(s % 2 ? w >> 8 : w, 0x000f000fu, 0x43004300u);
        second = masked_or(s % 2 ? w >> 12 : w >> 4, 0x000f000fu, 0x43004300u);
    }
}

__device__ __forceinline__ void load_piece(const u32* unit, u32 q, u32 (&piece)[PIECE_WORDS]) {
#pragma unroll
    for (int i = 0; i < PIECE_WORDS; ++i)
        piece[i] = GROUP == 32 ? unit[i / (PIECE_WORDS / 2) * (4 * PIECE_WORDS / 2) + q * (PIECE_WORDS / 2) + i % (PIECE_WORDS / 2)] : unit[q * PIECE_WORDS + i];
}

#define UNIT_WORDS (UNIT * BITS / 32)
#define COPIES (UNIT_WORDS / 4)            // of 16 bytes, for a row's unit
#define ROW_SCALES (N_SPANS * sizeof(ScaleWord)) // bytes of a row's unit

// What a block holds of one unit.
struct Stage {
    uint4 x[4][JOBS][4];
    u32 codes[N_WARPS][64][UNIT_WORDS];
    ScaleWord scales[N_WARPS][64][N_SPANS];
    float x_sums[N_SPANS][JOBS];
};

extern "C" __global__ void __launch_bounds__(32 * N_WARPS, 2) matmul(const __grid_constant__ MatmulArgs a) {
    extern __shared__ __align__(16) u8 shared[];
    Stage* const stages = (Stage*)shared;
    __shared__ u32 x_rows[JOBS], jobs[JOBS];
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, r = lane / 4, q = lane % 4;
    wait_for_inputs();
    u32 mat = 0, first = blockIdx.y * JOBS, n = min((u32)JOBS, a.n_jobs - first);
    if (a.tiles) {
        if (blockIdx.y >= *a.n_tiles) return;
        const uint4 tile = a.tiles[blockIdx.y];
        mat = tile.x, first = tile.y, n = tile.z;
    }
    if (threadIdx.x < JOBS) {
        const u32 at = first + min(threadIdx.x, n - 1), job = a.tiles ? a.jobs[at] : at; // past the end: the last one, not written
        jobs[threadIdx.x] = job, x_rows[threadIdx.x] = job / a.jobs_per_x;
    }
    __syncthreads();

    // Tiles of 16 rows past the end are read as the last one and not written. No tile has rows of two parts.
    constexpr u32 ROWS = 64 / STREAMS;
    const u32 row0 = (blockIdx.x * N_WARPS + warp) * ROWS, n_groups = a.n_units * UNIT / GROUP;
    auto row_of = [&](u32 at, u32& p) { // of this warp's 64: which part, and which row there
        u32 row = min(row0 + at / 16 * 16 % ROWS, a.n_out - 16);
        p = at / ROWS;
        if (STREAMS == 1) {
            while (p + 1 < a.n_parts && row >= a.parts[p + 1].first_row) ++p;
            row -= a.parts[p].first_row;
        }
        return (u64)mat * a.parts[p].n_rows + row + at % 16;
    };
    // A lane brings parts of several rows of its warp, and with the others of the block activations of one job.
    const u32* codes_from[2 * COPIES];
    const ScaleWord* scales_from[2];
#pragma unroll
    for (int i = 0; i < 2 * COPIES; ++i) {
        const u32 at = (lane + 32 * i) / COPIES;
        u32 p;
        const u64 row = row_of(at, p);
        codes_from[i] = a.parts[p].data + row * a.n_units * UNIT_WORDS + (lane + 32 * i) % COPIES * 4;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        u32 p;
        const u64 row = row_of(lane + 32 * i, p);
        scales_from[i] = a.parts[p].scales + row * n_groups;
    }
    const uint4* const x_from = a.x + (u64)x_rows[threadIdx.x / 4] * a.n_units * 16 + threadIdx.x % 4;
    const float* const sums_from = a.x_sums + (u64)x_rows[threadIdx.x % JOBS] * a.n_units * N_SPANS + threadIdx.x / JOBS;
    auto bring = [&](u32 unit) {
        if (unit < a.n_units) {
            Stage& stage = stages[unit % STAGES];
#pragma unroll
            for (int s = 0; s < 4; ++s) copy_async<16>(&stage.x[s][threadIdx.x / 4][threadIdx.x % 4], x_from + (u64)unit * 16 + 4 * s);
            if (CODE == CODE_AFFINE && threadIdx.x < JOBS * N_SPANS)
                copy_async<4>(&stage.x_sums[threadIdx.x / JOBS][threadIdx.x % JOBS], sums_from + unit * N_SPANS);
#pragma unroll
            for (int i = 0; i < 2 * COPIES; ++i)
                copy_async<16>(&stage.codes[warp][(lane + 32 * i) / COPIES][(lane + 32 * i) % COPIES * 4], codes_from[i] + unit * UNIT_WORDS);
#pragma unroll
            for (int i = 0; i < 2; ++i)
                copy_async<ROW_SCALES>(stage.scales[warp][lane + 32 * i], scales_from[i] + (GROUP == 128 ? unit / 2 : unit * N_SPANS));
        }
        end_of_copies();
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) bring(s);
    float sum[4][4][4] = {};
    for (u32 unit = 0; unit < a.n_units; ++unit) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        bring(unit + STAGES - 1);
        const Stage& stage = stages[unit % STAGES];
#pragma unroll
        for (int span = 0; span < N_SPANS; ++span) {
            float product[4][4][4] = {};
#pragma unroll
            for (int i = 0; i < 4 / N_SPANS; ++i) {
                const int s = span * (4 / N_SPANS) + i;
                uint4 b[4];
#pragma unroll
                for (int n8 = 0; n8 < 4; ++n8) b[n8] = stage.x[s][8 * n8 + r][q];
#pragma unroll
                for (int m = 0; m < 4; ++m) {
                    u32 pieces[2][PIECE_WORDS], w[4];
                    load_piece(stage.codes[warp][16 * m + r], q, pieces[0]);
                    load_piece(stage.codes[warp][16 * m + 8 + r], q, pieces[1]);
                    fragment_of(pieces[0], s, w[0], w[2]);
                    fragment_of(pieces[1], s, w[1], w[3]);
#pragma unroll
                    for (int n8 = 0; n8 < 4; ++n8) multiply(product[m][n8], w, b[n8].x, b[n8].y);
#pragma unroll
                    for (int n8 = 0; n8 < 4; ++n8) multiply(product[m][n8], w, b[n8].z, b[n8].w);
                }
            }
#pragma unroll
            for (int m = 0; m < 4; ++m)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const ScaleWord word = stage.scales[warp][16 * m + 8 * half + r][span];
                    const float scale = scale_of(word, 0), bias = fmaf(-OFFSET, scale, bias_of(word));
#pragma unroll
                    for (int n8 = 0; n8 < 4; ++n8)
#pragma unroll
                        for (int i = 0; i < 2; ++i) {
                            float& of = sum[m][n8][2 * half + i];
                            of = fmaf(scale, product[m][n8][2 * half + i], of);
                            if (CODE == CODE_AFFINE) of = fmaf(bias, stage.x_sums[span][8 * n8 + 2 * q + i], of);
                        }
                }
        }
    }

#pragma unroll
    for (int m = 0; m < 4 / STREAMS; ++m)
#pragma unroll
        for (int n8 = 0; n8 < 4; ++n8)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const u32 row = row0 + 16 * m + 8 * (i / 2) + r, column = 8 * n8 + 2 * q + i % 2;
                float value = sum[m][n8][i];
                if (STREAMS == 2) value = silu_times(value, sum[m + 2][n8][i]);
                if (row < a.n_out && column < n) {
                    const u64 at = (u64)jobs[column] * a.y_stride + row;
                    a.y[at] = a.residual ? value + a.residual[at] : value;
                }
            }
}
