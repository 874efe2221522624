// The emulator's runtime: fibers, their schedule, rendezvous, shared memory, and the errors it finds itself.
//
// Compiled WITHOUT any sanitizer: its own bookkeeping must be invisible to them. What they must be told (switches of
// stacks, order made by barriers) goes through weak symbols, which are there when the program has a sanitizer.
// One launch at a time, on the calling OS thread. A launch that fails leaves its fibers where they stand: kernels own
// nothing that would have to be released.
#include "cuda_emu.h"

#include <sys/mman.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

extern "C" {
__attribute__((weak)) void* __tsan_get_current_fiber(void);
__attribute__((weak)) void* __tsan_create_fiber(unsigned flags);
__attribute__((weak)) void __tsan_destroy_fiber(void* fiber);
__attribute__((weak)) void __tsan_switch_to_fiber(void* fiber, unsigned flags);
__attribute__((weak)) void __tsan_acquire(void* address);
__attribute__((weak)) void __tsan_release(void* address);
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
__attribute__((weak)) void __asan_unpoison_memory_region(void const volatile* address, size_t size);
}

dim3 threadIdx, blockIdx, blockDim, gridDim;

// Two stacks and a way from one to the other. `swapcontext` does it everywhere, but asks Linux for the signal mask each
// time: 490 ns a switch, against 60 for pushing what a function must preserve and exchanging the stack pointer.
#ifdef __x86_64__
extern "C" void cuda_emu_switch(void** from, void* to);
asm(R"(
  .text
  .type cuda_emu_switch, @function
cuda_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size cuda_emu_switch, .-cuda_emu_switch
)");
namespace {
using Context = void*;  // a stack pointer
void switch_context(Context& from, Context& to) { cuda_emu_switch(&from, to); }
void prepare_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + bytes);  // page-aligned; six registers, the entry, no way back from it
  std::fill(top - 8, top, nullptr);
  top[-2] = reinterpret_cast<void*>(entry);
  context = top - 8;
}
}  // namespace
#else
namespace {
using Context = ucontext_t;
void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
void prepare_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
}  // namespace
#endif

