// mlx-rs 0.33 seeds its default random generator with mach_approximate_time, a function of macOS.
#include <chrono>
#include <cstdint>

extern "C" std::uint64_t mach_approximate_time() {
  return std::chrono::steady_clock::now().time_since_epoch().count();
}
