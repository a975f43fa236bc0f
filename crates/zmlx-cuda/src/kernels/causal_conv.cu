// A convolution along each sequence, channel by channel: `causal_conv`. The state holds the last inputs, from the oldest on.

#include "device.cuh"
#include "recurrent.cuh"

#define TOKENS 16 // of a block

struct ConvArgs {
    Rows x; // [n_tokens, n_channels]
    const uint2* spans; // first token and number of tokens of each
    const u32* slots;
    const u32* positions;
    States states;
    const float* taps; // [kernel, n_channels]
    const float* bias; // [n_channels], or null
    u32 n_channels;
    u32 kernel;
    u32 is_silu;
    float* y;
};

// A thread has a channel, a block TOKENS tokens of a span.
extern "C" __global__ void __launch_bounds__(128) causal_conv(const __grid_constant__ ConvArgs a) {
    wait_for_inputs();
    const SpanOf span = span_of(a.spans, a.slots, a.positions, a.states, blockIdx.y);
    const u32 channel = blockIdx.x * blockDim.x + threadIdx.x, n_before = a.kernel - 1, begin = blockIdx.z * TOKENS;
    if (channel >= a.n_channels) return;
    // Input `i` of those before the span, then of its own.
    auto input = [&](u32 i) {
        return i < n_before ? span.before[(u64)i * a.n_channels + channel] : a.x.row(span.first + i - n_before, a.n_channels)[channel];
    };
    for (u32 i = begin; i < min(span.n_tokens, begin + TOKENS); ++i) {
        float sum = a.bias ? a.bias[channel] : 0.0f;
        for (u32 j = 0; j < a.kernel; ++j) sum = fmaf(a.taps[(u64)j * a.n_channels + channel], input(i + j), sum);
        if (a.is_silu) sum = sum / (1.0f + expf(-sum));
        a.y[(u64)(span.first + i) * a.n_channels + channel] = sum;
    }
    if (begin == 0)
        for (u32 j = 0; j < n_before; ++j) span.after[(u64)j * a.n_channels + channel] = input(span.n_tokens + j);
}