namespace cuda_emu {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kSwitchOrdersNothing = 1;  // __tsan_switch_to_fiber_no_sync
constexpr size_t kPage = 4096;
constexpr size_t kStaticShared = 48 * 1024;
constexpr size_t kReservedShared = 1024;        // of every block, by CUDA itself, on architectures that have clusters
constexpr unsigned kGuardedThreads = 16384;     // a guard page is a mapping, and a process has 65,530
constexpr unsigned kTsanThreads = 4000;         // TSan knows 8,128 threads in all
constexpr size_t kSharedArrays = 64;            // of a block
constexpr size_t kArenaAlignment = 128;

struct Block;
struct Grid;

// Where a group of threads meets. Two TSan objects are used in turn, so that what happens before the next meeting never
// counts as having happened before this one.
struct Rendezvous {
  unsigned arrived = 0, generation = 0;
  Place place{};
  char order[2] = {0, 0};
};

struct Fiber {
  Context context{};
  Block* block = nullptr;
  dim3 thread_index;
  unsigned number = 0;
  char* stack = nullptr;
  bool done = false;
  const Rendezvous* awaited = nullptr;  // not resumed before its generation has changed
  unsigned awaited_generation = 0;
  Place place{};                        // where it waits or spins
  unsigned loads_since_pause = 0;
  void* tsan = nullptr;
  void* fake_stack = nullptr;
};

struct Fragments {
  uint32_t a[4], b[2];
};
// What lanes hand to each other lies in two sets used in turn: who comes to the next meeting has read this one's.
struct Warp {
  Rendezvous meeting;
  unsigned lanes = 0, finished = 0;
  uint64_t words[2][kWarp];
  Fragments fragments[2][kWarp];
};

struct SharedArray {
  const void* site;  // stands for the declaration
  char* address;
  size_t bytes;
};

struct Block {
  Grid* grid = nullptr;
  unsigned number = 0, threads = 0, finished = 0;
  dim3 index;
  Rendezvous meeting;
  std::vector<Warp> warps;
  std::vector<Fiber> fibers;
  std::vector<SharedArray> shared;
  char* dynamic = nullptr;
  char* slab = nullptr;   // the stacks
  char* arena = nullptr;  // TSan: all shared memory, allocated before the threads exist and freed after the launch
  size_t arena_used = 0, shared_bytes = 0, static_bytes = 0;
};

struct Grid {
  LaunchShape shape;
  unsigned threads_per_block = 0;
  const std::function<void()>* body = nullptr;
  std::vector<Block> blocks;
  Rendezvous meeting;
  std::vector<Rendezvous> cluster_meetings;
  unsigned long progress = 0;
  bool spun = false;
  char end_order = 0;
  std::vector<char*> arenas;
};

std::mutex g_launching;
Device g_device;
std::string g_error;
Statistics g_statistics;
unsigned g_seed = 0, g_spin_limit = 4096;
size_t g_stack_bytes = 128 * 1024;
std::mt19937 g_random;

Fiber* g_current = nullptr;
bool g_failed = false;
Context g_main;
void *g_main_tsan, *g_main_fake_stack;
const void* g_main_bottom;
size_t g_main_size;

struct Slab {
  char* address;
  size_t bytes;
  bool guarded;
};
std::vector<Slab> g_spare_slabs;  // kept from launch to launch: mapped, and their first pages there

void tsan_release(void* address) {
  if (__tsan_release) __tsan_release(address);
}
void tsan_acquire(void* address) {
  if (__tsan_acquire) __tsan_acquire(address);
}

// --- words ----------------------------------------------------------------------------------------------------------

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string text(const char* format, va_list arguments) {
  char buffer[2048];
  vsnprintf(buffer, sizeof buffer, format, arguments);
  return buffer;
}
std::string text(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string words = text(format, arguments);
  va_end(arguments);
  return words;
}
std::string words_of(const Place& place) {
  if (!place.file) return place.operation ? place.operation : "an unknown place";
  const char* slash = std::strrchr(place.file, '/');
  return text("%s (%s:%d)", place.operation, slash ? slash + 1 : place.file, place.line);
}
bool same(const Place& a, const Place& b) {
  return a.line == b.line && !std::strcmp(a.operation, b.operation) && !std::strcmp(a.file, b.file);
}
int refuse(Error code, const std::string& words) {
  g_error = words;
  fprintf(stderr, "cuda_emu: error: %s\n", words.c_str());
  return code;
}

// --- switching ------------------------------------------------------------------------------------------------------

void switch_to_main(bool forever) {
  Fiber* fiber = g_current;
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(forever ? nullptr : &fiber->fake_stack, g_main_bottom, g_main_size);
  }
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(g_main_tsan, kSwitchOrdersNothing);
  switch_context(fiber->context, g_main);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fiber->fake_stack, nullptr, nullptr);
}

void release_shared(Block& block) {
  for (const SharedArray& array : block.shared) std::free(array.address);
  std::free(block.dynamic);
  block.shared.clear();
  block.dynamic = nullptr;
}

void fiber_main() {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, &g_main_bottom, &g_main_size);
  Fiber* fiber = g_current;
  Block& block = *fiber->block;
  (*block.grid->body)();
  tsan_release(&block.grid->end_order);
  fiber->done = true;
  ++block.warps[fiber->number / kWarp].finished;
  ++block.grid->progress;
  // A block's shared memory ends with its last thread, also for others of its cluster: ASan then sees a late access.
  if (++block.finished == block.threads && !block.arena) release_shared(block);
  switch_to_main(true);
}

void resume(Fiber& fiber) {
  g_current = &fiber;
  threadIdx = fiber.thread_index;
  blockIdx = fiber.block->index;
  ++g_statistics.switches;
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&g_main_fake_stack, fiber.stack, g_stack_bytes);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(fiber.tsan, kSwitchOrdersNothing);
  switch_context(g_main, fiber.context);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(g_main_fake_stack, nullptr, nullptr);
  g_current = nullptr;
}

// TSan: the words of an error are the launching thread's, which will read and release them. There is no way back.
void speak_as_launcher() {
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(g_main_tsan, kSwitchOrdersNothing);
}

[[noreturn]] void give_up(const std::string& words) {
  refuse(kLaunchFailure, words);
  g_failed = true;
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(nullptr, g_main_bottom, g_main_size);
  switch_context(g_current->context, g_main);
  std::abort();  // a failed launch resumes nobody
}

std::string thread_words(const Fiber& fiber) {
  const dim3 &b = fiber.block->index, &t = fiber.thread_index;
  return text("block (%u, %u, %u), thread (%u, %u, %u)", b.x, b.y, b.z, t.x, t.y, t.z);
}

