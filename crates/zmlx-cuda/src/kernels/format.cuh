// Quantised formats, one per compilation: BITS, CODE (what a code stands for) and SCALES (how scales are stored).
//
// A chunk is 32 consecutive weights of a row: BITS words, whatever the format. Its codes become 8 words of 4 bytes for
// integer dot products, of each 8 weights the even ones in one word and the odd ones in the next: so 4-bit codes fall out of
// their words. Activations are put into the same order.

#define CODE_AFFINE 0 // unsigned integers
#define CODE_FP4 1    // e2m1, as twice its value: a signed integer
#define SCALES_BF16_PAIR 0 // scale and bias of a group in one word
#define SCALES_F32_PAIR 1  // scale and bias in two words
#define SCALES_BF16 2      // one scale for each group of 32, no bias
#define SCALES_BF16_HALVES 3 // one scale for each group of 16, no bias

struct Chunk {
    u32 words[BITS];
};

__device__ __forceinline__ Chunk load_chunk(const u32* p) {
    Chunk c;
    if constexpr (BITS % 4 == 0) {
#pragma unroll
        for (int i = 0; i < BITS; i += 4) {
            uint4 v = load_weight((const uint4*)(p + i));
            c.words[i] = v.x, c.words[i + 1] = v.y, c.words[i + 2] = v.z, c.words[i + 3] = v.w;
        }
    } else if constexpr (BITS % 2 == 0) {
#pragma unroll
        for (int i = 0; i < BITS; i += 2) {
            uint2 v = load_weight((const uint2*)(p + i));
            c.words[i] = v.x, c.words[i + 1] = v.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < BITS; ++i) c.words[i] = load_weight(p + i);
    }
    return c;
}

// Code `k` of 32, as it stands in the words.
__device__ __forceinline__ u32 code_at(const u32* words, u32 k) {
    u32 bit = k * BITS, word = bit / 32, shift = bit % 32;
    u32 v = words[word] >> shift;
    if (shift + BITS > 32) v |= words[word + 1] << (32 - shift);
    return v & ((1u << BITS) - 1);
}

// Twice the value of an e2m1 code.
__device__ __forceinline__ int fp4_doubled(u32 code) {
    int magnitude = (int)((0xc8643210u >> (4 * (code & 7))) & 15);
    return code & 8 ? -magnitude : magnitude;
}

// Bytes of four e2m1 codes, which stand in the lower half of `w`.
__device__ __forceinline__ u32 fp4_bytes(u32 w) {
    u32 at = w & 0x7777u;
    u32 positive = __byte_perm(0x03020100u, 0x0c080604u, at);
    u32 negative = __byte_perm(0xfdfeff00u, 0xf4f8fafcu, at);
    u32 is_negative = __byte_perm(0x0000ff00u, 0u, (w >> 3) & 0x1111u);
    return (positive & ~is_negative) | (negative & is_negative);
}

__device__ __forceinline__ void unpack_codes(const Chunk& chunk, u32 (&codes)[8]) {
    if constexpr (CODE == CODE_AFFINE && BITS == 4) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            codes[2 * i] = chunk.words[i] & 0x0f0f0f0fu;
            codes[2 * i + 1] = (chunk.words[i] >> 4) & 0x0f0f0f0fu;
        }
    } else if constexpr (BITS == 2) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            // Bytes of every fourth weight of 16.
            u32 every[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) every[j] = (chunk.words[i] >> (2 * j)) & 0x03030303u;
            codes[4 * i] = __byte_perm(every[0], every[2], 0x5140);
            codes[4 * i + 1] = __byte_perm(every[1], every[3], 0x5140);
            codes[4 * i + 2] = __byte_perm(every[0], every[2], 0x7362);
            codes[4 * i + 3] = __byte_perm(every[1], every[3], 0x7362);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            // Bytes of the first and the last four of 8.
            u32 first, last;
            if constexpr (CODE == CODE_FP4) {
                first = fp4_bytes(chunk.words[i]), last = fp4_bytes(chunk.words[i] >> 16);
            } else if constexpr (BITS == 8) {
                first = chunk.words[2 * i], last = chunk.words[2 * i + 1];
            } else {
                first = 0, last = 0;
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    first |= code_at(chunk.words, 8 * i + j) << (8 * j);
                    last |= code_at(chunk.words, 8 * i + 4 + j) << (8 * j);
                }
            }
            codes[2 * i] = __byte_perm(first, last, 0x6420);
            codes[2 * i + 1] = __byte_perm(first, last, 0x7531);
        }
    }
}

// The sum of products of four bytes: activations (upper bytes signed, lower bytes unsigned) times codes.
__device__ __forceinline__ int dot_upper(u32 x, u32 codes, int sum) {
    if constexpr (CODE == CODE_FP4)
        asm("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(x), "r"(codes));
    else
        asm("dp4a.s32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(x), "r"(codes));
    return sum;
}
__device__ __forceinline__ int dot_lower(u32 x, u32 codes, int sum) {
    if constexpr (CODE == CODE_FP4)
        asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(x), "r"(codes));
    else
        asm("dp4a.u32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(x), "r"(codes));
    return sum;
}

// A chunk's scales as they lie in memory.
#if SCALES == SCALES_F32_PAIR
typedef uint2 ScaleWord;
#elif SCALES == SCALES_BF16
typedef u16 ScaleWord;
#else
typedef u32 ScaleWord;
#endif

__device__ __forceinline__ float scale_of(ScaleWord w, int half) {
#if SCALES == SCALES_F32_PAIR
    return __uint_as_float(w.x);
#elif SCALES == SCALES_BF16
    return __uint_as_float((u32)w << 16);
#elif SCALES == SCALES_BF16_HALVES
    return half == 0 ? bf16_low(w) : bf16_high(w);
#else
    return bf16_low(w);
#endif
}

__device__ __forceinline__ float bias_of(ScaleWord w) {
#if SCALES == SCALES_F32_PAIR
    return __uint_as_float(w.y);
#elif SCALES == SCALES_BF16_PAIR
    return bf16_high(w);
#else
    return 0.0f;
#endif
}

// The sum of one chunk times its activations: `x` has the upper bytes of 16-bit integers in its first 8 words and the lower
// ones in the others; they stand for `x_scale` each, and `x_sum` is the sum of all.
__device__ __forceinline__ float dot_chunk(const Chunk& chunk, ScaleWord w, const u32 (&x)[16], float x_scale, float x_sum) {
    u32 codes[8];
    unpack_codes(chunk, codes);
#if SCALES == SCALES_BF16_HALVES
    float sum = 0.0f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int upper = 0, lower = 0;
#pragma unroll
        for (int i = 4 * half; i < 4 * half + 4; ++i) {
            upper = dot_upper(x[i], codes[i], upper);
            lower = dot_lower(x[i + 8], codes[i], lower);
        }
        sum = fmaf(scale_of(w, half), (float)(upper * 256 + lower), sum);
    }
    return sum * (0.5f * x_scale);
#else
    int upper = 0, lower = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        upper = dot_upper(x[i], codes[i], upper);
        lower = dot_lower(x[i + 8], codes[i], lower);
    }
    float scale = scale_of(w, 0) * (CODE == CODE_FP4 ? 0.5f : 1.0f) * x_scale;
    return fmaf(scale, (float)(upper * 256 + lower), bias_of(w) * x_sum);
#endif
}
