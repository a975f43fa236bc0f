// Ops on values and on rows of values: sums, norms, activations, softmax, and copies.

#include "device.cuh"

#define EACH(i, n) for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x)

struct BinaryArgs {
    const float* a;
    const float* b;
    float* y;
    u64 n;
    u64 b_period; // b repeats after so many values
};

extern "C" __global__ void add(const __grid_constant__ BinaryArgs a) {
    wait_for_inputs();
    EACH(i, a.n) a.y[i] = a.a[i] + a.b[a.b_period == a.n ? i : i % a.b_period];
}

extern "C" __global__ void swiglu(const __grid_constant__ BinaryArgs a) {
    wait_for_inputs();
    EACH(i, a.n) a.y[i] = silu_times(a.a[i], a.b[i]);
}

struct GatedArgs {
    const float* gate;
    const float* up;
    float* y;
    u64 n;
    float alpha; // of the clamped one
    float limit;
};

// gelu(gate) * up: x * sigmoid(2z) is x/2 * (1 + tanh(z)), and nothing cancels.
extern "C" __global__ void geglu(const __grid_constant__ GatedArgs a) {
    wait_for_inputs();
    EACH(i, a.n) {
        const float x = a.gate[i];
        a.y[i] = x / (1.0f + expf(-1.5957691f * (x + 0.044715f * x * x * x))) * a.up[i];
    }
}

// NaN stays NaN.
extern "C" __global__ void clamped_swiglu(const __grid_constant__ GatedArgs a) {
    wait_for_inputs();
    EACH(i, a.n) {
        float gate = a.gate[i], up = a.up[i];
        gate = gate > a.limit ? a.limit : gate;
        up = up > a.limit ? a.limit : up < -a.limit ? -a.limit : up;
        a.y[i] = gate / (1.0f + expf(-a.alpha * gate)) * (up + 1.0f);
    }
}

struct GatherAddArgs {
    const float* x;     // [n_rows, width]
    const float* bank;  // [n_experts, width]
    const u32* experts; // [n_rows]
    float* y;
    u32 width;
    u64 n;
};

extern "C" __global__ void gather_add(const __grid_constant__ GatherAddArgs a) {
    wait_for_inputs();
    EACH(i, a.n) a.y[i] = a.x[i] + a.bank[(u64)a.experts[i / a.width] * a.width + i % a.width];
}

struct HeldExpertsArgs {
    const u32* experts;
    const float* weights;
    u32* y_experts;
    float* y_weights;
    u64 n;
    u32 first; // of the held experts
    u32 n_held;
};

extern "C" __global__ void held_experts(const __grid_constant__ HeldExpertsArgs a) {
    wait_for_inputs();
    EACH(i, a.n) {
        const u32 own = a.experts[i] - a.first; // wraps around below the first one
        a.y_experts[i] = own < a.n_held ? own : 0;
        a.y_weights[i] = own < a.n_held ? a.weights[i] : 0.0f;
    }
}

struct MulTakenArgs {
    const float* x;
    const float* vector;
    const u32* indices;
    float* y;
    u64 n;
};

extern "C" __global__ void mul_taken(const __grid_constant__ MulTakenArgs a) {
    wait_for_inputs();
    EACH(i, a.n) a.y[i] = a.x[i] * a.vector[a.indices[i]];
}

extern "C" __global__ void mul(const __grid_constant__ BinaryArgs a) {
    wait_for_inputs();
    EACH(i, a.n) a.y[i] = a.a[i] * a.b[i];
}

// Here b_period values follow each other that share one of b.
extern "C" __global__ void mul_sigmoid(const __grid_constant__ BinaryArgs a) {
    wait_for_inputs();
    EACH(i, a.n) a.y[i] = a.a[i] * sigmoid_of(a.b[a.b_period == 1 ? i : i / a.b_period]);
}

struct UnaryArgs {
    const float* x;
    float* y;
    u64 n;
    float factor;
};

extern "C" __global__ void scale(const __grid_constant__ UnaryArgs a) {
    wait_for_inputs();
    EACH(i, a.n) a.y[i] = a.x[i] * a.factor;
}

extern "C" __global__ void soft_cap(const __grid_constant__ UnaryArgs a) {
    wait_for_inputs();
    EACH(i, a.n) a.y[i] = a.factor * tanhf(a.x[i] / a.factor);
}

extern "C" __global__ void sigmoid(const __grid_constant__ UnaryArgs a) {
    wait_for_inputs();
    EACH(i, a.n) a.y[i] = sigmoid_of(a.x[i]);
}

struct RowsArgs {
    Rows x;
    u32 width;
    float* y;
    const float* weight; // of the norm
    float eps;
};

