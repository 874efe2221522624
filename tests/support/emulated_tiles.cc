// Runs the compiled AMX kernels on CPUs without AMX: each tile instruction ends in SIGILL, whose handler decodes it and
// does what the manual says. Compares bf16x products, bit for bit, with the stand-in of tile_registers-inl.h, which is
// written after the same manual but shares nothing with this file, and int8 products and steps with the kernels of
// avx512_vnni.cc. Built and started by tests/kernels/test_amx.py.
// Prints what differs; the exit status is the number of problems that did.
#include <signal.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "core/inline.h"

namespace lstmfast {
namespace {
constexpr int kVectorBytes = 64;
}
}  // namespace lstmfast

#include "cpu/dot_kernels.h"
#include "cpu/kernels/tile_registers-inl.h"
// After the registers it uses.
#include "cpu/kernels/bf16x-inl.h"

extern "C" {
const lstmfast::Bf16xKernels* lstmfast_kernels_amx() noexcept;
const lstmfast::DotKernels* lstmfast_kernels_amx_int8() noexcept;
const lstmfast::DotKernelSet* lstmfast_kernels_avx512_vnni() noexcept;
}

// ---- the emulator

namespace {

struct Tile {
  unsigned char row[16][64];
};
Tile tiles[8];
int rows_of[8], bytes_of[8];
bool configured = false;
long instructions = 0;

[[noreturn]] void stop(const char* why) {
  std::fprintf(stderr, "emulator: %s\n", why);
  std::_Exit(100);
}

float bfloat16_at(const unsigned char* p) {
  std::uint16_t half;
  std::memcpy(&half, p, 2);
  const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return std::fpclassify(value) == FP_SUBNORMAL ? 0.0f : value;
}

float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

float float_at(const unsigned char* p) {
  float value;
  std::memcpy(&value, p, 4);
  return value;
}

// TDPBUSD: unsigned bytes times signed bytes, added without saturation.
void multiply_bytes(Tile& to, const Tile& left, const Tile& right, int rows, int depth_bytes, int column_bytes) {
  for (int m = 0; m < rows; ++m)
    for (int n = 0; n < column_bytes; n += 4) {
      std::uint32_t sum;
      std::memcpy(&sum, to.row[m] + n, 4);
      for (int k = 0; k < depth_bytes; ++k)
        sum += static_cast<std::uint32_t>(left.row[m][k] * static_cast<signed char>(right.row[k / 4][n + k % 4]));
      std::memcpy(to.row[m] + n, &sum, 4);
    }
}

// TDPBF16PS
void multiply(Tile& to, const Tile& left, const Tile& right, int rows, int depth_bytes, int column_bytes) {
  for (int m = 0; m < rows; ++m)
    for (int n = 0; n < column_bytes; n += 4) {
      float even = 0, odd = 0;
      for (int k = 0; k < depth_bytes; k += 4) {
        const unsigned char *a = left.row[m] + k, *b = right.row[k / 4] + n;
        even = flushed(std::fma(bfloat16_at(a), bfloat16_at(b), even));
        odd = flushed(std::fma(bfloat16_at(a + 2), bfloat16_at(b + 2), odd));
      }
      const float sum = flushed(flushed(float_at(to.row[m] + n)) + flushed(even + odd));
      std::memcpy(to.row[m] + n, &sum, 4);
    }
}

constexpr int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

struct Operand {
  char* address;
  long stride;
  int bytes;  // of ModRM, SIB and displacement
};

// The memory operand whose ModRM byte is at `code`, with the high bits of its two registers.
Operand memory_operand(const unsigned char* code, const greg_t* registers, bool base_high, bool index_high) {
  const int mod = code[0] >> 6, rm = code[0] & 7;
  Operand result{nullptr, 0, 1};
  long base = 0;
  if (rm == 4) {
    const int sib = code[1], index = (sib >> 3 & 7) + 8 * index_high, base_number = (sib & 7) + 8 * base_high;
    ++result.bytes;
    if ((sib & 7) == 5 && mod == 0) stop("no base register");
    base = registers[kRegisters[base_number]];
    if (index != 4) result.stride = registers[kRegisters[index]] << (sib >> 6);
  } else if (mod == 0 && rm == 5) {
    std::int32_t displacement;
    std::memcpy(&displacement, code + 1, 4);
    result.bytes += 4;
    // From the end of the instruction, which this operand ends.
    result.address = const_cast<char*>(reinterpret_cast<const char*>(code)) + result.bytes + displacement;
    return result;
  } else {
    base = registers[kRegisters[rm + 8 * base_high]];
  }
  std::int32_t displacement = 0;
  if (mod == 1) displacement = static_cast<signed char>(code[result.bytes++]);
  if (mod == 2) {
    std::memcpy(&displacement, code + result.bytes, 4);
    result.bytes += 4;
  }
  result.address = reinterpret_cast<char*>(base + displacement);
  return result;
}

void configure(const char* from) {
  const unsigned char* bytes = reinterpret_cast<const unsigned char*>(from);
  if (bytes[0] != 1 || bytes[1] != 0) stop("palette or start row");
  for (int i = 0; i < 8; ++i) {
    std::uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * i, 2);
    bytes_of[i] = row_bytes;
    rows_of[i] = bytes[48 + i];
    if (bytes_of[i] > 64 || rows_of[i] > 16) stop("tile too large");
  }
  std::memset(tiles, 0, sizeof tiles);
  configured = true;
}

