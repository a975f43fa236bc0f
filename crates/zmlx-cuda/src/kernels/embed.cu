// Rows of a quantised table, dequantised: one rounding of `scale·q + bias` for each value. The format is set from outside.

#include "device.cuh"
#include "format.cuh"

struct EmbedArgs {
    const u32* data;
    const ScaleWord* scales;
    const u32* ids;
    float* y;
    u32 y_stride;
    u32 n_in;
    u32 group_shift; // a group is 2^shift chunks
    u32 first_row;   // of this part among the table's rows
    u32 n_rows;
};

extern "C" __global__ void __launch_bounds__(256) embed(const __grid_constant__ EmbedArgs a) {
    wait_for_inputs();
    u32 row = a.ids[blockIdx.y] - a.first_row;
    u32 k = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= a.n_rows || k >= a.n_in) return;
    u32 chunk = k / 32, n_chunks = a.n_in / 32;
    u32 code = code_at(a.data + ((u64)row * n_chunks + chunk) * BITS, k % 32);
    ScaleWord w = a.scales[((u64)row * n_chunks + chunk) >> a.group_shift];
    float scale = scale_of(w, (int)(k % 32 / 16));
    float value = CODE == CODE_FP4 ? scale * (0.5f * (float)fp4_doubled(code)) : fmaf(scale, (float)code, bias_of(w));
    a.y[(u64)blockIdx.y * a.y_stride + k] = value;
}