// A block per row.
extern "C" __global__ void __launch_bounds__(256) rms_norm(const __grid_constant__ RowsArgs a) {
    __shared__ float scratch[32];
    wait_for_inputs();
    const float* x = a.x.row(blockIdx.x, a.width);
    float* y = a.y + (u64)blockIdx.x * a.width;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < a.width; i += blockDim.x) sum = fmaf(x[i], x[i], sum);
    float factor = 1.0f / sqrtf(block_sum(sum, scratch) / (float)a.width + a.eps);
    for (u32 i = threadIdx.x; i < a.width; i += blockDim.x) y[i] = x[i] * factor * a.weight[i];
}

// A block per row; of up to 1024 values a block is one warp, and sums have the order of the routers.
extern "C" __global__ void __launch_bounds__(256) softmax(const __grid_constant__ RowsArgs a) {
    __shared__ float scratch[32];
    wait_for_inputs();
    const float* x = a.x.row(blockIdx.x, a.width);
    float* y = a.y + (u64)blockIdx.x * a.width;
    float most = -infinity();
    for (u32 i = threadIdx.x; i < a.width; i += blockDim.x) most = max_or_nan(most, x[i]);
    most = block_max(most, scratch);
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < a.width; i += blockDim.x) sum += expf(x[i] - most);
    const float inverse = 1.0f / block_sum(sum, scratch);
    for (u32 i = threadIdx.x; i < a.width; i += blockDim.x) y[i] = expf(x[i] - most) * inverse; // as the routers do
}

extern "C" __global__ void __launch_bounds__(256) div_by_sum(const __grid_constant__ RowsArgs a) {
    __shared__ float scratch[32];
    wait_for_inputs();
    const float* x = a.x.row(blockIdx.x, a.width);
    float* y = a.y + (u64)blockIdx.x * a.width;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < a.width; i += blockDim.x) sum += x[i];
    sum = block_sum(sum, scratch) + a.eps;
    for (u32 i = threadIdx.x; i < a.width; i += blockDim.x) y[i] = x[i] / sum;
}

struct CopyArgs {
    Rows x;
    float* y;
    u32 width;    // of a row of x
    u32 first;    // column
    u32 n_columns;
    const u32* rows; // which rows, or null: all in order
    u64 n;        // values of y
};

// Columns of rows, one row of y after the other.
extern "C" __global__ void copy_rows(const __grid_constant__ CopyArgs a) {
    wait_for_inputs();
    EACH(i, a.n) {
        u32 r = (u32)(i / a.n_columns), c = (u32)(i % a.n_columns);
        a.y[i] = a.x.row(a.rows ? a.rows[r] : r, a.width)[a.first + c];
    }
}

struct TakeArgs {
    const float* x; // [n, width]
    const u32* indices; // [n, k]
    float* y;
    u32 width;
    u32 k;
    u64 n;
};

extern "C" __global__ void take_last(const __grid_constant__ TakeArgs a) {
    wait_for_inputs();
    EACH(i, a.n) a.y[i] = a.x[i / a.k * a.width + a.indices[i]];
}

struct WeightedSumArgs {
    const float* x; // [n, top_k, width]
    const float* weights; // [n, top_k]
    float* y;
    u32 width;
    u32 top_k;
    u64 n;
};

extern "C" __global__ void weighted_sum(const __grid_constant__ WeightedSumArgs a) {
    wait_for_inputs();
    EACH(i, a.n) {
        u64 t = i / a.width, c = i % a.width;
        float sum = 0.0f;
        for (u32 s = 0; s < a.top_k; ++s)
            sum = fmaf(a.weights[t * a.top_k + s], a.x[(t * a.top_k + s) * a.width + c], sum);
        a.y[i] = sum;
    }
}

struct ArgmaxArgs {
    const float* x; // [n, width]
    u32* y;
    u32 width;
    u64* best; // [n], zero between calls
    u32* n_done; // [n], zero between calls
};

// Several blocks share a row; the last one to end writes the index.
extern "C" __global__ void __launch_bounds__(256) argmax(const __grid_constant__ ArgmaxArgs a) {
    __shared__ u64 of_warps[8];
    wait_for_inputs();
    const float* x = a.x + (u64)blockIdx.y * a.width;
    u64 best = 0;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < a.width; i += gridDim.x * blockDim.x) {
        u64 key = (u64)ordered(x[i]) << 32 | (u32)~i; // of equal values the lower index
        best = key > best ? key : best;
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
        u64 other = __shfl_xor_sync(FULL_WARP, best, offset);
        best = other > best ? other : best;
    }
    if ((threadIdx.x & 31) == 0) of_warps[threadIdx.x >> 5] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (u32 w = 1; w < blockDim.x / 32; ++w) best = of_warps[w] > best ? of_warps[w] : best;
        atomicMax(a.best + blockIdx.y, best);
        __threadfence();
        if (atomicAdd(a.n_done + blockIdx.y, 1u) == gridDim.x - 1) {
            __threadfence();
            a.y[blockIdx.y] = ~(u32)atomicExch(a.best + blockIdx.y, 0ull);
            a.n_done[blockIdx.y] = 0;
        }
    }
}
