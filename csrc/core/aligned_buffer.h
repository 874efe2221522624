// Memory that starts on a cache line: the workspaces keep one of these per array, so that a second call of the same
// size allocates nothing. It grows at once, and shrinks after being far too large for some time, so that one large call
// does not keep its memory forever. The contents are undefined after `resize`.
#pragma once

#include <limits>
#include <memory>
#include <new>

#include "core/inline.h"
#include "core/system.h"

namespace lstmfast {

// The largest size requested in the last 10 uses, checked every 5, and whether the buffer is far larger. If calls of
// different sizes alternate, the memory of the largest is kept.
class RecentPeak {
 public:
  static constexpr unsigned kTimes = 5;
  static constexpr std::size_t kFarTooLarge = 4, kWorthBytes = std::size_t{1} << 20;

  bool is_outgrown_by(std::size_t wanted, std::size_t capacity, std::size_t element_size) {
    if (wanted > peak_) peak_ = wanted;
    if (++times_ < kTimes) return false;
    const std::size_t recent = peak_ > peak_before_ ? peak_ : peak_before_;
    peak_before_ = peak_;
    peak_ = 0;
    times_ = 0;
    return capacity / kFarTooLarge > recent && capacity * element_size > kWorthBytes;
  }

 private:
  std::size_t peak_ = 0, peak_before_ = 0;
  unsigned times_ = 0;
};

template <typename T>
class AlignedBuffer {
 public:
  T* resize(Index count) {
    const auto wanted = static_cast<std::size_t>(count);
    if (recent_.is_outgrown_by(wanted, capacity_, sizeof(T))) release();
    if (wanted > capacity_ || !data_) {
      constexpr std::size_t kMost = std::numeric_limits<std::ptrdiff_t>::max();
      if (wanted > kMost / sizeof(T)) throw std::bad_alloc();
      data_.reset();
      capacity_ = 0;
      data_.reset(static_cast<T*>(allocate_memory(wanted * sizeof(T))));
      if (!data_) throw std::bad_alloc();
      capacity_ = wanted;
    }
    return data_.get();
  }

  // Returns the memory to the system, not just to malloc, which may keep it.
  void release() {
    discard_memory(data_.get(), size_bytes());
    data_.reset();
    capacity_ = 0;
  }

  T* data() const { return data_.get(); }
  std::size_t size_bytes() const { return capacity_ * sizeof(T); }

 private:
  struct Free {
    void operator()(T* p) const { free_memory(p); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t capacity_ = 0;
  RecentPeak recent_;
};

}  // namespace lstmfast
