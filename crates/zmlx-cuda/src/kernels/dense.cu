// Products with matrices of floats (f32, f16, bf16) or of e4m3 codes (mxfp8), whose values span more than 16 bits: the ops of
// matvec.cu, activations and sums in f32.
//
// A lane takes V consecutive weights at once, 16 bytes where rows are multiples of that. Set from outside: ELEMENT, V, ROWS,
// STREAMS, THREADS, ROUTE, CLUSTER and PER_LANE as in matvec.cu.

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

// Weights as they lie in memory.
#define IS_VECTOR (V * ELEMENT_BYTES == 16)

__device__ __forceinline__ void elements_of(uint4 v, float (&w)[V]) {
    u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < V; ++i) {
        if constexpr (ELEMENT == ELEMENT_F32) w[i] = __uint_as_float(words[i % 4]);
        if constexpr (ELEMENT == ELEMENT_F16) w[i] = f16_to_f32((u16)(words[i / 2] >> (16 * (i % 2))));
        if constexpr (ELEMENT == ELEMENT_BF16) w[i] = i % 2 ? bf16_high(words[i / 2]) : bf16_low(words[i / 2]);
        if constexpr (ELEMENT == ELEMENT_FP8) w[i] = fp8_to_f32((words[i / 4] >> (8 * (i % 4))) & 0xff);
    }
}

__device__ __forceinline__ void load_elements(const u8* p, float (&w)[V]) {
    if constexpr (IS_VECTOR) {
        elements_of(load_weight((const uint4*)p), w);
    } else {
#pragma unroll
        for (int i = 0; i < V; ++i) w[i] = element(p + i * ELEMENT_BYTES);
    }
}

// Vectors of its row that a lane asks for before the kernel waits, where a warp has one row.
#define EARLY (ROWS * STREAMS == 1 && IS_VECTOR ? 8 : 0)

extern "C" __global__ void __launch_bounds__(THREADS) dense(const __grid_constant__ DenseArgs a) {
    extern __shared__ float x[]; // [n_slots · n_in], then scratch
    const Inputs& in = a.in;
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = blockDim.x >> 5;
    const u32 job = blockIdx.x, row0 = (blockIdx.y * n_warps + warp) * ROWS;
    const u32 first = job * a.n_slots, per_row = a.n_in / V, n_items = a.n_slots * per_row;
    float* scratch = x + a.n_slots * a.n_in;

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
    uint4 early[EARLY + 1];
    const u32 n_early = !a.experts && a.n_slots == 1 ? EARLY : 0;
    if (n_early) {
        const u64 row = (u64)(a.n_mats == 1 ? 0 : job % a.n_mats) * part[0][0]->n_rows + rows[0][0];
#pragma unroll
        for (int d = 0; d < EARLY; ++d)
            if (lane + 32 * d < n_items) early[d] = load_weight((const uint4*)(part[0][0]->data + row * a.n_in * ELEMENT_BYTES) + lane + 32 * d);
    }
#if ROUTE
    __shared__ float of_row[32 * PER_LANE];
    const Logits logits(of_row);
    logits.wait();
#endif

    // The norm's factor is the same for all of a row: it is applied to the products.
    wait_for_inputs();
    float squares = 0.0f;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < a.n_slots * a.n_in; i += blockDim.x) {
        u32 slot = a.n_slots == 1 ? 0 : i / a.n_in, k = i - slot * a.n_in;
        float v = in.x[(u64)((first + slot) / in.rows_per_x) * in.stride + k];
        squares = fmaf(v, v, squares);
        if (in.norm) v *= in.norm[k];
        if (in.slot_weights) v *= in.slot_weights[first + slot];
        x[i] = v;
    }
    float factor = 1.0f;
    if (in.norm) factor = rsqrtf(block_sum(squares, scratch) / (float)a.n_in + in.eps);
    __syncthreads();

    float sum[STREAMS][ROWS] = {};
    auto add = [&](int s, int r, const float (&w)[V], u32 at, const u16* scale) {
        float partial = 0.0f;
#pragma unroll
        for (int i = 0; i < V; ++i) partial = fmaf(w[i], x[at + i], partial);
        if constexpr (ELEMENT == ELEMENT_FP8)
            sum[s][r] = fmaf(partial, __uint_as_float((u32)load_weight(scale) << 16), sum[s][r]);
        else
            sum[s][r] += partial;
    };
#pragma unroll
    for (int d = 0; d < EARLY; ++d) {
        const u32 item = lane + 32 * d;
        if (item < n_items && n_early) {
            float w[V];
            elements_of(early[d], w);
            const u64 row = (u64)(a.n_mats == 1 ? 0 : job % a.n_mats) * part[0][0]->n_rows + rows[0][0];
            add(0, 0, w, item * V, part[0][0]->scales + (row * a.n_in + item * V) / 32);
        }
    }
#pragma unroll DEPTH
    for (u32 item = lane + 32 * n_early; item < n_items; item += 32) {
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
                add(s, r, w, slot * a.n_in + k, part[s][r]->scales + (row * a.n_in + k) / 32);
            }
    }

#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        float value = warp_sum(sum[0][r]) * factor;
        if (STREAMS == 2) value = silu_times(value, warp_sum(sum[STREAMS - 1][r]) * factor);
        u32 row = row0 + r;
        if (lane == r && row < a.n_out) {
            u64 at = (u64)job * a.y_stride + row;
            if (a.residual) value += a.residual[at];
            a.y[at] = value;
#if ROUTE
            logits.put(row, value);
#endif
        }
    }
#if ROUTE
    logits.route(a.route, job, of_row, ROUTE);
#endif
}
