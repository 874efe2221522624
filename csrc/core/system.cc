// The calls for Linux, macOS and Windows.
#include "core/system.h"

#include <algorithm>
#include <cstdlib>
#include <random>
#include <thread>

#if defined(_WIN32)
#define NOMINMAX
#define WIN32_LEAN_AND_MEAN
#include <malloc.h>
#include <windows.h>
#else
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <sys/random.h>
#include <sys/sysctl.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace lstmfast {
namespace {

#if defined(__linux__)
constexpr std::size_t kHugePage = std::size_t{2} << 20;

bool is_worth_huge_pages(std::size_t bytes) { return bytes >= kHugePage / 2; }
#endif

// At most 256 bytes. False where the system has no such call, or forbids it.
bool system_fills(void* memory, std::size_t size) {
#if defined(__linux__)
  // Not by getentropy, which glibc has from 2.25 on: an extension that calls it cannot be loaded where glibc is older.
  return syscall(SYS_getrandom, memory, size, 0) == static_cast<ssize_t>(size);
#elif defined(__APPLE__)
  return getentropy(memory, size) == 0;
#else
  static_cast<void>(memory), static_cast<void>(size);
  return false;  // on Windows std::random_device asks the system, by rand_s
#endif
}

}  // namespace

#if defined(_WIN32)

// No huge pages: they need the privilege to lock memory, which users do not have. The heap gives large blocks back to
// the system when they are freed.
void* allocate_memory(std::size_t bytes) { return _aligned_malloc(bytes + kCacheLine, kCacheLine); }

void free_memory(void* memory) { _aligned_free(memory); }

void discard_memory(void*, std::size_t) {}

#else

// On Linux, the rest at the end of huge pages has small ones.
void* allocate_memory(std::size_t bytes) {
  std::size_t alignment = kCacheLine;
#if defined(__linux__)
  if (is_worth_huge_pages(bytes)) alignment = kHugePage;
#endif
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes + kCacheLine) != 0) return nullptr;
#if defined(__linux__)
  if (alignment == kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);  // refused: small pages
#endif
  return memory;
}

void free_memory(void* memory) { std::free(memory); }

void discard_memory(void* memory, std::size_t bytes) {
#if defined(__linux__)
  if (!is_worth_huge_pages(bytes)) return;
  constexpr std::size_t kPage = 65536;  // the largest of any system; malloc's own data lies before and after the memory
  madvise(memory, bytes / kPage * kPage, MADV_DONTNEED);
#else
  static_cast<void>(memory), static_cast<void>(bytes);  // macOS has no call that frees pages at once
#endif
}

#endif

void trim_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

void fill_with_random_bytes(void* memory, std::size_t size) {
  auto* bytes = static_cast<unsigned char*>(memory);
  constexpr std::size_t kMostAtOnce = 256;
  while (size > 0) {
    const std::size_t count = std::min(size, kMostAtOnce);
    if (!system_fills(bytes, count)) {
      std::random_device device;
      for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<unsigned char>(device());
    }
    bytes += count;
    size -= count;
  }
}

int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#elif defined(_WIN32)
  // Of one group of up to 64 cores; 0 for a process that uses several.
  DWORD_PTR of_process = 0, of_system = 0;
  if (GetProcessAffinityMask(GetCurrentProcess(), &of_process, &of_system) && of_process != 0)
    return __builtin_popcountll(of_process);
#endif
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

void call_after_fork(void (*function)()) {
#if defined(_WIN32)
  static_cast<void>(function);  // there is no fork
#else
  pthread_atfork(nullptr, nullptr, function);
#endif
}

// Sources: Linux, Documentation/arch/arm64/elf_hwcaps.rst; Apple, "Determining Instruction Set Characteristics".
bool system_knows_dot_products() {
#if defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long kAsimdDp = 1ul << 20;
  return (getauxval(AT_HWCAP) & kAsimdDp) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
  int value = 0;
  std::size_t size = sizeof value;  // the call fails where the system does not know the name
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) == 0 && value == 1;
#else
  return false;
#endif
}

// Linux refuses it, for example, to a process whose signal handlers run on stacks too small for the tiles' 8 KB.
// Windows 11 and Server 2022 enable the registers on demand, at a thread's first use, or for all threads at once by
// EnableProcessOptionalXStateFeatures; but the kernels have not been run there, so they are not used. Macs have no AMX.
bool request_tile_registers() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace lstmfast
