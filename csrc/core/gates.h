// The order of the four gates: the only place in C++ that defines it. `gates.py` does so in Python.
// In a kernel [input_size + hidden_size, 4*hidden_size], gate g owns the columns [g*hidden_size, (g+1)*hidden_size).
#pragma once

namespace lstmfast {

enum Gate : int { kInputGate = 0, kForgetGate = 1, kCellGate = 2, kOutputGate = 3 };

constexpr int kGateCount = 4;

// The gates that can have peepholes: the rows of a [3, hidden_size] matrix.
enum Peephole : int { kInputPeephole = 0, kForgetPeephole = 1, kOutputPeephole = 2 };

constexpr int kPeepholeCount = 3;

}  // namespace lstmfast
