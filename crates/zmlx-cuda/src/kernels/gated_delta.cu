// The gated delta rule: `gated_delta`. Each row of a head's state is one warp's work, from the first token of a span to the last;
// it stays in registers, lane l has columns `l + 32·i`.
//
// Set from outside: PER_LANE, columns of a lane.

#include "device.cuh"
#include "recurrent.cuh"

#define ROWS 4 // of a warp
#define N_WARPS 4

struct DeltaArgs {
    Rows qkv; // [n_tokens, n_channels]: all queries, all keys, all values
    Rows a, b; // [n_tokens, n_v_heads]
    const uint2* spans; // first token and number of tokens of each
    const u32* slots;
    const u32* positions;
    States states;
    u32 states_at; // where the matrices begin in a state
    const float* a_log; // [n_v_heads]
    const float* dt_bias;
    u32 n_k_heads;
    u32 n_v_heads;
    u32 k_dim;
    u32 v_dim;
    float* y; // [n_tokens, n_v_heads, v_dim]
};

extern "C" __global__ void __launch_bounds__(32 * N_WARPS) gated_delta(const __grid_constant__ DeltaArgs a) {
    wait_for_inputs();
    const SpanOf span = span_of(a.spans, a.slots, a.positions, a.states, blockIdx.y);
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 blocks_of_head = (a.v_dim + ROWS * N_WARPS - 1) / (ROWS * N_WARPS);
    const u32 head = blockIdx.x / blocks_of_head, row0 = (blockIdx.x % blocks_of_head * N_WARPS + warp) * ROWS;
    const u32 k_head = head / (a.n_v_heads / a.n_k_heads), n_channels = 2 * a.n_k_heads * a.k_dim + a.n_v_heads * a.v_dim;
    if (row0 >= a.v_dim) return;
    const u64 at = a.states_at + ((u64)head * a.v_dim + row0) * a.k_dim;
    const u32 n_rows = min((u32)ROWS, a.v_dim - row0);
    float state[ROWS][PER_LANE];
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r)
#pragma unroll
        for (u32 i = 0; i < PER_LANE; ++i) state[r][i] = r < n_rows && lane + 32 * i < a.k_dim ? span.before[at + (u64)r * a.k_dim + lane + 32 * i] : 0.0f;
    const float rate = expf(a.a_log[head]), bias = a.dt_bias[head], scale = rsqrtf((float)a.k_dim);
    for (u32 t = span.first; t < span.first + span.n_tokens; ++t) {
        const float* x = a.qkv.row(t, n_channels);
        float q[PER_LANE], k[PER_LANE], of_q = 0.0f, of_k = 0.0f;
#pragma unroll
        for (u32 i = 0; i < PER_LANE; ++i) {
            const u32 column = lane + 32 * i;
            q[i] = column < a.k_dim ? x[k_head * a.k_dim + column] : 0.0f;
            k[i] = column < a.k_dim ? x[(a.n_k_heads + k_head) * a.k_dim + column] : 0.0f;
            of_q = fmaf(q[i], q[i], of_q), of_k = fmaf(k[i], k[i], of_k);
        }
        const float q_factor = scale / sqrtf(warp_sum(of_q) + 1e-6f), k_factor = 1.0f / sqrtf(warp_sum(of_k) + 1e-6f);
        const float raised = a.a.row(t, a.n_v_heads)[head] + bias;
        const float softplus = fmaxf(raised, 0.0f) + log1pf(expf(-fabsf(raised)));
        const float decay = expf(-rate * softplus), beta = sigmoid_of(a.b.row(t, a.n_v_heads)[head]);
#pragma unroll
        for (u32 i = 0; i < PER_LANE; ++i) q[i] *= q_factor, k[i] *= k_factor;
        float found[ROWS], y[ROWS];
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) {
            float sum = 0.0f;
#pragma unroll
            for (u32 i = 0; i < PER_LANE; ++i) state[r][i] *= decay, sum = fmaf(state[r][i], k[i], sum);
            found[r] = sum;
        }
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) {
            const float v = r < n_rows ? x[2 * a.n_k_heads * a.k_dim + head * a.v_dim + row0 + r] : 0.0f;
            const float step = beta * (v - warp_sum(found[r]));
            float sum = 0.0f;
#pragma unroll
            for (u32 i = 0; i < PER_LANE; ++i) state[r][i] = fmaf(step, k[i], state[r][i]), sum = fmaf(state[r][i], q[i], sum);
            y[r] = sum;
        }
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) {
            const float sum = warp_sum(y[r]);
            if (lane == r && r < n_rows) a.y[((u64)t * a.n_v_heads + head) * a.v_dim + row0 + r] = sum;
        }
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r)
#pragma unroll
        for (u32 i = 0; i < PER_LANE; ++i)
            if (r < n_rows && lane + 32 * i < a.k_dim) span.after[at + (u64)r * a.k_dim + lane + 32 * i] = state[r][i];
}