void meet(Rendezvous& meeting, unsigned members, bool orders_memory, const Place& place) {
  Fiber& fiber = *g_current;
  if (meeting.arrived && !same(meeting.place, place)) {
    speak_as_launcher();
    fail(place, "threads of one group wait at different places; others came to %s", words_of(meeting.place).c_str());
  }
  meeting.place = place;
  const unsigned generation = meeting.generation;
  char* order = &meeting.order[generation & 1];
  if (orders_memory) tsan_release(order);
  ++fiber.block->grid->progress;
  if (++meeting.arrived == members) {
    meeting.arrived = 0;
    ++meeting.generation;
    ++g_statistics.barriers;
  } else {
    fiber.awaited = &meeting;
    fiber.awaited_generation = generation;
    fiber.place = place;
    switch_to_main(false);
    fiber.awaited = nullptr;
  }
  fiber.loads_since_pause = 0;
  if (orders_memory) tsan_acquire(order);
}

const SharedArray* array_of(const Block& block, const void* site) {
  for (const SharedArray& array : block.shared) {
    if (array.site == site) return &array;
  }
  return nullptr;
}

Warp& own_warp() { return g_current->block->warps[g_current->number / kWarp]; }

// --- blocks ---------------------------------------------------------------------------------------------------------

Slab take_slab(unsigned threads, bool guarded) {
  const size_t bytes = threads * (g_stack_bytes + kPage);
  for (size_t k = 0; k < g_spare_slabs.size(); ++k) {
    const Slab slab = g_spare_slabs[k];
    if (slab.bytes != bytes || slab.guarded != guarded) continue;
    g_spare_slabs.erase(g_spare_slabs.begin() + static_cast<long>(k));
    return slab;
  }
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    fprintf(stderr, "cuda_emu: no memory for the stacks of %u threads\n", threads);
    std::abort();
  }
  const Slab slab{static_cast<char*>(memory), bytes, guarded};
  for (unsigned t = 0; guarded && t < threads; ++t) {
    mprotect(slab.address + t * (g_stack_bytes + kPage), kPage, PROT_NONE);
  }
  return slab;
}

void make_block(Grid& grid, unsigned number, bool guarded) {
  Block& block = grid.blocks[number];
  const dim3 g = grid.shape.grid, b = grid.shape.block;
  block.grid = &grid;
  block.number = number;
  block.index = dim3(number % g.x, number / g.x % g.y, number / (g.x * g.y));
  block.threads = grid.threads_per_block;
  block.warps.resize((block.threads + kWarp - 1) / kWarp);
  for (unsigned w = 0; w < block.warps.size(); ++w) block.warps[w].lanes = std::min(kWarp, block.threads - w * kWarp);
  block.fibers.resize(block.threads);
  block.shared.reserve(kSharedArrays);  // TSan: what a thread allocates, the launching one could not release
  if (__tsan_create_fiber) {
    const size_t bytes = g_device.shared_per_block + (kSharedArrays + 1) * kArenaAlignment;
    block.arena = static_cast<char*>(std::aligned_alloc(kArenaAlignment, bytes));
    std::memset(block.arena, 0xff, bytes);
    grid.arenas.push_back(block.arena);
  }
  block.slab = take_slab(block.threads, guarded).address;
  const size_t stride = g_stack_bytes + kPage;
  if (__asan_unpoison_memory_region) {
    for (unsigned t = 0; t < block.threads; ++t) {
      __asan_unpoison_memory_region(block.slab + t * stride + kPage, g_stack_bytes);
    }
  }
  for (unsigned t = 0; t < block.threads; ++t) {
    Fiber& fiber = block.fibers[t];
    fiber.block = &block;
    fiber.number = t;
    fiber.thread_index = dim3(t % b.x, t / b.x % b.y, t / (b.x * b.y));
    fiber.stack = block.slab + t * stride + kPage;
    prepare_context(fiber.context, fiber.stack, g_stack_bytes, fiber_main);
    if (__tsan_create_fiber) fiber.tsan = __tsan_create_fiber(0);
  }
  g_statistics.threads += block.threads;
}

