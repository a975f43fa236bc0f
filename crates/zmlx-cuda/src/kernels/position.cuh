// What a step says of its tokens, the norm and rotation of a head, and where caches keep a token.

struct Step {
    const u32* slots;     // of each token
    const u32* positions; // of each token
};

// Half turns per position of each pair; f64, as a position of 10^5 leaves no bits of an f32 for the angle.
struct Rotation {
    const double* half_turns; // null: no rotation
    u32 dims;
    u32 is_interleaved;
    float scale; // of the rotated values
};

// The sine and cosine of what a pair turns by up to a position.
__device__ __forceinline__ void turn(const Rotation& r, u32 pair, u32 position, float& sine, float& cosine) {
    double turns = (double)position * r.half_turns[pair];
    sincospif((float)(turns - 2.0 * rint(turns * 0.5)), &sine, &cosine);
    sine *= r.scale, cosine *= r.scale;
}

// Writes a head that is multiplied by `factor` and the norm's weights (or null), then rotated to its position; one warp's work.
__device__ __forceinline__ void put_rotated(const float* x, float* y, u32 width, float factor, const float* norm, const Rotation& r, u32 position) {
    const u32 lane = threadIdx.x & 31, dims = r.half_turns ? r.dims : 0, half = dims / 2;
    for (u32 pair = lane; pair < half; pair += 32) {
        const u32 i = r.is_interleaved ? 2 * pair : pair, j = r.is_interleaved ? i + 1 : pair + half;
        float sine, cosine;
        turn(r, pair, position, sine, cosine);
        const float a = norm ? x[i] * factor * norm[i] : x[i], b = norm ? x[j] * factor * norm[j] : x[j];
        y[i] = a * cosine - b * sine;
        y[j] = b * cosine + a * sine;
    }
    for (u32 i = dims + lane; i < width; i += 32) y[i] = norm ? x[i] * factor * norm[i] : x[i];
}

// The factor of a norm over one head, by a warp.
__device__ __forceinline__ float head_norm_factor(const float* x, u32 width, float eps) {
    float sum = 0.0f;
#pragma unroll 4
    for (u32 i = threadIdx.x & 31; i < width; i += 32) sum = fmaf(x[i], x[i], sum);
    return 1.0f / sqrtf(warp_sum(sum) / (float)width + eps);
}

#define PAGE_TOKENS 64

// A cache: pages of PAGE_TOKENS tokens, found by slot and number. A page has the keys of all tokens, then the values.
struct Cache {
    float* const* pages; // [n_slots, pages_per_slot]
    u32 pages_per_slot;
    u32 key_stride;   // floats from one token to the next: all heads
    u32 value_stride;
    u32 values_at;    // where values begin in a page; 0 where they are the first part of the keys
    __device__ __forceinline__ float* page(u32 slot, u32 position) const {
        return pages[(u64)slot * pages_per_slot + position / PAGE_TOKENS];
    }
};

// Heads on their way to attention.
struct Source {
    Rows x;
    u32 width; // 0: there is no such source
    const float* norm;
    float eps;
    Rotation rotation;
};

// Writes a head, normed and rotated; one warp's work. Not inlined: kernels that do this for queries, keys and values would be
// longer than the instruction caches like.
__device__ __noinline__ void put_source(const Source& s, u32 row, u32 position, float* y) {
    const float* x = s.x.row(row, s.width);
    float factor = s.norm ? head_norm_factor(x, s.width, s.eps) : 1.0f;
    put_rotated(x, y, s.width, factor, s.norm, s.rotation, position);
}

// Writes a head of two sources, and zeros up to `width`.
__device__ __forceinline__ void put_head(const Source& first, const Source& second, u32 row, u32 position, float* y, u32 width) {
    put_source(first, row, position, y);
    if (second.width) put_source(second, row, position, y + first.width);
    for (u32 i = first.width + second.width + (threadIdx.x & 31); i < width; i += 32) y[i] = 0.0f;
}
