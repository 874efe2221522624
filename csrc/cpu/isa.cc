// The table of ISAs, one row each. The only file that queries the CPU and names the kernels' tables.
//
// `__builtin_cpu_supports` executes CPUID, and XGETBV to see whether the operating system saves the registers. AMX is
// detected by hand: compilers differ in their support, and Linux also requires a request for permission.
#include "cpu/isa.h"

#include <stdexcept>
#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern "C" {
const lstmfast::Kernels* lstmfast_kernels_generic512() noexcept;
const lstmfast::Kernels* lstmfast_kernels_generic() noexcept;
const lstmfast::Kernels* lstmfast_kernels_neon() noexcept;
const lstmfast::Kernels* lstmfast_kernels_avx2() noexcept;
const lstmfast::Kernels* lstmfast_kernels_avx512() noexcept;
const lstmfast::DotKernelSet* lstmfast_kernels_avx2_vnni() noexcept;
const lstmfast::DotKernelSet* lstmfast_kernels_avx512_vnni() noexcept;
const lstmfast::Bf16xKernels* lstmfast_kernels_avx512_bf16() noexcept;
const lstmfast::Bf16xKernels* lstmfast_kernels_amx() noexcept;
}

namespace lstmfast {
namespace {

bool every_machine_has() { return true; }

#if defined(__x86_64__)
#define LSTMFAST_CPU_SUPPORTS(feature) __builtin_cpu_supports(feature)
#else
#define LSTMFAST_CPU_SUPPORTS(feature) false
#endif

bool has_avx2() { return LSTMFAST_CPU_SUPPORTS("avx2") && LSTMFAST_CPU_SUPPORTS("fma"); }

bool has_avx512() {
  return LSTMFAST_CPU_SUPPORTS("avx512f") && LSTMFAST_CPU_SUPPORTS("avx512bw") && LSTMFAST_CPU_SUPPORTS("avx512dq") &&
         LSTMFAST_CPU_SUPPORTS("avx512vl") && LSTMFAST_CPU_SUPPORTS("fma");
}

// VNNI comes in two encodings, each with a CPUID bit of its own. Compilers differ in the names that they know.
bool has_avx2_vnni() {
#if defined(__x86_64__)
  constexpr unsigned kAvxVnni = 1u << 4;
  unsigned eax, ebx, ecx, edx;
  return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & kAvxVnni);
#else
  return false;
#endif
}

bool has_avx512_vnni() { return has_avx512() && LSTMFAST_CPU_SUPPORTS("avx512vnni"); }

bool has_avx512_bf16() { return has_avx512_vnni() && LSTMFAST_CPU_SUPPORTS("avx512bf16"); }

// Whether the CPU has AMX tiles with bfloat16, the operating system saves their 8 KB and lets this process use them.
// The permission is requested once and holds for all threads and children. Linux refuses it, for example, to a process
// whose signal handlers run on stacks too small for the tiles.
bool may_use_tiles() {
#if defined(__x86_64__) && defined(__linux__)
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

bool has_amx() {
  static const bool usable = has_avx512_vnni() && may_use_tiles();
  return usable;
}

Kernels with_dots(Kernels kernels, const DotKernelSet* dots) {
  kernels.dots = dots;
  return kernels;
}
Kernels with_bf16x(Kernels kernels, const Bf16xKernels* bf16x) {
  kernels.bf16x = bf16x;
  return kernels;
}

// The same float kernels with dot products, and these with bf16x products: every CPU with AMX or BF16 has VNNI.
const Kernels* avx2_kernels_with_dots() {
  static const Kernels kernels = with_dots(*lstmfast_kernels_avx2(), lstmfast_kernels_avx2_vnni());
  return &kernels;
}
const Kernels* avx512_kernels_with_dots() {
  static const Kernels kernels = with_dots(*lstmfast_kernels_avx512(), lstmfast_kernels_avx512_vnni());
  return &kernels;
}
const Kernels* avx512_kernels_with_bf16() {
  static const Kernels kernels = with_bf16x(*avx512_kernels_with_dots(), lstmfast_kernels_avx512_bf16());
  return &kernels;
}
const Kernels* avx512_kernels_with_tiles() {
  static const Kernels kernels = with_bf16x(*avx512_kernels_with_dots(), lstmfast_kernels_amx());
  return &kernels;
}

// No reference to kernels that are not in this build; CMakeLists.txt sets the list.
constexpr std::string_view kBuilt = " " LSTMFAST_BUILT_ISAS " ";
#define LSTMFAST_ISA(name, machine_has, kernels) \
  {#name, machine_has, kBuilt.find(" " #name " ") == std::string_view::npos ? nullptr : kernels}

constexpr Isa kIsas[] = {
    LSTMFAST_ISA(generic512, every_machine_has, lstmfast_kernels_generic512),
    LSTMFAST_ISA(generic, every_machine_has, lstmfast_kernels_generic),
    LSTMFAST_ISA(neon, every_machine_has, lstmfast_kernels_neon),  // part of AArch64
    LSTMFAST_ISA(avx2, has_avx2, lstmfast_kernels_avx2),
    LSTMFAST_ISA(avx2_vnni, has_avx2_vnni, avx2_kernels_with_dots),
    LSTMFAST_ISA(avx512, has_avx512, lstmfast_kernels_avx512),
    LSTMFAST_ISA(avx512_vnni, has_avx512_vnni, avx512_kernels_with_dots),
    LSTMFAST_ISA(avx512_bf16, has_avx512_bf16, avx512_kernels_with_bf16),
    LSTMFAST_ISA(amx, has_amx, avx512_kernels_with_tiles),
};

}  // namespace

std::vector<const Isa*> built_isas() {
  std::vector<const Isa*> built;
  for (const Isa& isa : kIsas)
    if (isa.kernels != nullptr) built.push_back(&isa);
  return built;
}

const Isa& parse_isa(const std::string& name) {
  std::string known, built;
  for (const Isa& isa : kIsas) {
    known += (known.empty() ? "" : ", ") + std::string(isa.name);
    if (isa.kernels != nullptr) built += (built.empty() ? "" : ", ") + std::string(isa.name);
  }
  for (const Isa& isa : kIsas) {
    if (name != isa.name) continue;
    if (isa.kernels == nullptr)
      throw std::invalid_argument("ISA '" + name + "' is not in this build, which has " + built);
    if (!isa.machine_has()) throw std::invalid_argument("ISA '" + name + "' is in this build but not on this CPU");
    return isa;
  }
  throw std::invalid_argument("unknown ISA '" + name + "'; known are " + known);
}

}  // namespace lstmfast