void end_block(Block& block, bool guarded) {
  for (Fiber& fiber : block.fibers) {
    if (!fiber.tsan) continue;
    if (!fiber.done) {  // the launch failed; it too happened before whatever comes after the launch
      __tsan_switch_to_fiber(fiber.tsan, kSwitchOrdersNothing);
      tsan_release(&block.grid->end_order);
      __tsan_switch_to_fiber(g_main_tsan, kSwitchOrdersNothing);
    }
    __tsan_destroy_fiber(fiber.tsan);
  }
  const Slab slab{block.slab, block.threads * (g_stack_bytes + kPage), guarded};
  if (__tsan_create_fiber) {
    munmap(slab.address, slab.bytes);  // TSan then forgets who wrote there
  } else {
    g_spare_slabs.push_back(slab);
  }
  block.fibers.clear();
  if (!block.arena) release_shared(block);
  block.shared.clear();
}

char* take_shared(Block& block, size_t bytes, const Place& place) {
  block.shared_bytes += bytes;
  g_statistics.shared_bytes = std::max(g_statistics.shared_bytes, block.shared_bytes);
  if (block.shared_bytes > g_device.shared_per_block) {
    fail(place, "%zu bytes of shared memory in a block, the device has %zu", block.shared_bytes,
         g_device.shared_per_block);
  }
  if (block.arena) {
    char* memory = block.arena + block.arena_used;
    block.arena_used += (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
    return memory;
  }
  // The heap gives 16-byte alignment, the exact size under ASan, and what CUDA does not promise: at least one byte.
  char* memory = static_cast<char*>(std::malloc(std::max<size_t>(bytes, 1)));
  std::memset(memory, 0xff, bytes);
  return memory;
}

// --- the schedule ---------------------------------------------------------------------------------------------------

// "31 threads wait at __syncthreads (step.cuh:40), first block (0, 0, 0), thread (0, 0, 0); 1 thread has returned"
std::string who_waits_where(const Grid& grid, const std::vector<Fiber*>& live, unsigned first, unsigned end) {
  std::map<std::string, std::pair<unsigned, const Fiber*>> places;
  for (const Fiber* fiber : live) {
    auto& [count, example] = places[words_of(fiber->place)];
    const bool earlier = !example || std::make_pair(fiber->block->number, fiber->number) <
                                         std::make_pair(example->block->number, example->number);
    if (earlier) example = fiber;
    ++count;
  }
  std::string words;
  for (const auto& [place, who] : places) {
    words += text("%u thread%s at %s, first %s; ", who.first, who.first == 1 ? "" : "s", place.c_str(),
                  thread_words(*who.second).c_str());
  }
  unsigned returned = 0;
  for (unsigned b = first; b < end; ++b) returned += grid.blocks[b].finished;
  return words + text("%u thread%s returned", returned, returned == 1 ? " has" : "s have");
}

// Blocks first..end-1 run together, to their end or to a failure.
void run_blocks(Grid& grid, unsigned first, unsigned end) {
  std::vector<Fiber*> live;
  for (unsigned b = first; b < end; ++b) {
    for (Fiber& fiber : grid.blocks[b].fibers) live.push_back(&fiber);
  }
  for (unsigned idle = 0; !live.empty() && !g_failed;) {
    const unsigned long before = grid.progress;
    grid.spun = false;
    if (g_seed) std::shuffle(live.begin(), live.end(), g_random);
    for (Fiber* fiber : live) {
      if (fiber->awaited && fiber->awaited->generation == fiber->awaited_generation) continue;
      resume(*fiber);
      if (g_failed) return;
    }
    live.erase(std::remove_if(live.begin(), live.end(), [](const Fiber* fiber) { return fiber->done; }), live.end());
    idle = grid.progress == before ? idle + 1 : 0;
    if (live.empty() || idle < (grid.spun ? g_spin_limit : 1)) continue;
    refuse(kLaunchFailure, std::string(grid.spun ? "endless spin: " : "deadlock: ") +
                               who_waits_where(grid, live, first, end));
    g_failed = true;
  }
}

// How many blocks of this shape a multiprocessor can hold; registers are not known here.
unsigned blocks_per_multiprocessor(const Grid& grid, size_t shared_bytes) {
  const unsigned threads = (grid.threads_per_block + kWarp - 1) / kWarp * kWarp;
  const size_t by_memory = g_device.shared_per_multiprocessor / (shared_bytes + kReservedShared);
  return static_cast<unsigned>(std::min<size_t>(
      {g_device.threads_per_multiprocessor / threads, g_device.blocks_per_multiprocessor, by_memory}));
}

bool fits_at_once(const Grid& grid, size_t shared_bytes) {
  return grid.blocks.size() <= size_t{blocks_per_multiprocessor(grid, shared_bytes)} * g_device.multiprocessors;
}

std::string too_large(const Grid& grid, size_t shared_bytes) {
  const unsigned each = blocks_per_multiprocessor(grid, shared_bytes);
  return text("cooperative launch of %zu blocks of %u threads and %zu bytes of shared memory: the device holds %u x %u",
              grid.blocks.size(), grid.threads_per_block, shared_bytes, g_device.multiprocessors, each);
}

int check_shape(const LaunchShape& shape) {
  const dim3 g = shape.grid, b = shape.block;
  const std::string words = text("grid (%u, %u, %u), block (%u, %u, %u), cluster %u", g.x, g.y, g.z, b.x, b.y, b.z,
                                 shape.cluster_size);
  const unsigned long threads = static_cast<unsigned long>(b.x) * b.y * b.z;
  if (!g.x || !g.y || !g.z || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535) {
    return refuse(kInvalidConfiguration, "a grid must have 1 to 2147483647 x 65535 x 65535 blocks: " + words);
  }
  if (!threads || b.x > 1024 || b.y > 1024 || b.z > 64 || threads > 1024) {
    return refuse(kInvalidConfiguration, "a block must have 1 to 1024 threads, at most 64 in z: " + words);
  }
  const unsigned cluster = shape.cluster_size;
  if (cluster < 1 || cluster > 16 || (cluster & (cluster - 1)) || g.x % cluster) {
    return refuse(kInvalidConfiguration, "a cluster must be 1, 2, 4, 8 or 16 blocks and divide grid.x: " + words);
  }
  if (cluster > 1 && g_device.major < 9) {
    return refuse(kInvalidConfiguration, "clusters need compute capability 9.0: " + words);
  }
  if (shape.dynamic_bytes > g_device.shared_per_block) {
    return refuse(kInvalidValue, text("%zu bytes of dynamic shared memory, the device has %zu", shape.dynamic_bytes,
                                      g_device.shared_per_block));
  }
  return kSuccess;
}

}  // namespace

