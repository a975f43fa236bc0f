// The columns that several GPUs of one machine have, side by side.

#include "device.cuh"
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
    __shared__ u32 number;
    Exchange exchange{a.mailboxes, &number};
    const u32 n = a.end - a.first, n_threads = gridDim.x * blockDim.x;
    const u32 start = blockIdx.x * blockDim.x + threadIdx.x;
    auto own = [&](u32 i) {
        const u32 row = (a.first + i) / a.width, column = (a.first + i) % a.width;
        return column < a.own ? a.x[(u64)row * a.own + column] : 0.0f;
    };
    wait_for_inputs();
    exchange.begin();
    __syncthreads();
    for (u32 i = start; i < n; i += n_threads) exchange.send(i, own(i));
    for (u32 i = start; i < n; i += n_threads) {
        const u32 row = (a.first + i) / a.width, column = (a.first + i) % a.width;
        for (u32 from = 0; from < a.mailboxes.n_ranks; from++) {
            const float v = from == a.mailboxes.rank ? own(i) : exchange.receive(from, i);
            if (from * a.width + column < a.n) a.y[(u64)row * a.n + from * a.width + column] = v;
        }
    }
    exchange.end();
}
