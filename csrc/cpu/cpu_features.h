// What the CPU can execute and the operating system lets a process use. Refuses to know which kernels need what
// (`isa.cc`).
#pragma once

#include <map>
#include <string>

namespace lstmfast {

// Named as in Linux' /proc/cpuinfo. On other architectures than x86-64 all are false.
struct CpuFeatures {
  bool fma, avx2, avx_vnni;
  bool avx512f, avx512bw, avx512dq, avx512vl, avx512_vnni, avx512_bf16;
  bool amx_tile, amx_bf16, amx_int8;  // a process must also ask Linux for permission, see `isa.cc`
};

// Found by CPUID and XGETBV at the first call.
const CpuFeatures& cpu_features();

// For tests: the same by name, and as far as the compiler's `__builtin_cpu_supports` knows the names.
std::map<std::string, bool> named_cpu_features();
std::map<std::string, bool> cpu_features_by_compiler();

}  // namespace lstmfast
