// Runs one threadgroup, from the start of its first thread to the return of its last one.
#pragma once

#include "simd.h"

static uint64_t g_random;

static uint32_t random_below(uint32_t n) {  // xorshift64*
  g_random ^= g_random >> 12;
  g_random ^= g_random << 25;
  g_random ^= g_random >> 27;
  return uint32_t((g_random * 0x2545f4914f6cdd1dull >> 32) % n);
}

static void arrange(int* a, int n) {
  if (g_dispatch.order == Order::Reverse) {
    for (int i = 0; i < n / 2; i++) {
      int t = a[i];
      a[i] = a[n - 1 - i];
      a[n - 1 - i] = t;
    }
  } else if (g_dispatch.order == Order::Random) {
    for (int i = n; i > 1; i--) {
      int k = int(random_below(uint32_t(i))), t = a[i - 1];
      a[i - 1] = a[k];
      a[k] = t;
    }
  }
}

static void thread_entry() {
  g_dispatch.fn(&g_current->ctx);
  Fibre* me = g_current;
  me->state = State::Done;
  g_live--;
  Simdgroup& s = g_simds[me->simd];
  s.live--;
  fire_if_complete(s);
  g_current = me;
  // This fibre never resumes. The last switch away from it happens here.
  if (!switch_to_next_lane(me)) to_scheduler(me);
  for (;;) to_scheduler(me);
}

static uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

// At the edge of a grid whose size is not a multiple of the threadgroup, groups have fewer threads.
static U3 extent(U3 at) {
  const Dispatch& d = g_dispatch;
  return {smaller(d.group.x, d.grid.x - at.x * d.group.x), smaller(d.group.y, d.grid.y - at.y * d.group.y),
          smaller(d.group.z, d.grid.z - at.z * d.group.z)};
}

static uint32_t groups_along(uint32_t grid, uint32_t group) { return (grid + group - 1) / group; }

static U3 group_counts() {
  const Dispatch& d = g_dispatch;
  return {groups_along(d.grid.x, d.group.x), groups_along(d.grid.y, d.group.y), groups_along(d.grid.z, d.group.z)};
}

static void fill_context(Ctx& c, uint32_t thread, U3 at, U3 ext) {
  const Dispatch& d = g_dispatch;
  uint32_t full = d.group.x * d.group.y * d.group.z;
  U3 t = {thread % ext.x, thread / ext.x % ext.y, thread / (ext.x * ext.y)};
  c.buffers = d.buffers;
  c.tgmem = g_threadgroup_pointers;
  c.thread_position_in_threadgroup = t;
  c.threadgroup_position_in_grid = at;
  c.thread_position_in_grid = {at.x * d.group.x + t.x, at.y * d.group.y + t.y, at.z * d.group.z + t.z};
  c.threads_per_grid = c.grid_size = d.grid;
  c.grid_origin = {0, 0, 0};
  c.threads_per_threadgroup = ext;
  c.dispatch_threads_per_threadgroup = d.group;
  c.threadgroups_per_grid = group_counts();
  c.thread_index_in_threadgroup = thread;
  c.thread_index_in_simdgroup = thread % kWidth;
  c.simdgroup_index_in_threadgroup = thread / kWidth;
  c.simdgroups_per_threadgroup = uint32_t(g_n_simds);
  c.dispatch_simdgroups_per_threadgroup = (full + kWidth - 1) / kWidth;
  c.threads_per_simdgroup = c.thread_execution_width = kWidth;
  c.quadgroup_index_in_threadgroup = thread / 4;
  c.thread_index_in_quadgroup = thread % 4;
  c.quadgroups_per_threadgroup = uint32_t(g_n_threads + 3) / 4;
  c.dispatch_quadgroups_per_threadgroup = (full + 3) / 4;
}

