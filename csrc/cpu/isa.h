// The instruction sets with kernels: which of them this build has, and which this machine can run.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernel_table.h"

namespace lstmfast {

struct Isa {
  const char* name;
  bool (*machine_has)();        // the CPU has it, and the operating system saves its registers
  const Kernels* (*kernels)();  // null: not in this build
};

// In order of preference, the last one first: the test-only generic512, then wider and wider vectors.
std::vector<const Isa*> built_isas();
// Those that this machine can run, but that are not in this build.
std::vector<const Isa*> unbuilt_isas();
// The ISA of that name. Throws std::invalid_argument: an unknown name lists the known ones; "not in this build" and
// "not on this CPU" are different errors.
const Isa& parse_isa(const std::string& name);

}  // namespace lstmfast
