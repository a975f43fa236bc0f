// Choosing the best of a row of scores.

namespace zmlx {

constexpr constant int MAX_EXPERTS = 1024;
constexpr constant int MAX_TOP_K = 32;
// Scores a thread owns, neighbours as in MLX's softmax.
constexpr constant int READS = 4;

// A score as a number: a better one is larger, equal scores have equal numbers, and none is 0. NaN is the smallest score, or the
// largest: MLX's sort puts it last, ascending.
template <bool NAN_FIRST>
inline uint order_of(float score) {
  if (metal::isnan(score)) {
    return NAN_FIRST ? 0xffffffffu : 1u;
  }
  const uint bits = as_type<uint>(score == 0 ? 0.0f : score);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The TOP_K best of the n scores, as a simdgroup finds them in as many rounds: lane s gets the index of number s in descending
// order. Of equal scores the lower index stands first, or the higher one. A lane looks at PER_LANE scores, and 32 · PER_LANE >= n.
template <int TOP_K, int PER_LANE, bool HIGHER_FIRST, bool NAN_FIRST>
inline uint choose(const threadgroup float* scores, int n, uint lane) {
  // 0: no score, or one that is chosen already.
  uint order[PER_LANE];
  for (int i = 0; i < PER_LANE; i++) {
    const int index = int(lane) + 32 * i;
    order[i] = index < n ? order_of<NAN_FIRST>(scores[index]) : 0;
  }
  uint mine = 0;
  for (uint s = 0; s < TOP_K; s++) {
    uint best = 0, index = 0;
    for (int i = 0; i < PER_LANE; i++) {
      if (HIGHER_FIRST ? order[i] >= best : order[i] > best) {
        best = order[i];
        index = lane + 32 * i;
      }
    }
    const bool is_best = best == simd_max(best);
    const uint winner = HIGHER_FIRST ? simd_max(is_best ? index : 0u) : simd_min(is_best ? index : 0xffffffffu);
    for (int i = 0; i < PER_LANE; i++) {
      order[i] = lane + 32 * i == winner ? 0 : order[i];
    }
    mine = lane == s ? winner : mine;
  }
  return mine;
}

// The sum of the chosen scores in their order, in T.
template <typename T>
inline T sum_of(const threadgroup float* chosen, int n) {
  T total = T(0);
  for (int s = 0; s < n; s++) {
    total = T(chosen[s]) + total;
  }
  return total;
}

} // namespace zmlx
