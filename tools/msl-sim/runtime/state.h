// The complete state of the runtime, in static storage, because the detector ignores accesses to the program's own
// data.
#pragma once

#include "abi.h"

using namespace msl;

static const int kWidth = 32;                       // lanes of a simdgroup
static const int kMaxThreads = 1024;                // per threadgroup
static const int kMaxSlots = 31;                    // buffer and threadgroup indices
static const size_t kThreadgroupLimit = 32 * 1024;  // bytes, as on Apple's GPUs
static const size_t kPage = 4096;
static const size_t kStack = 17 * kPage;  // per thread; the lowest page is the guard

enum class State : uint8_t { Ready, AtSimd, AtBarrier, Done };

struct Fibre {
  void* sp;
  Ctx ctx;
  State state;
  uint8_t lane;
  uint16_t simd;
  Site site;  // of the operation it waits at
  const char* what;
  CollectiveFn fn;
  const void* in;
  void* out;
  uint32_t arg;
  int flags;  // of the barrier
  // How many barriers have ordered its threadgroup (tg) or device (dev) accesses: those of the whole group, and those
  // plus the barriers of its simdgroup.
  uint16_t tg_epoch, tg_simd_epoch, dev_epoch, dev_simd_epoch;
};

struct Simdgroup {
  int first, n, live, waiting;
};

struct Shadow {  // of one byte
  uint32_t write_group, read_group;
  uint16_t write_thread, write_epoch, write_simd_epoch;
  uint16_t read_thread, read_epoch, read_simd_epoch;
  bool written, read, write_atomic, read_atomic;
  uint8_t readers;  // 0: one thread, 1: several of one simdgroup, 2: several simdgroups, 3: several threadgroups
};

struct Region {  // a bound buffer
  char *lo, *hi;
  int index;
  bool writable, uninitialised;
  Shadow* shadow;  // writable ones only
};

struct Slot {  // a threadgroup variable of the current group
  const void* key;
  size_t offset, size;
};

enum class Order { Forward, Reverse, Random };

struct Dispatch {
  KernelFn fn;
  void* buffers[kMaxSlots];
  size_t threadgroup_bytes[kMaxSlots];
  U3 grid, group;
  Region regions[kMaxSlots];
  int n_regions;
  Order order;
  uint64_t seed;
  bool detect;
  int cpu_seconds;
};

static Dispatch g_dispatch;
static Fibre g_fibres[kMaxThreads];
static Simdgroup g_simds[kMaxThreads / kWidth];
static int g_lane_order[kMaxThreads];      // per simdgroup: the i-th thread to run
static int g_lane_position[kMaxThreads];   // its inverse
static int g_simd_order[kMaxThreads / kWidth];
static char g_stacks[kMaxThreads * kStack] __attribute__((aligned(4096)));
static char g_arena[kThreadgroupLimit + 4096] __attribute__((aligned(256)));
static char g_oversize[1 << 20] __attribute__((aligned(256)));  // for threadgroup variables beyond the limit
static Shadow g_arena_shadow[kThreadgroupLimit];
static Slot g_slots[256];
static int g_n_slots;
static size_t g_arena_used;
static void* g_threadgroup_pointers[kMaxSlots];
static void* g_scheduler_sp;
static char* g_scheduler_stack;  // an address in main's frame: collectives may run on that stack
static Fibre* g_current;
static int g_n_threads, g_n_simds, g_live, g_at_barrier;
static uint32_t g_group_index;
static bool g_abandon;
