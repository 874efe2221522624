// The few definitions that every C++ file of lstmfast shares with the kernels. No function here may be emitted out of
// line: an object compiled for AVX-512 must not offer the linker a copy of anything that an older CPU might then run.
#pragma once

#define LSTMFAST_INLINE inline __attribute__((always_inline))
#define LSTMFAST_NOINLINE __attribute__((noinline))

// Before a loop over the rows of a tile that does much per row. Clang keeps it a loop otherwise; the tile, indexed by a
// variable, then is in memory, and every multiply-add of the product stores its sum: a product takes up to three times as
// long.
#if defined(__clang__)
#define LSTMFAST_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LSTMFAST_UNROLL
#endif

namespace lstmfast {

using Index = __PTRDIFF_TYPE__;

struct Range {
  Index begin, end;
};

LSTMFAST_INLINE constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

}  // namespace lstmfast
