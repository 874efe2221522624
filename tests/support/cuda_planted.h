// The mistakes that the driver can plant in the kernels of csrc/cuda, one at a time, by name. test_cuda_kernels.py says
// which run must catch which; a mistake that none catches any more means that the emulation has rotted.
#pragma once

namespace lstmfast::cuda {

#define LSTMFAST_PLANTED_BUGS_BY_NAME(X)                                                                              \
  X(kStepBarrier) X(kStepDepthBound) X(kSequenceBarrier) X(kOneBuffer) X(kChunkBound) X(kRowBound) X(kUnitBound)      \
  X(kLengthBound) X(kRawInitialState) X(kUnfilledSlots) X(kHalfChecked) X(kNotAwaited) X(kUnpublished) X(kClusterBegin) \
  X(kClusterEndStep) X(kLastRank) X(kSharedBytes) X(kNotCooperative)

#define LSTMFAST_ENUMERATOR(name) name,
enum class PlantedBug { kNone, LSTMFAST_PLANTED_BUGS_BY_NAME(LSTMFAST_ENUMERATOR) };
#undef LSTMFAST_ENUMERATOR

extern PlantedBug planted_bug;

}  // namespace lstmfast::cuda
