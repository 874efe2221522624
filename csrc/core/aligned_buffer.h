// Memory that starts on a cache line and only ever grows: the workspaces keep one of these per array, so that a second
// call of the same size allocates nothing. The contents are undefined after `resize`.
#pragma once

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

  T* resize(Index count) {
    const auto wanted = static_cast<std::size_t>(count);
    if (wanted > capacity_ || !data_) {
      if (wanted > std::numeric_limits<std::size_t>::max() / sizeof(T) - kAlignment) throw std::bad_alloc();
      const std::size_t bytes = (wanted * sizeof(T) + kAlignment) / kAlignment * kAlignment;
      data_.reset();
      capacity_ = 0;
      data_.reset(static_cast<T*>(std::aligned_alloc(kAlignment, bytes)));
      if (!data_) throw std::bad_alloc();
      capacity_ = wanted;
    }
    return data_.get();
  }

  T* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t capacity_ = 0;
};

}  // namespace lstmfast
