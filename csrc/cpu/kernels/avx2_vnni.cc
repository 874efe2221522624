// AVX2 with AVX-VNNI: dot products of int16 pairs and int8 fours in one instruction. Intel Alder Lake (2021), AMD Zen 5
// (2024) and later.
#define LSTMFAST_ISA_HAS_DOT_PRODUCTS
#include "cpu/kernels/avx2-inl.h"

namespace lstmfast {
namespace {

// As assembly for the reason given in avx512_vnni-inl.h. {vex}: without it this would be an instruction of AVX-512.
template <typename Words>
LSTMFAST_INLINE Words add_products_of_pairs(Words a, Words b, Words sum) {
  asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
  return sum;
}
template <typename Words>
LSTMFAST_INLINE Words add_products_of_fours(Words a, Words b, Words sum) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
  return sum;
}

}  // namespace
}  // namespace lstmfast

#include "cpu/kernels/dot-inl.h"

extern "C" const lstmfast::DotKernelSet* lstmfast_kernels_avx2_vnni() noexcept { return &lstmfast::kDotKernels; }