void on_illegal_instruction(int, siginfo_t*, void* context) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const unsigned char* code = reinterpret_cast<const unsigned char*>(registers[REG_RIP]);
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84) != 0) stop("not a tile instruction");
  const bool index_high = !(code[1] & 0x40), base_high = !(code[1] & 0x20);
  const int prefix = code[2] & 3, third = ~code[2] >> 3 & 15, opcode = code[3], modrm = code[4];
  const int tile = modrm >> 3 & 7, rm = modrm & 7;
  const bool is_register = modrm >> 6 == 3;
  enum { kNone = 0, k66 = 1, kF3 = 2, kF2 = 3 };
  ++instructions;
  int length = 5;
  if (opcode == 0x49 && prefix == kNone && !is_register) {
    const Operand from = memory_operand(code + 4, registers, base_high, index_high);
    configure(from.address);
    length = 4 + from.bytes;
  } else if (opcode == 0x49 && prefix == kNone && modrm == 0xc0) {
    configured = false;
  } else if (!configured) {
    stop("not configured");
  } else if (opcode == 0x49 && prefix == kF2 && is_register) {
    std::memset(&tiles[tile], 0, sizeof(Tile));
  } else if (opcode == 0x4b && (prefix == kF2 || prefix == kF3) && rm == 4) {
    const Operand memory = memory_operand(code + 4, registers, base_high, index_high);
    for (int r = 0; r < rows_of[tile]; ++r) {
      char* row = memory.address + r * memory.stride;
      if (prefix == kF2)
        std::memcpy(tiles[tile].row[r], row, static_cast<std::size_t>(bytes_of[tile]));
      else
        std::memcpy(row, tiles[tile].row[r], static_cast<std::size_t>(bytes_of[tile]));
    }
    length = 4 + memory.bytes;
  } else if (is_register && ((opcode == 0x5c && prefix == kF3) || (opcode == 0x5e && prefix == k66))) {
    if (bytes_of[rm] / 4 != rows_of[third]) stop("shapes of factors");
    (opcode == 0x5e ? multiply_bytes : multiply)(tiles[tile], tiles[rm], tiles[third], rows_of[tile], bytes_of[rm], bytes_of[tile]);
  } else {
    stop("unknown tile instruction");
  }
  registers[REG_RIP] += length;
}

// ---- the problems

using namespace lstmfast;

std::size_t packed_size(Index lines, Index depth, int parts) {
  return static_cast<std::size_t>(ceil_div(lines, 16) * ceil_div(depth, 32) * parts * kBf16xTile);
}

template <typename T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// All packing and both forms of output with one set of kernels; everything they wrote.
struct Results {
  std::vector<Bfloat16> packed[5];
  std::vector<float> panels, rows, gradient;
  bool operator==(const Results& other) const {
    for (int i = 0; i < 5; ++i)
      if (!same(packed[i], other.packed[i])) return false;
    return same(panels, other.panels) && same(rows, other.rows) && same(gradient, other.gradient);
  }
};

