// Quantised products: their arguments, and activations as planes of bytes in shared memory.

struct Part {
    const u32* data;
    const ScaleWord* scales;
    u32 first_row; // in the output
    u32 n_rows;
};

#define MAX_PARTS 4

#if QUERIES
// What is put beside the products, which are the first part of queries on latents: their rotated part, and the new key.
struct Positions {
    Source query;         // a row per token and head
    Source latent, key;   // a row per token
    Step step;
    Cache cache;
    u32 n_heads;
};

// Job `job`'s rotated part behind the `width` products at `y`; with a token's first head also its key, into the cache.
__device__ __forceinline__ void put_positions(const Positions& p, u32 job, float* y, u32 width, u32 key_width) {
    const u32 warp = threadIdx.x >> 5, token = job / p.n_heads, position = p.step.positions[token];
    const bool is_query = warp == 0, is_key = warp == 1 && job % p.n_heads == 0;
    // All but the rows themselves is older than the kernel in front.
    HeadTurn turn = {};
    u16* row = nullptr;
    if (is_query) turn = head_turn(p.query, {}, position);
    if (is_key) {
        turn = head_turn(p.latent, p.key, position);
        row = p.cache.page(p.step.slots[token], position) + (u64)(position % PAGE_TOKENS) * p.cache.key_stride;
    }
    wait_for_inputs();
    if (is_query) put_head(p.query, {}, job, position, turn, y + width, key_width - width);
    if (is_key) put_head(p.latent, p.key, token, position, turn, row, p.cache.key_stride);
}
#endif

struct MatvecArgs {
    Part parts[MAX_PARTS]; // the matrices whose rows are the output's, one after the other, or one bank; gate and up
    u32 n_parts;
    u32 n_out;
    u32 n_chunks;    // of a row
    u32 chunk_reciprocal; // 2^32 / n_chunks, rounded up; 0 if n_chunks is 1
    u32 group_shift; // a group is 2^shift chunks
    u32 n_slots;     // rows of activations that are summed up
    u32 n_mats;      // without `experts`, job j takes matrix j % n_mats
    u32 experts_are_early; // they were written before the kernel in front of this one
    Inputs in;
    const u32* experts; // of each job and slot, or null; where SHARED, of all but the last slot of a token
    const float* residual; // added to the result, or null
    float* y;
    u32 y_stride;
    u8* staged; // where STAGED is set, planes, sums and factor of each row of activations: made here, or taken from here
    RouteArgs route; // where ROUTE is set: what becomes of the row when all of it is there
#if QUERIES
    Positions positions;
#endif
#if MERGE
    const float* partial; // in place of `in.x`: for each job what `n_splits` blocks of `latent` found
    u32 n_splits;
#endif
#if RANKS
    Mailboxes mailboxes;
#endif
};

// STAGED, set from outside: what other products of the same activations make of them can be used again.
#define STAGED_NO 0
#define STAGED_KEEP 1 // made here and kept
#define STAGED_TAKE 2 // made by another kernel

// SHARED, set from outside: behind its experts each token takes one more choice, the same for all, without a weight. Its
// matrices follow those of the experts in `parts`.

// Bytes of the planes, sums and factor of one row of activations.
__device__ __forceinline__ u32 staged_bytes(u32 n_items) { return n_items * 72 + 16; }

__device__ __forceinline__ u32 slot_of(const MatvecArgs& a, u32 item) {
    if (a.n_slots == 1) return 0;
    return a.chunk_reciprocal ? __umulhi(item, a.chunk_reciprocal) : item;
}

// STEPS, set from outside: pieces of 8 values that a thread takes at once; NORM: whether a norm comes first.
struct EarlyNorm {
    float4 low[STEPS], high[STEPS];
};

// The norm's weights of a thread's first pieces, which may be read before the kernel waits.
__device__ __forceinline__ void load_norm(const MatvecArgs& a, u32 first_piece, EarlyNorm& norm) {
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        const u32 k = 8 * min(first_piece + s * blockDim.x, 4 * a.n_chunks - 1);
        norm.low[s] = ((const float4*)(a.in.norm + k))[0], norm.high[s] = ((const float4*)(a.in.norm + k))[1];
    }
}

