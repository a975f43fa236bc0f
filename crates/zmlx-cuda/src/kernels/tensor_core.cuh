// Products on tensor cores: 16 rows by 8 columns, 16 values deep. Sums are f32.

// D += A·B. Of A, lane 4·r + q has rows r and r + 8, columns 2·q and 2·q + 1, then the same rows, columns 2·q + 8 and
// 2·q + 9; of B column r, the same four deep; of D rows r and r + 8, columns 2·q and 2·q + 1.
__device__ __forceinline__ void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two values as f16, the first in the lower half.
__device__ __forceinline__ u32 f16_pair(float first, float second) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

// Two values as pairs of f16 whose sums they are, to 2^-22 of themselves or 2^-25.
__device__ __forceinline__ void split_f16(float first, float second, u32& high, u32& low) {
    high = f16_pair(first, second);
    const float of_first = f16_to_f32((u16)high), of_second = f16_to_f32((u16)(high >> 16));
    low = f16_pair(first - of_first, second - of_second);
}

// Four matrices of 8 by 8 values of 16 bits from shared memory, lane l giving the address of row `l % 8` of matrix `l / 8`: as
// fragments, or transposed.
__device__ __forceinline__ void load_matrices(const u16* row, u32 (&v)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}
__device__ __forceinline__ void load_transposed(const u16* row, u32 (&v)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}

// 4, 8 or 16 bytes on their way into shared memory, where they are once `wait_for_copies` has returned.
template <int BYTES>
__device__ __forceinline__ void copy_async(void* to, const void* from) {
    const u32 at = (u32)__cvta_generic_to_shared(to);
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at), "l"(from), "n"(BYTES) : "memory");
}
__device__ __forceinline__ void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but the last N groups of copies are there.
template <int N>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
