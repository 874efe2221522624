// The only file that queries the CPU.
//
// Not by `__builtin_cpu_supports`: it reads a table that the compiler's run-time library fills in. Clang with a run-time
// library that does not, as in some builds of Python packages, then finds no feature at all, without an error.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapters 13.3, 14.3 and 15.2.
#include "cpu/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "core/system.h"

namespace lstmfast {
namespace {

#if defined(__x86_64__)

struct Registers {
  unsigned eax, ebx, ecx, edx;
};

// All zero where the CPU has no such leaf.
Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r{};
  if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {};
  return r;
}

bool bit(unsigned word, int index) { return (word >> index) & 1; }

// Which registers the operating system saves when it switches threads: XCR0.
unsigned saved_registers() {
  constexpr int kHasXgetbv = 27;
  if (!bit(cpuid(1, 0).ecx, kHasXgetbv)) return 0;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

CpuFeatures query() {
  constexpr unsigned kYmm = 0x6, kZmm = 0xE6, kTiles = 3u << 17;  // each with those that it extends
  const unsigned saved = saved_registers();
  const bool ymm = (saved & kYmm) == kYmm, zmm = (saved & kZmm) == kZmm, tiles = (saved & kTiles) == kTiles;
  const Registers basic = cpuid(1, 0), extended = cpuid(7, 0);
  const Registers more = extended.eax >= 1 ? cpuid(7, 1) : Registers{};  // eax: the highest subleaf
  CpuFeatures f{};
  f.fma = ymm && bit(basic.ecx, 12);
  f.avx2 = ymm && bit(extended.ebx, 5);
  f.avx_vnni = ymm && bit(more.eax, 4);
  f.avx512f = zmm && bit(extended.ebx, 16);
  f.avx512dq = zmm && bit(extended.ebx, 17);
  f.avx512bw = zmm && bit(extended.ebx, 30);
  f.avx512vl = zmm && bit(extended.ebx, 31);
  f.avx512_vnni = zmm && bit(extended.ecx, 11);
  f.avx512_bf16 = zmm && bit(more.eax, 5);
  f.amx_bf16 = tiles && bit(extended.edx, 22);
  f.amx_tile = tiles && bit(extended.edx, 24);
  f.amx_int8 = tiles && bit(extended.edx, 25);
  return f;
}

#else

// Arm lets only the operating system read its registers of features.
CpuFeatures query() {
  CpuFeatures f{};
  f.asimddp = system_knows_dot_products();
  return f;
}

#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = query();
  return features;
}

std::map<std::string, bool> named_cpu_features() {
  const CpuFeatures& f = cpu_features();
  return {{"fma", f.fma},
          {"avx2", f.avx2},
          {"avx_vnni", f.avx_vnni},
          {"avx512f", f.avx512f},
          {"avx512bw", f.avx512bw},
          {"avx512dq", f.avx512dq},
          {"avx512vl", f.avx512vl},
          {"avx512_vnni", f.avx512_vnni},
          {"avx512_bf16", f.avx512_bf16},
          {"amx_tile", f.amx_tile},
          {"amx_bf16", f.amx_bf16},
          {"amx_int8", f.amx_int8},
          {"asimddp", f.asimddp}};
}

std::map<std::string, bool> cpu_features_by_compiler() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  return {{"fma", __builtin_cpu_supports("fma") != 0},
          {"avx2", __builtin_cpu_supports("avx2") != 0},
          {"avx512f", __builtin_cpu_supports("avx512f") != 0},
          {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
          {"avx512dq", __builtin_cpu_supports("avx512dq") != 0},
          {"avx512vl", __builtin_cpu_supports("avx512vl") != 0},
          {"avx512_vnni", __builtin_cpu_supports("avx512vnni") != 0},
          {"avx512_bf16", __builtin_cpu_supports("avx512bf16") != 0}};
#else
  return {};
#endif
}

}  // namespace lstmfast
