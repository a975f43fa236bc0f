// Rows of activations as matrix products take them: in bf16 pairs, in the order of fragments.cuh. Set from outside: BITS and
// GROUP of the weights.

#include "device.cuh"
#include "activations.cuh"
#include "tensor_core.cuh"
#include "fragments.cuh"

struct SplitArgs {
    Inputs in;
    u32 n_in; // a multiple of UNIT
    uint4* y; // [n_rows, n_in / UNIT, 4 steps, 4 quarters]: high parts, then low parts
    float* sums; // [n_rows, n_in / SPAN]
};

// A block per row.
extern "C" __global__ void __launch_bounds__(256) split(const __grid_constant__ SplitArgs a) {
    __shared__ float scratch[32];
    wait_for_inputs();
    const float* x = a.in.x + (u64)blockIdx.x * a.in.stride;
    const float factor = a.in.norm ? norm_factor(a.in, x, a.n_in, scratch) : 1.0f;
    uint4* y = a.y + (u64)blockIdx.x * (a.n_in / UNIT) * 16;
    float* sums = a.sums + (u64)blockIdx.x * (a.n_in / SPAN);
    const u32 n_runs = a.n_in / 8;
    for (u32 first = 0; first < n_runs; first += blockDim.x) { // whole warps
        const u32 run = first + threadIdx.x, k = 8 * min(run, n_runs - 1);
        float4 low_half = *(const float4*)(x + k), high_half = *(const float4*)(x + k + 4);
        float v[8] = {low_half.x, low_half.y, low_half.z, low_half.w, high_half.x, high_half.y, high_half.z, high_half.w};
        if (a.in.norm) {
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] = v[i] * factor * a.in.norm[k + i];
        }
        // The order of codes in a word: of 8 columns 0 and 4, 1 and 5 fall out together, or of bytes 0 and 1, 2 and 3.
        const int order[8] = {0, BITS == 8 ? 1 : 4, BITS == 8 ? 2 : 1, BITS == 8 ? 3 : 5, BITS == 8 ? 4 : 2, BITS == 8 ? 5 : 6, BITS == 8 ? 6 : 3, 7};
        uint4 of_step[2];
        float sum = 0.0f;
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            u32 high[2], low[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                split_pair(v[order[4 * s + 2 * i]], v[order[4 * s + 2 * i + 1]], high[i], low[i]);
                sum += (bf16_low(high[i]) + bf16_low(low[i])) + (bf16_high(high[i]) + bf16_high(low[i]));
            }
            of_step[s] = make_uint4(high[0], high[1], low[0], low[1]);
        }
#pragma unroll
        for (int offset = 1; offset < SPAN / 8; offset *= 2) sum += __shfl_xor_sync(FULL_WARP, sum, offset);
        if (run >= n_runs) continue;
        const u32 j = run % 8;
        uint4* to = y + run / 8 * 16 + 2 * pair_of(j) * 4 + quarter_of(j);
        to[0] = of_step[0], to[4] = of_step[1];
        if (run % (SPAN / 8) == 0) sums[run / (SPAN / 8)] = sum;
    }
}
