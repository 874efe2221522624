// Each one-instruction function of csrc/cuda/portable.cuh, in a kernel of its own, against what its comment says. Prints
// the names of those that do something else. The instructions themselves are looked at in test_cuda_static.py.
#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda/cell.cuh"

using namespace lstmfast::cuda;

namespace {

bool all_right = true;

void expect(const char* name, bool right) {
  if (right) return;
  std::printf("%s\n", name);
  all_right = false;
}

struct Matrices {
  const bfloat16 *a, *b;  // [16, 16], [16, 8]
  float* d;               // [16, 8]
};

uint32_t pair_of(const bfloat16* matrix, int stride, int row, int column, int step) {
  return pack_pair(matrix[row * stride + column], matrix[(row + step) * stride + column + (step ? 0 : 1)]);
}

__global__ void multiply(Matrices m) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  float d[4] = {m.d[g * 8 + 2 * t], m.d[g * 8 + 2 * t + 1], m.d[(g + 8) * 8 + 2 * t], m.d[(g + 8) * 8 + 2 * t + 1]};
  const uint4 a = {pair_of(m.a, 16, g, 2 * t, 0), pair_of(m.a, 16, g + 8, 2 * t, 0), pair_of(m.a, 16, g, 2 * t + 8, 0),
                   pair_of(m.a, 16, g + 8, 2 * t + 8, 0)};
  multiply_accumulate(d, a, pair_of(m.b, 8, 2 * t, g, 1), pair_of(m.b, 8, 2 * t + 8, g, 1));
  m.d[g * 8 + 2 * t] = d[0];
  m.d[g * 8 + 2 * t + 1] = d[1];
  m.d[(g + 8) * 8 + 2 * t] = d[2];
  m.d[(g + 8) * 8 + 2 * t + 1] = d[3];
}

void check_multiply() {
  std::vector<bfloat16> a(16 * 16), b(16 * 8);
  std::vector<float> d(16 * 8), want(16 * 8);
  for (int i = 0; i < 16 * 16; ++i) a[i] = from_float<bfloat16>(static_cast<float>(i * 37 % 101 - 50));
  for (int i = 0; i < 16 * 8; ++i) b[i] = from_float<bfloat16>(static_cast<float>(i * 53 % 97 - 48));
  for (int i = 0; i < 16 * 8; ++i) want[i] = d[i] = static_cast<float>(i);
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column)
      for (int k = 0; k < 16; ++k) want[row * 8 + column] += to_float(a[row * 16 + k]) * to_float(b[k * 8 + column]);
  LSTMFAST_LAUNCH(multiply, dim3(1), dim3(32), 0, nullptr, Matrices{a.data(), b.data(), d.data()});
  expect("multiply_accumulate", d == want);  // whole numbers below 2^24: exact in any order
}

struct Words {
  const uint4* in;
  uint4* out;
};

__global__ void copy(Words w) {
  const uint4 v = load_relaxed_128(w.in);
  store_relaxed_64(&w.out->x, make_uint2(v.w, v.z));
  store_relaxed_32(&w.out->z, v.y);
  store_relaxed_32(&w.out->w, load_relaxed_32(&w.in->x));
}

void check_words() {
  alignas(16) const uint4 in = {1, 0x80000002u, 3, 0xffffffffu};
  alignas(16) uint4 out = {0, 0, 0, 0};
  LSTMFAST_LAUNCH(copy, dim3(1), dim3(1), 0, nullptr, Words{&in, &out});
  expect("store_relaxed_64", out.x == in.w && out.y == in.z);
  expect("store_relaxed_32", out.z == in.y);
  expect("load_relaxed_32", out.w == in.x);
}

}  // namespace

int main() {
  check_multiply();
  check_words();
  return all_right ? 0 : 1;
}
