// exp, sigmoid and tanh of a vector. Absolute error of sigmoid and tanh: at most 2e-7 (float) and 5e-16 (double) against
// the exact function; tanh is also accurate relative to itself near 0. NaN stays NaN, infinities saturate.
// The polynomials are our own minimax fits (Remez exchange, 40 digits).
#pragma once

#include "core/gates.h"
#include "cpu/kernels/vec-inl.h"

namespace lstmfast {
namespace {

template <typename T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float kLargest = 88.0f, kSmallest = -87.3f;  // 2^n stays a normal number
  static constexpr float kRound = 12582912.0f;                  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLog2E = 1.44269504f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // High has 10 bits: n * High is exact
  // (e^r - 1 - r) / r^2 on |r| <= ln(2)/2; the error of e^r is 3.1e-9 of it
  static constexpr float kPolynomial[] = {0.00138145986467f, 0.00836871687973f, 0.0416683880453f, 0.166665206317f,
                                          0.499999934478f};
};

template <>
struct ExpConstants<double> {
  static constexpr double kLargest = 709.0, kSmallest = -708.0;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLog2E = 1.4426950408889634;
  static constexpr double kLn2High = 6.93145751953125e-1, kLn2Low = 1.42860682030941723212e-6;  // High has 16 bits
  // error 3.6e-18
  static constexpr double kPolynomial[] = {
      2.5000061602835666699e-8, 2.7630248379211443975e-7,  2.7557586373840163694e-6,  2.4801493098906550659e-5,
      1.9841269506578687653e-4, 1.3888888943630112946e-3,  8.3333333334944616641e-3,  4.166666666653015859e-2,
      1.6666666666666412523e-1, 5.0000000000000106271e-1};
};

// N vectors that go through a function in step. One vector is a chain of about 20 dependent operations, and a CPU's
// scheduler holds too few instructions to overlap the chains of code that computes one after the other. The forward pass of
// 64 rows and 64 units gained 16 % from it (Zen 3, AVX2).
template <typename T, int N>
struct Vectors {
  Vec<T> at[N];
};

// x = n ln 2 + r: x becomes e^r - 1, scale 2^n.
template <typename T, int N>
LSTMFAST_INLINE void reduced_expm1(Vectors<T, N>& x, Vectors<T, N>& scale) {
  using C = ExpConstants<T>;
  const Vec<T> largest = broadcast<T>(C::kLargest), smallest = broadcast<T>(C::kSmallest);
  const VecBits<T> one = (VecBits<T>)broadcast<T>(T(1));
  Vectors<T, N> n, r, p;
  for (int j = 0; j < N; ++j) x.at[j] = x.at[j] > largest ? largest : x.at[j];  // false for NaN, so NaN passes
  for (int j = 0; j < N; ++j) x.at[j] = x.at[j] < smallest ? smallest : x.at[j];
  for (int j = 0; j < N; ++j)
    scale.at[j] = fused_multiply_add(x.at[j], broadcast<T>(C::kLog2E), broadcast<T>(C::kRound));
  for (int j = 0; j < N; ++j) n.at[j] = scale.at[j] - C::kRound;
  // The integer n sits in the low bits of `scale`; the exponent field takes it, the rest is shifted out.
  for (int j = 0; j < N; ++j)
    scale.at[j] = (Vec<T>)(((VecBits<T>)scale.at[j] << VecTypes<T>::kMantissaBits) + one);
  for (int j = 0; j < N; ++j) r.at[j] = fused_multiply_add(n.at[j], broadcast<T>(-C::kLn2High), x.at[j]);
  for (int j = 0; j < N; ++j) r.at[j] = fused_multiply_add(n.at[j], broadcast<T>(-C::kLn2Low), r.at[j]);
  for (int j = 0; j < N; ++j)
    p.at[j] = fused_multiply_add(r.at[j], broadcast<T>(C::kPolynomial[0]), broadcast<T>(C::kPolynomial[1]));
  for (unsigned k = 2; k < sizeof(C::kPolynomial) / sizeof(T); ++k)
    for (int j = 0; j < N; ++j) p.at[j] = fused_multiply_add(p.at[j], r.at[j], broadcast<T>(C::kPolynomial[k]));
  for (int j = 0; j < N; ++j) x.at[j] = fused_multiply_add(p.at[j], r.at[j] * r.at[j], r.at[j]);
}

template <typename T>
LSTMFAST_INLINE Vec<T> vector_exp(Vec<T> x) {
  Vectors<T, 1> m{{x}}, scale;
  reduced_expm1(m, scale);
  return fused_multiply_add(m.at[0], scale.at[0], scale.at[0]);
}

template <typename T>
LSTMFAST_INLINE Vec<T> sign_of(Vec<T> x) {
  return (Vec<T>)((VecBits<T>)x & (VecBits<T>)broadcast<T>(T(-0.0)));
}

template <typename T>
LSTMFAST_INLINE Vec<T> flip_sign(Vec<T> x, Vec<T> sign) {
  return (Vec<T>)((VecBits<T>)x ^ (VecBits<T>)sign);
}

// From m = e^r - 1 and scale = 2^n of -x; sigmoid(x) = 1 / (1 + e^-x).
template <typename T>
LSTMFAST_INLINE Vec<T> finish_sigmoid(Vec<T> m, Vec<T> scale) {
  return T(1) / (fused_multiply_add(m, scale, scale) + T(1));
}

// From m and scale of 2|x|: tanh|x| = e / (e + 2) with e = expm1(2|x|): no cancellation near 0, unlike 2*sigmoid(2x) - 1.
template <typename T>
LSTMFAST_INLINE Vec<T> finish_tanh(Vec<T> m, Vec<T> scale, Vec<T> sign) {
  const Vec<T> e = fused_multiply_add(m, scale, scale - T(1));
  return flip_sign<T>(e / (e + T(2)), sign);
}

template <typename T>
LSTMFAST_INLINE Vec<T> vector_sigmoid(Vec<T> x) {
  Vectors<T, 1> m{{-x}}, scale;
  reduced_expm1(m, scale);
  return finish_sigmoid<T>(m.at[0], scale.at[0]);
}

template <typename T, int N>
LSTMFAST_INLINE void vector_tanh(Vectors<T, N>& x) {
  Vectors<T, N> sign, scale;
  for (int j = 0; j < N; ++j) sign.at[j] = sign_of<T>(x.at[j]);
  for (int j = 0; j < N; ++j) x.at[j] = flip_sign<T>(x.at[j] + x.at[j], sign.at[j]);
  reduced_expm1(x, scale);
  for (int j = 0; j < N; ++j) x.at[j] = finish_tanh<T>(x.at[j], scale.at[j], sign.at[j]);
}

template <typename T>
LSTMFAST_INLINE Vec<T> vector_tanh(Vec<T> x) {
  Vectors<T, 1> one{{x}};
  vector_tanh(one);
  return one.at[0];
}

// The four gates of one vector of units, pre-activations to activations.
template <typename T>
LSTMFAST_INLINE void activate_gates(Vectors<T, kGateCount>& z) {
  const Vec<T> sign = sign_of<T>(z.at[kCellGate]);
  Vectors<T, kGateCount> scale;
  for (int gate = 0; gate < kGateCount; ++gate)
    z.at[gate] = gate == kCellGate ? flip_sign<T>(z.at[gate] + z.at[gate], sign) : -z.at[gate];
  reduced_expm1(z, scale);
  for (int gate = 0; gate < kGateCount; ++gate)
    z.at[gate] = gate == kCellGate ? finish_tanh<T>(z.at[gate], scale.at[gate], sign)
                                   : finish_sigmoid<T>(z.at[gate], scale.at[gate]);
}

}  // namespace
}  // namespace lstmfast