Results run(const Bf16xKernels& k, Index rows, Index depth, Index hidden, int parts, const std::vector<float>& a,
            const std::vector<float>& kernel) {
  const Index blocks = ceil_div(hidden, 16), gates = blocks * 64, columns = 4 * hidden;
  Results r;
  std::vector<const float*> a_rows;
  for (Index i = 0; i < rows; ++i) a_rows.push_back(a.data() + i * depth);
  r.packed[0].resize(packed_size(rows, depth, parts));
  r.packed[1].resize(packed_size(gates, depth, parts));
  r.packed[2].resize(packed_size(depth, gates, parts));
  r.packed[3].resize(packed_size(depth, rows, parts));
  r.packed[4].resize(packed_size(gates, rows, parts));
  r.panels.assign(static_cast<std::size_t>(rows * gates), 0.5f);
  r.rows.assign(static_cast<std::size_t>(rows * depth), -1.0f);
  r.gradient.assign(static_cast<std::size_t>(depth * columns), -1.0f);

  k.pack_rows({a_rows.data(), 1, depth, 0}, rows, parts, r.packed[0].data());
  k.pack_gates(kernel.data(), columns, depth, hidden, parts, r.packed[1].data());
  Bf16xToGatesArgs forward{};
  forward.factors = {parts, rows, depth, r.packed[0].data(), r.packed[1].data()};
  forward.block_end = blocks;
  forward.panels = r.panels.data();
  forward.block_stride = rows * 64;
  k.to_gates(forward);

  std::vector<const float*> panel_rows;
  std::vector<float*> out_rows;
  for (Index i = 0; i < rows; ++i) panel_rows.push_back(r.panels.data() + i * 64);
  for (Index i = 0; i < rows; ++i) out_rows.push_back(r.rows.data() + i * depth);
  std::vector<Bfloat16> panels_left(packed_size(rows, gates, parts));
  k.pack_rows({panel_rows.data(), blocks, 64, rows * 64}, rows, parts, panels_left.data());
  k.pack_gates_transposed(kernel.data(), columns, depth, hidden, parts, r.packed[2].data());
  Bf16xToRowsArgs backward{};
  backward.factors = {parts, rows, gates, panels_left.data(), r.packed[2].data()};
  backward.tile_end = ceil_div(depth, 16);
  backward.rows = out_rows.data();
  backward.columns = depth;
  k.to_rows(backward);

  k.pack_rows_transposed(a_rows.data(), rows, 0, depth, parts, r.packed[3].data());
  k.pack_gate_panels(r.panels.data(), rows * 64, rows, blocks, parts, r.packed[4].data());
  Bf16xToRowsArgs weights{};
  weights.factors = {parts, depth, rows, r.packed[3].data(), r.packed[4].data()};
  weights.tile_end = blocks * 4;
  weights.matrix = {r.gradient.data(), columns};
  weights.columns = columns;
  weights.gate_hidden_size = hidden;
  for (const bool add : {false, true}) {
    weights.add = add;
    k.to_rows(weights);
  }
  return r;
}

struct Int8Results {
  std::vector<float> z, h, c;  // of a gate product; of steps of the plain cell and of a variant
  bool operator==(const Int8Results& other) const { return same(z, other.z) && same(h, other.h) && same(c, other.c); }
};

