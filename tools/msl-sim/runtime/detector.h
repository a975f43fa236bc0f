// The detector. Kernels are compiled with -fsanitize=thread, but this file defines the callbacks. Every access is
// checked against the bounds of the bound buffers and threadgroup variables, and against a shadow of each byte, which
// records who read and wrote it last and which barriers that thread had passed.
#pragma once

#include "simd.h"

extern "C" char __executable_start, _end;

struct Access {
  size_t size;
  bool write, atomic;
  void* pc;
};
struct Place {  // of an access: its shadow, the accessing thread's epochs, and words for a message
  Shadow* shadow;
  uint16_t epoch, simd_epoch;
  bool uninitialised;
  size_t offset;
  char name[24];
};

static const char* verb(const Access& a) { return a.write ? "write" : "read"; }

// Returns false if there is nothing to check: the address is the program's own data, or the access was already
// reported.
static bool find_place(char* p, const Access& a, Place& at) {
  Fibre* me = g_current;
  if (p >= g_arena && p < g_arena + sizeof g_arena) {
    size_t offset = size_t(p - g_arena);
    for (int i = 0; i < g_n_slots; i++) {
      const Slot& s = g_slots[i];
      if (offset >= s.offset && offset + a.size <= s.offset + s.size) {
        at = {g_arena_shadow + offset, me->tg_epoch, me->tg_simd_epoch, true, offset - s.offset, "threadgroup memory"};
        return true;
      }
    }
    fault("out-of-bounds", {nullptr, 0}, a.pc, "%s of %zu bytes outside any threadgroup variable", verb(a), a.size);
    return false;
  }
  if (p >= &__executable_start && p < &_end) return false;
  if (p > g_scheduler_stack - (1 << 20) && p < g_scheduler_stack + (1 << 16)) return false;
  const Region* near = nullptr;
  for (int i = 0; i < g_dispatch.n_regions; i++) {
    const Region& r = g_dispatch.regions[i];
    if (p >= r.lo && p + a.size <= r.hi) {
      if (a.write && !r.writable) {
        fault("read-only", {nullptr, 0}, a.pc, "write to byte %td of buffer %d, which is an input", p - r.lo, r.index);
        return false;
      }
      if (!r.shadow) return false;
      at = {r.shadow + (p - r.lo), me->dev_epoch, me->dev_simd_epoch, r.uninitialised, size_t(p - r.lo), ""};
      snprintf(at.name, sizeof at.name, "buffer %d", r.index);
      return true;
    }
    if (p + 65536 >= r.lo && p < r.hi + 65536 && (!near || p >= r.lo)) near = &r;
  }
  if (near) {
    fault("out-of-bounds", {nullptr, 0}, a.pc, "%s of %zu bytes at byte %td of buffer %d, which has %td", verb(a),
          a.size, p - near->lo, near->index, near->hi - near->lo);
  } else {
    fault("out-of-bounds", {nullptr, 0}, a.pc, "%s of %zu bytes through a pointer to no buffer", verb(a), a.size);
  }
  return false;
}

// Whether an earlier access by `thread` of `group` at these epochs happens before the current thread's.
static bool ordered(const Place& at, uint32_t group, uint16_t thread, uint16_t epoch, uint16_t simd_epoch) {
  if (group != g_group_index) return false;
  if (thread == index_of(g_current) || epoch < at.epoch) return true;
  return g_fibres[thread].simd == g_current->simd && simd_epoch < at.simd_epoch;
}

static bool reads_ordered(const Place& at, const Shadow& s) {
  switch (s.readers) {
    case 0: return ordered(at, s.read_group, s.read_thread, s.read_epoch, s.read_simd_epoch);
    case 1:
      return s.read_group == g_group_index &&
             (s.read_epoch < at.epoch ||
              (g_fibres[s.read_thread].simd == g_current->simd && s.read_simd_epoch < at.simd_epoch));
    case 2: return s.read_group == g_group_index && s.read_epoch < at.epoch;
    default: return false;
  }
}

static void race(const Place& at, const Access& a, size_t byte, const char* earlier, uint32_t group, int thread) {
  fault("race", {nullptr, 0}, a.pc, "%s of %s at byte %zu after a %s by thread %d%s with no barrier between", verb(a), at.name,
        byte, earlier, thread, group == g_group_index ? "" : " of another threadgroup");
}

static void note_write(Shadow& s, const Place& at, const Access& a) {
  s.written = true;
  s.write_atomic = a.atomic;
  s.write_group = g_group_index;
  s.write_thread = uint16_t(index_of(g_current));
  s.write_epoch = at.epoch;
  s.write_simd_epoch = at.simd_epoch;
  s.read = false;
}

