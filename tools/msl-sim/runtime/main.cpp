// The program with which a kernel library is linked. It reads a plan from standard input, maps the buffers from the
// file that its argument names, runs one dispatch, and prints faults. The file then contains the results.
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#include "detector.h"
#include "group.h"

struct Kernel {
  const char* name;
  KernelFn fn;
};
struct Constant {
  int id;
  void* storage;
  size_t size;
  bool* defined;
};
static Kernel g_kernels[1024];
static int g_n_kernels;
static Constant g_constants[1024];
static int g_n_constants;

extern "C" void msl_rt_register_kernel(const char* name, KernelFn fn) {
  if (g_n_kernels < 1024) g_kernels[g_n_kernels++] = {name, fn};
}
extern "C" void msl_rt_register_constant(int id, void* storage, size_t size, bool* defined) {
  if (g_n_constants < 1024) g_constants[g_n_constants++] = {id, storage, size, defined};
}

[[noreturn]] static void refuse(const char* why) {
  printf("refused\t%s\n", why);
  fflush(stdout);
  _exit(2);
}

// One after the instruction, because the reader subtracts one from every counter, as for a return address.
static void* program_counter(void* context) {
  auto* c = (ucontext_t*)context;
#if defined(__x86_64__)
  return (void*)(c->uc_mcontext.gregs[REG_RIP] + 1);
#else
  return (void*)(c->uc_mcontext.pc + 1);
#endif
}

static void on_signal(int number, siginfo_t* info, void* context) {
  void* pc = program_counter(context);
  if (number == SIGPROF) {
    fault("timeout", {nullptr, 0}, pc, "still running after %d s of processor time", g_dispatch.cpu_seconds);
  } else if (number == SIGILL || number == SIGTRAP) {
    fault("undefined", {nullptr, 0}, pc, "index outside an array, misaligned pointer or division by zero");
  } else {
    char* p = (char*)info->si_addr;
    if (p >= g_stacks && p < g_stacks + sizeof g_stacks) {
      fault("stack-overflow", {nullptr, 0}, pc, "a thread's own variables take more than %zu bytes", kStack - kPage);
    } else {
      fault("crash", {nullptr, 0}, pc, "%s at address %p", strsignal(number), info->si_addr);
    }
  }
  print_faults();
  _exit(0);
}

static void install_signals() {
  static char stack[256 * 1024];
  stack_t alternate = {};
  alternate.ss_sp = stack;
  alternate.ss_size = sizeof stack;
  sigaltstack(&alternate, nullptr);
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  const int numbers[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGPROF};
  for (int number : numbers) sigaction(number, &action, nullptr);
  // Processor time instead of the clock: a kernel on a loaded or stopped machine is not endless.
  itimerval limit = {};
  limit.it_value.tv_sec = g_dispatch.cpu_seconds;
  setitimer(ITIMER_PROF, &limit, nullptr);
}

static void set_constant(int id, const char* hex) {
  unsigned char bytes[64];
  size_t n = 0;
  unsigned byte;
  while (n < sizeof bytes && sscanf(hex + 2 * n, "%2x", &byte) == 1) bytes[n++] = (unsigned char)byte;
  bool found = false;
  for (int i = 0; i < g_n_constants; i++) {
    Constant& c = g_constants[i];
    if (c.id != id) continue;
    if (c.size != n) refuse("a function constant has another size than its value");
    memcpy(c.storage, bytes, n);
    *c.defined = true;
    found = true;
  }
  if (!found) refuse("no function constant has this id");
}

static void add_buffer(char* mapping, int index, size_t offset, size_t size, char access) {
  Dispatch& d = g_dispatch;
  if (index < 0 || index >= kMaxSlots || d.n_regions == kMaxSlots) refuse("buffer index out of range");
  char* lo = mapping + offset;
  d.buffers[index] = lo;
  Region& r = d.regions[d.n_regions++];
  r = {lo, lo + size, index, access != 'r', access == 'o', nullptr};
  if (d.detect && r.writable && size) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* shadow = mmap(nullptr, size * sizeof(Shadow), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (shadow == MAP_FAILED) refuse("no memory for the detector");
    r.shadow = (Shadow*)shadow;
  }
}

static void read_plan(char* mapping) {
  Dispatch& d = g_dispatch;
  char line[1024], name[512], hex[160], access;
  int index, detect;
  size_t offset, size;
  unsigned order;
  unsigned long long seed;
  while (fgets(line, sizeof line, stdin)) {
    if (sscanf(line, "kernel %511[^\n]", name) == 1) {
      for (int i = 0; i < g_n_kernels; i++)
        if (strcmp(g_kernels[i].name, name) == 0) d.fn = g_kernels[i].fn;
    } else if (sscanf(line, "run detect %d order %u seed %llu seconds %d", &detect, &order, &seed, &d.cpu_seconds) == 4) {
      d.detect = detect;
      d.order = Order(order);
      d.seed = seed;
    } else if (sscanf(line, "grid %u %u %u", &d.grid.x, &d.grid.y, &d.grid.z) == 3) {
      // read
    } else if (sscanf(line, "group %u %u %u", &d.group.x, &d.group.y, &d.group.z) == 3) {
      // read
    } else if (sscanf(line, "buffer %d %zu %zu %c", &index, &offset, &size, &access) == 4) {
      add_buffer(mapping, index, offset, size, access);
    } else if (sscanf(line, "threadgroup %d %zu", &index, &size) == 2) {
      if (index < 0 || index >= kMaxSlots) refuse("threadgroup index out of range");
      d.threadgroup_bytes[index] = size;
    } else if (sscanf(line, "constant %d %159s", &index, hex) == 2) {
      set_constant(index, hex);
    } else {
      refuse("a line of the plan makes no sense");
    }
  }
  if (!d.fn) refuse("no such kernel");
}

static void guard_stacks() {
  uint32_t n = g_dispatch.group.x * g_dispatch.group.y * g_dispatch.group.z;
  for (uint32_t i = 0; i < n && i < uint32_t(kMaxThreads); i++) mprotect(g_stacks + i * kStack, kPage, PROT_NONE);
}

static void run_grid() {
  Dispatch& d = g_dispatch;
  g_random = (d.seed + 1) * 0x9e3779b97f4a7c15ull;
  U3 n = group_counts();
  uint32_t total = n.x * n.y * n.z;
  int* groups = (int*)malloc(sizeof(int) * (total ? total : 1));
  for (uint32_t i = 0; i < total; i++) groups[i] = int(i);
  arrange(groups, int(total));
  for (uint32_t i = 0; i < total && !g_abandon; i++) {
    uint32_t g = uint32_t(groups[i]);
    run_group({g % n.x, g / n.x % n.y, g / (n.x * n.y)}, g);
  }
  free(groups);
}

int main(int argc, char** argv) {
  if (argc != 2) refuse("usage: PROGRAM BUFFERS < PLAN");
  int file = open(argv[1], O_RDWR);
  struct stat info;
  if (file < 0 || fstat(file, &info) != 0) refuse("cannot open the buffers");
  char* mapping = (char*)mmap(nullptr, size_t(info.st_size), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (mapping == MAP_FAILED) refuse("cannot map the buffers");
  g_scheduler_stack = (char*)__builtin_frame_address(0);
  read_plan(mapping);
  install_signals();
  guard_stacks();
  run_grid();
  if (g_dispatch.detect && !g_abandon) check_outputs();
  print_faults();
  printf("done\n");
  return 0;
}
