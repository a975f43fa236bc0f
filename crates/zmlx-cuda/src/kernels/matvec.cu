// Products of quantised matrices with few rows of activations, the weights read once: `linear`, `gather_linear`,
// `head_linear`, `gather_qmm_combine`, and with two matrices `qmm_swiglu` and `gather_qmm_swiglu`.
//
// A block has one job: an output row (of a token, or of a token's slot). Each warp takes ROWS rows of the matrix; its lanes
// share out the chunks, DEPTH of them per lane at once. Activations are 16-bit integers with a scale for each 32 of them, as
// two planes of bytes, so that a 4-bit weight costs about one instruction. Sums are 32-bit integers within a chunk and f32
// beyond it. Weights are asked for before the kernel waits for its inputs, unless it is these that say which ones.

//
// One kernel per compilation. Set from outside: the format, ROWS, REPEATS (whether a warp takes more rows when it has those),
// DEPTH, LOOP (whether a lane has more chunks than DEPTH),
// STREAMS (2 for gate and up; ROWS · STREAMS is at most 4), STEPS, NORM, STAGED and SHARED (see matvec.cuh), THREADS, ROUTE,
// CLUSTER and PER_LANE (see route.cuh; 0 for other products), QUERIES and MERGE (what comes before and after attention on latents,
// see matvec.cuh), RANKS (whether the result is the sum of the products of several GPUs; all blocks are on the GPU at once then, so
// that none waits for one that has no room).

#include "device.cuh"
#include "format.cuh"
#include "activations.cuh"
#include "route.cuh"
#if QUERIES
#include "position.cuh"
#endif
#if RANKS
#include "mailbox.cuh"
#endif
#include "matvec.cuh"
#if RANKS
// A barrier follows the beginning of the exchange, each row is summed up once, and no factor is multiplied in after the products:
// the compiler could round it differently on the rank that sends and on those that receive.
static_assert(STAGED == STAGED_NO && !NORM && !REPEATS && STREAMS == 1 && !ROUTE && !QUERIES && !MERGE);
#endif

// So few registers that several blocks fit a multiprocessor, of this kernel and of the next one.
#define BOUNDS __launch_bounds__(THREADS, THREADS > 256 ? 1 : STREAMS == 2 ? 3 : 2)

