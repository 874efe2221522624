// Memory that starts on a cache line: the workspaces keep one of these per array, so that a second call of the same
// size allocates nothing. It grows at once, and shrinks after being far too large for some time, so that one large call
// does not keep its memory forever. The contents are undefined after `resize`.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

#include "core/inline.h"

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
  static constexpr std::size_t kAlignment = 64;
  static constexpr std::size_t kHugePage = std::size_t{2} << 20;

  T* resize(Index count) {
    const auto wanted = static_cast<std::size_t>(count);
    if (recent_.is_outgrown_by(wanted, capacity_, sizeof(T))) release();
    if (wanted > capacity_ || !data_) {
      if (wanted > std::numeric_limits<std::size_t>::max() / sizeof(T) - kHugePage) throw std::bad_alloc();
      data_.reset();
      capacity_ = 0;
      data_.reset(static_cast<T*>(allocate(wanted * sizeof(T))));
      if (!data_) throw std::bad_alloc();
      capacity_ = wanted;
    }
    return data_.get();
  }

  // Returns the memory to the system, not just to malloc, which may keep it.
  void release() {
#if defined(__linux__)
    if (size_bytes() >= kHugePage / 2) {  // it begins on a page, with malloc's own data before and after it
      constexpr std::size_t kPage = 65536;  // the largest of any system
      madvise(data_.get(), size_bytes() / kPage * kPage, MADV_DONTNEED);
    }
#endif
    data_.reset();
    capacity_ = 0;
  }

  T* data() const { return data_.get(); }
  std::size_t size_bytes() const { return capacity_ * sizeof(T); }

 private:
  // Large buffers ask for huge pages: hardware prefetches a stream of weights only to the end of a page. The rest at
  // the end has small pages.
  static void* allocate(std::size_t bytes) {
    const std::size_t alignment = bytes < kHugePage / 2 ? kAlignment : kHugePage;
    void* data = nullptr;
    if (posix_memalign(&data, alignment, bytes + kAlignment) != 0) return nullptr;
#if defined(__linux__)
    if (alignment == kHugePage) madvise(data, bytes, MADV_HUGEPAGE);  // refused: small pages
#endif
    return data;
  }

  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t capacity_ = 0;
  RecentPeak recent_;
};

}  // namespace lstmfast
