// See dispatch.h. The only file that names the table of each ISA.
#include "cpu/dispatch.h"

#include <atomic>
#include <cstdlib>

extern "C" {
const lstmfast::Kernels* lstmfast_kernels_generic() noexcept;
const lstmfast::Kernels* lstmfast_kernels_generic512() noexcept;
const lstmfast::Kernels* lstmfast_kernels_neon() noexcept;
const lstmfast::Kernels* lstmfast_kernels_avx2() noexcept;
const lstmfast::Kernels* lstmfast_kernels_avx512() noexcept;
const lstmfast::SplitKernels* lstmfast_kernels_amx() noexcept;
}

namespace lstmfast {
namespace {

#ifdef LSTMFAST_HAVE_AMX
const Kernels* amx_kernels() {  // every CPU with AMX has AVX-512
  const Kernels& avx512 = *lstmfast_kernels_avx512();
  static const Kernels kernels{avx512.float32, avx512.float64, avx512.compressed, lstmfast_kernels_amx()};
  return &kernels;
}
#endif

const Kernels* kernels_of(Isa isa) {
  switch (isa) {
#ifdef LSTMFAST_HAVE_GENERIC512
    case Isa::kGeneric512: return lstmfast_kernels_generic512();
#endif
#ifdef LSTMFAST_HAVE_NEON
    case Isa::kNeon: return lstmfast_kernels_neon();
#endif
#ifdef LSTMFAST_HAVE_AVX2
    case Isa::kAvx2: return lstmfast_kernels_avx2();
#endif
#ifdef LSTMFAST_HAVE_AVX512
    case Isa::kAvx512: return lstmfast_kernels_avx512();
#endif
#ifdef LSTMFAST_HAVE_AMX
    case Isa::kAmx: return amx_kernels();
#endif
    default: return lstmfast_kernels_generic();
  }
}

Isa first_choice() {
  const char* forced = std::getenv("LSTMFAST_ISA");
  if (forced != nullptr && *forced != '\0') return parse_isa(forced);
  Isa widest = Isa::kGeneric;
  for (const Isa isa : built_isas())
    if (isa != Isa::kGeneric512 && cpu_has(isa)) widest = isa;
  return widest;
}

std::atomic<Isa>& choice() {
  static std::atomic<Isa> isa{first_choice()};
  return isa;
}

}  // namespace

Isa current_isa() { return choice().load(std::memory_order_relaxed); }

void set_isa(Isa isa) { choice().store(isa, std::memory_order_relaxed); }

const Kernels& current_kernels() { return *kernels_of(current_isa()); }

}  // namespace lstmfast