// --- launching ------------------------------------------------------------------------------------------------------

const Device& device() { return g_device; }
void set_device(const Device& device) { g_device = device; }
const std::string& last_error() { return g_error; }
const Statistics& statistics() { return g_statistics; }
void set_schedule(unsigned seed) { g_seed = seed; }
void set_spin_limit(unsigned rounds) { g_spin_limit = rounds; }
void set_stack_bytes(size_t bytes) { g_stack_bytes = (bytes + kPage - 1) / kPage * kPage; }

int launch(const LaunchShape& shape, const std::function<void()>& thread_body) {
  const std::lock_guard<std::mutex> lock(g_launching);
  g_error.clear();
  g_statistics = Statistics{};
  if (const int code = check_shape(shape)) return code;

  Grid grid;
  grid.shape = shape;
  grid.threads_per_block = shape.block.x * shape.block.y * shape.block.z;
  grid.body = &thread_body;
  const unsigned count = shape.grid.x * shape.grid.y * shape.grid.z;
  grid.blocks.resize(count);
  grid.cluster_meetings.resize(count / shape.cluster_size);
  if (shape.cooperative && !fits_at_once(grid, shape.dynamic_bytes)) {
    return refuse(kCooperativeLaunchTooLarge, too_large(grid, shape.dynamic_bytes));
  }
  const unsigned together = shape.cooperative ? count : shape.cluster_size;  // blocks that may wait for each other
  const unsigned long live = static_cast<unsigned long>(together) * grid.threads_per_block;
  if (__tsan_create_fiber && live > kTsanThreads) {
    return refuse(kInvalidValue, text("%lu threads at once; ThreadSanitizer takes %u", live, kTsanThreads));
  }
  gridDim = shape.grid;
  blockDim = shape.block;
  g_random.seed(g_seed);
  g_failed = false;
  if (__tsan_get_current_fiber) g_main_tsan = __tsan_get_current_fiber();

  std::vector<unsigned> order(count / together);
  for (unsigned k = 0; k < order.size(); ++k) order[k] = k * together;
  if (g_seed) std::shuffle(order.begin(), order.end(), g_random);
  const bool guarded = live <= kGuardedThreads;
  for (const unsigned first : order) {
    for (unsigned b = first; b < first + together; ++b) make_block(grid, b, guarded);
    run_blocks(grid, first, first + together);
    for (unsigned b = first; b < first + together; ++b) end_block(grid.blocks[b], guarded);
    if (g_failed) break;
  }
  tsan_acquire(&grid.end_order);
  for (char* arena : grid.arenas) std::free(arena);
  return g_failed ? kLaunchFailure : kSuccess;
}

