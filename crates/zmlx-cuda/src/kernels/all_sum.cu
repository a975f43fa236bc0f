// The sum of a tensor over several GPUs of one machine, and a residual.

#include "mailbox.cuh"

struct AllSumArgs {
    Mailboxes mailboxes;
    const float* x;
    const float* residual; // or null
    float* y;
    u32 n;
};

extern "C" __global__ void all_sum(const __grid_constant__ AllSumArgs a) {
    wait_for_inputs();
    const Exchange exchange(a.mailboxes);
    const u32 n_pairs = (a.n + 1) / 2, n_threads = gridDim.x * blockDim.x;
    const u32 start = blockIdx.x * blockDim.x + threadIdx.x;
    auto own = [&](u32 pair) {
        return make_float2(a.x[2 * pair], 2 * pair + 1 < a.n ? a.x[2 * pair + 1] : 0.0f);
    };
    for (u32 pair = start; pair < n_pairs; pair += n_threads) {
        const float2 v = own(pair);
        exchange.send(pair, v.x, v.y);
    }
    for (u32 pair = start; pair < n_pairs; pair += n_threads) {
        // In the order of the ranks: all of them get the same bits.
        float2 sum = make_float2(0.0f, 0.0f);
        for (u32 from = 0; from < a.mailboxes.n_ranks; from++) {
            const float2 v = from == a.mailboxes.rank ? own(pair) : exchange.receive(from, pair);
            sum = from == 0 ? v : make_float2(sum.x + v.x, sum.y + v.y);
        }
        a.y[2 * pair] = a.residual ? a.residual[2 * pair] + sum.x : sum.x;
        if (2 * pair + 1 < a.n) a.y[2 * pair + 1] = a.residual ? a.residual[2 * pair + 1] + sum.y : sum.y;
    }
    exchange.end();
}