extern "C" __global__ void BOUNDS matvec(const __grid_constant__ MatvecArgs a) {
    extern __shared__ uint4 shared[];
    const u32 n_items = a.n_slots * a.n_chunks;
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = blockDim.x >> 5;
    const u32 job = blockIdx.x;
    u8* const staged = a.staged + (u64)(job / a.in.rows_per_x) * staged_bytes(n_items);
    uint4* planes = STAGED == STAGED_TAKE ? (uint4*)staged : shared;
    float2* sums = (float2*)(planes + 4 * n_items);
    float* squares_of_threads = (float*)((float2*)(shared + 4 * n_items) + n_items);
    float* kept_factor = (float*)((float2*)((uint4*)staged + 4 * n_items) + n_items);
    const u32 n_groups = a.n_chunks >> a.group_shift;
    // Where SHARED, a sum's last slot is the shared one, or else a token's last job.
    const u32 choices = STREAMS == 2 ? a.in.rows_per_x : a.n_slots;
    const bool is_shared_job = SHARED && STREAMS == 2 && job % choices == choices - 1;

#if QUERIES
    if (blockIdx.y == gridDim.y - 1) return put_positions(a.positions, job, a.y + (u64)job * a.y_stride, a.n_out, a.y_stride);
#endif
    float factor = 1.0f;
    bool is_first = true;
#if ROUTE
    __shared__ float of_row[32 * PER_LANE];
    const Logits logits(of_row);
#endif
#if RANKS
    __shared__ u32 number;
    Exchange exchange{a.mailboxes, &number};
#endif
    // Matrices with very many rows have fewer blocks, which make the activations once.
    for (u32 row0 = (blockIdx.y * n_warps + warp) * ROWS; is_first || (REPEATS && row0 < a.n_out); row0 += gridDim.y * n_warps * ROWS) {
        // Rows past the end are read as the last one and not written.
        const u32* data[STREAMS][ROWS];
        const ScaleWord* scales[STREAMS][ROWS];
        u32 mat_rows[STREAMS];
#pragma unroll
        for (int s = 0; s < STREAMS; ++s) {
            mat_rows[s] = a.parts[s].n_rows;
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                u32 row = min(row0 + r, a.n_out - 1), p = s;
                if (STREAMS == 1) {
                    while (p + 1 < a.n_parts && row >= a.parts[p + 1].first_row) ++p;
                    row -= a.parts[p].first_row;
                }
                data[s][r] = a.parts[p].data + (u64)row * a.n_chunks * BITS;
                scales[s][r] = a.parts[p].scales + (u64)row * n_groups;
            }
        }

        EarlyNorm norm;
        if (NORM && STAGED != STAGED_TAKE && is_first) load_norm(a, threadIdx.x, norm);
        const bool is_early = !a.experts || a.experts_are_early || is_shared_job;
        if (!is_early && is_first) wait_for_inputs();
        float sum[4] = {}; // of stream and row
        float residual = 0.0f;
        u32 base = lane;
        do {
            Chunk chunks[DEPTH][STREAMS][ROWS];
            ScaleWord words[DEPTH][STREAMS][ROWS];
#pragma unroll
            for (int d = 0; d < DEPTH; ++d) {
                u32 item = base + 32 * d;
                if (item < n_items) {
                    u32 slot = slot_of(a, item), chunk = item - slot * a.n_chunks;
                    const bool is_shared = SHARED && (STREAMS == 2 ? is_shared_job : slot + 1 == a.n_slots);
                    const u32 choice = SHARED && STREAMS == 2 ? job - job / choices : job * (a.n_slots - SHARED) + slot;
                    u32 mat = is_shared ? 0 : a.experts ? a.experts[choice] : a.n_mats == 1 ? 0 : job % a.n_mats;
#pragma unroll
                    for (int s = 0; s < STREAMS; ++s) {
                        const u64 before = (u64)mat * mat_rows[s];
                        u64 data_at = (before * a.n_chunks + chunk) * BITS, scale_at = before * n_groups + (chunk >> a.group_shift);
                        if (is_shared) {
                            // As far from the experts' matrices, which are aligned as all buffers are.
                            data_at += a.parts[STREAMS + s].data - a.parts[s].data;
                            scale_at += a.parts[STREAMS + s].scales - a.parts[s].scales;
                        }
#pragma unroll
                        for (int r = 0; r < ROWS; ++r) {
                            chunks[d][s][r] = load_chunk(data[s][r] + data_at);
                            words[d][s][r] = load_weight(scales[s][r] + scale_at);
                        }
                    }
                }
            }
            if (base == lane) {
                if (is_early && is_first) wait_for_inputs();
#if RANKS
                if (is_first) exchange.begin();
#endif
                if (a.residual && row0 + lane / 8 < a.n_out) residual = a.residual[(u64)job * a.y_stride + row0 + lane / 8];
                if (STAGED != STAGED_TAKE && is_first) {
#if MERGE
                    const float* x = merged_row(a, job);
#else
                    const u32 first = job * a.n_slots;
                    const float* x = a.in.x + (u64)(a.in.rows_per_x == 1 ? first : first / a.in.rows_per_x) * a.in.stride;
#endif
                    float squares = stage_planes(a, job, x, planes, sums, norm);
                    if (NORM) squares_of_threads[threadIdx.x] = squares;
                    __syncthreads();
                    if (STAGED == STAGED_KEEP && blockIdx.y == gridDim.y - 1 && job % a.in.rows_per_x == 0)
                        for (u32 i = threadIdx.x; i < n_items * 18; i += blockDim.x) ((u32*)staged)[i] = ((const u32*)shared)[i];
                }
            }
#pragma unroll
            for (int d = 0; d < DEPTH; ++d) {
                u32 item = base + 32 * d;
                if (item < n_items) {
                    u32 x[16];
#pragma unroll
                    for (int v = 0; v < 4; ++v) {
                        uint4 p = planes[v * n_items + item];
                        x[4 * v] = p.x, x[4 * v + 1] = p.y, x[4 * v + 2] = p.z, x[4 * v + 3] = p.w;
                    }
                    float2 of_x = sums[item];
#pragma unroll
                    for (int s = 0; s < STREAMS; ++s)
#pragma unroll
                        for (int r = 0; r < ROWS; ++r)
                            sum[s * ROWS + r] += dot_chunk(chunks[d][s][r], words[d][s][r], x, of_x.x, of_x.y);
                }
            }
            base += 32 * DEPTH;
        } while (LOOP && base - lane < n_items);

        if (NORM && is_first) factor = STAGED == STAGED_TAKE ? *kept_factor : factor_of_squares(a, squares_of_threads);
        if (STAGED == STAGED_KEEP && is_first && blockIdx.y == gridDim.y - 1 && job % a.in.rows_per_x == 0 && threadIdx.x == 0) *kept_factor = factor;
        float value = sum_of_four(sum) * factor;
        if (STREAMS == 2) value = silu_times(value, __shfl_down_sync(FULL_WARP, value, 8 * ROWS));
        const u32 r = lane / 8, row = row0 + r;
        const bool is_real = lane % 8 == 0 && r < ROWS && row < a.n_out;
#if RANKS
        if (is_real) {
            exchange.send(job * a.y_stride + row, value);
            value = exchange.sum(job * a.y_stride + row, value);
        }
#endif
        if (is_real) a.y[(u64)job * a.y_stride + row] = value + residual;
#if ROUTE
        logits.wait();
        if (is_real) logits.put(row, value);
        logits.route(a.route, job, of_row, ROUTE);
#endif
        is_first = false;
    }
#if RANKS
    exchange.end();
#endif
}
