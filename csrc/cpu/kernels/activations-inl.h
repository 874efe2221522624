// exp, sigmoid and tanh of a vector. Absolute error of sigmoid and tanh: at most 2e-7 (float) and 5e-16 (double)
// against the exact function; tanh is also accurate relative to itself near 0. NaN stays NaN, infinities saturate.
//
// All three are powers of two: 2^u = 2^n * (1 + m) with n the nearest integer and m a polynomial of the rest. Sigmoid
// and tanh come as fractions, because a step divides only after it has multiplied denominators: one division of 16
// floats after the other takes as long as 20 multiply-adds, and one among other work still as long as 7 (Golden Cove).
// The polynomials are our own minimax fits (Remez exchange, 60 digits).
#pragma once

#include "core/gates.h"
#include "cpu/kernels/vec-inl.h"

namespace lstmfast {
namespace {

template <typename T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float kLog2E = 1.44269504f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // High has 10 bits: n * High is exact
  static constexpr float kLargest = 88.0f, kSmallest = -87.3f;                // e^x is a normal number
  // (2^f - 1) / f on |f| <= 1/2; the error is 1.1e-8 of it
  static constexpr float kPolynomial[] = {0.000154035127597f, 0.00133907354779f, 0.00961823749373f,
                                          0.0555035743364f,   0.24022649795f,    0.693147187927f};
};

template <>
struct ExpConstants<double> {
  static constexpr double kLog2E = 1.4426950408889634;
  static constexpr double kLn2High = 6.93145751953125e-1, kLn2Low = 1.42860682030941723212e-6;  // High has 16 bits
  static constexpr double kLargest = 709.0, kSmallest = -708.0;
  // error 1.8e-17
  static constexpr double kPolynomial[] = {
      4.4455363919318526494e-10, 7.072561764191980337e-9,  1.0178121304307230167e-7, 1.3215442723900313765e-6,
      1.5252733701203615884e-5,  1.5403530440481246677e-4, 1.3333558146531642555e-3, 9.6181291076070653226e-3,
      5.5504108664821236504e-2,  2.4022650695910097889e-1, 6.931471805599453112e-1};
};

// N vectors that go through a function together. One vector is a chain of about 20 dependent operations, and a CPU's
// scheduler holds too few instructions to overlap the chains of code that computes one after the other.
template <typename T, int N>
struct Vectors {
  Vec<T> at[N];
};

template <typename T>
LSTMFAST_INLINE Vec<T> sign_of(Vec<T> x) {
  return (Vec<T>)((VecBits<T>)x & (VecBits<T>)broadcast<T>(T(-0.0)));
}

template <typename T>
LSTMFAST_INLINE Vec<T> flip_sign(Vec<T> x, Vec<T> sign) {
  return (Vec<T>)((VecBits<T>)x ^ (VecBits<T>)sign);
}

// 2^u in three parts: 2^integer * (1 + rest * factor).
template <typename T, int N>
struct PowersOfTwo {
  Vectors<T, N> integer, rest, factor;

  LSTMFAST_INLINE explicit PowersOfTwo(const Vectors<T, N>& u) {
    for (int j = 0; j < N; ++j) integer.at[j] = nearest_integer(u.at[j], rest.at[j]);
  }

  LSTMFAST_INLINE void find_factors() {
    constexpr auto& polynomial = ExpConstants<T>::kPolynomial;
    for (int j = 0; j < N; ++j)
      factor.at[j] = fused_multiply_add(rest.at[j], broadcast<T>(polynomial[0]), broadcast<T>(polynomial[1]));
    for (unsigned k = 2; k < sizeof(polynomial) / sizeof(T); ++k)
      for (int j = 0; j < N; ++j)
        factor.at[j] = fused_multiply_add(factor.at[j], rest.at[j], broadcast<T>(polynomial[k]));
  }

  LSTMFAST_INLINE Vec<T> value(int j) const {
    return times_power_of_two(fused_multiply_add(rest.at[j], factor.at[j], broadcast<T>(T(1))), integer.at[j]);
  }
  LSTMFAST_INLINE Vec<T> one_minus_value(int j) const {
    const Vec<T> scale = times_power_of_two(broadcast<T>(T(1)), integer.at[j]);
    return fused_multiply_add(-(rest.at[j] * factor.at[j]), scale, T(1) - scale);
  }
};

template <typename T>
LSTMFAST_INLINE Vec<T> vector_exp(Vec<T> x) {
  using C = ExpConstants<T>;
  const Vec<T> largest = broadcast<T>(C::kLargest), smallest = broadcast<T>(C::kSmallest);
  x = largest < x ? largest : x;  // false for NaN, so NaN passes
  x = smallest > x ? smallest : x;
  PowersOfTwo<T, 1> power(Vectors<T, 1>{{x * C::kLog2E}});
  // The rest again, without the rounding of that product: here a result must be accurate relative to itself.
  const Vec<T> n = power.integer.at[0];
  const Vec<T> r = fused_multiply_add(n, broadcast<T>(-C::kLn2High), x);
  power.rest.at[0] = fused_multiply_add(n, broadcast<T>(-C::kLn2Low), r) * C::kLog2E;
  power.find_factors();
  return power.value(0);
}

// Functions of gates as fractions, N sigmoids and M tanhs together, each from its x to a denominator and for tanh to
// the numerator in the place of x.
//   sigmoid(x) = 1 / d with d = 1 + e^-x, which may be infinite. The error of rounding x * log2(e) grows with |x| as fast as
//   the slope of sigmoid falls: it stays below 1.3e-8 (float).
//   tanh(x) = e / (2 - e) with e = 1 - e^(-2|x|): no bits are lost near 0, unlike in 2*sigmoid(2x) - 1.
template <typename T, int N, int M>
LSTMFAST_INLINE void gate_fractions(const Vec<T>* sigmoid_x, Vec<T>* sigmoid_d, Vec<T>* tanh_x, Vec<T>* tanh_d) {
  using C = ExpConstants<T>;
  Vectors<T, N + M> u;
  for (int j = 0; j < N; ++j) u.at[j] = sigmoid_x[j] * broadcast<T>(-C::kLog2E);
  for (int j = 0; j < M; ++j)
    u.at[N + j] = flip_sign<T>(tanh_x[j], sign_of<T>(tanh_x[j])) * broadcast<T>(-2 * C::kLog2E);
  PowersOfTwo<T, N + M> power(u);
  power.find_factors();
  for (int j = 0; j < N; ++j) sigmoid_d[j] = power.value(j) + T(1);
  for (int j = 0; j < M; ++j) {
    const Vec<T> e = power.one_minus_value(N + j);
    tanh_d[j] = T(2) - e;
    tanh_x[j] = flip_sign<T>(e, sign_of<T>(tanh_x[j]));
  }
}

template <typename T>
LSTMFAST_INLINE Vec<T> vector_sigmoid(Vec<T> x) {
  Vec<T> d;
  gate_fractions<T, 1, 0>(&x, &d, nullptr, nullptr);
  return T(1) / d;
}

template <typename T, int N>
LSTMFAST_INLINE void vector_tanh(Vectors<T, N>& x) {
  Vectors<T, N> d;
  gate_fractions<T, 0, N>(nullptr, nullptr, x.at, d.at);
  for (int j = 0; j < N; ++j) x.at[j] /= d.at[j];
}

template <typename T>
LSTMFAST_INLINE Vec<T> vector_tanh(Vec<T> x) {
  Vectors<T, 1> one{{x}};
  vector_tanh(one);
  return one.at[0];
}

}  // namespace
}  // namespace lstmfast
