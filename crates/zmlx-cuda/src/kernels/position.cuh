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

// Where a head goes: f32 for queries, f16 in caches, where larger values than f16 has become its largest.
__device__ __forceinline__ void put_value(float* y, float v) { *y = v; }
__device__ __forceinline__ void put_value(u16* y, float v) {
    v = v > 65504.0f ? 65504.0f : v < -65504.0f ? -65504.0f : v;
    asm("{ .reg .f16 h; cvt.rn.f16.f32 h, %1; mov.b16 %0, h; }" : "=h"(*y) : "f"(v));
}

// Writes a head that is multiplied by `factor` and the norm's weights (or null), then rotated to its position; one warp's work.
template <typename T>
__device__ __forceinline__ void put_rotated(const float* x, T* y, u32 width, float factor, const float* norm, const Rotation& r, u32 position) {
    const u32 lane = threadIdx.x & 31, dims = r.half_turns ? r.dims : 0, half = dims / 2;
    for (u32 pair = lane; pair < half; pair += 32) {
        const u32 i = r.is_interleaved ? 2 * pair : pair, j = r.is_interleaved ? i + 1 : pair + half;
        float sine, cosine;
        turn(r, pair, position, sine, cosine);
        const float a = norm ? x[i] * factor * norm[i] : x[i], b = norm ? x[j] * factor * norm[j] : x[j];
        put_value(y + i, a * cosine - b * sine);
        put_value(y + j, b * cosine + a * sine);
    }
    for (u32 i = dims + lane; i < width; i += 32) put_value(y + i, norm ? x[i] * factor * norm[i] : x[i]);
}

// The factor of a norm over one head, by a warp.
__device__ __forceinline__ float head_norm_factor(const float* x, u32 width, float eps) {
    float sum = 0.0f;
#pragma unroll 4
    for (u32 i = threadIdx.x & 31; i < width; i += 32) sum = fmaf(x[i], x[i], sum);
    return 1.0f / sqrtf(warp_sum(sum) / (float)width + eps);
}

#define PAGE_TOKENS 64

