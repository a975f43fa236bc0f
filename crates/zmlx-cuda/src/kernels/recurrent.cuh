// What ops with states share: the spans of a step, and where the states of a sequence are.

struct States {
    float* const* table; // [n_slots, 2]: the states after an even and after an odd number of tokens
};

// A span: its tokens, and the sequence's state before and after them.
struct SpanOf {
    u32 first, n_tokens;
    const float* before;
    float* after;
};

__device__ __forceinline__ SpanOf span_of(const uint2* spans, const u32* slots, const u32* positions, const States& states, u32 idx) {
    const uint2 span = spans[idx];
    float* const* row = states.table + 2 * (u64)slots[span.x];
    const u32 parity = positions[span.x] % 2;
    return {span.x, span.y, row[parity], row[1 - parity]};
}
