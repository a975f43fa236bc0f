// The interface between a translated kernel (instrumented in detect mode) and the runtime (never instrumented).
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace msl {

struct U3 {
  uint32_t x, y, z;
};

// The place of an operation in the kernel's source.
struct Site {
  const char* file;
  int line;
};

// What one thread of a dispatch sees. The fields carry the names of the Metal attributes, because the generated
// trampolines refer to them by these names.
struct Ctx {
  void* const* buffers;  // [[buffer(n)]]
  void* const* tgmem;    // [[threadgroup(n)]]
  U3 thread_position_in_grid, thread_position_in_threadgroup, threadgroup_position_in_grid;
  U3 threads_per_grid, threads_per_threadgroup, threadgroups_per_grid, dispatch_threads_per_threadgroup;
  U3 grid_origin, grid_size;
  uint32_t thread_index_in_threadgroup, thread_index_in_simdgroup, simdgroup_index_in_threadgroup;
  uint32_t simdgroups_per_threadgroup, dispatch_simdgroups_per_threadgroup;
  uint32_t threads_per_simdgroup, thread_execution_width;
  uint32_t quadgroup_index_in_threadgroup, thread_index_in_quadgroup;
  uint32_t quadgroups_per_threadgroup, dispatch_quadgroups_per_threadgroup;
};

typedef void (*KernelFn)(const Ctx*);

// One operation of a whole simdgroup: runs once, for the lanes in `mask`. `in`, `out` and `arg` are indexed by lane.
typedef void (*CollectiveFn)(const void* const* in, void* const* out, const uint32_t* arg, uint32_t mask);

enum class AtomicOp { Load, Store, Exchange, Add, Sub, Min, Max, And, Or, Xor };

}  // namespace msl

extern "C" {
void msl_rt_collective(msl::CollectiveFn fn, const void* in, void* out, uint32_t arg, msl::Site site,
                       const char* what);
void msl_rt_threadgroup_barrier(int flags, msl::Site site);
void msl_rt_simdgroup_barrier(int flags, msl::Site site);
// The memory of a threadgroup variable; `key` identifies the variable.
void* msl_rt_threadgroup_slot(const void* key, size_t size, size_t align);
uint32_t msl_rt_lane();
void msl_rt_register_kernel(const char* name, msl::KernelFn fn);
void msl_rt_register_constant(int id, void* storage, size_t size, bool* defined);
// Called by collectives when a lane asks for the value of a lane that does not take part.
void msl_rt_bad_lane(int lane);
void msl_rt_partial_simdgroup(const char* what);
// Tells the detector about an atomic access. Otherwise it would report the plain load and store as a race.
void msl_rt_atomic_access(const volatile void* p, size_t size, bool writes);
}