// A cache: pages of PAGE_TOKENS tokens, found by slot and number. A page has the keys of all tokens, then the values; all f16.
struct Cache {
    u16* const* pages; // [n_slots, pages_per_slot]
    u32 pages_per_slot;
    u32 key_stride;   // values from one token to the next: all heads; a multiple of 8, as the widths of heads
    u32 value_stride;
    u32 values_at;    // where values begin in a page; 0 where they are the first part of the keys
    __device__ __forceinline__ u16* page(u32 slot, u32 position) const {
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

// Sines and cosines of the pairs that a lane has, which depend on the position alone.
struct Turn {
    float sine[2], cosine[2];
};

// Whether a lane has both halves of its pairs in registers, element `lane + 32·j` in the j-th, or its neighbour has the other.
__device__ __forceinline__ bool is_even(const Rotation& r) { return r.is_interleaved ? r.dims == 32 || r.dims == 64 : r.dims == 64 || r.dims == 128; }
#define MOST_OF_LANE 16

__device__ __forceinline__ Turn turn_of(const Source& s, u32 position) {
    Turn t = {};
    const u32 lane = threadIdx.x & 31;
    if (!s.width || !s.rotation.half_turns || !is_even(s.rotation)) return t;
#pragma unroll
    for (u32 j = 0; j < 2; ++j) {
        const u32 pair = s.rotation.is_interleaved ? (lane + 32 * j) / 2 : lane + 32 * j;
        if (pair < s.rotation.dims / 2) turn(s.rotation, pair, position, t.sine[j], t.cosine[j]);
    }
    return t;
}

// Norms and rotates a head, of which lane l has element `l + 32·j` in `v[j]`, and writes it; one warp's work.
template <u32 N, typename T>
__device__ __forceinline__ void finish_head(const Source& s, float (&v)[N], Turn t, T* y) {
    const u32 lane = threadIdx.x & 31, dims = s.rotation.half_turns ? s.rotation.dims : 0;
    if (s.norm) {
        float norm[N], sum = 0.0f;
#pragma unroll
        for (u32 j = 0; j < N; ++j) norm[j] = lane + 32 * j < s.width ? s.norm[lane + 32 * j] : 0.0f;
#pragma unroll
        for (u32 j = 0; j < N; ++j) sum = fmaf(v[j], v[j], sum);
        const float factor = rsqrtf(warp_sum(sum) / (float)s.width + s.eps);
#pragma unroll
        for (u32 j = 0; j < N; ++j) v[j] = v[j] * factor * norm[j];
    }
    if (dims && s.rotation.is_interleaved) {
#pragma unroll
        for (u32 j = 0; j < 2 && j < N; ++j) {
            const float other = __shfl_xor_sync(FULL_WARP, v[j], 1);
            if (lane + 32 * j < dims) v[j] = lane % 2 ? v[j] * t.cosine[j] + other * t.sine[j] : v[j] * t.cosine[j] - other * t.sine[j];
        }
    } else if (N >= 2 && dims == 64) {
        const float a = v[0], b = v[1 % N];
        v[0] = a * t.cosine[0] - b * t.sine[0], v[1 % N] = b * t.cosine[0] + a * t.sine[0];
    } else if (N >= 4 && dims == 128) {
#pragma unroll
        for (u32 j = 0; j < 2; ++j) {
            const float a = v[j % N], b = v[(j + 2) % N];
            v[j % N] = a * t.cosine[j] - b * t.sine[j], v[(j + 2) % N] = b * t.cosine[j] + a * t.sine[j];
        }
    }
#pragma unroll
    for (u32 j = 0; j < N; ++j)
        if (lane + 32 * j < s.width) put_value(y + lane + 32 * j, v[j]);
}

// Asks for a head's elements.
template <u32 N>
__device__ __forceinline__ void load_head(const Source& s, u32 row, float (&v)[N]) {
    const float* x = s.x.row(row, s.width);
    const u32 lane = threadIdx.x & 31;
#pragma unroll
    for (u32 j = 0; j < N; ++j) v[j] = lane + 32 * j < s.width ? x[lane + 32 * j] : 0.0f;
}

// Writes a head, normed and rotated; one warp's work. Not inlined: kernels that do this for queries, keys and values would be
// longer than the instruction caches like.
template <typename T>
__device__ __noinline__ void put_source(const Source& s, u32 row, u32 position, Turn t, T* y) {
    if (s.width > 32 * MOST_OF_LANE || (s.rotation.half_turns && !is_even(s.rotation))) {
        const float* x = s.x.row(row, s.width);
        float factor = s.norm ? head_norm_factor(x, s.width, s.eps) : 1.0f;
        put_rotated(x, y, s.width, factor, s.norm, s.rotation, position);
        return;
    }
    if (s.width <= 32 * 4) {
        float v[4];
        load_head(s, row, v);
        finish_head(s, v, t, y);
    } else {
        float v[MOST_OF_LANE];
        load_head(s, row, v);
        finish_head(s, v, t, y);
    }
}
__device__ __noinline__ Turn turn_of_called(const Source& s, u32 position) { return turn_of(s, position); }

// The turns of both sources of a head.
struct HeadTurn {
    Turn first, second;
};
__device__ __forceinline__ HeadTurn head_turn(const Source& first, const Source& second, u32 position) {
    return {turn_of_called(first, position), turn_of_called(second, position)};
}

// Writes a head of two sources, and zeros up to `width`.
template <typename T>
__device__ __forceinline__ void put_head(const Source& first, const Source& second, u32 row, u32 position, const HeadTurn& t, T* y, u32 width) {
    put_source(first, row, position, t.first, y);
    if (second.width) put_source(second, row, position, t.second, y + first.width);
    for (u32 i = first.width + second.width + (threadIdx.x & 31); i < width; i += 32) y[i] = T();
}
