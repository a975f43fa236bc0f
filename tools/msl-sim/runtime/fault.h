// Faults go to standard output, one a line, tab-separated:
//   fault KIND FILE LINE PC GROUP-X,Y,Z THREAD COUNT MESSAGE
// FILE and LINE are empty if only the program counter is known. A fault that recurs at the same place is only counted.
#pragma once

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "state.h"

struct Fault {
  const char* kind;
  Site site;
  void* pc;
  U3 group;
  int thread;
  uint64_t count;
  char message[256];
};
static const int kMaxFaults = 64;
static Fault g_faults[kMaxFaults];
static int g_n_faults;

__attribute__((format(printf, 4, 5))) static void fault(const char* kind, Site site, void* pc, const char* format, ...) {
  for (int i = 0; i < g_n_faults; i++) {
    Fault& f = g_faults[i];
    if (strcmp(f.kind, kind) == 0 && f.pc == pc && f.site.line == site.line && f.site.file == site.file) {
      f.count++;
      return;
    }
  }
  if (g_n_faults == kMaxFaults) return;
  Fault& f = g_faults[g_n_faults++];
  f = {kind, site, pc, {0, 0, 0}, -1, 1, ""};
  if (g_current) {
    f.group = g_current->ctx.threadgroup_position_in_grid;
    f.thread = int(g_current->ctx.thread_index_in_threadgroup);
  }
  va_list args;
  va_start(args, format);
  vsnprintf(f.message, sizeof f.message, format, args);
  va_end(args);
}

static void print_faults() {
  for (int i = 0; i < g_n_faults; i++) {
    Fault& f = g_faults[i];
    printf("fault\t%s\t%s\t%d\t%p\t%u,%u,%u\t%d\t%llu\t%s\n", f.kind, f.site.file ? f.site.file : "", f.site.line,
           f.pc, f.group.x, f.group.y, f.group.z, f.thread, (unsigned long long)f.count, f.message);
  }
  fflush(stdout);
}
