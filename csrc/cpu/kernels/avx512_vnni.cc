// AVX-512 with VNNI: Intel Cascade Lake (2019), AMD Zen 4 (2022) and later.
#include "cpu/kernels/avx512_vnni-inl.h"
#include "cpu/kernels/dot-inl.h"

extern "C" const lstmfast::DotKernelSet* lstmfast_kernels_avx512_vnni() noexcept { return &lstmfast::kDotKernels; }
