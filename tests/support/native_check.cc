// The core without Python: kernels of every ISA that this machine has against plain loops in double, the pool, memory
// and random bytes. For systems without a Python to test with. Prints a line for each check; returns how many failed.
// Refuses to be the tests of the kernels: those are in tests/kernels, with all shapes, variants and tolerances.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/gates.h"
#include "core/system.h"
#include "cpu/dispatch.h"
#include "cpu/panel_sizes.h"
#include "cpu/parallel.h"
#include "lstm/sequence.h"

namespace lstmfast {
namespace {

int failures = 0;

void report(const std::string& claim, bool holds) {
  std::printf("%s %s\n", holds ? "passed" : "FAILED", claim.c_str());
  failures += !holds;
}

template <typename T>
using Values = std::vector<T>;

template <typename T>
Values<T> uniform(Index count, double largest, unsigned seed) {
  std::mt19937 bits(seed);  // its numbers are the same everywhere, those of a distribution are not
  Values<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = static_cast<T>((bits() / 4294967296.0 * 2 - 1) * largest);
  return values;
}

// The norm of the difference as a share of the norm of what was expected.
template <typename T>
double difference(const Values<T>& actual, const Values<double>& expected) {
  double of_difference = 0, of_expected = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double off = static_cast<double>(actual[i]) - expected[i];
    of_difference += off * off;
    of_expected += expected[i] * expected[i];
  }
  return std::sqrt(of_difference / of_expected);
}

struct Shape {
  Index steps, batch, input, hidden;

  Index columns() const { return kGateCount * hidden; }
  Index depth() const { return input + hidden; }
};

// What a layer is given and what it gives, with the gradient 1 of every h and 0 of the last state.
template <typename T>
struct Layer {
  Values<T> x, kernel, bias, h0, c0;
  Values<T> h, h_n, c_n, d_x, d_kernel, d_bias, d_h0, d_c0;

  explicit Layer(const Shape& s)
      : x(uniform<T>(s.steps * s.batch * s.input, 1, 1)),
        kernel(uniform<T>(s.depth() * s.columns(), 0.3, 2)),
        bias(uniform<T>(s.columns(), 0.3, 3)),
        h0(uniform<T>(s.batch * s.hidden, 1, 4)),
        c0(uniform<T>(s.batch * s.hidden, 1, 5)),
        h(static_cast<std::size_t>(s.steps * s.batch * s.hidden)),
        h_n(h0.size()),
        c_n(c0.size()),
        d_x(x.size()),
        d_kernel(kernel.size()),
        d_bias(bias.size()),
        d_h0(h0.size()),
        d_c0(c0.size()) {}

  std::vector<Values<T>> forward_results() const { return {h, h_n, c_n}; }
  std::vector<Values<T>> results() const { return {h, h_n, c_n, d_x, d_kernel, d_bias, d_h0, d_c0}; }
};

constexpr double kForgetBias = 0.5;

double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }

// Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000, one number at a time.
void run_plainly(const Shape& s, Layer<double>& layer) {
  const Index H = s.hidden;
  Values<double> gates(static_cast<std::size_t>(s.steps * s.batch * s.columns())), cells(layer.h.size());
  const auto kernel = [&](Index row, Index gate, Index unit) -> double& {
    return layer.kernel[static_cast<std::size_t>(row * s.columns() + gate * H + unit)];
  };
  const auto state = [&](Values<double>& values, Values<double>& first, Index t, Index b) {
    return t < 0 ? &first[static_cast<std::size_t>(b * H)] : &values[static_cast<std::size_t>((t * s.batch + b) * H)];
  };
  const auto gates_of = [&](Index t, Index b) { return &gates[static_cast<std::size_t>((t * s.batch + b) * 4 * H)]; };
  for (Index t = 0; t < s.steps; ++t)
    for (Index b = 0; b < s.batch; ++b) {
      const double* x = &layer.x[static_cast<std::size_t>((t * s.batch + b) * s.input)];
      const double *h = state(layer.h, layer.h0, t - 1, b), *c = state(cells, layer.c0, t - 1, b);
      double* a = gates_of(t, b);
      for (Index gate = 0; gate < kGateCount; ++gate)
        for (Index u = 0; u < H; ++u) {
          double z = layer.bias[static_cast<std::size_t>(gate * H + u)] + (gate == kForgetGate ? kForgetBias : 0);
          for (Index k = 0; k < s.input; ++k) z += x[k] * kernel(k, gate, u);
          for (Index k = 0; k < H; ++k) z += h[k] * kernel(s.input + k, gate, u);
          a[gate * H + u] = gate == kCellGate ? std::tanh(z) : sigmoid(z);
        }
      for (Index u = 0; u < H; ++u) {
        double& cell = state(cells, layer.c0, t, b)[u];
        cell = a[kForgetGate * H + u] * c[u] + a[kInputGate * H + u] * a[kCellGate * H + u];
        state(layer.h, layer.h0, t, b)[u] = a[kOutputGate * H + u] * std::tanh(cell);
      }
    }
  for (Index b = 0; b < s.batch; ++b)
    for (Index u = 0; u < H; ++u) {
      layer.h_n[static_cast<std::size_t>(b * H + u)] = state(layer.h, layer.h0, s.steps - 1, b)[u];
      layer.c_n[static_cast<std::size_t>(b * H + u)] = state(cells, layer.c0, s.steps - 1, b)[u];
    }

  for (Index t = s.steps - 1; t >= 0; --t)
    for (Index b = 0; b < s.batch; ++b) {
      const Index row = t * s.batch + b;
      const double* x = &layer.x[static_cast<std::size_t>(row * s.input)];
      const double *h = state(layer.h, layer.h0, t - 1, b), *c_prev = state(cells, layer.c0, t - 1, b);
      const double *a = gates_of(t, b), *c = state(cells, layer.c0, t, b);
      double *d_h = &layer.d_h0[static_cast<std::size_t>(b * H)], *d_c = &layer.d_c0[static_cast<std::size_t>(b * H)];
      Values<double> d_z(static_cast<std::size_t>(s.columns()));
      for (Index u = 0; u < H; ++u) {
        const double i = a[u], f = a[kForgetGate * H + u], g = a[kCellGate * H + u], o = a[kOutputGate * H + u];
        const double tanh_c = std::tanh(c[u]), d_h_here = d_h[u] + 1;
        const double d_cell = d_c[u] + d_h_here * o * (1 - tanh_c * tanh_c);
        double* d = d_z.data() + u;
        d[kInputGate * H] = d_cell * g * i * (1 - i);
        d[kForgetGate * H] = d_cell * c_prev[u] * f * (1 - f);
        d[kCellGate * H] = d_cell * i * (1 - g * g);
        d[kOutputGate * H] = d_h_here * tanh_c * o * (1 - o);
        d_c[u] = d_cell * f;
      }
      for (Index k = 0; k < s.depth(); ++k) {
        double sum = 0;
        for (Index n = 0; n < s.columns(); ++n) {
          sum += d_z[static_cast<std::size_t>(n)] * kernel(k, 0, n);
          layer.d_kernel[static_cast<std::size_t>(k * s.columns() + n)] +=
              (k < s.input ? x[k] : h[k - s.input]) * d_z[static_cast<std::size_t>(n)];
        }
        (k < s.input ? layer.d_x[static_cast<std::size_t>(row * s.input + k)] : d_h[k - s.input]) = sum;
      }
      for (std::size_t n = 0; n < d_z.size(); ++n) layer.d_bias[n] += d_z[n];
    }
}

template <typename T>
void run(const Shape& s, Layer<T>& layer, MatmulPrecision precision, WeightFormat format) {
  Sequence<T> sequence(false, {static_cast<T>(kForgetBias), {nullptr, std::numeric_limits<T>::infinity(), false}});
  SequenceWeights<T> weights{};
  weights.input_size = s.input;
  weights.hidden_size = weights.output_size = s.hidden;
  weights.kernel = {layer.kernel.data(), s.columns()};
  weights.bias = layer.bias.data();
  weights.format = format;
  sequence.load(weights);
  SequenceForwardArgs<T> forward{};
  forward.time_steps = s.steps;
  forward.batch = s.batch;
  forward.x = {layer.x.data(), s.batch * s.input, s.input};
  forward.h0 = {layer.h0.data(), s.hidden};
  forward.c0 = {layer.c0.data(), s.hidden};
  forward.h = {layer.h.data(), s.batch * s.hidden, s.hidden};
  forward.h_n = {layer.h_n.data(), s.hidden};
  forward.c_n = {layer.c_n.data(), s.hidden};
  forward.keep_for_backward = format == WeightFormat::kFloat32;
  forward.precision = precision;
  sequence.forward(forward);
  if (!forward.keep_for_backward) return;
  const Values<T> ones(layer.h.size(), T(1));
  SequenceBackwardArgs<T> backward{};
  backward.d_h = {ones.data(), s.batch * s.hidden, s.hidden};
  backward.d_x = {layer.d_x.data(), s.batch * s.input, s.input};
  backward.d_kernel = {layer.d_kernel.data(), s.columns()};
  backward.d_bias = layer.d_bias.data();
  backward.d_h0 = {layer.d_h0.data(), s.hidden};
  backward.d_c0 = {layer.d_c0.data(), s.hidden};
  sequence.backward(backward);
}

