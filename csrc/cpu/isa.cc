// See isa.h. `__builtin_cpu_supports` executes CPUID, and XGETBV to ask whether the operating system keeps the registers.
#include "cpu/isa.h"

#include <algorithm>
#include <stdexcept>

namespace lstmfast {
namespace {

constexpr Isa kAllIsas[] = {Isa::kGeneric, Isa::kGeneric512, Isa::kNeon, Isa::kAvx2, Isa::kAvx512};

std::string names_of(const std::vector<Isa>& isas) {
  std::string names;
  for (const Isa isa : isas) names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  return names;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kGeneric: return "generic";
    case Isa::kGeneric512: return "generic512";
    case Isa::kNeon: return "neon";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
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
