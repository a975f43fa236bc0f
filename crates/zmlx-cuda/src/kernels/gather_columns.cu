// The columns that several GPUs of one machine have, side by side.

#include "mailbox.cuh"

struct GatherColumnsArgs {
    Mailboxes mailboxes;
    const float* x; // [n_rows, own]
    float* y;       // [n_rows, n]
    u32 own;        // columns of this rank: `width`, or fewer on the last one
    u32 width;      // columns of each rank
    u32 n;          // columns of all ranks
    u32 first;      // of the n_rows·width values of each rank those from `first` to `end`
    u32 end;
};

extern "C" __global__ void gather_columns(const __grid_constant__ GatherColumnsArgs a) {
    wait_for_inputs();
    const Exchange exchange(a.mailboxes);
    const u32 n_pairs = (a.end - a.first + 1) / 2, n_threads = gridDim.x * blockDim.x;
    const u32 start = blockIdx.x * blockDim.x + threadIdx.x;
    auto own = [&](u32 i) {
        const u32 row = i / a.width, column = i % a.width;
        return i < a.end && column < a.own ? a.x[(u64)row * a.own + column] : 0.0f;
    };
    auto put = [&](u32 from, u32 i, float v) {
        const u32 row = i / a.width, column = from * a.width + i % a.width;
        if (i < a.end && column < a.n) a.y[(u64)row * a.n + column] = v;
    };
    for (u32 pair = start; pair < n_pairs; pair += n_threads) {
        const u32 i = a.first + 2 * pair;
        exchange.send(pair, own(i), own(i + 1));
    }
    for (u32 pair = start; pair < n_pairs; pair += n_threads) {
        const u32 i = a.first + 2 * pair;
        for (u32 from = 0; from < a.mailboxes.n_ranks; from++) {
            const float2 v =
                from == a.mailboxes.rank ? make_float2(own(i), own(i + 1)) : exchange.receive(from, pair);
            put(from, i, v.x);
            put(from, i + 1, v.y);
        }
    }
    exchange.end();
}