constexpr Shape kShapes[] = {{3, 5, 7, 19}, {2, 32, 33, 70}};

// tolerance: the largest difference of an array; tests/support/tolerances.py has the derivations.
template <typename T>
void check_layer(const std::string& name, double tolerance, MatmulPrecision precision = MatmulPrecision::kHighest,
                 WeightFormat format = WeightFormat::kFloat32) {
  for (const Shape& shape : kShapes) {
    Layer<T> layer(shape);
    Layer<double> expected(shape);
    for (auto [to, from] : {std::pair{&expected.x, &layer.x},
                            {&expected.kernel, &layer.kernel},
                            {&expected.bias, &layer.bias},
                            {&expected.h0, &layer.h0},
                            {&expected.c0, &layer.c0}})
      to->assign(from->begin(), from->end());
    run_plainly(shape, expected);
    run(shape, layer, precision, format);
    const bool trains = format == WeightFormat::kFloat32;
    const auto actual = trains ? layer.results() : layer.forward_results();
    const auto wanted = trains ? expected.results() : expected.forward_results();
    double worst = 0;
    for (std::size_t i = 0; i < actual.size(); ++i) worst = std::fmax(worst, difference(actual[i], wanted[i]));
    report(name + ", hidden_size " + std::to_string(shape.hidden) + ": off by " + std::to_string(worst / tolerance) +
               " of the tolerance",
           worst <= tolerance);
  }
}

// z + x·weights of rounded factors, without a layer: it would not choose them where they are slower than float32.
void check_dot_products(const std::string& name, const DotKernels& dots, double tolerance) {
  constexpr Index kRows = 9, kDepth = 301, kHidden = 21, kColumns = kGateCount * kHidden;
  const KernelTable<float>& k = kernels<float>();
  const PanelSizes<float> sizes(k);
  const Index blocks = sizes.gate_blocks(kHidden), width = sizes.gate_width();
  const Index words = ceil_div(kDepth, dots.elements_per_word), pieces = ceil_div(words, kDotPiece);
  const Values<float> x = uniform<float>(kRows * kDepth, 1, 6), kernel = uniform<float>(kDepth * kColumns, 1, 7);
  AlignedBuffer<float> panels, scales, start, z;
  AlignedBuffer<int> packed, starts;
  k.pack_gate_rows(kernel.data(), kColumns, nullptr, kDepth, kHidden, nullptr, 0,
                   panels.resize(blocks * kDepth * width), kDepth * width);
  const DotPanelsOut right{packed.resize(blocks * words * width), starts.resize(blocks * pieces * width),
                           scales.resize(blocks * width)};
  Values<const float*> rows;
  Values<float*> out;
  Values<float> row_scales(kRows), actual(kRows * kColumns);
  Values<int> left(static_cast<std::size_t>(kRows * words));
  for (Index r = 0; r < kRows; ++r) {
    rows.push_back(x.data() + r * kDepth);
    out.push_back(actual.data() + r * kColumns);
  }
  const bool packs = dots.pack_rows(rows.data(), kRows, kDepth, left.data(), words, row_scales.data()) &&
                     dots.pack_gates(panels.data(), kDepth, blocks, right);
  std::fill_n(start.resize(blocks * width), blocks * width, 0.0f);
  DotGateProductArgs args{};
  args.product.row_end = kRows;
  args.product.block_end = blocks;
  args.product.init = start.data();
  args.product.input_size = kDepth;
  args.product.z = z.resize(blocks * kRows * width);
  args.product.z_block_stride = kRows * width;
  args.x = {left.data(), words, row_scales.data()};
  args.input = {right.words, dots.needs_starts ? right.starts : nullptr, right.scales};
  dots.gate_product(args);
  k.unpack_gates(z.data(), kRows * width, kHidden, out.data(), kRows);
  Values<double> expected(actual.size());
  for (Index r = 0; r < kRows; ++r)
    for (Index n = 0; n < kColumns; ++n)
      for (Index d = 0; d < kDepth; ++d)
        expected[static_cast<std::size_t>(r * kColumns + n)] +=
            static_cast<double>(rows[static_cast<std::size_t>(r)][d]) *
            kernel[static_cast<std::size_t>(d * kColumns + n)];
  report(name, packs && difference(actual, expected) <= tolerance);
}

