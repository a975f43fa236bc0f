// Replaces what MLX 0.32 puts before every kernel that it compiles at run time, as far as kernels of this project can
// use it. The names exist here so that a body which uses them, or collides with them, behaves in the same way.
#include <metal_math>
#include <metal_stdlib>

using namespace metal;

typedef half float16_t;
typedef bfloat bfloat16_t;

inline uint16_t bfloat16_to_uint16(const bfloat16_t x) { return as_type<uint16_t>(x); }
inline bfloat16_t uint16_to_bfloat16(const uint16_t x) { return as_type<bfloat16_t>(x); }

static constant constexpr int MAX_REDUCE_SPECIALIZED_DIMS = 4;
static constant constexpr int REDUCE_N_READS = 4;
static constant constexpr int REDUCE_N_WRITES = 4;
static constant constexpr int SOFTMAX_N_READS = 4;
static constant constexpr int RMS_N_READS = 4;
static constant constexpr int RMS_LOOPED_LIMIT = 4096;

#define instantiate_kernel(name, func, ...) \
  template [[host_name(name)]] [[kernel]] decltype(func<__VA_ARGS__>) func<__VA_ARGS__>;
#define MLX_MTL_PRAGMA_UNROLL _Pragma("clang loop unroll(full)")

// Only the values: kernels of this project do not compute with complex numbers.
struct complex64_t {
  float real;
  float imag;
  constexpr complex64_t(float re = 0, float im = 0) : real(re), imag(im) {}
};

template <typename U>
struct WorkPerThread {
  static_assert(sizeof(U) <= 8, "Type too large");
  static constexpr int constant n = 8 / sizeof(U);
};

// For integers, the range of the type. For floats, the infinities; the finite range is separate.
template <typename U>
struct Limits {
  static constexpr constant U max = metal::numeric_limits<U>::max();
  static constexpr constant U min = metal::numeric_limits<U>::min();
  static constexpr constant U finite_max = metal::numeric_limits<U>::max();
  static constexpr constant U finite_min = metal::numeric_limits<U>::min();
};
#define MSL_SIM_FLOAT_LIMITS(T)                                             \
  template <>                                                               \
  struct Limits<T> {                                                        \
    static constexpr constant T max = metal::numeric_limits<T>::infinity(); \
    static constexpr constant T min = -metal::numeric_limits<T>::infinity(); \
    static constexpr constant T finite_max = metal::numeric_limits<T>::max(); \
    static constexpr constant T finite_min = -metal::numeric_limits<T>::max(); \
  };
MSL_SIM_FLOAT_LIMITS(half)
MSL_SIM_FLOAT_LIMITS(float)
MSL_SIM_FLOAT_LIMITS(bfloat16_t)
template <>
struct Limits<bool> {
  static constexpr constant bool max = true;
  static constexpr constant bool min = false;
};

template <typename IdxT = int64_t>
METAL_FUNC IdxT elem_to_loc(IdxT elem, constant const int* shape, constant const int64_t* strides, int ndim) {
  IdxT location = 0;
  for (int d = ndim; d-- > 0 && elem > 0; elem /= shape[d]) {
    location += (elem % shape[d]) * IdxT(strides[d]);
  }
  return location;
}

template <typename IdxT = int64_t>
METAL_FUNC IdxT elem_to_loc_1(uint elem, constant const int64_t& stride) {
  return elem * IdxT(stride);
}

template <typename IdxT = int64_t>
METAL_FUNC IdxT elem_to_loc_2(uint2 elem, constant const int64_t* strides) {
  return elem.x * IdxT(strides[1]) + elem.y * IdxT(strides[0]);
}

template <typename IdxT = int64_t>
METAL_FUNC IdxT elem_to_loc_3(uint3 elem, constant const int64_t* strides) {
  return elem.x * IdxT(strides[2]) + elem.y * IdxT(strides[1]) + elem.z * IdxT(strides[0]);
}

template <typename T, typename U>
inline T ceildiv(T n, U m) {
  return (n + m - 1) / m;
}

inline float log1p(float x) {
  float shifted = 1.0f + x;
  if (shifted == Limits<float>::max) return shifted;
  if (shifted == 1.0f) return x;
  return x * (metal::log(shifted) / (shifted - 1.0f));
}
inline bfloat16_t log1p(bfloat16_t x) { return bfloat16_t(log1p(float(x))); }

template <bool condition, typename T, typename U>
struct ConditionalType {
  using type = U;
};
template <typename T, typename U>
struct ConditionalType<true, T, U> {
  using type = T;
};

template <typename U, typename T>
inline U cast_to(T value) {
  return static_cast<U>(value);
}
template <>
inline bool cast_to<bool, float>(float value) {
  return value != 0.0f;
}
template <>
inline bool cast_to<bool, bfloat16_t>(bfloat16_t value) {
  return float(value) != 0.0f;
}
