// The ISA in use: chosen once, at first use; only tests change it.
#include "cpu/dispatch.h"

#include <atomic>
#include <cstdlib>

namespace lstmfast {
namespace {

const Isa& first_choice() {
  const char* forced = std::getenv("LSTMFAST_ISA");
  if (forced != nullptr && *forced != '\0') return parse_isa(forced);
  const Isa* preferred = nullptr;
  for (const Isa* isa : built_isas())
    if (isa->machine_has()) preferred = isa;
  return *preferred;  // never null: every build has generic, and every machine runs it
}

std::atomic<const Isa*>& choice() {
  static std::atomic<const Isa*> isa{&first_choice()};
  return isa;
}

}  // namespace

const Isa& current_isa() { return *choice().load(std::memory_order_relaxed); }

void set_isa(const Isa& isa) { choice().store(&isa, std::memory_order_relaxed); }

const Kernels& current_kernels() { return *current_isa().kernels(); }

}  // namespace lstmfast
