// Hands out the kernels of the ISA in use: the widest that the machine has, or the one named by LSTMFAST_ISA.
#pragma once

#include <type_traits>

#include "cpu/isa.h"
#include "cpu/kernel_table.h"

namespace lstmfast {

// Throws std::invalid_argument, as parse_isa does, if LSTMFAST_ISA names one that cannot be used.
const Isa& current_isa();
void set_isa(const Isa& isa);  // for tests: takes effect with the next call, not for sequences that already ran forward

const Kernels& current_kernels();

template <typename T>
const KernelTable<T>& kernels() {
  if constexpr (std::is_same_v<T, float>)
    return current_kernels().float32;
  else
    return current_kernels().float64;
}

}  // namespace lstmfast
