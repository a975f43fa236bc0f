// Scheduling: a thread runs until it must wait. A simd operation is executed when all live lanes of the simdgroup wait
// at it, a barrier when all live threads of the threadgroup wait at it.
#pragma once

#include "fault.h"
#include "fibre.h"

static int index_of(const Fibre* f) { return int(f - g_fibres); }

static void to_scheduler(Fibre* me) { msl_switch(&me->sp, g_scheduler_sp); }

// Runs the next ready lane of the same simdgroup; false if there is none.
static bool switch_to_next_lane(Fibre* me) {
  Simdgroup& s = g_simds[me->simd];
  int position = g_lane_position[index_of(me)] - s.first;
  for (int i = 0; i < s.n; i++) {
    if (++position == s.n) position = 0;
    Fibre* next = &g_fibres[g_lane_order[s.first + position]];
    if (next->state != State::Ready) continue;
    g_current = next;
    if (next != me) msl_switch(&me->sp, next->sp);
    g_current = me;
    return true;
  }
  return false;
}

static void wait(Fibre* me) {
  while (me->state != State::Ready || g_abandon) {
    if (g_abandon || !switch_to_next_lane(me)) to_scheduler(me);
    g_current = me;
  }
}

// Lets the lanes of `mask`, which all wait at the same operation, perform it.
static void fire(Simdgroup& s, uint32_t mask, CollectiveFn fn) {
  const void* in[kWidth] = {};
  void* out[kWidth] = {};
  uint32_t arg[kWidth] = {};
  for (int l = 0; l < s.n; l++) {
    if (!(mask >> l & 1)) continue;
    Fibre& f = g_fibres[s.first + l];
    in[l] = f.in;
    out[l] = f.out;
    arg[l] = f.arg;
  }
  if (fn) fn(in, out, arg, mask);
  for (int l = 0; l < s.n; l++) {
    if (!(mask >> l & 1)) continue;
    Fibre& f = g_fibres[s.first + l];
    f.state = State::Ready;
    s.waiting--;
    if (!fn) {  // a simdgroup_barrier
      if (f.flags & 2) f.tg_simd_epoch++;
      if (f.flags & 1) f.dev_simd_epoch++;
    }
  }
}

static bool same_operation(const Fibre& a, const Fibre& b) {
  return a.fn == b.fn && a.site.line == b.site.line && strcmp(a.site.file, b.site.file) == 0;
}

// Executes the operation at which every live lane waits.
static bool fire_if_complete(Simdgroup& s) {
  if (s.waiting == 0 || s.waiting != s.live) return false;
  Fibre* first = nullptr;
  uint32_t mask = 0;
  for (int l = 0; l < s.n; l++) {
    Fibre& f = g_fibres[s.first + l];
    if (f.state != State::AtSimd) continue;
    if (!first) first = &f;
    if (!same_operation(f, *first)) return false;
    mask |= 1u << l;
  }
  fire(s, mask, first->fn);
  return true;
}

// The lanes have diverged. Those at the earliest line continue, as hardware finishes a loop before the code after it.
static bool fire_divergent(Simdgroup& s) {
  Fibre* first = nullptr;
  for (int l = 0; l < s.n; l++) {
    Fibre& f = g_fibres[s.first + l];
    if (f.state == State::AtSimd && (!first || f.site.line < first->site.line)) first = &f;
  }
  if (!first) return false;
  uint32_t mask = 0;
  for (int l = 0; l < s.n; l++) {
    Fibre& f = g_fibres[s.first + l];
    if (f.state == State::AtSimd && same_operation(f, *first)) mask |= 1u << l;
  }
  if (g_dispatch.detect) {
    g_current = first;
    fault("divergent-simd", first->site, nullptr, "%s by the lanes %08x only, while others of the simdgroup are elsewhere",
          first->what, mask);
  }
  fire(s, mask, first->fn);
  return true;
}

extern "C" {

uint32_t msl_rt_lane() { return g_current->lane; }

void msl_rt_collective(CollectiveFn fn, const void* in, void* out, uint32_t arg, Site site, const char* what) {
  Fibre* me = g_current;
  Simdgroup& s = g_simds[me->simd];
  me->state = State::AtSimd;
  me->fn = fn;
  me->in = in;
  me->out = out;
  me->arg = arg;
  me->site = site;
  me->what = what;
  s.waiting++;
  if (fire_if_complete(s)) {
    g_current = me;
    return;
  }
  wait(me);
}

void msl_rt_simdgroup_barrier(int flags, Site site) {
  g_current->flags = flags;
  msl_rt_collective(nullptr, nullptr, nullptr, 0, site, "simdgroup_barrier");
}

void msl_rt_threadgroup_barrier(int flags, Site site) {
  Fibre* me = g_current;
  me->state = State::AtBarrier;
  me->site = site;
  me->what = "threadgroup_barrier";
  me->flags = flags;
  g_at_barrier++;
  wait(me);
}

void* msl_rt_threadgroup_slot(const void* key, size_t size, size_t align) {
  for (int i = 0; i < g_n_slots; i++)
    if (g_slots[i].key == key) return g_arena + g_slots[i].offset;
  size_t offset = (g_arena_used + align - 1) / align * align;
  if (offset + size > kThreadgroupLimit || g_n_slots == int(sizeof g_slots / sizeof g_slots[0])) {
    fault("threadgroup-memory", {nullptr, 0}, nullptr, "threadgroup variables take %zu bytes, more than %zu",
          offset + size, kThreadgroupLimit);
    g_abandon = true;  // nothing sensible can follow; this thread gives way at its next wait
    return g_oversize;
  }
  g_arena_used = offset + size;
  memset(g_arena + offset, 0xff, size);  // NaN in every float format
  g_slots[g_n_slots++] = {key, offset, size};
  return g_arena + offset;
}

void msl_rt_bad_lane(int lane) {
  fault("bad-lane", g_current->site, nullptr, "%s reads lane %d, which takes no part", g_current->what, lane);
}

void msl_rt_partial_simdgroup(const char* what) {
  fault("divergent-simd", g_current->site, nullptr, "%s needs all 32 lanes", what);
}

}  // extern "C"
