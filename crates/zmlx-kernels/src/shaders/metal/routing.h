// Choosing the best of a row of scores.

namespace zmlx {

constexpr constant int MAX_EXPERTS = 1024;
constexpr constant int MAX_TOP_K = 32;
// Scores a thread owns, neighbours as in MLX's softmax.
constexpr constant int READS = 4;

// How many of the n scores stand before number i in descending order. Of equal scores the lower index stands first, or
// the higher one. NaN is the smallest score, or the largest: MLX's sort puts it last, ascending.
template <bool HIGHER_FIRST, bool NAN_FIRST>
inline int rank_of(const threadgroup float* scores, int n, int i) {
  const float own = scores[i];
  const bool own_nan = metal::isnan(own);
  int rank = 0;
  for (int j = 0; j < n; j++) {
    const float other = scores[j];
    const bool other_nan = metal::isnan(other);
    const bool equal = own == other || (own_nan && other_nan);
    const bool tie = HIGHER_FIRST ? j > i : j < i;
    const bool nan = NAN_FIRST ? other_nan && !own_nan : own_nan && !other_nan;
    rank += (equal && tie) || nan || other > own;
  }
  return rank;
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
