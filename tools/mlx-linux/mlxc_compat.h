// Included before every file of mlx-c 0.7.0, both when setup-mlx compiles it and when its declarations are generated.
//
// 1. std::format, which the library of g++ 12 (Debian 12) lacks. mlx-c uses it in messages of input and output errors,
//    with plain "{}" only.
// 2. mlx-c declares its functions for float16 and bfloat16 on Arm only; mlx-rs needs them, and the two types, elsewhere.
#pragma once

#ifdef __cplusplus
#include <version>
#if defined(__cpp_lib_format)
#include <format>
#else
#include <sstream>
#include <string>
#include <string_view>
namespace std {
template <class... Values>
string format(string_view text, const Values&... values) {
  ostringstream out;
  auto next = [&](const auto& value) {
    auto hole = text.find("{}");
    out << text.substr(0, hole);
    if (hole == string_view::npos) {
      text = {};
      return;
    }
    out << value;
    text.remove_prefix(hole + 2);
  };
  (next(values), ...);
  out << text;
  return out.str();
}
} // namespace std
#endif
#endif

#if !defined(__aarch64__)
#define HAS_FLOAT16
#define HAS_BFLOAT16
#ifdef __cplusplus
#include "mlx/types/half_types.h"
using float16_t = mlx::core::float16_t;
using bfloat16_t = mlx::core::bfloat16_t;
#else
typedef _Float16 float16_t;
typedef __bf16 bfloat16_t;
#endif
#endif
