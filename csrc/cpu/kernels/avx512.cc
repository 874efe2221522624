// AVX-512 (F, BW, DQ, VL). Intel Skylake-X (2017), AMD Zen 4 (2022) and later.
#include "cpu/kernels/avx512-inl.h"

#include "cpu/kernels/kernels-inl.h"

extern "C" const lstmfast::Kernels* lstmfast_kernels_avx512() noexcept { return &lstmfast::kKernels; }
