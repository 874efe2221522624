// The keys, and the polynomials modulo 2^61 - 1 over the kernels' sums of pieces.
#include "lstm/fingerprint.h"

#include <algorithm>

#include "core/system.h"
#include "cpu/parallel.h"

namespace lstmfast {
namespace {

constexpr std::uint64_t kModulus = (std::uint64_t{1} << 61) - 1;

std::uint64_t multiply(std::uint64_t a, std::uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  const std::uint64_t folded =
      (static_cast<std::uint64_t>(product) & kModulus) + static_cast<std::uint64_t>(product >> 61);
  return folded >= kModulus ? folded - kModulus : folded;
}

std::uint64_t add(std::uint64_t a, std::uint64_t b) {
  const std::uint64_t sum = a + b;  // both below the modulus
  return sum >= kModulus ? sum - kModulus : sum;
}

std::uint64_t power(std::uint64_t base, Index exponent) {
  std::uint64_t result = 1;
  for (; exponent > 0; exponent /= 2, base = multiply(base, base))
    if (exponent % 2 != 0) result = multiply(result, base);
  return result;
}

FingerprintKeys draw_keys() {
  FingerprintKeys keys;
  fill_with_random_bytes(&keys, sizeof keys);
  for (std::uint64_t& point : keys.points) point %= kModulus;
  return keys;
}

// Two polynomials of the sums of some pieces, in their order. A sum of 64 bits is two coefficients of 32, so
// different sums give different polynomials.
struct Polynomials {
  std::uint64_t values[2] = {0, 0};
  Index pieces = 0;

  void append(const unsigned long long* sums, const FingerprintKeys& keys) {
    for (int i = 0; i < 2; ++i) {
      const std::uint64_t half = add(multiply(values[i], keys.points[i]), sums[i] >> 32);
      values[i] = add(multiply(half, keys.points[i]), sums[i] & 0xffffffffu);
    }
    ++pieces;
  }
  void append(const Polynomials& later, const FingerprintKeys& keys) {
    for (int i = 0; i < 2; ++i)
      values[i] = add(multiply(values[i], power(keys.points[i], 2 * later.pieces)), later.values[i]);
    pieces += later.pieces;
  }
};

// Rows cut into pieces; a matrix without gaps is one row.
template <typename T>
struct Pieces {
  static constexpr Index kValues = kFingerprintBytes / Index{sizeof(T)};
  MatrixView<const T> matrix;
  Index rows, columns;

  explicit Pieces(const FingerprintedMatrix<T>& given)
      : matrix(given.matrix), rows(given.matrix ? given.rows : 0), columns(given.columns) {
    if (rows == 0 || columns == 0) {
      rows = columns = 0;
    } else if (matrix.stride == columns) {
      columns *= rows;
      rows = 1;
    }
  }

  Index in_a_row() const { return ceil_div(columns, kValues); }
  Index count() const { return rows * in_a_row(); }

  void append(const KernelTable<T>& k, const FingerprintKeys& keys, Range pieces, Polynomials& to) const {
    for (Index piece = pieces.begin; piece < pieces.end; ++piece) {
      const Index first = piece % in_a_row() * kValues;
      unsigned long long sums[2];
      k.fingerprint(matrix.row(piece / in_a_row()) + first, std::min(kValues, columns - first), keys.words, sums);
      to.append(sums, keys);
    }
  }
};

// A second thread pays from 8 MB on, some 200 microseconds: the pool may be asleep, and waking it takes 50 to 90.
constexpr Index kPiecesPerThread = (Index{4} << 20) / kFingerprintBytes;
constexpr int kMostThreads = 16;  // more do not read memory faster

}  // namespace

const FingerprintKeys& fingerprint_keys() {
  static const FingerprintKeys keys = draw_keys();
  return keys;
}

template <typename T>
Fingerprint fingerprint_of(const KernelTable<T>& k, std::initializer_list<FingerprintedMatrix<T>> matrices) {
  const FingerprintKeys& keys = fingerprint_keys();
  Polynomials all;
  for (const FingerprintedMatrix<T>& given : matrices) {
    const Pieces<T> pieces(given);
    const int wanted = static_cast<int>(std::clamp<Index>(pieces.count() / kPiecesPerThread, 1, kMostThreads));
    Polynomials of_parts[kMostThreads];
    int parts_run = 1;
    run_parallel(wanted, [&](int part, int parts) {
      pieces.append(k, keys, share(pieces.count(), part, parts), of_parts[part]);
      if (part == 0) parts_run = parts;
    });
    for (int part = 0; part < parts_run; ++part) all.append(of_parts[part], keys);
  }
  return {all.values[0], all.values[1]};
}

template Fingerprint fingerprint_of(const KernelTable<float>&, std::initializer_list<FingerprintedMatrix<float>>);
template Fingerprint fingerprint_of(const KernelTable<double>&, std::initializer_list<FingerprintedMatrix<double>>);

}  // namespace lstmfast
