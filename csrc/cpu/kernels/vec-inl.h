// `Vec<T>`: one register of float or double, in GCC/Clang vector extensions: the same source becomes SSE, NEON, AVX2 or
// AVX-512, as the including .cc defines kVectorBytes and `fused_multiply_add`.
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

// The ends of rows, out of line: rare, and they would double the code of every loop.
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

// The first `lanes` elements of p (all of them if there are that many), `fill` in the others; memory past them is not
// touched.
template <typename T>
LSTMFAST_INLINE Vec<T> load_partial(const T* p, Index lanes, T fill = T(0)) {
  return is_full<T>(lanes) ? load(p) : load_first<T>(p, lanes, fill);
}

template <typename T>
LSTMFAST_INLINE void store_partial(T* p, Vec<T> v, Index lanes) {
  if (is_full<T>(lanes))
    store(p, v);
  else
    store_first<T>(p, v, lanes);
}

}  // namespace
}  // namespace lstmfast
