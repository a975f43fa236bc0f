// Rotary position embedding, and what comes before attention: norms, rotation, and putting keys and values into the cache.

#include "device.cuh"
#include "position.cuh"

struct RopeArgs {
    Rows x; // a row per token and head
    u32 n_rows;
    u32 n_heads;
    u32 width;
    const float* norm; // weight of a norm over the head that comes first, or null
    float eps;
    Rotation rotation;
    Step step;
    float* y;
};

// A warp per head.
extern "C" __global__ void __launch_bounds__(128) rope(const __grid_constant__ RopeArgs a) {
    wait_for_inputs();
    u32 row = (blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    if (row >= a.n_rows) return;
    const float* x = a.x.row(row, a.width);
    float factor = a.norm ? head_norm_factor(x, a.width, a.eps) : 1.0f;
    u32 position = a.step.positions[row / a.n_heads];
    put_rotated(x, a.y + (u64)row * a.width, a.width, factor, a.norm, a.rotation, position);
}

struct AppendArgs {
    Source q, q_more; // a head is the values of the first, then those of the second
    Source k, k_more;
    Source v;
    u32 n_tokens;
    u32 n_heads;
    u32 n_kv_heads;
    u32 heads_per_warp;
    u32 key_width; // of a head, padded to a multiple of 8 as all that is written here
    u32 value_width;
    Step step;
    Cache cache;
    float* queries; // [n_tokens, n_heads, key_width]
};

// Some heads of a token per warp: all query heads of a token, then its key heads, then its value heads.
extern "C" __global__ void __launch_bounds__(128) append(const __grid_constant__ AppendArgs a) {
    wait_for_inputs();
    const u32 warp = (blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    const u32 per_token = a.n_heads + a.n_kv_heads * (a.v.width ? 2 : 1), warps_per_token = (per_token + a.heads_per_warp - 1) / a.heads_per_warp;
    const u32 token = warp / warps_per_token, first = warp % warps_per_token * a.heads_per_warp;
    if (token >= a.n_tokens) return;
    const u32 position = a.step.positions[token], at = position % PAGE_TOKENS;
    u16* const page = a.n_kv_heads ? a.cache.page(a.step.slots[token], position) : nullptr;
    HeadTurn turn = {};
    for (u32 head = first; head < min(first + a.heads_per_warp, per_token); ++head) {
        if (head < a.n_heads) {
            if (head == first) turn = head_turn(a.q, a.q_more, position);
            const u32 row = token * a.n_heads + head;
            put_head(a.q, a.q_more, row, position, turn, a.queries + (u64)row * a.key_width, a.key_width);
        } else if (head < a.n_heads + a.n_kv_heads) {
            if (head == max(first, a.n_heads)) turn = head_turn(a.k, a.k_more, position);
            const u32 key_head = head - a.n_heads;
            u16* y = page + (u64)at * a.cache.key_stride + key_head * a.key_width;
            put_head(a.k, a.k_more, token * a.n_kv_heads + key_head, position, turn, y, a.key_width);
        } else {
            const u32 key_head = head - a.n_heads - a.n_kv_heads;
            u16* y = page + a.cache.values_at + (u64)at * a.cache.value_stride + key_head * a.value_width;
            const Source none = {};
            put_head(a.v, none, token * a.n_kv_heads + key_head, position, HeadTurn(), y, a.value_width);
        }
    }
}
