// The measured limits of one core, for benches: arithmetic and reads, with the kernels of the ISA in use.
#pragma once

#include "core/inline.h"

namespace lstmfast {

// Floating-point operations per second of multiply-adds on registers; T is float or double. Takes about 30 ms.
template <typename T>
double measured_flops();

// Bytes per second read, again and again, from an array of this size (at least 4096 bytes). Takes about 30 ms, or three
// passes over the array if those take longer. Throws std::bad_alloc if there is not enough memory.
double measured_read_bandwidth(Index bytes);

}  // namespace lstmfast