static void note_read(Shadow& s, const Place& at, const Access& a) {
  uint16_t me = uint16_t(index_of(g_current));
  if (!s.read) {
    s.readers = 0;
  } else if (s.read_group != g_group_index) {
    s.readers = 3;
  } else if (s.readers < 3) {
    if (s.read_epoch < at.epoch) s.readers = 0;  // a barrier has ordered the earlier readers before everyone
    else if (s.read_thread != me && g_fibres[s.read_thread].simd != g_current->simd) s.readers = 2;
    else if (s.read_thread != me && s.readers == 0) s.readers = 1;
  }
  s.read_atomic = a.atomic && (!s.read || s.read_atomic);
  s.read = true;
  s.read_group = g_group_index;
  s.read_thread = me;
  s.read_epoch = at.epoch;
  s.read_simd_epoch = at.simd_epoch;
}

static void check(void* pointer, const Access& a) {
  if (!g_current || !g_dispatch.detect) return;
  Place at;
  if (!find_place((char*)pointer, a, at)) return;
  for (size_t i = 0; i < a.size; i++) {
    Shadow& s = at.shadow[i];
    bool both_atomic = a.atomic && s.write_atomic;
    if (s.written && !both_atomic && !ordered(at, s.write_group, s.write_thread, s.write_epoch, s.write_simd_epoch)) {
      race(at, a, at.offset + i, "write", s.write_group, s.write_thread);
      s.written = false;  // reported once, then forgotten
      return;
    }
    if (a.write) {
      if (s.read && !(a.atomic && s.read_atomic) && !reads_ordered(at, s)) {
        race(at, a, at.offset + i, "read", s.read_group, s.read_thread);
        s.read = false;
        return;
      }
      note_write(s, at, a);
    } else {
      if (at.uninitialised && !s.written) {
        fault("uninitialised", {nullptr, 0}, a.pc, "read of %s at byte %zu, which nothing has written", at.name,
              at.offset + i);
        return;
      }
      note_read(s, at, a);
    }
  }
}

// After the dispatch: every byte of an output must have been written.
static void check_outputs() {
  for (int i = 0; i < g_dispatch.n_regions; i++) {
    const Region& r = g_dispatch.regions[i];
    if (!r.uninitialised || !r.shadow) continue;
    size_t missing = 0, first = 0, size = size_t(r.hi - r.lo);
    for (size_t b = 0; b < size; b++) {
      if (!r.shadow[b].written && missing++ == 0) first = b;
    }
    if (missing == 0) continue;
    // This is not an address. It only distinguishes the faults of different buffers.
    void* pc = (void*)(uintptr_t)(r.index + 1);
    fault("unwritten", {nullptr, 0}, pc, "%zu of %zu bytes of buffer %d were never written, the first at byte %zu",
          missing, size, r.index, first);
  }
}

#define RETURN_ADDRESS __builtin_return_address(0)
#define DETECT(n)                                                                                     \
  void __tsan_read##n(void* p) { check(p, {n, false, false, RETURN_ADDRESS}); }                       \
  void __tsan_write##n(void* p) { check(p, {n, true, false, RETURN_ADDRESS}); }                       \
  void __tsan_unaligned_read##n(void* p) { check(p, {n, false, false, RETURN_ADDRESS}); }             \
  void __tsan_unaligned_write##n(void* p) { check(p, {n, true, false, RETURN_ADDRESS}); }             \
  void __tsan_read_write##n(void* p) {                                                                \
    check(p, {n, false, false, RETURN_ADDRESS});                                                      \
    check(p, {n, true, false, RETURN_ADDRESS});                                                       \
  }                                                                                                   \
  void __tsan_unaligned_read_write##n(void* p) {                                                      \
    check(p, {n, false, false, RETURN_ADDRESS});                                                      \
    check(p, {n, true, false, RETURN_ADDRESS});                                                       \
  }
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
DETECT(1)
DETECT(2)
DETECT(4)
DETECT(8)
DETECT(16)
// volatile accesses have names of their own in clang
#define DETECT_VOLATILE(n)                                                                   \
  void __tsan_volatile_read##n(void* p) { check(p, {n, false, false, RETURN_ADDRESS}); }     \
  void __tsan_volatile_write##n(void* p) { check(p, {n, true, false, RETURN_ADDRESS}); }
DETECT_VOLATILE(1)
DETECT_VOLATILE(2)
DETECT_VOLATILE(4)
DETECT_VOLATILE(8)
DETECT_VOLATILE(16)
void __tsan_read_range(void* p, size_t n) { check(p, {n, false, false, RETURN_ADDRESS}); }
void __tsan_write_range(void* p, size_t n) { check(p, {n, true, false, RETURN_ADDRESS}); }
void* __tsan_memcpy(void* to, const void* from, size_t n) {
  check((void*)from, {n, false, false, RETURN_ADDRESS});
  check(to, {n, true, false, RETURN_ADDRESS});
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  check((void*)from, {n, false, false, RETURN_ADDRESS});
  check(to, {n, true, false, RETURN_ADDRESS});
  return memmove(to, from, n);
}
void* __tsan_memset(void* to, int c, size_t n) {
  check(to, {n, true, false, RETURN_ADDRESS});
  return memset(to, c, n);
}
void msl_rt_atomic_access(const volatile void* p, size_t size, bool writes) {
  // The return address lies in the atomic function. The place in the kernel that called it is not known.
  check((void*)p, {size, writes, true, RETURN_ADDRESS});
}
}
