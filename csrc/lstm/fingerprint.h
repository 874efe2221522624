// A fingerprint of weights: it tells a Sequence whether its packed weights still equal the caller's arrays, whatever
// wrote to them. 122 bits of a universal hash whose keys the process draws once at random: two contents of one shape
// that differ anywhere, even in the sign of a zero, have equal fingerprints with a probability below 2^-64.
// Pieces of 4 KB become two sums of 64 bits (NH, cpu/kernels/fingerprint-inl.h), and these the coefficients of two
// polynomials modulo 2^61 - 1. The value depends on the shape, the contents and the process, not on the ISA or the
// number of threads. Not a checksum to store, nor a defence against a writer who knows the keys.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "core/views.h"
#include "cpu/kernel_table.h"

namespace lstmfast {

struct Fingerprint {
  std::uint64_t first = 0, second = 0;

  bool operator==(const Fingerprint& other) const { return first == other.first && second == other.second; }
  bool operator!=(const Fingerprint& other) const { return !(*this == other); }
};

// A matrix to hash; an absent one has no rows.
template <typename T>
struct FingerprintedMatrix {
  MatrixView<const T> matrix;
  Index rows, columns;
};

template <typename T>
Fingerprint fingerprint_of(const KernelTable<T>& k, std::initializer_list<FingerprintedMatrix<T>> matrices);

// For tests.
struct FingerprintKeys {
  std::uint64_t points[2];  // where the polynomials are evaluated, below 2^61 - 1
  alignas(64) unsigned words[kFingerprintBytes / 4 + kFingerprintShift];
};
const FingerprintKeys& fingerprint_keys();

}  // namespace lstmfast
