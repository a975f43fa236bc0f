// Mailboxes, through which the GPUs of one machine pass values to each other within a kernel.
//
// Each GPU has a mailbox in its memory, with a place for each sender. Values go there in pairs, each value beside the number of
// the exchange: 8 bytes, which arrive together. So a receiver that finds the number has the value, and nothing else has to wait.
// A place has two halves, used in turn: a sender that fills a half again has received the values of the exchange before, which
// the others send once they have read that half.

#include "device.cuh"

#define MAX_RANKS 8

struct Mailboxes {
    uint4* of_rank[MAX_RANKS];
    u32* state; // the number of the last exchange, and how many blocks have ended this one
    u32 rank;
    u32 n_ranks;
    u32 capacity; // pairs of a half
};

// An exchange: each kernel that uses mailboxes has one. All ranks launch such kernels in the same order, with equal grids.
struct Exchange {
    const Mailboxes& m;
    u32 number;

    __device__ __forceinline__ explicit Exchange(const Mailboxes& mailboxes) : m(mailboxes) {
        number = *(volatile u32*)m.state + 1;
        if (number == 0) number = 2; // 0 is what an empty place has
    }

    __device__ __forceinline__ uint4* place(u32 of, u32 sender, u32 pair) const {
        return m.of_rank[of] + ((u64)(number & 1) * m.n_ranks + sender) * m.capacity + pair;
    }

    // Sends a pair to all other ranks.
    __device__ __forceinline__ void send(u32 pair, float first, float second) const {
        for (u32 to = 0; to < m.n_ranks; to++)
            if (to != m.rank)
                asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(place(to, m.rank, pair)),
                             "r"(__float_as_uint(first)), "r"(number), "r"(__float_as_uint(second)), "r"(number)
                             : "memory");
    }

    // Waits for a pair of another rank.
    __device__ __forceinline__ float2 receive(u32 from, u32 pair) const {
        const uint4* at = place(m.rank, from, pair);
        uint4 v;
        do {
            asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                         : "l"(at)
                         : "memory");
        } while (v.y != number || v.w != number);
        return make_float2(__uint_as_float(v.x), __uint_as_float(v.z));
    }

    // Called once by every thread, at its end.
    __device__ __forceinline__ void end() const {
        __syncthreads();
        // The last block: all have read the number.
        if (threadIdx.x == 0 && atomicAdd(m.state + 1, 1) == gridDim.x - 1) {
            m.state[1] = 0;
            m.state[0] = number;
        }
    }
};
