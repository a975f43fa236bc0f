// The sum of a tensor over several GPUs of one machine, each of which writes to the memory of the others, and a residual.
//
// Each GPU has a mailbox with a place for each sender. A GPU writes its values there in pairs, each value beside the number of
// the sum: 8 bytes, which arrive together. So a receiver that finds the number has the value, and nothing else has to wait. A
// place has two halves, used in turn: a sender that fills a half again has received the values of the sum before, which the
// others send once they have read the half.

#include "device.cuh"

#define MAX_RANKS 8

struct AllSumArgs {
    const float* x;
    const float* residual; // or null
    float* y;
    uint4* mailboxes[MAX_RANKS]; // of each rank
    u32* state;                  // sums so far, and blocks of this one that are done
    u32 n;
    u32 rank;
    u32 n_ranks;
    u32 capacity; // pairs of a half
};

__device__ __forceinline__ void send_pair(uint4* to, float first, float second, u32 number) {
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(__float_as_uint(first)), "r"(number),
                 "r"(__float_as_uint(second)), "r"(number)
                 : "memory");
}

__device__ __forceinline__ float2 receive_pair(const uint4* from, u32 number) {
    uint4 v;
    do {
        asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                     : "l"(from)
                     : "memory");
    } while (v.y != number || v.w != number);
    return make_float2(__uint_as_float(v.x), __uint_as_float(v.z));
}

extern "C" __global__ void all_sum(const __grid_constant__ AllSumArgs a) {
    wait_for_inputs();
    const u32 number = *(volatile u32*)a.state + 1;
    const u64 half = (u64)(number & 1) * a.n_ranks;
    const u32 n_pairs = (a.n + 1) / 2, n_threads = gridDim.x * blockDim.x;
    const u32 first = blockIdx.x * blockDim.x + threadIdx.x;
    for (u32 pair = first; pair < n_pairs; pair += n_threads) {
        const float x0 = a.x[2 * pair], x1 = 2 * pair + 1 < a.n ? a.x[2 * pair + 1] : 0.0f;
        for (u32 to = 0; to < a.n_ranks; to++)
            if (to != a.rank) send_pair(a.mailboxes[to] + (half + a.rank) * a.capacity + pair, x0, x1, number);
    }
    const uint4* own = a.mailboxes[a.rank];
    for (u32 pair = first; pair < n_pairs; pair += n_threads) {
        const bool has_second = 2 * pair + 1 < a.n;
        // In the order of the ranks: all of them get the same bits.
        float2 sum = make_float2(0.0f, 0.0f);
        for (u32 from = 0; from < a.n_ranks; from++) {
            float2 v;
            if (from == a.rank)
                v = make_float2(a.x[2 * pair], has_second ? a.x[2 * pair + 1] : 0.0f);
            else
                v = receive_pair(own + (half + from) * a.capacity + pair, number);
            sum = from == 0 ? v : make_float2(sum.x + v.x, sum.y + v.y);
        }
        a.y[2 * pair] = a.residual ? a.residual[2 * pair] + sum.x : sum.x;
        if (has_second) a.y[2 * pair + 1] = a.residual ? a.residual[2 * pair + 1] + sum.y : sum.y;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        // The last block: all have read the number.
        if (atomicAdd(a.state + 1, 1) == gridDim.x - 1) {
            a.state[1] = 0;
            a.state[0] = number;
        }
    }
}
