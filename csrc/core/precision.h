// How exact matrix products must be. `runtime.py` says in words what each allows.
#pragma once

namespace lstmfast {

enum class MatmulPrecision { kHighest, kHigh, kMedium };

}  // namespace lstmfast