void fail(const Place& place, const char* format, ...) {
  speak_as_launcher();
  va_list arguments;
  va_start(arguments, format);
  const std::string words = text(format, arguments);
  va_end(arguments);
  give_up(words + ", at " + words_of(place) + ", " + thread_words(*g_current));
}

// --- what threads call ----------------------------------------------------------------------------------------------

unsigned lane() { return g_current->number % kWarp; }
unsigned thread_number() { return g_current->number; }

void block_sync(const Place& place) {
  Block& block = *g_current->block;
  if (block.finished) {
    fail(place, "barrier reached after %u of the block's %u threads have returned", block.finished, block.threads);
  }
  meet(block.meeting, block.threads, true, place);
}

void warp_sync(unsigned mask, bool orders_memory, const Place& place) {
  Warp& warp = own_warp();
  const unsigned full = warp.lanes == kWarp ? 0xffffffffu : (1u << warp.lanes) - 1;
  if ((mask & full) != full) fail(place, "partial warp mask %08x: this project uses full masks only", mask);
  if (warp.finished) fail(place, "warp operation reached after %u of its lanes have returned", warp.finished);
  meet(warp.meeting, warp.lanes, orders_memory, place);
}

uint64_t warp_exchange(unsigned mask, uint64_t value, int source_lane, const Place& place) {
  Warp& warp = own_warp();
  uint64_t* words = warp.words[warp.meeting.generation & 1];
  words[lane()] = value;
  warp_sync(mask, false, place);  // CUDA's shuffles and votes do not order memory
  return source_lane >= 0 && source_lane < static_cast<int>(warp.lanes) ? words[source_lane] : value;
}

unsigned warp_ballot(unsigned mask, bool predicate, const Place& place) {
  Warp& warp = own_warp();
  uint64_t* words = warp.words[warp.meeting.generation & 1];
  words[lane()] = predicate;
  warp_sync(mask, false, place);
  unsigned votes = 0;
  for (unsigned k = 0; k < warp.lanes; ++k) votes |= static_cast<unsigned>(words[k]) << k;
  return votes;
}

void grid_sync(const Place& place) {
  Block& block = *g_current->block;
  Grid& grid = *block.grid;
  if (!grid.shape.cooperative) fail(place, "the launch is not cooperative");
  for (const Block& other : grid.blocks) {
    if (other.finished) fail(place, "grid barrier reached after %u threads of a block have returned", other.finished);
  }
  meet(grid.meeting, static_cast<unsigned>(grid.blocks.size()) * block.threads, true, place);
}

unsigned cluster_size() { return g_current->block->grid->shape.cluster_size; }
unsigned cluster_rank() { return g_current->block->number % cluster_size(); }

void cluster_sync(const Place& place) {
  Block& block = *g_current->block;
  Grid& grid = *block.grid;
  const unsigned size = cluster_size(), cluster = block.number / size;
  for (unsigned rank = 0; rank < size; ++rank) {
    const Block& other = grid.blocks[cluster * size + rank];
    if (other.finished) {
      fail(place, "cluster barrier reached after %u threads of a block have returned", other.finished);
    }
  }
  meet(grid.cluster_meetings[cluster], size * block.threads, true, place);
}

void* shared_array(const void* site, size_t bytes, const Place& place) {
  Block& block = *g_current->block;
  const SharedArray* found = array_of(block, site);
  if (!found) {
    if (block.shared.size() == kSharedArrays) fail(place, "more than %zu shared arrays", kSharedArrays);
    block.static_bytes += bytes;
    if (block.static_bytes > kStaticShared) {
      fail(place, "%zu bytes of static shared memory, at most %zu: use dynamic shared memory", block.static_bytes,
           kStaticShared);
    }
    block.shared.push_back({site, take_shared(block, bytes, place), bytes});
    found = &block.shared.back();
    const size_t in_all = block.static_bytes + block.grid->shape.dynamic_bytes;
    if (block.grid->shape.cooperative && !fits_at_once(*block.grid, in_all)) {
      speak_as_launcher();
      fail(place, "%s", too_large(*block.grid, in_all).c_str());
    }
  }
  return found->address;
}

