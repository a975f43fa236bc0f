// Jobs in the order of their experts, in tiles of jobs that share one.

#include "device.cuh"

struct GroupArgs {
    const u32* experts; // [n]
    u32 n;
    u32 n_experts; // at most 1024
    u32 tile_jobs;
    u32* jobs;     // [n]
    uint4* tiles;  // expert, first job, number of jobs
    u32* n_tiles;
};

// One block.
extern "C" __global__ void __launch_bounds__(1024) group(const __grid_constant__ GroupArgs a) {
    __shared__ u32 counts[1024], of_warps[2][32];
    wait_for_inputs();
    const u32 t = threadIdx.x, lane = t & 31, warp = t >> 5;
    counts[t] = 0;
    __syncthreads();
    for (u32 i = t; i < a.n; i += blockDim.x) atomicAdd(counts + a.experts[i], 1u);
    __syncthreads();
    // Jobs and tiles of the experts before this thread's.
    const u32 own = counts[t], own_tiles = (own + a.tile_jobs - 1) / a.tile_jobs;
    u32 jobs = own, tiles = own_tiles;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        u32 j = __shfl_up_sync(FULL_WARP, jobs, offset), k = __shfl_up_sync(FULL_WARP, tiles, offset);
        if (lane >= offset) jobs += j, tiles += k;
    }
    if (lane == 31) of_warps[0][warp] = jobs, of_warps[1][warp] = tiles;
    __syncthreads();
    for (u32 w = 0; w < warp; ++w) jobs += of_warps[0][w], tiles += of_warps[1][w];
    const u32 first = jobs - own;
    for (u32 i = 0; i < own_tiles; ++i)
        a.tiles[tiles - own_tiles + i] = make_uint4(t, first + i * a.tile_jobs, min(a.tile_jobs, own - i * a.tile_jobs), 0);
    if (t == blockDim.x - 1) *a.n_tiles = tiles;
    __syncthreads();
    counts[t] = first;
    __syncthreads();
    // The order within an expert does not matter: each job has a column of its own.
    for (u32 i = t; i < a.n; i += blockDim.x) a.jobs[atomicAdd(counts + a.experts[i], 1u)] = i;
}
