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

// Value `i` of a head that is multiplied by `factor` and the norm's weights (or null), then rotated to its position.
__device__ __forceinline__ float rotated(const float* x, u32 i, float factor, const float* norm, const Rotation& r, u32 position) {
    float own = norm ? x[i] * factor * norm[i] : x[i];
    if (!r.half_turns || i >= r.dims) return own;
    u32 half = r.dims / 2, pair, other;
    bool is_first;
    if (r.is_interleaved) {
        pair = i / 2, is_first = i % 2 == 0, other = is_first ? i + 1 : i - 1;
    } else {
        is_first = i < half, pair = is_first ? i : i - half, other = is_first ? i + half : pair;
    }
    double turns = (double)position * r.half_turns[pair];
    float sine, cosine;
    sincospif((float)(turns - 2.0 * rint(turns * 0.5)), &sine, &cosine);
    sine *= r.scale, cosine *= r.scale;
    float partner = norm ? x[other] * factor * norm[other] : x[other];
    return is_first ? own * cosine - partner * sine : own * cosine + partner * sine;
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

// Writes a head, normed and rotated; one warp's work.
__device__ __forceinline__ void put_source(const Source& s, u32 row, u32 position, float* y) {
    const float* x = s.x.row(row, s.width);
    float factor = s.norm ? head_norm_factor(x, s.width, s.eps) : 1.0f;
#pragma unroll 4
    for (u32 i = threadIdx.x & 31; i < s.width; i += 32) y[i] = rotated(x, i, factor, s.norm, s.rotation, position);
}

// Writes a head of two sources, and zeros up to `width`.
__device__ __forceinline__ void put_head(const Source& first, const Source& second, u32 row, u32 position, float* y, u32 width) {
    put_source(first, row, position, y);
    if (second.width) put_source(second, row, position, y + first.width);
    for (u32 i = first.width + second.width + (threadIdx.x & 31); i < width; i += 32) y[i] = 0.0f;
}
