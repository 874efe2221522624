// Views of arrays that the caller owns. Strides count elements; the last axis always has stride 1.
// A view has no shape: the caller keeps it.
#pragma once

#include "core/inline.h"

namespace lstmfast {

// [rows, columns]
template <typename T>
struct MatrixView {
  T* data = nullptr;
  Index stride = 0;

  LSTMFAST_INLINE T* row(Index r) const { return data + r * stride; }
  LSTMFAST_INLINE explicit operator bool() const { return data != nullptr; }
};

// [time_steps, batch, columns]
template <typename T>
struct SequenceView {
  T* data = nullptr;
  Index time_stride = 0;
  Index batch_stride = 0;

  LSTMFAST_INLINE T* row(Index t, Index b) const { return data + t * time_stride + b * batch_stride; }
  LSTMFAST_INLINE explicit operator bool() const { return data != nullptr; }
};

}  // namespace lstmfast
