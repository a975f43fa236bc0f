// Mailboxes, through which the GPUs of one machine pass values to each other within a kernel. Include device.cuh first.
//
// Each GPU has a mailbox in its memory, with a place for each sender. A value goes there in the same 8 bytes as the number of the
// exchange. So a receiver that finds the number has the value, and nothing else has to wait.
// A place has two halves, used in turn: a sender that fills a half again has received the values of the exchange before, which
// the others send once they have read that half.

#define MAX_RANKS 8

struct Mailboxes {
    u64* of_rank[MAX_RANKS];
    u64* state; // how many blocks have begun this exchange, and, in the upper half, the number of the last one
    u32 rank;
    u32 n_ranks;
    u32 capacity; // values of a half
};

// An exchange: each kernel that uses mailboxes has one. All ranks launch such kernels in the same order and exchange equally many
// values; their grids may differ.
struct Exchange {
    const Mailboxes& m;
    u32* number;          // in shared memory
    bool is_last = false; // of thread 0 alone: this block was the last one to begin

    // All threads call this after `wait_for_inputs`. A barrier follows before any of them sends.
    __device__ __forceinline__ void begin() {
        if (threadIdx.x) return;
        const u64 before = atomicAdd(m.state, 1ull);
        const u32 next = (u32)(before >> 32) + 1;
        *number = next ? next : 2; // 0 is what an empty place has
        is_last = (u32)before == gridDim.x * gridDim.y - 1;
    }

    __device__ __forceinline__ u64* place(u32 of, u32 sender, u32 i) const {
        return m.of_rank[of] + ((u64)(*number & 1) * m.n_ranks + sender) * m.capacity + i;
    }

    // Sends value `i` to all other ranks.
    __device__ __forceinline__ void send(u32 i, float v) const {
        const u64 message = (u64)*number << 32 | __float_as_uint(v);
        for (u32 to = 0; to < m.n_ranks; to++)
            if (to != m.rank)
                asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(place(to, m.rank, i)), "l"(message) : "memory");
    }

    // Waits for value `i` of another rank.
    __device__ __forceinline__ float receive(u32 from, u32 i) const {
        const u64* at = place(m.rank, from, i);
        u64 message;
        do {
            asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(message) : "l"(at) : "memory");
        } while ((u32)(message >> 32) != *number);
        return __uint_as_float((u32)message);
    }

    // The sum of value `i` of all ranks, in their order: all of them get the same bits.
    __device__ __forceinline__ float sum(u32 i, float own) const {
        float sum = 0.0f;
        for (u32 from = 0; from < m.n_ranks; from++) {
            const float v = from == m.rank ? own : receive(from, i);
            sum = from == 0 ? v : sum + v;
        }
        return sum;
    }

    // All threads call this at the end. When all blocks have begun, all have read the number of the last exchange.
    __device__ __forceinline__ void end() const {
        if (is_last) *(volatile u64*)m.state = (u64)*number << 32;
    }
};
