// Rows of a table of floats, or of e4m3 codes with a bf16 scale for each 32 of them. ELEMENT is set from outside.

#include "device.cuh"
#include "element.cuh"

struct EmbedDenseArgs {
    const u8* data;
    const u16* scales;
    const u32* ids;
    float* y;
    u32 y_stride;
    u32 n_in;
    u32 first_row; // of this part among the table's rows
    u32 n_rows;
};

extern "C" __global__ void __launch_bounds__(256) embed_dense(const __grid_constant__ EmbedDenseArgs a) {
    wait_for_inputs();
    u32 row = a.ids[blockIdx.y] - a.first_row;
    u32 k = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= a.n_rows || k >= a.n_in) return;
    u64 at = (u64)row * a.n_in + k;
    float value = element(a.data + at * ELEMENT_BYTES);
    if constexpr (ELEMENT == ELEMENT_FP8) value *= __uint_as_float((u32)a.scales[at / 32] << 16);
    a.y[(u64)blockIdx.y * a.y_stride + k] = value;
}
