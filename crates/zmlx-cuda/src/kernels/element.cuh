// Weights that are floats, or e4m3 codes with a bf16 scale for each 32 of them (mxfp8); ELEMENT is set from outside.

#define ELEMENT_F32 0
#define ELEMENT_F16 1
#define ELEMENT_BF16 2
#define ELEMENT_FP8 3 // e4m3, with a bf16 scale for each 32 of them

#define ELEMENT_BYTES (ELEMENT == ELEMENT_F32 ? 4 : ELEMENT == ELEMENT_FP8 ? 1 : 2)
// `2^120` times a code placed into the bits of an f32 is its value, also where it is subnormal.
__device__ __forceinline__ float fp8_to_f32(u32 code) {
    float magnitude = __uint_as_float((code & 0x7f) << 20) * 1.329227995784916e36f;
    if ((code & 0x7f) == 0x7f) magnitude = nan_f32();
    return code & 0x80 ? -magnitude : magnitude;
}

__device__ __forceinline__ float element(const u8* p) {
    if constexpr (ELEMENT == ELEMENT_F32) return __uint_as_float(load_weight((const u32*)p));
    if constexpr (ELEMENT == ELEMENT_F16) return f16_to_f32(load_weight((const u16*)p));
    if constexpr (ELEMENT == ELEMENT_BF16) return __uint_as_float((u32)load_weight((const u16*)p) << 16);
    return fp8_to_f32(*p);
}
