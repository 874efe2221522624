// `Vec<T>`: one register of float or double, in GCC/Clang vector extensions: the same source becomes SSE, NEON, AVX2 or
// AVX-512, depending on how the including .cc defines kVectorBytes and `fused_multiply_add`.
// Everything here is in an anonymous namespace and nothing comes from the standard library: see the rules in README.md.
#pragma once

#include "core/inline.h"

namespace lstmfast {
namespace {

template <typename T>
struct VecTypes {
  typedef T Register __attribute__((vector_size(kVectorBytes)));
  typedef int Bits __attribute__((vector_size(kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
  static constexpr int kMantissaBits = 23;
};

template <>
struct VecTypes<double> {
  typedef double Register __attribute__((vector_size(kVectorBytes)));
  typedef long long Bits __attribute__((vector_size(kVectorBytes)));
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(double)), may_alias));
  static constexpr int kMantissaBits = 52;
};

template <typename T>
using Vec = typename VecTypes<T>::Register;
template <typename T>
using VecBits = typename VecTypes<T>::Bits;

template <typename T>
constexpr Index kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T>
LSTMFAST_INLINE bool is_full(Index lanes) {
  return lanes >= kLanes<T>;
}

template <typename T>
LSTMFAST_INLINE Vec<T> broadcast(T value) {
  return value - Vec<T>{};  // value - 0 is value, also for -0, so the compiler drops the subtraction
}

template <typename T>
LSTMFAST_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecTypes<T>::Unaligned*>(p);
}

template <typename T>
LSTMFAST_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VecTypes<T>::Unaligned*>(p) = v;
}

#ifndef LSTMFAST_ISA_HAS_POWERS_OF_TWO
// u = n + rest with n the nearest integer. Past the normal powers of two, u counts as the nearest of them; NaN passes.
template <typename T>
LSTMFAST_INLINE Vec<T> generic_nearest_integer(Vec<T> u, Vec<T>& rest) {
  constexpr T kSmallest = sizeof(T) == 4 ? T(-126) : T(-1022), kLargest = 1 - kSmallest;
  constexpr T kRound = T(3ll << (VecTypes<T>::kMantissaBits - 1));  // 1.5 * 2^mantissa bits: adding it rounds
  u = kSmallest > u ? broadcast<T>(kSmallest) : u;
  u = kLargest < u ? broadcast<T>(kLargest) : u;
  const Vec<T> n = (u + kRound) - kRound;
  rest = u - n;
  return n;
}

// a * 2^n for an integer n whose power is a normal number.
template <typename T>
LSTMFAST_INLINE Vec<T> generic_times_power_of_two(Vec<T> a, Vec<T> n) {
  constexpr T kRound = T(3ll << (VecTypes<T>::kMantissaBits - 1));
  // The integer is in the low bits of the sum; the exponent field takes it, the rest is shifted out.
  const VecBits<T> one = (VecBits<T>)broadcast<T>(T(1));
  return a * (Vec<T>)(((VecBits<T>)(n + kRound) << VecTypes<T>::kMantissaBits) + one);
}

LSTMFAST_INLINE Vec<float> nearest_integer(Vec<float> u, Vec<float>& rest) {
  return generic_nearest_integer<float>(u, rest);
}
LSTMFAST_INLINE Vec<double> nearest_integer(Vec<double> u, Vec<double>& rest) {
  return generic_nearest_integer<double>(u, rest);
}
LSTMFAST_INLINE Vec<float> times_power_of_two(Vec<float> a, Vec<float> n) {
  return generic_times_power_of_two<float>(a, n);
}
LSTMFAST_INLINE Vec<double> times_power_of_two(Vec<double> a, Vec<double> n) {
  return generic_times_power_of_two<double>(a, n);
}
#endif

#ifndef LSTMFAST_ISA_HAS_MASKS
// The first `lanes` elements (none if there are fewer than one), fewer than a vector has. Out of line: they are rare,
// and would double the code of every loop.
template <typename T>
LSTMFAST_NOINLINE Vec<T> load_first(const T* p, Index lanes, T fill) {
  T copy[kLanes<T>];
  for (Index i = 0; i < kLanes<T>; ++i) copy[i] = i < lanes ? p[i] : fill;
  return load<T>(copy);
}

template <typename T>
LSTMFAST_NOINLINE void store_first(T* p, Vec<T> v, Index lanes) {
  T copy[kLanes<T>];
  store<T>(copy, v);
  for (Index i = 0; i < lanes; ++i) p[i] = copy[i];
}
#endif

// The first `lanes` elements of p (all of them if there are that many), `fill` in the others; memory past them is not
// touched.
template <typename T>
LSTMFAST_INLINE Vec<T> load_partial(const T* p, Index lanes, T fill = T(0)) {
  return is_full<T>(lanes) ? load(p) : load_first(p, lanes, fill);
}

template <typename T>
LSTMFAST_INLINE void store_partial(T* p, Vec<T> v, Index lanes) {
  if (is_full<T>(lanes))
    store(p, v);
  else
    store_first(p, v, lanes);
}

// Lane i of the result is lane i ^ kDistance of v.
template <typename T, int kDistance, int... kLane>
LSTMFAST_INLINE Vec<T> exchange_lanes(Vec<T> v) {
  if constexpr (sizeof...(kLane) < kLanes<T>) {
    return exchange_lanes<T, kDistance, kLane..., static_cast<int>(sizeof...(kLane)) ^ kDistance>(v);
  } else {
#ifdef __clang__
    return __builtin_shufflevector(v, v, kLane...);
#else
    return __builtin_shuffle(v, VecBits<T>{kLane...});
#endif
  }
}

// Across the lanes of a vector: the sums of its halves' lanes, of their halves', and so on.
template <typename T, int kHalf = kLanes<T> / 2>
LSTMFAST_INLINE T horizontal_sum(Vec<T> v) {
  if constexpr (kHalf > 0)
    return horizontal_sum<T, kHalf / 2>(v + exchange_lanes<T, kHalf>(v));
  else
    return v[0];
}

template <typename T, int kHalf = kLanes<T> / 2>
LSTMFAST_INLINE T horizontal_max(Vec<T> v) {
  if constexpr (kHalf > 0) {
    const Vec<T> other = exchange_lanes<T, kHalf>(v);
    return horizontal_max<T, kHalf / 2>(v < other ? other : v);
  } else {
    return v[0];
  }
}

}  // namespace
}  // namespace lstmfast
