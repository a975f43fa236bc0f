// Choosing the best of a row, by one warp.

// PER_LANE is set from outside: values that a lane holds. Rows have up to 32 times as many.

// Marks the `k` best of the values whose keys the lanes hold (value `32·i + lane` in `keys[i]`; larger is better, 0 is no
// value) and writes their indices in ascending order. Of equal keys the lower index is chosen.
__device__ __forceinline__ void choose_top_k(const u32 (&keys)[PER_LANE], u32 n, u32 k, u32* indices) {
    const u32 lane = threadIdx.x & 31, n_each = (n + 31) / 32;
    u32 taken = 0; // bit i: keys[i]
    for (u32 round = 0; round < k; ++round) {
        u32 best = 0, at = 0xffffffffu;
#pragma unroll
        for (u32 i = 0; i < PER_LANE; ++i) {
            u32 index = 32 * i + lane;
            if (i < n_each && index < n && !(taken >> i & 1) && (at == 0xffffffffu || keys[i] > best)) {
                best = keys[i];
                at = index;
            }
        }
        u32 most = __reduce_max_sync(FULL_WARP, at == 0xffffffffu ? 0 : best);
        u32 chosen = __reduce_min_sync(FULL_WARP, best == most ? at : 0xffffffffu);
        if ((chosen & 31) == lane) taken |= 1u << (chosen / 32);
    }
    u32 n_before = 0;
    for (u32 i = 0; i < n_each; ++i) {
        u32 all = __ballot_sync(FULL_WARP, taken >> i & 1);
        if (taken >> i & 1) indices[n_before + __popc(all & ((1u << lane) - 1))] = 32 * i + lane;
        n_before += __popc(all);
    }
    __syncwarp();
}
