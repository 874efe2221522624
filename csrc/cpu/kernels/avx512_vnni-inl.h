// What VNNI adds to AVX-512: dot products of int16 pairs and int8 fours in one instruction.
#pragma once

#define LSTMFAST_ISA_HAS_DOT_PRODUCTS
#include "cpu/kernels/avx512-inl.h"

namespace lstmfast {
namespace {

// As assembly, so that weights come in a register: GCC 12 makes the load of a vector of weights part of every instruction
// that uses it, 24 loads instead of 4, which halves the speed.
template <typename Words>
LSTMFAST_INLINE Words add_products_of_pairs(Words a, Words b, Words sum) {
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}
template <typename Words>
LSTMFAST_INLINE Words add_products_of_fours(Words a, Words b, Words sum) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}

}  // namespace
}  // namespace lstmfast
