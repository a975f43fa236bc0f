// Activations as the products need them, in shared memory: made anew by every block, which costs less than another kernel.

// The input rows of a product: `n_slots` rows of `width` values, the first one being row `first`.
struct Inputs {
    const float* x;
    u32 stride;          // from one row to the next; a multiple of 4 for quantised products, as x is aligned to 16 bytes
    u32 rows_per_x;      // so many jobs' slots in turn use the same row
    const float* norm;   // weight of a norm that comes first, or null
    float eps;
    const float* slot_weights; // what multiplies each slot's row, or null
};

// The factor of the norm that comes first.
__device__ __forceinline__ float norm_factor(const Inputs& in, const float* x, u32 width, float* scratch) {
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) sum = fmaf(x[i], x[i], sum);
    return 1.0f / sqrtf(block_sum(sum, scratch) / (float)width + in.eps);
}