static void set_up_group(U3 at) {
  U3 ext = extent(at);
  g_n_threads = int(ext.x * ext.y * ext.z);
  g_n_simds = (g_n_threads + kWidth - 1) / kWidth;
  g_live = g_n_threads;
  g_at_barrier = 0;
  g_n_slots = 0;
  g_arena_used = 0;
  g_current = nullptr;
  if (g_dispatch.detect) memset(g_arena_shadow, 0, sizeof g_arena_shadow);
  for (int i = 0; i < kMaxSlots; i++) {
    size_t& bytes = g_dispatch.threadgroup_bytes[i];
    g_threadgroup_pointers[i] = bytes ? msl_rt_threadgroup_slot(&bytes, bytes, 16) : nullptr;
  }
  for (int s = 0; s < g_n_simds; s++) {
    int first = s * kWidth, n = int(smaller(kWidth, uint32_t(g_n_threads - first)));
    g_simds[s] = {first, n, n, 0};
    g_simd_order[s] = s;
    for (int i = 0; i < n; i++) g_lane_order[first + i] = first + i;
    arrange(g_lane_order + first, n);
  }
  arrange(g_simd_order, g_n_simds);
  for (int i = 0; i < g_n_threads; i++) g_lane_position[g_lane_order[i]] = i;
  for (int i = 0; i < g_n_threads; i++) {
    Fibre& f = g_fibres[i];
    f.state = State::Ready;
    f.lane = uint8_t(i % kWidth);
    f.simd = uint16_t(i / kWidth);
    f.tg_epoch = f.tg_simd_epoch = f.dev_epoch = f.dev_simd_epoch = 1;
    fill_context(f.ctx, uint32_t(i), at, ext);
    char* stack = g_stacks + size_t(i) * kStack;
    // The parts of the stacks that are in use must not all fall into the same cache sets.
    f.sp = fresh_stack(stack + kStack - size_t(i) * 9 * 64 % kPage, thread_entry);
  }
}

// Runs the simdgroup until none of its lanes can continue.
static bool run_simdgroup(Simdgroup& s) {
  bool progress = false;
  for (;;) {
    Fibre* ready = nullptr;
    for (int i = 0; i < s.n && !ready; i++) {
      Fibre& f = g_fibres[g_lane_order[s.first + i]];
      if (f.state == State::Ready) ready = &f;
    }
    if (g_abandon) return progress;
    if (!ready) {
      if (fire_if_complete(s)) continue;
      return progress;
    }
    progress = true;
    g_current = ready;
    msl_switch(&g_scheduler_sp, ready->sp);
  }
}

// Every live thread waits at a threadgroup_barrier. Checks that all wait at the same one, and releases them.
static void release_barrier() {
  Fibre* first = nullptr;
  for (int i = 0; i < g_n_threads; i++) {
    Fibre& f = g_fibres[i];
    if (f.state != State::AtBarrier) continue;
    if (!first) first = &f;
    if (f.site.line != first->site.line || strcmp(f.site.file, first->site.file) != 0) {
      g_current = &f;
      fault("divergent-barrier", f.site, nullptr,
            "threads of the threadgroup wait at different barriers, the other at line %d", first->site.line);
    }
  }
  g_current = first;
  if (g_live != g_n_threads) {
    fault("divergent-barrier", first->site, nullptr, "reached by %d of %d threads, the others have returned", g_live,
          g_n_threads);
  }
  for (int i = 0; i < g_n_threads; i++) {
    Fibre& f = g_fibres[i];
    if (f.state != State::AtBarrier) continue;
    f.state = State::Ready;
    if (f.flags & 2) f.tg_epoch++, f.tg_simd_epoch++;
    if (f.flags & 1) f.dev_epoch++, f.dev_simd_epoch++;
  }
  g_at_barrier = 0;
}

static void run_group(U3 at, uint32_t index) {
  g_group_index = index;
  set_up_group(at);
  while (g_live && !g_abandon) {
    bool progress = false;
    for (int i = 0; i < g_n_simds; i++) progress |= run_simdgroup(g_simds[g_simd_order[i]]);
    if (g_abandon || !g_live) break;
    if (g_at_barrier == g_live) {
      release_barrier();
      continue;
    }
    if (progress) continue;
    for (int i = 0; i < g_n_simds && !progress; i++) progress = fire_divergent(g_simds[i]);
    if (!progress) {
      g_current = nullptr;
      fault("divergent-barrier", {nullptr, 0}, nullptr, "%d of %d live threads wait at a barrier for ever",
            g_at_barrier, g_live);
      g_abandon = true;
    }
  }
  g_current = nullptr;
}