void check_isa(const Isa& isa) {
  set_isa(isa);
  const std::string name = isa.name;
  const Kernels& table = current_kernels();
  check_layer<float>(name + ", float32, forward and backward", 1e-6);
  check_layer<double>(name + ", float64, forward and backward", 1e-14);
  check_layer<float>(name + ", int8 weights", 2e-2, MatmulPrecision::kHighest, WeightFormat::kInt8);
  check_layer<float>(name + ", medium precision", table.bf16x ? 1e-2 : 1e-3, MatmulPrecision::kMedium);
  check_dot_products(name + ", int16 products", table.dots->int16, 1e-3);
  check_dot_products(name + ", int8 products", table.dots->int8, 2e-2);
}

void check_threads() {
  const Shape shape{4, 32, 96, 128};
  set_num_threads(1);
  Layer<float> alone(shape);
  run(shape, alone, MatmulPrecision::kHighest, WeightFormat::kFloat32);
  for (int threads = 2; threads <= 4; ++threads) {
    set_num_threads(threads);
    Layer<float> shared(shape);
    run(shape, shared, MatmulPrecision::kHighest, WeightFormat::kFloat32);
    report(std::to_string(threads) + " threads give the bits of one", shared.results() == alone.results());

    Values<Index> sums(1000, 0);
    int parts_run = 0;
    Barrier barrier;
    run_parallel(threads, [&](int part, int parts) {
      const Range range = share(1000, part, parts);
      for (Index i = range.begin; i < range.end; ++i) sums[static_cast<std::size_t>(i)] += i;
      barrier.wait(parts);
      if (part == 0) parts_run = parts;
    });
    bool once = parts_run == threads;
    for (Index i = 0; i < 1000; ++i) once = once && sums[static_cast<std::size_t>(i)] == i;
    report(std::to_string(threads) + " parts run at once and share all work", once);
  }
  report("a process may use a core", usable_cores() >= 1);
}

void check_memory() {
  AlignedBuffer<float> buffer;
  bool aligned = true, kept = true;
  for (const Index count : {1, 1000, 300000, 3 << 20, 10, 3 << 20}) {
    float* data = buffer.resize(count);
    aligned = aligned && reinterpret_cast<std::uintptr_t>(data) % kCacheLine == 0;
    for (Index i = 0; i < count; ++i) data[i] = static_cast<float>(i % 1000);
    for (Index i = 0; i < count; ++i) kept = kept && data[i] == static_cast<float>(i % 1000);
  }
  report("buffers begin on a cache line", aligned);
  report("buffers keep what is written", kept);
  for (int times = 0; times < 20; ++times) buffer.resize(10);
  report("a buffer shrinks after one large call", buffer.size_bytes() < 1000);
  buffer.release();
  trim_memory();
  report("a released buffer is empty", buffer.size_bytes() == 0 && buffer.data() == nullptr);
  bool refused = false;
  try {
    buffer.resize(std::numeric_limits<Index>::max() / 8);
  } catch (const std::bad_alloc&) {
    refused = true;
  }
  report("too large a buffer is refused", refused);
}

void check_random_bytes() {
  unsigned char first[1000] = {}, second[1000] = {};
  fill_with_random_bytes(first, sizeof first);
  fill_with_random_bytes(second, sizeof second);
  int ones = 0, equal = 0;
  for (std::size_t i = 0; i < sizeof first; ++i) {
    for (int bit = 0; bit < 8; ++bit) ones += first[i] >> bit & 1;
    equal += first[i] == second[i];
  }
  report("random bytes have as many ones as zeros", std::abs(ones - 4000) < 400);  // 9 standard deviations
  report("random bytes differ from call to call", equal < 40);
}

}  // namespace
}  // namespace lstmfast

int main() {
  using namespace lstmfast;
  for (const Isa* isa : built_isas())
    if (isa->machine_has()) check_isa(*isa);
  check_threads();
  check_memory();
  check_random_bytes();
  return failures;
}
