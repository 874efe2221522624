// See isa.h. `__builtin_cpu_supports` executes CPUID, and XGETBV to ask whether the operating system keeps the registers.
// AMX is asked for by hand: compilers differ in what they know of it, and Linux wants to be asked for permission too.
#include "cpu/isa.h"

#include <algorithm>
#include <stdexcept>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lstmfast {
namespace {

constexpr Isa kAllIsas[] = {Isa::kGeneric, Isa::kGeneric512, Isa::kNeon, Isa::kAvx2, Isa::kAvx512, Isa::kAmx};

std::string names_of(const std::vector<Isa>& isas) {
  std::string names;
  for (const Isa isa : isas) names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  return names;
}

#if defined(__x86_64__)
// Whether the CPU has AMX tiles with bfloat16, the operating system keeps their 8 KB, and lets this process use them. The
// permission is asked for once and holds for all threads and children. Linux refuses it, for one, to a process whose
// signal handlers run on stacks too small for the tiles.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24, kSavesRegisters = 1u << 27;
  constexpr unsigned kTileStates = 3u << 17;  // configuration and data
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & kSavesRegisters)) return false;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx & kBfloat16) || !(edx & kTiles)) return false;
  asm volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  if ((eax & kTileStates) != kTileStates) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kGeneric: return "generic";
    case Isa::kGeneric512: return "generic512";
    case Isa::kNeon: return "neon";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    case Isa::kAmx: return "amx";
  }
  return "?";
}

const std::vector<Isa>& built_isas() {
  static const std::vector<Isa> isas = {
      Isa::kGeneric,
#ifdef LSTMFAST_HAVE_GENERIC512
      Isa::kGeneric512,
#endif
#ifdef LSTMFAST_HAVE_NEON
      Isa::kNeon,
#endif
#ifdef LSTMFAST_HAVE_AVX2
      Isa::kAvx2,
#endif
#ifdef LSTMFAST_HAVE_AVX512
      Isa::kAvx512,
#endif
#ifdef LSTMFAST_HAVE_AMX
      Isa::kAmx,
#endif
  };
  return isas;
}

bool cpu_has(Isa isa) {
  switch (isa) {
    case Isa::kGeneric:
    case Isa::kGeneric512: return true;
#if defined(__aarch64__)
    case Isa::kNeon: return true;
#elif defined(__x86_64__)
    case Isa::kAvx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
    case Isa::kAmx: {
      static const bool usable = cpu_has(Isa::kAvx512) && may_use_tiles();
      return usable;
    }
#endif
    default: return false;
  }
}

Isa parse_isa(const std::string& name) {
  for (const Isa isa : kAllIsas) {
    if (name != isa_name(isa)) continue;
    const auto& built = built_isas();
    if (std::find(built.begin(), built.end(), isa) == built.end())
      throw std::invalid_argument("ISA '" + name + "' is not in this build, which has " + names_of(built));
    if (!cpu_has(isa)) throw std::invalid_argument("ISA '" + name + "' is in this build but not on this CPU");
    return isa;
  }
  throw std::invalid_argument("unknown ISA '" + name + "'; known are " +
                              names_of({std::begin(kAllIsas), std::end(kAllIsas)}));
}

}  // namespace lstmfast
