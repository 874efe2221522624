// The tile registers of amx.cc and amx_int8.cc in plain vectors instead of their instructions, to test the code around
// them. Eight registers of 16 rows of 64 bytes. The bits are those of the hardware, except where a product of parts or a sum
// is below 1.2e-38 (there one rounding differs): products of two bfloat16 are exact in float32, so that adding them is
// the one rounding of the hardware's fused operation, in the hardware's order.
#pragma once

#include "cpu/bf16x_kernels.h"
#include "cpu/kernels/vec-inl.h"

namespace lstmfast {
namespace {

class TileRegisters {
 public:
  static constexpr int kMostParts = kBf16xMostParts;
  static constexpr bool kLeftByPairs = false;

  void configure() {}
  void release() {}

  template <int kTile>
  void zero() {
    for (int row = 0; row < 16; ++row) tiles_[kTile][row] = Vec<float>{};
  }

  // Rows of 64 bytes, `stride` bytes apart.
  template <int kTile>
  void load(const void* from, Index stride) {
    for (int row = 0; row < 16; ++row)
      tiles_[kTile][row] = lstmfast::load(reinterpret_cast<const float*>(static_cast<const char*>(from) + row * stride));
  }

  template <int kTile>
  void store(void* to, Index stride) const {
    for (int row = 0; row < 16; ++row)
      lstmfast::store(reinterpret_cast<float*>(static_cast<char*>(to) + row * stride), tiles_[kTile][row]);
  }

  template <int kTile>
  void open(const float* from, Index stride) {
    load<kTile>(from, stride);
  }
  template <int kTile>
  void open_zero(const float*, Index) {
    zero<kTile>();
  }
  template <int kTile>
  void close(float* to, Index stride) const {
    store<kTile>(to, stride);
  }

  // Row m, column n of kTo: += sum over k of the pairs (m, k) of kLeft times the pairs (k, n) of kRight. First members
  // and second members of pairs have sums of their own, which begin at zero.
  template <int kTo, int kLeft, int kRight>
  void multiply() {
    multiply_tiles(tiles_[kTo], tiles_[kLeft], tiles_[kRight]);
  }

 private:
  static LSTMFAST_INLINE Vec<float> flushed(Vec<float> x) {
    const VecBits<float> is_normal = ((VecBits<float>)x & 0x7f800000) != 0;
    return (Vec<float>)((VecBits<float>)x & (is_normal | static_cast<int>(0x80000000u)));
  }
  static LSTMFAST_INLINE Vec<float> first_of_pair(VecBits<float> pair) { return flushed((Vec<float>)(pair << 16)); }
  static LSTMFAST_INLINE Vec<float> second_of_pair(VecBits<float> pair) {
    return flushed((Vec<float>)(pair & static_cast<int>(0xffff0000u)));
  }

  static LSTMFAST_NOINLINE void multiply_tiles(Vec<float>* to, const Vec<float>* left, const Vec<float>* right) {
    Vec<float> right_first[16], right_second[16];
    for (int k = 0; k < 16; ++k) {
      right_first[k] = first_of_pair((VecBits<float>)right[k]);
      right_second[k] = second_of_pair((VecBits<float>)right[k]);
    }
    for (int m = 0; m < 16; ++m) {
      const Vec<float> left_first = first_of_pair((VecBits<float>)left[m]);
      const Vec<float> left_second = second_of_pair((VecBits<float>)left[m]);
      Vec<float> first{}, second{};
      for (int k = 0; k < 16; ++k) {
        first = flushed(left_first[k] * right_first[k] + first);
        second = flushed(left_second[k] * right_second[k] + second);
      }
      to[m] = flushed(flushed(to[m]) + flushed(first + second));
    }
  }


  friend class Int8TileRegisters;
  Vec<float> tiles_[8][16];
};

class Int8TileRegisters : public TileRegisters {
 public:
  // Row m, column n of kTo: += sum over k of the fours (m, k) of kLeft times the fours (k, n) of kRight: unsigned bytes
  // times signed ones.
  template <int kTo, int kLeft, int kRight>
  void multiply() {
    multiply_tiles(tiles_[kTo], tiles_[kLeft], tiles_[kRight]);
  }

 private:
  static LSTMFAST_NOINLINE void multiply_tiles(Vec<float>* to, const Vec<float>* left, const Vec<float>* right) {
    for (int m = 0; m < 16; ++m)
      for (int k = 0; k < 16; ++k)
        for (int bits = 0; bits < 32; bits += 8) {
          const int a = ((VecBits<float>)left[m])[k] >> bits & 255;
          const VecBits<float> b = (VecBits<float>)right[k] << (24 - bits) >> 24;
          to[m] = (Vec<float>)((VecBits<float>)to[m] + a * b);
        }
  }
};

}  // namespace
}  // namespace lstmfast