#if MERGE
#define MOST_MERGED 512 // values of a row
#define MAX_SPLITS 64
// The row of a job whose attention several blocks of `latent` shared: their sums, weighted by what each saw.
__device__ __forceinline__ const float* merged_row(const MatvecArgs& a, u32 job) {
    __shared__ __align__(16) float of_warps[THREADS / 32][MOST_MERGED];
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, width = 32 * a.n_chunks, row = width + 4;
    const float* partial = a.partial + (u64)job * a.n_splits * row;
    // A lane has the largest score and the total of every 32nd split.
    float2 of_lane[MAX_SPLITS / 32];
    float most = -infinity(), total = 0.0f;
#pragma unroll
    for (u32 i = 0; i < MAX_SPLITS / 32; ++i) {
        const u32 s = lane + 32 * i;
        of_lane[i] = s < a.n_splits ? *(const float2*)(partial + s * row + width) : make_float2(-infinity(), 0.0f);
        most = max_or_nan(most, of_lane[i].x);
    }
    most = warp_max(most);
#pragma unroll
    for (u32 i = 0; i < MAX_SPLITS / 32; ++i) {
        of_lane[i].x = of_lane[i].x == -infinity() ? 0.0f : expf(of_lane[i].x - most);
        total = fmaf(of_lane[i].y, of_lane[i].x, total);
    }
    const float inverse = 1.0f / warp_sum(total);
    float4 sum[MOST_MERGED / 128] = {};
#pragma unroll 2
    for (u32 s = warp; s < a.n_splits; s += THREADS / 32) {
        const float of = __shfl_sync(FULL_WARP, s < 32 ? of_lane[0].x : of_lane[1].x, s % 32) * inverse;
#pragma unroll
        for (u32 v = 0; v < MOST_MERGED / 128; ++v) {
            if (4 * (lane + 32 * v) >= width) continue;
            const float4 x = *(const float4*)(partial + s * row + 4 * (lane + 32 * v));
            sum[v].x = fmaf(x.x, of, sum[v].x), sum[v].y = fmaf(x.y, of, sum[v].y);
            sum[v].z = fmaf(x.z, of, sum[v].z), sum[v].w = fmaf(x.w, of, sum[v].w);
        }
    }
#pragma unroll
    for (u32 v = 0; v < MOST_MERGED / 128; ++v) *(float4*)&of_warps[warp][4 * (lane + 32 * v)] = sum[v];
    __syncthreads();
    for (u32 column = threadIdx.x; column < width; column += THREADS) {
        float total = 0.0f;
#pragma unroll
        for (u32 w = 0; w < THREADS / 32; ++w) total += of_warps[w][column];
        of_warps[0][column] = total;
    }
    __syncthreads();
    return of_warps[0];
}
#endif

