// The few definitions that every C++ file of lstmfast shares with the kernels. No function here may be emitted out of
// line: an object compiled for AVX-512 must not offer the linker a copy of anything that an older CPU might then run.
#pragma once

#define LSTMFAST_INLINE inline __attribute__((always_inline))
#define LSTMFAST_NOINLINE __attribute__((noinline))

namespace lstmfast {

using Index = __PTRDIFF_TYPE__;

struct Range {
  Index begin, end;
};

LSTMFAST_INLINE constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

}  // namespace lstmfast
