// Which instruction sets this build has kernels for, and which of them this CPU can run. The only code that asks the CPU.
#pragma once

#include <string>
#include <vector>

namespace lstmfast {

enum class Isa { kGeneric, kGeneric512, kNeon, kAvx2, kAvx512, kAmx };

const char* isa_name(Isa isa);
const std::vector<Isa>& built_isas();  // narrowest vectors first; the test-only generic512 before real ones
bool cpu_has(Isa isa);
// The ISA of that name. Throws std::invalid_argument: an unknown name lists the known ones; "not in this build" and "not
// on this CPU" are different errors.
Isa parse_isa(const std::string& name);

}  // namespace lstmfast