// Rows of activations, from `x` on, as planes of bytes, `[4][n_items]` vectors, and the scale and sum of each chunk. Returns
// this thread's part of the sum of squares, for the norm: its factor is the same for all of a row and is applied to the
// products.
__device__ __forceinline__ float stage_planes(const MatvecArgs& a, u32 job, const float* x, uint4* planes, float2* sums, EarlyNorm& norm) {
    const Inputs& in = a.in;
    const u32 n_items = a.n_slots * a.n_chunks, n_pieces = 4 * n_items;
    u32* words = (u32*)planes;
    float squares = 0.0f;
    for (u32 base = threadIdx.x; base - threadIdx.x < n_pieces; base += STEPS * blockDim.x) {
        float v[STEPS][8];
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const u32 piece = min(base + s * blockDim.x, n_pieces - 1); // past the end: computed, not written
            float4 low = ((const float4*)(x + 8 * piece))[0], high = ((const float4*)(x + 8 * piece))[1];
            v[s][0] = low.x, v[s][1] = low.y, v[s][2] = low.z, v[s][3] = low.w;
            v[s][4] = high.x, v[s][5] = high.y, v[s][6] = high.z, v[s][7] = high.w;
        }
        if (NORM && base != threadIdx.x) load_norm(a, base, norm);
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const u32 piece = base + s * blockDim.x, item = piece / 4, quarter = piece % 4;
            const bool is_real = piece < n_pieces;
            if constexpr (NORM) {
                const float4 low = norm.low[s], high = norm.high[s];
                const float w[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    if (is_real) squares = fmaf(v[s][j], v[s][j], squares);
                    v[s][j] *= w[j];
                }
            }
            // The largest magnitude: bits of positive floats are ordered as they are, and NaN comes last.
            u32 bits = 0;
#pragma unroll
            for (int j = 0; j < 8; ++j) bits = max(bits, __float_as_uint(v[s][j]) & 0x7fffffffu);
            bits = max(bits, __shfl_xor_sync(FULL_WARP, bits, 1));
            bits = max(bits, __shfl_xor_sync(FULL_WARP, bits, 2));
            const float most = __uint_as_float(bits);
            float inverse; // to 2^-23, below what rounding to 16 bits changes
            asm("rcp.approx.f32 %0, %1;" : "=f"(inverse) : "f"(most));
            inverse = fminf(32767.0f * inverse, 3e38f);
            // Adding 1.5·2^23 rounds to an integer, whose lower 16 bits are then the lower 16 of the sum.
            u32 q[8];
            int sum = 0;
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                q[j] = __float_as_uint(fmaf(v[s][j], inverse, 12582912.0f));
                sum += (int)q[j];
            }
            sum -= (int)(8u * 0x4b400000u);
            sum += __shfl_xor_sync(FULL_WARP, sum, 1);
            sum += __shfl_xor_sync(FULL_WARP, sum, 2);
            if (!is_real) continue;
            // Two words of each plane: the even values and the odd ones.
            u32 upper[2], lower[2];
#pragma unroll
            for (int w = 0; w < 2; ++w) {
                u32 low = __byte_perm(q[w], q[w + 2], 0x5140), high = __byte_perm(q[w + 4], q[w + 6], 0x5140);
                upper[w] = __byte_perm(low, high, 0x7632);
                lower[w] = __byte_perm(low, high, 0x5410);
            }
            const u32 at = (quarter / 2 * n_items + item) * 4 + quarter % 2 * 2;
            *(uint2*)(words + at) = make_uint2(upper[0], upper[1]);
            *(uint2*)(words + at + 8 * n_items) = make_uint2(lower[0], lower[1]);
            if (quarter == 0) {
                // What is smaller than any use is nothing.
                float scale = most < 1e-33f ? 0.0f : most * (1.0f / 32767.0f);
                if (in.slot_weights) {
                    const u32 slot = slot_of(a, item);
                    if (!SHARED || slot + 1 < a.n_slots) scale *= in.slot_weights[job * (a.n_slots - SHARED) + slot];
                }
                sums[item] = make_float2(scale, scale * (float)sum);
            }
        }
    }
    return squares;
}

// Four sums of each lane become, in lanes `8·r` to `8·r + 7`, the sum of the r-th over all lanes.
__device__ __forceinline__ float sum_of_four(const float (&v)[4]) {
    const u32 lane = threadIdx.x & 31;
    bool upper = lane & 16;
    float a = (upper ? v[2] : v[0]) + __shfl_xor_sync(FULL_WARP, upper ? v[0] : v[2], 16);
    float b = (upper ? v[3] : v[1]) + __shfl_xor_sync(FULL_WARP, upper ? v[1] : v[3], 16);
    upper = lane & 8;
    a = (upper ? b : a) + __shfl_xor_sync(FULL_WARP, upper ? a : b, 8);
#pragma unroll
    for (int offset = 4; offset > 0; offset >>= 1) a += __shfl_xor_sync(FULL_WARP, a, offset);
    return a;
}

// The factor of the norm, from the threads' sums of squares; one warp's work, in all its lanes.
__device__ __forceinline__ float factor_of_squares(const MatvecArgs& a, const float* of_threads) {
    float squares = 0.0f;
    for (u32 i = threadIdx.x & 31; i < blockDim.x; i += 32) squares += of_threads[i];
    return rsqrtf(warp_sum(squares) / (float)(a.n_chunks * 32) + a.in.eps);
}
