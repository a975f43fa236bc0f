// Products of activations with quantised weights, as one lane of a simdgroup computes them.
//
// A lane takes VALUES neighbouring weights of a row per step, 32 lanes take 32·VALUES. Codes are masked where they lie
// in their word, never shifted: a code at bit b of its unit is 2^b too large, and its activation is divided by 2^b
// when it is loaded. Both are exact. The bias of a group meets the lane's sum of activations, so a weight costs one
// conversion and one multiplication.
//
// The order of every sum here is part of the contract: it is the order of MLX's matrix-vector kernels.

namespace zmlx {

// As QuantMode: the launcher passes these numbers.
enum Mode { AFFINE = 0, MXFP4 = 1, MXFP8 = 2, NVFP4 = 3 };

// Four values of e2m1 in the low bits of a half: sign, two bits of exponent, one of mantissa.
inline float e2m1(uint code) {
  half v = as_type<half>(ushort(((code & 8) << 12) | ((code & 7) << 9)));
  return float(v * half(16384.0f));
}

inline float e4m3(uint code) {
  half v = as_type<half>(ushort(((code & 128) << 8) | ((code & 127) << 7)));
  return float(v * half(256.0f));
}

inline float e8m0(uint code) {
  return as_type<float>(code == 0 ? 0x400000u : code << 23);
}

template <int MODE, typename S>
inline float scale_of(S scale) {
  if constexpr (MODE == AFFINE) {
    return float(scale);
  } else if constexpr (MODE == NVFP4) {
    return e4m3(scale);
  } else {
    return e8m0(scale);
  }
}

// Loops whose every step has its own constants.
#define ZMLX_UNROLL _Pragma("clang loop unroll(full)")
// The steps of a lane along a row. Their number is constant, 3 or 4 in most models, so loads of later steps need not wait for the
// products of earlier ones.
#define ZMLX_UNROLL_STEPS _Pragma("clang loop unroll_count(4)")

// The width of the units in which codes are masked.
template <int BITS>
constexpr int unit_bits() {
  return BITS == 4 ? 16 : 8;
}

// How many activations are summed before they are added to the rest.
template <int BITS>
constexpr int chunk_values() {
  return BITS == 3 || BITS == 5 ? 8 : BITS == 8 ? 1 : 4;
}

// Loads the lane's activations, divided as their codes need it, and returns their sum. SUM is the type in which a chunk
// is summed: the activations' own in exact mode, as MLX does it, float otherwise.
template <typename T, typename SUM, int MODE, int BITS, int VALUES>
inline float load_activations(const device T* x, thread float (&xs)[VALUES]) {
  float sum = 0;
  if constexpr (MODE != AFFINE) {
    ZMLX_UNROLL
    for (int i = 0; i < VALUES; i++) {
      xs[i] = float(x[i]);
    }
  } else {
    constexpr int chunk = chunk_values<BITS>();
    ZMLX_UNROLL
    for (int i = 0; i < VALUES; i += chunk) {
      SUM part = SUM(x[i]);
      ZMLX_UNROLL
      for (int j = 1; j < chunk; j++) {
        part = part + SUM(x[i + j]);
      }
      sum += float(part);
      ZMLX_UNROLL
      for (int j = 0; j < chunk; j++) {
        xs[i + j] = float(x[i + j]) / float(1 << (BITS * (i + j) % unit_bits<BITS>()));
      }
    }
  }
  return sum;
}

// Four values in a 16-bit unit.
template <int MODE>
inline float dot_nibbles(uint h, const thread float* x) {
  if constexpr (MODE == AFFINE) {
    return x[0] * (h & 0x000f) + x[1] * (h & 0x00f0) + x[2] * (h & 0x0f00) + x[3] * (h & 0xf000);
  } else {
    return x[0] * e2m1(h) + x[1] * e2m1(h >> 4) + x[2] * e2m1(h >> 8) + x[3] * e2m1(h >> 12);
  }
}

// Σ code · x over the lane's values, which begin at `w`. Codes of 2, 4 and 8 bits are read by words: rows and lanes
// begin on one. Codes of 3, 5 and 6 bits cross bytes: the part in the second byte is 256 / 2^b too small.
template <int MODE, int BITS, int VALUES>
inline float dot_codes(const device uchar* w, const thread float (&x)[VALUES]) {
  float acc = 0;
  if constexpr (BITS == 3 || BITS == 5 || BITS == 6) {
    ZMLX_UNROLL
    for (int i = 0; i < VALUES; i++) {
      const int byte = BITS * i / 8, shift = BITS * i % 8, over = shift + BITS - 8;
      acc += (w[byte] & (((1 << BITS) - 1) << shift & 0xff)) * x[i];
      if (over > 0) {
        acc += (w[byte + 1] & ((1 << over) - 1)) * (x[i] * 256.0f);
      }
    }
  } else {
    const device uint* words = (const device uint*)w;
    ZMLX_UNROLL
    for (int i = 0; i < VALUES * BITS / 32; i++) {
      if constexpr (BITS == 4) {
        const ushort2 h = as_type<ushort2>(words[i]);
        acc += dot_nibbles<MODE>(h.x, x + 8 * i);
        acc += dot_nibbles<MODE>(h.y, x + 8 * i + 4);
      } else {
        const uchar4 b = as_type<uchar4>(words[i]);
        ZMLX_UNROLL
        for (int j = 0; j < 4; j++) {
          if constexpr (BITS == 2) {
            const thread float* v = x + 16 * i + 4 * j;
            acc += v[0] * (b[j] & 0x03) + v[1] * (b[j] & 0x0c) + v[2] * (b[j] & 0x30) + v[3] * (b[j] & 0xc0);
          } else if constexpr (MODE == AFFINE) {
            acc += x[4 * i + j] * b[j];
          } else {
            acc += x[4 * i + j] * e4m3(b[j]);
          }
        }
      }
    }
  }
  return acc;
}

// The lane's part of the products of TILE rows of activations with ROWS rows of a matrix [last + 1, N_IN], from `row`
// on and for the values from `k` on: adds scale · Σ code·x + bias · Σ x to `acc`. Rows past the matrix's end repeat its
// last; their sums are never stored. S deduces where MLX has put the scales: `device`, or `constant` if they are few.
template <int MODE, int BITS, int GROUP, int VALUES, int N_IN, int TILE, int ROWS, typename S>
inline void add_products(
    const device uchar* w, S scales, S biases, int last, int row, int k,
    const thread float (&xs)[TILE][VALUES], const thread float (&sums)[TILE], thread float (&acc)[TILE][ROWS]) {
  ZMLX_UNROLL
  for (int r = 0; r < ROWS; r++) {
    const int at = metal::min(row + r, last);
    const device uchar* codes = w + at * (N_IN * BITS / 8) + k * BITS / 8;
    const int group = at * (N_IN / GROUP) + k / GROUP;
    const float scale = scale_of<MODE>(scales[group]);
    ZMLX_UNROLL
    for (int m = 0; m < TILE; m++) {
      const float dot = dot_codes<MODE, BITS, VALUES>(codes, xs[m]);
      if constexpr (MODE == AFFINE) {
        const float bias = float(biases[group]);
        acc[m][r] += scale * dot + sums[m] * bias;
      } else {
        acc[m][r] += scale * dot;
      }
    }
  }
}

} // namespace zmlx
