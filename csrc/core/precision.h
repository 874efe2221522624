// How exact matrix products and kept weights must be. `runtime.py` explains what each precision allows.
#pragma once

namespace lstmfast {

enum class MatmulPrecision { kHighest, kHigh, kMedium };

// In what form weights are kept that nobody changes any more.
enum class WeightFormat { kFloat32, kBFloat16, kInt8 };

}  // namespace lstmfast
