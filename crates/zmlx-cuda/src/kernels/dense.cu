// Products with matrices of floats (f32, f16, bf16) or of e4m3 codes (mxfp8), whose values span more than 16 bits: the ops of
// matvec.cu, activations and sums in f32.
//
// A lane takes V consecutive weights at once, 16 bytes where rows are multiples of that. Set from outside: ELEMENT, V, ROWS,
// STREAMS, ROUTE and PER_LANE as in matvec.cu.

#include "device.cuh"
#include "element.cuh"
#include "activations.cuh"
#include "route.cuh"

#define DEPTH 4

struct Part {
    const u8* data;
    const u16* scales;
    u32 first_row; // in the output
    u32 n_rows;
};

#define MAX_PARTS 4

struct DenseArgs {
    Part parts[MAX_PARTS]; // as in matvec.cu
    u32 n_parts;
    u32 n_out;
    u32 n_in;
    u32 n_slots;
    u32 n_mats;
    Inputs in;
    const u32* experts;
    const float* residual;
    float* y;
    u32 y_stride;
    RouteArgs route; // as in matvec.cuh
};

__device__ __forceinline__ void load_elements(const u8* p, float (&w)[V]) {
    if constexpr (V * ELEMENT_BYTES == 16) {
        uint4 v = load_weight((const uint4*)p);
        u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < V; ++i) {
            if constexpr (ELEMENT == ELEMENT_F32) w[i] = __uint_as_float(words[i]);
            if constexpr (ELEMENT == ELEMENT_F16) w[i] = f16_to_f32((u16)(words[i / 2] >> (16 * (i % 2))));
            if constexpr (ELEMENT == ELEMENT_BF16) w[i] = i % 2 ? bf16_high(words[i / 2]) : bf16_low(words[i / 2]);
            if constexpr (ELEMENT == ELEMENT_FP8) w[i] = fp8_to_f32((words[i / 4] >> (8 * (i % 4))) & 0xff);
        }
    } else {
#pragma unroll
        for (int i = 0; i < V; ++i) w[i] = element(p + i * ELEMENT_BYTES);
    }
}

extern "C" __global__ void __launch_bounds__(256) dense(const __grid_constant__ DenseArgs a) {
    extern __shared__ float x[]; // [n_slots · n_in], then scratch
    const Inputs& in = a.in;
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = blockDim.x >> 5;
    const u32 job = blockIdx.x, row0 = (blockIdx.y * n_warps + warp) * ROWS;
    const u32 first = job * a.n_slots, per_row = a.n_in / V, n_items = a.n_slots * per_row;
    float* scratch = x + a.n_slots * a.n_in;

    wait_for_inputs();
    float factor = 1.0f;
    if (in.norm) factor = norm_factor(in, in.x + (u64)(first / in.rows_per_x) * in.stride, a.n_in, scratch);
    for (u32 i = threadIdx.x; i < a.n_slots * a.n_in; i += blockDim.x) {
        u32 slot = a.n_slots == 1 ? 0 : i / a.n_in, k = i - slot * a.n_in;
        float v = in.x[(u64)((first + slot) / in.rows_per_x) * in.stride + k];
        if (in.norm) v = v * factor * in.norm[k];
        if (in.slot_weights) v *= in.slot_weights[first + slot];
        x[i] = v;
    }
    __syncthreads();

    const Part* part[STREAMS][ROWS];
    u32 rows[STREAMS][ROWS]; // past the end: the last one, which is not written
#pragma unroll
    for (int s = 0; s < STREAMS; ++s)
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            u32 row = min(row0 + r, a.n_out - 1), p = s;
            if (STREAMS == 1) {
                while (p + 1 < a.n_parts && row >= a.parts[p + 1].first_row) ++p;
                row -= a.parts[p].first_row;
            }
            part[s][r] = &a.parts[p];
            rows[s][r] = row;
        }

    float sum[STREAMS][ROWS] = {};
#pragma unroll DEPTH
    for (u32 item = lane; item < n_items; item += 32) {
        u32 slot = a.n_slots == 1 ? 0 : item / per_row;
        u32 k = (item - slot * per_row) * V;
        u32 mat = a.experts ? a.experts[first + slot] : a.n_mats == 1 ? 0 : job % a.n_mats;
#pragma unroll
        for (int s = 0; s < STREAMS; ++s)
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                u64 row = (u64)mat * part[s][r]->n_rows + rows[s][r];
                float w[V];
                load_elements(part[s][r]->data + (row * a.n_in + k) * ELEMENT_BYTES, w);
                float partial = 0.0f;
#pragma unroll
                for (int i = 0; i < V; ++i) partial = fmaf(w[i], x[slot * a.n_in + k + i], partial);
                if constexpr (ELEMENT == ELEMENT_FP8) {
                    u16 scale = load_weight(part[s][r]->scales + (row * a.n_in + k) / 32);
                    sum[s][r] = fmaf(partial, __uint_as_float((u32)scale << 16), sum[s][r]);
                } else {
                    sum[s][r] += partial;
                }
            }
    }

#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        float value = warp_sum(sum[0][r]);
        if (STREAMS == 2) value = silu_times(value, warp_sum(sum[STREAMS - 1][r]));
        u32 row = row0 + r;
        if (lane == r && row < a.n_out) {
            u64 at = (u64)job * a.y_stride + row;
            if (a.residual) value += a.residual[at];
            a.y[at] = value;
        }
    }
    if (ROUTE) route_by_last_block(a.route, job, gridDim.y, ROUTE);
}