void* dynamic_shared(size_t alignment, const Place& place) {
  Block& block = *g_current->block;
  if (alignment > 16) fail(place, "alignment to %zu bytes: dynamic shared memory promises 16", alignment);
  if (!block.dynamic) block.dynamic = take_shared(block, block.grid->shape.dynamic_bytes, place);
  return block.dynamic;
}

void* map_shared_rank(const void* address, unsigned rank, const Place& place) {
  Block& block = *g_current->block;
  Grid& grid = *block.grid;
  if (rank >= cluster_size()) fail(place, "rank %u of a cluster of %u", rank, cluster_size());
  Block& other = grid.blocks[block.number / cluster_size() * cluster_size() + rank];
  if (other.finished == other.threads) {
    fail(place, "the block of rank %u has returned, and its shared memory with it", rank);
  }
  const char* wanted = static_cast<const char*>(address);
  const auto offset_in = [wanted](const char* base, size_t bytes) {
    return base && wanted >= base && wanted < base + bytes ? wanted - base : -1;
  };
  // Every block has its arrays from its start; here they appear when first touched, which a barrier must have ordered.
  const char* untouched = "the block of rank %u may not have begun: a cluster barrier must come first";
  if (const auto offset = offset_in(block.dynamic, grid.shape.dynamic_bytes); offset >= 0) {
    if (!other.dynamic) fail(place, untouched, rank);
    return other.dynamic + offset;
  }
  for (const SharedArray& array : block.shared) {
    const auto offset = offset_in(array.address, array.bytes);
    if (offset < 0) continue;
    const SharedArray* found = array_of(other, array.site);
    if (!found) fail(place, untouched, rank);
    return found->address + offset;
  }
  fail(place, "%p is not in this block's shared memory", address);
}

void pause(const Place& place) {
  Fiber& fiber = *g_current;
  fiber.block->grid->spun = true;
  fiber.loads_since_pause = 0;
  fiber.place = place;
  switch_to_main(false);
}

// A loop that polls without pausing would never let the others run.
void note_relaxed_load(const Place& place) {
  if (++g_current->loads_since_pause >= 64) pause(place);
}

void note_relaxed_store() { ++g_current->block->grid->progress; }

void maybe_tear(const Place& place) {
  if (g_seed && g_random() % 8 == 0) pause(place);
}

// --- the tensor core ------------------------------------------------------------------------------------------------

namespace {
double half_of(uint32_t pair, unsigned upper) {
  const uint32_t bits = upper ? pair & 0xffff0000u : pair << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
}  // namespace

void mma_m16n8k16_bf16(float* d, const uint32_t* a, const uint32_t* b, const Place& place) {
  Warp& warp = own_warp();
  if (warp.lanes != kWarp) fail(place, "a matrix product needs a warp of 32 lanes, this one has %u", warp.lanes);
  const Fragments* all = warp.fragments[warp.meeting.generation & 1];
  Fragments& own = warp.fragments[warp.meeting.generation & 1][lane()];
  std::memcpy(own.a, a, sizeof own.a);
  std::memcpy(own.b, b, sizeof own.b);
  warp_sync(0xffffffffu, false, place);
  const unsigned group = lane() / 4, in_group = lane() % 4;
  for (unsigned element = 0; element < 4; ++element) {
    const unsigned row = group + 8 * (element / 2), column = 2 * in_group + element % 2;
    double sum = d[element];
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned pair = k % 8 / 2, upper_k = k / 8;
      const Fragments& of_row = all[row % 8 * 4 + pair];
      const Fragments& of_column = all[column * 4 + pair];
      sum += half_of(of_row.a[row / 8 + 2 * upper_k], k % 2) * half_of(of_column.b[upper_k], k % 2);
    }
    d[element] = static_cast<float>(sum);
  }
}

}  // namespace cuda_emu

// For whoever loads kernels as a shared library.
extern "C" {
__attribute__((visibility("default"))) void cuda_emu_set_schedule(unsigned seed) { cuda_emu::set_schedule(seed); }
__attribute__((visibility("default"))) const char* cuda_emu_last_error() { return cuda_emu::last_error().c_str(); }
}
