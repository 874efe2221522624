// The table of ISAs, one row each: the only file that names the kernels' tables.
#include "cpu/isa.h"

#include <stdexcept>
#include <string_view>

#include "core/system.h"
#include "cpu/cpu_features.h"
#include "cpu/dot_kernels.h"

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
const lstmfast::DotKernels* lstmfast_kernels_amx_int8() noexcept;
}

namespace lstmfast {
namespace {

bool every_machine_has() { return true; }

bool has_neon() {  // part of AArch64
#if defined(__aarch64__)
  return true;
#else
  return false;
#endif
}

bool has_avx2() { return cpu_features().avx2 && cpu_features().fma; }

bool has_avx512() {
  const CpuFeatures& f = cpu_features();
  return f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl && f.fma;
}

// VNNI comes in two encodings, each with a feature of its own.
bool has_avx2_vnni() { return has_avx2() && cpu_features().avx_vnni; }

bool has_avx512_vnni() { return has_avx512() && cpu_features().avx512_vnni; }

bool has_avx512_bf16() { return has_avx512_vnni() && cpu_features().avx512_bf16; }

// One row for bfloat16 and int8: every CPU so far that has tiles multiplies both in them.
bool has_amx() {
  const CpuFeatures& f = cpu_features();
  static const bool usable =
      has_avx512_vnni() && f.amx_tile && f.amx_bf16 && f.amx_int8 && request_tile_registers();
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
  static const DotKernelSet dots{lstmfast_kernels_avx512_vnni()->int16, *lstmfast_kernels_amx_int8()};
  static const Kernels kernels = with_bf16x(with_dots(*lstmfast_kernels_avx512(), &dots), lstmfast_kernels_amx());
  return &kernels;
}

// No reference to kernels that are not in this build; CMakeLists.txt sets the list.
constexpr std::string_view kBuilt = " " LSTMFAST_BUILT_ISAS " ";
#define LSTMFAST_ISA(name, machine_has, kernels) \
  {#name, machine_has, kBuilt.find(" " #name " ") == std::string_view::npos ? nullptr : kernels}

constexpr Isa kIsas[] = {
    LSTMFAST_ISA(generic512, every_machine_has, lstmfast_kernels_generic512),
    LSTMFAST_ISA(generic, every_machine_has, lstmfast_kernels_generic),
    LSTMFAST_ISA(neon, has_neon, lstmfast_kernels_neon),
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

std::vector<const Isa*> unbuilt_isas() {
  std::vector<const Isa*> unbuilt;
  for (const Isa& isa : kIsas)
    if (isa.kernels == nullptr && isa.machine_has != every_machine_has && isa.machine_has()) unbuilt.push_back(&isa);
  return unbuilt;
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
