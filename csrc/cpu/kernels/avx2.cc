// AVX2 and FMA. Intel Haswell (2013), AMD Zen (2017) and later.
#include "cpu/kernels/avx2-inl.h"

#include "cpu/kernels/kernels-inl.h"

extern "C" const lstmfast::Kernels* lstmfast_kernels_avx2() noexcept { return &lstmfast::kKernels; }
