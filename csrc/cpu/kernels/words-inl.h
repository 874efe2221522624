// A vector as words of 32 bits, or as pairs of them: what hashes and random numbers compute with.
#pragma once

#include "cpu/kernels/vec-inl.h"

namespace lstmfast {
namespace {

typedef unsigned Words __attribute__((vector_size(kVectorBytes)));
typedef unsigned long long Pairs __attribute__((vector_size(kVectorBytes)));
typedef unsigned UnalignedWords __attribute__((vector_size(kVectorBytes), aligned(alignof(unsigned)), may_alias));

#ifndef LSTMFAST_ISA_HAS_WIDE_PRODUCTS
// The products of the low halves of 64-bit lanes.
LSTMFAST_INLINE Pairs multiply_low_halves(Pairs a, Pairs b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }
#endif

}  // namespace
}  // namespace lstmfast
