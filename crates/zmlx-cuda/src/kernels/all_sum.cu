// The sum of a tensor over several GPUs of one machine, and a residual.

#include "device.cuh"
#include "mailbox.cuh"

struct AllSumArgs {
    Mailboxes mailboxes;
    const float* x;
    const float* residual; // or null
    float* y;
    u32 n;
};

extern "C" __global__ void all_sum(const __grid_constant__ AllSumArgs a) {
    __shared__ u32 number;
    Exchange exchange{a.mailboxes, &number};
    const u32 n_threads = gridDim.x * blockDim.x, start = blockIdx.x * blockDim.x + threadIdx.x;
    wait_for_inputs();
    exchange.begin();
    __syncthreads();
    for (u32 i = start; i < a.n; i += n_threads) exchange.send(i, a.x[i]);
    for (u32 i = start; i < a.n; i += n_threads) {
        const float residual = a.residual ? a.residual[i] : 0.0f;
        const float sum = exchange.sum(i, a.x[i]);
        a.y[i] = a.residual ? residual + sum : sum;
    }
    exchange.end();
}