// Rows [begin, rows) of the left factor. `other` is in the memory that kernels may read but not use.
Int8Results run_int8(const DotKernels& k, Index begin, Index rows, Index depth, Index hidden, std::vector<float> a,
                     std::vector<float> panels, int other) {
  const Index blocks = ceil_div(hidden, 16), words = ceil_div(depth, 4), stride = (ceil_div(words, 16) + 1) * 16;
  const auto filled = [](auto value, Index count) {
    return std::vector<decltype(value)>(static_cast<std::size_t>(count), value);
  };
  std::vector<int> right = filled(0, blocks * words * 64), starts = filled(0, blocks * ceil_div(words, kDotPiece) * 64);
  std::vector<float> column_scales = filled(0.0f, blocks * 64), row_scales = filled(0.0f, rows);
  k.pack_gates(panels.data(), depth, blocks, {right.data(), starts.data(), column_scales.data()});
  std::vector<int> left = filled(other, (rows + k.rows_read_at_once - 1) * stride);
  std::vector<const float*> a_rows;
  for (Index i = 0; i < rows; ++i) a_rows.push_back(a.data() + i * depth);
  k.pack_rows(a_rows.data(), rows, depth, left.data(), stride, row_scales.data());
  const DotRows left_rows{left.data() + begin * stride, stride, row_scales.data() + begin};
  const DotPanels weights{right.data(), starts.data(), column_scales.data()};

  Int8Results r{filled(0.0f, blocks * rows * 64), filled(0.0f, 2 * rows * hidden), filled(0.5f, 2 * rows * hidden)};
  DotGateProductArgs gates{{}, left_rows, weights};
  gates.product.row_begin = begin;
  gates.product.row_end = rows;
  gates.product.block_end = blocks;
  gates.product.init = panels.data();
  gates.product.input_size = depth;
  gates.product.z = r.z.data();
  gates.product.z_block_stride = rows * 64;
  k.gate_product(gates);

  const CellVariant<float> variant{nullptr, 0.75f, true};
  for (const bool plain : {true, false}) {
    std::vector<const float*> init, c_prev;
    std::vector<float*> h, c;
    for (Index i = 0; i < rows; ++i) {
      const Index at = (plain * rows + i) * hidden;
      init.push_back(r.z.data() + i * 64);
      h.push_back(r.h.data() + at);
      c.push_back(r.c.data() + at);
      c_prev.push_back(c.back());
    }
    DotStepArgs step{{}, left_rows, left_rows, weights, weights};
    step.step.row_begin = begin;
    step.step.row_end = rows;
    step.step.block_end = blocks;
    step.step.hidden_size = hidden;
    step.step.init = init.data();
    step.step.init_block_stride = rows * 64;
    step.step.input_size = plain ? depth : 0;
    step.step.recurrent_size = depth;
    step.step.c_prev = c_prev.data();
    step.step.h = h.data();
    step.step.c = c.data();
    step.step.descending = !plain;
    step.step.variant = &variant;
    (plain ? k.step_forward : k.variant_step_forward)(step);
  }
  return r;
}

int different_int8(std::mt19937& generator) {
  std::normal_distribution<float> normal;
  int different = 0;
  const Index shapes[][4] = {{0, 5, 300, 17},  {0, 6, 1, 1},     {0, 16, 64, 16},  {0, 17, 65, 16},   {0, 22, 700, 5},
                             {2, 32, 512, 33}, {1, 33, 511, 16}, {0, 54, 130, 40}, {5, 200, 1100, 3}, {0, 40, 60, 20}};
  for (const auto& [begin, rows, depth, hidden] : shapes) {
    std::vector<float> a(static_cast<std::size_t>(rows * depth));
    std::vector<float> panels(static_cast<std::size_t>(ceil_div(hidden, 16) * depth * 64 + 64));
    for (float& x : a) x = normal(generator);
    for (float& x : panels) x = normal(generator);
    const long before = instructions;
    if (!(run_int8(*lstmfast_kernels_amx_int8(), begin, rows, depth, hidden, a, panels, 0x7f7f7f7f) ==
          run_int8(lstmfast_kernels_avx512_vnni()->int8, begin, rows, depth, hidden, a, panels, 0))) {
      ++different;
      std::printf("int8: rows %td to %td, depth %td, hidden %td differ\n", begin, rows, depth, hidden);
    }
    if ((instructions > before) != (rows - begin >= 6)) stop("six rows and more are for tiles");
  }
  return different;
}

}  // namespace

int main() {
  struct sigaction action {};
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);

  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  int different = 0;
  const Index shapes[][3] = {{1, 1, 1}, {16, 32, 16}, {17, 33, 5}, {33, 70, 40}, {40, 20, 33}, {64, 600, 16}};
  for (const auto& [rows, depth, hidden] : shapes)
    for (int parts = 1; parts <= 3; ++parts) {
      std::vector<float> a(static_cast<std::size_t>(rows * depth)), kernel(static_cast<std::size_t>(depth * 4 * hidden));
      for (float& x : a) x = normal(generator);
      for (float& x : kernel) x = normal(generator);
      if (run(*lstmfast_kernels_amx(), rows, depth, hidden, parts, a, kernel) ==
          run(kBf16xKernels, rows, depth, hidden, parts, a, kernel))
        continue;
      ++different;
      std::printf("rows %td, depth %td, hidden %td, parts %d differ\n", rows, depth, hidden, parts);
    }
  different += different_int8(generator);
  if (configured) stop("tiles not released");
  std::printf("%ld tile instructions emulated\n", instructions);
  return different;
}
