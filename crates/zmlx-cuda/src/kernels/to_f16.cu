// Rows of activations as matrix products take them: in f16, in chunks of 4 times LANE columns, so that each of four
// lanes finds its LANE consecutive columns. Each row is multiplied by a power of two, so that its largest value lies between 2^13 and
// 2^14. Set from outside: BITS of the weights, and LANE.

#include "device.cuh"
#include "activations.cuh"
#include "tensor_core.cuh"

struct ToF16Args {
    Inputs in;
    u32 n_in; // a multiple of 4 times LANE
    uint4* y; // [n_rows, n_in / (4 · LANE), LANE / 8 pairs of steps, 4 lanes], 8 columns each
    float* factors; // [n_rows]: what products with y must be multiplied by
};

// A block per row.
extern "C" __global__ void __launch_bounds__(256) to_f16(const __grid_constant__ ToF16Args a) {
    __shared__ float scratch[32];
    wait_for_inputs();
    const float* x = a.in.x + (u64)blockIdx.x * a.in.stride;
    const float of_norm = a.in.norm ? norm_factor(a.in, x, a.n_in, scratch) : 1.0f;
    const u32 n_runs = a.n_in / 8;
    auto load = [&](u32 run, float (&v)[8]) {
        const float4 first = *(const float4*)(x + 8 * run), last = *(const float4*)(x + 8 * run + 4);
        v[0] = first.x, v[1] = first.y, v[2] = first.z, v[3] = first.w, v[4] = last.x, v[5] = last.y, v[6] = last.z, v[7] = last.w;
        if (a.in.norm) {
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] = v[i] * of_norm * a.in.norm[8 * run + i];
        }
    };
    // Bits of positive floats are ordered as the floats are. What is not finite does not count, and stays what it is.
    u32 largest = 0;
    for (u32 run = threadIdx.x; run < n_runs; run += blockDim.x) {
        float v[8];
        load(run, v);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const u32 bits = __float_as_uint(fabsf(v[i]));
            if (bits < 0x7f800000u) largest = max(largest, bits);
        }
    }
    largest = __reduce_max_sync(FULL_WARP, largest);
    __shared__ u32 of_warps[32];
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = largest;
    __syncthreads();
    largest = __reduce_max_sync(FULL_WARP, threadIdx.x % 32 < blockDim.x / 32 ? of_warps[threadIdx.x % 32] : 0);
    // The exponent, without its bias of 127; at least -100, so that both factors are floats.
    const int exponent = max((int)(largest >> 23), 27) - 127;
    const float up = __uint_as_float((u32)(127 + 13 - exponent) << 23);
    if (threadIdx.x == 0) a.factors[blockIdx.x] = __uint_as_float((u32)(127 - 13 + exponent) << 23);

    uint4* y = a.y + (u64)blockIdx.x * n_runs;
    for (u32 run = threadIdx.x; run < n_runs; run += blockDim.x) {
        float v[8];
        load(run, v);
        // The order of codes in a word: of 8 columns 0 and 4, 1 and 5 fall out together, or of bytes 0 and 1, 2 and 3.
        const int order[8] = {0, BITS == 8 ? 1 : 4, BITS == 8 ? 2 : 1, BITS == 8 ? 3 : 5, BITS == 8 ? 4 : 2, BITS == 8 ? 5 : 6, BITS == 8 ? 6 : 3, 7};
        u32 pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) pairs[i] = f16_pair(v[order[2 * i]] * up, v[order[2 * i + 1]] * up);
        constexpr u32 PAIRS = LANE / 8;
        const u32 j = run % (4 * PAIRS);
        y[run - j + j % PAIRS * 4 + j / PAIRS] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
}
