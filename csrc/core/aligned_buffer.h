// Memory that starts on a cache line and only ever grows: the workspaces keep one of these per array, so that a second
// call of the same size allocates nothing. The contents are undefined after `resize`.
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

template <typename T>
class AlignedBuffer {
 public:
  static constexpr std::size_t kAlignment = 64;
  static constexpr std::size_t kHugePage = std::size_t{2} << 20;

  T* resize(Index count) {
    const auto wanted = static_cast<std::size_t>(count);
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

  T* data() const { return data_.get(); }

 private:
  // Large buffers ask for huge pages: hardware follows a stream of weights to the end of a page, and no further. What is
  // left over at the end has small pages.
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
};

}  // namespace lstmfast
