// Bindings of lstm/: Sequence and Stream.
#include <pybind11/stl.h>

#include <atomic>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <thread>
#include <tuple>
#include <unordered_set>
#include <variant>

#include "bindings/array_args.h"
#include "bindings/register.h"
#include "core/gates.h"
#include "core/system.h"
#include "cpu/dispatch.h"
#include "lstm/fingerprint.h"
#include "lstm/sequence.h"
#include "lstm/stream.h"
#include "models/generate.h"
#include "nn/linear.h"
#include "nn/projected_loss.h"

namespace lstmfast::bindings {
namespace {

// A workspace serves one call at a time; if two Python threads share one, this raises instead of corrupting it. It waits
// for one whose memory is being freed: without the GIL, that may be at any moment.
enum class Use { kNone, kCall, kRelease };

class InUse {
 public:
  InUse(std::atomic<Use>& use, const char* what) : use_(use) {
    for (Use now = Use::kNone; !use_.compare_exchange_strong(now, Use::kCall); now = Use::kNone) {
      if (now == Use::kCall)
        throw std::runtime_error(std::string("this ") + what +
                                 " is already running in another thread; give each thread its own");
      std::this_thread::yield();
    }
  }
  ~InUse() { use_.store(Use::kNone); }
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;

 private:
  std::atomic<Use>& use_;
};

Index checked_hidden_size(Index gates, const char* axis) {
  if (gates <= 0 || gates % kGateCount != 0)
    throw py::value_error("kernel must have 4*hidden_size " + std::string(axis) + ", got " + std::to_string(gates));
  return gates / kGateCount;
}

WeightFormat weight_format_of(const std::string& word) {
  if (word == "float32") return WeightFormat::kFloat32;
  if (word == "bfloat16") return WeightFormat::kBFloat16;
  if (word == "int8") return WeightFormat::kInt8;
  throw py::value_error("weights must be float32, bfloat16 or int8, got " + word);
}

// An argument that may be a pair of arrays.
struct Pair {
  py::object first, second;

  Pair(const py::object& object, const char* name) {
    const auto pair = py::reinterpret_borrow<py::tuple>(object);
    if (pair.size() != 2)
      throw py::value_error(std::string(name) + " must be an array or a pair, got a tuple of " +
                            std::to_string(pair.size()));
    first = pair[0];
    second = pair[1];
  }
  static bool is(const py::object& object) { return py::isinstance<py::tuple>(object); }
};

LayerNorm layer_norm_of(const py::object& word) {
  if (word.is_none()) return LayerNorm::kNone;
  const auto kind = word.cast<std::string>();
  if (kind == "products") return LayerNorm::kProducts;
  if (kind == "gates") return LayerNorm::kGates;
  throw py::value_error("cell.layer_norm must be None, products or gates, got " + kind);
}

double checked_rate(const py::object& rate, const char* name) {
  const auto value = rate.cast<double>();
  if (!(value >= 0 && value < 1))
    throw py::value_error("cell." + std::string(name) + " must lie in [0, 1), got " + std::to_string(value));
  return value;
}

// Reads everything from the cell except peepholes, which are arrays and come with the weights.
template <typename T>
Cell<T> cell_of(const py::object& cell) {
  const auto clip = cell.attr("cell_clip").cast<std::optional<double>>();
  if (clip && !(*clip > 0)) throw py::value_error("cell.cell_clip must be above 0, got " + std::to_string(*clip));
  Cell<T> found{};
  found.forget_bias = static_cast<T>(cell.attr("forget_bias").cast<double>());
  found.variant.cell_clip = static_cast<T>(clip.value_or(std::numeric_limits<double>::infinity()));
  found.variant.coupled_gates = cell.attr("coupled_gates").cast<bool>();
  found.recurrent_dropout = checked_rate(cell.attr("recurrent_dropout"), "recurrent_dropout");
  found.drops_candidate = cell.attr("recurrent_dropout_of").cast<std::string>() == "g";
  found.drops_per_step = cell.attr("recurrent_dropout_per_step").cast<bool>();
  if (const py::object zoneout = cell.attr("zoneout"); !zoneout.is_none()) {
    const Pair rates(zoneout, "cell.zoneout");
    found.zoneout_of_h = checked_rate(rates.first, "zoneout");
    found.zoneout_of_c = checked_rate(rates.second, "zoneout");
  }
  found.weight_dropout = checked_rate(cell.attr("weight_dropout"), "weight_dropout");
  found.layer_norm = layer_norm_of(cell.attr("layer_norm"));
  found.layer_norm_epsilon = static_cast<T>(cell.attr("layer_norm_epsilon").cast<double>());
  found.carries_norm = cell.attr("layer_norm_carry").cast<bool>();
  return found;
}

// What a call of these sizes would do, for `explain`.
py::dict plan_of(Index time_steps, Index batch, Index input_size, Index hidden_size, const std::string& dtype,
                 const std::string& matmul_precision, bool is_plain, bool is_projected, bool token_input, bool training,
                 const std::string& weights) {
  CallShape call{time_steps, batch, time_steps * batch, token_input ? 0 : input_size, hidden_size, is_plain,
                 is_projected, 0, precision_of(matmul_precision), weight_format_of(weights), false, training};
  if (call.weights == WeightFormat::kBFloat16) call.precision = MatmulPrecision::kMedium;
  const Choice choice = dtype == "float32" ? choose_path(kernels<float>(), call) : choose_path(kernels<double>(), call);
  const char* const refusals[] = {"", "dtype", "cell", "isa", "size"};
  const char* const paths[] = {"packed", "unpacked", "bf16x", "int16", "int16 and bf16x", "int8"};
  const int parts = bf16x_parts(call.precision);
  py::dict plan;
  plan["isa"] = current_isa().name;
  plan["hoists_input"] = choice.hoists_input;
  plan["path"] = paths[static_cast<int>(choice.path)];
  plan["refusal"] = refusals[static_cast<int>(choice.refusal)];
  const DotKernelSet& dots = *current_kernels().dots;
  const DotKernels& dot = choice.path == Path::kInt8 ? dots.int8 : dots.int16;
  plan["dot_unit"] = !dot.faster_than_float32    ? ""
                     : dot.rows_read_at_once > 1 ? "tiles of AMX, and few rows by dot products"
                                                 : "dot products";
  const Bf16xKernels* bf16x = current_kernels().bf16x;
  plan["bf16x_unit"] = !bf16x ? "" : bf16x->most_parts > 1 ? "tiles of AMX" : "dot products of AVX512_BF16";
  plan["bf16x_parts"] = parts;
  plan["bf16x_products"] = parts * (parts + 1) / 2;  // pairs of parts whose product exceeds the rounding error
  plan["bf16x_largest"] = kBf16xLargest;
  plan["rows_unpacked"] = is_plain ? kRowsUnpacked : 0;
  plan["rows_unlooked"] = is_plain ? kRowsUnlooked : 0;
  return plan;
}

// For callers that cache anything derived from weights: whether these are still the same.
py::tuple fingerprint(const py::object& values) {
  Fingerprint found;
  with_float_type(values, "values", [&](auto type) {
    using T = decltype(type);
    const ArrayArg<const T> arg(values, "values");
    const bool is_matrix = arg.ndim() == 2;
    const MatrixView<const T> matrix =
        is_matrix ? arg.matrix() : MatrixView<const T>{arg.must_have_ndim(1, "or two").contiguous(), arg.size(0)};
    found = fingerprint_of<T>(kernels<T>(), {{matrix, is_matrix ? arg.size(0) : 1, arg.size(is_matrix)}});
  });
  return py::make_tuple(found.first, found.second);
}

class PySequence;

// All sequences. Never destroyed, as Python may outlive it.
struct AllSequences {
  std::mutex mutex;
  std::unordered_set<PySequence*> sequences;
};
AllSequences& all_sequences() {
  static auto* all = new AllSequences;
  return *all;
}

class PySequence {
 public:
  PySequence(bool reverse, const py::object& cell)
      : reverse_(reverse),
        cell_(cell),
        cells_{cell_of<float>(cell), cell_of<double>(cell)},
        has_peepholes_(cell.attr("peepholes").cast<bool>()),
        has_projection_(!cell.attr("projection_size").is_none()),
        learns_initial_state_(cell.attr("learn_initial_state").cast<bool>()) {
    AllSequences& all = all_sequences();
    const std::lock_guard<std::mutex> lock(all.mutex);
    all.sequences.insert(this);
  }
  ~PySequence() {
    AllSequences& all = all_sequences();
    const std::lock_guard<std::mutex> lock(all.mutex);
    all.sequences.erase(this);
  }
  PySequence(const PySequence&) = delete;
  PySequence& operator=(const PySequence&) = delete;

  // Skips sequences that another thread runs.
  static void release_all_memory() {
    AllSequences& all = all_sequences();
    const std::lock_guard<std::mutex> lock(all.mutex);
    for (PySequence* each : all.sequences) {
      Use now = Use::kNone;
      if (!each->use_.compare_exchange_strong(now, Use::kRelease)) continue;
      each->release_memory();
      each->use_.store(Use::kNone);
    }
  }

  std::size_t workspace_bytes() {
    const InUse in_use(use_, "Sequence");
    std::size_t bytes = 0;
    with_sequence([&](auto& sequence) { bytes = sequence.size_bytes(); });
    return bytes;
  }

  void load(const py::object& kernel, const py::object& bias, const py::object& peepholes, const py::object& projection,
            bool frozen, bool serves_one_call, const std::string& format, const py::object& norms,
            const py::object& initial) {
    const InUse in_use(use_, "Sequence");
    with_float_type(Pair::is(kernel) ? Pair(kernel, "kernel").second : kernel, "kernel", [&](auto type) {
      using T = decltype(type);
      SequenceWeights<T> weights = checked_weights<T>(kernel, bias, peepholes, projection);
      add_norms(norms, weights);
      add_initial_state(initial, weights);
      weights.are_frozen = frozen;
      weights.serve_one_call = serves_one_call;
      weights.format = weight_format_of(format);
      if (!std::is_same_v<T, float> && weights.format != WeightFormat::kFloat32)
        throw py::value_error("weights must be float32 for a float64 kernel, got " + format);
      if (!std::holds_alternative<Sequence<T>>(sequence_))
        sequence_.template emplace<Sequence<T>>(reverse_, std::get<Cell<T>>(cells_));
      std::get<Sequence<T>>(sequence_).load(weights);
    });
    let_go();
    weights_ = py::make_tuple(kernel, bias, peepholes, projection, norms, initial);
  }

  void forward(const py::object& x, const py::object& h, const py::object& h_n, const py::object& c_n,
               const py::object& h0, const py::object& c0, const py::object& lengths, const py::object& resets,
               const py::object& cells, const py::object& gates, const py::object& keep_for_backward,
               const std::string& matmul_precision, const py::object& noise) {
    const InUse in_use(use_, "Sequence");
    with_loaded_sequence("forward", [&](auto& sequence) {
      using T = typename std::decay_t<decltype(sequence)>::Value;
      const auto& weights = sequence.weights();
      if (!weights.bias) throw py::type_error("bias must be a NumPy array for forward, got None in load");
      SequenceForwardArgs<T> args = checked_call(weights, x, h, h0, c0, lengths, resets, matmul_precision, noise);
      const Index steps = args.time_steps, batch = args.batch, hidden = weights.hidden_size;
      args.h_n = required<T>(h_n, "h_n").must_have_shape({batch, weights.output_size}).matrix();
      args.c_n = required<T>(c_n, "c_n").must_have_shape({batch, hidden}).matrix();
      args.cells = ArrayArg<T>(cells, "cells").must_have_shape({steps, batch, hidden}).sequence();
      args.gates = ArrayArg<T>(gates, "gates").must_have_shape({steps, batch, kGateCount, hidden}).sequence(2);
      const bool is_bool = py::isinstance<py::bool_>(keep_for_backward);
      args.keep_for_backward = !is_bool || keep_for_backward.is(py::bool_(true));
      if (!is_bool) args.saved = checked_saved<T>(weights, args, keep_for_backward, "keep_for_backward");
      if (!is_bool && args.cells) throw py::value_error("cells must be None if keep_for_backward is an array");
      keep(args, py::make_tuple(x, h0, c0, lengths, h, cells, keep_for_backward));
      {
        const py::gil_scoped_release release;
        sequence.forward(args);
      }
      if (weights.serve_one_call && !args.keep_for_backward) let_go();
    });
  }

  void restore(const py::object& x, const py::object& h, const py::object& saved, const py::object& h0,
               const py::object& c0, const py::object& lengths, const py::object& resets,
               const std::string& matmul_precision, const py::object& noise) {
    const InUse in_use(use_, "Sequence");
    with_loaded_sequence("restore", [&](auto& sequence) {
      using T = typename std::decay_t<decltype(sequence)>::Value;
      auto args = checked_call(sequence.weights(), x, h, h0, c0, lengths, resets, matmul_precision, noise);
      args.keep_for_backward = true;
      args.saved = checked_saved<T>(sequence.weights(), args, saved, "saved");
      keep(args, py::make_tuple(x, h0, c0, lengths, h, saved));
      const py::gil_scoped_release release;
      sequence.restore(args);
    });
  }

  void release() {
    const InUse in_use(use_, "Sequence");
    let_go();
  }

  py::tuple state() const { return py::make_tuple(reverse_, cell_); }

  bool used_bf16x_products() const {
    const auto* sequence = std::get_if<Sequence<float>>(&sequence_);
    return sequence != nullptr && sequence->used_bf16x_products();
  }

  void backward(const py::object& d_h, const py::object& d_h_n, const py::object& d_c_n, const py::object& d_x,
                const py::object& d_kernel, const py::object& d_bias, const py::object& d_h0, const py::object& d_c0,
                const py::object& d_peepholes, const py::object& d_projection, const py::object& d_norms,
                const py::object& d_initial) {
    const InUse in_use(use_, "Sequence");
    if (!kept_for_backward_)
      throw std::runtime_error("backward needs a forward with keep_for_backward=True, or a restore, before it");
    with_sequence([&](auto& sequence) {
      backward_of(sequence, d_h, d_h_n, d_c_n, d_x, d_kernel, d_bias, d_h0, d_c0, d_peepholes, d_projection,
                  d_norms, d_initial);
    });
  }

 private:
  template <typename T>
  SequenceWeights<T> checked_weights(const py::object& kernel, const py::object& bias, const py::object& peepholes,
                                     const py::object& projection) const {
    SequenceWeights<T> weights{};
    const bool transposed = Pair::is(kernel);
    const py::object recurrent = transposed ? Pair(kernel, "kernel").second : kernel;
    const ArrayArg<const T> recurrent_arg(recurrent, transposed ? "kernel[1]" : "kernel");
    recurrent_arg.must_have_ndim(
        2, transposed ? "[4*hidden_size, hidden_size]" : "[input_size + hidden_size, 4*hidden_size]");
    const Index hidden = checked_hidden_size(recurrent_arg.size(transposed ? 0 : 1), transposed ? "rows" : "columns");
    const Index columns = kGateCount * hidden;
    if (has_peepholes_ && peepholes.is_none())
      throw py::type_error("peepholes must be a NumPy array for a cell that has them, got None");
    if (has_projection_ && projection.is_none())
      throw py::type_error("projection must be a NumPy array for a cell that has one, got None");
    weights.peepholes =
        ArrayArg<const T>(peepholes, "peepholes").must_have_shape({kPeepholeCount, hidden}).contiguous();
    weights.hidden_size = weights.output_size = hidden;
    if (const ArrayArg<const T> arg(projection, "projection"); arg) {
      arg.must_have_ndim(2, transposed ? "[projection_size, hidden_size]" : "[hidden_size, projection_size]");
      const Index size = weights.output_size = arg.size(transposed ? 0 : 1);
      if (size < 1) arg.fail("must have projection_size at least 1, got shape " + to_string(arg.shape()));
      arg.must_have_shape(transposed ? Shape{size, hidden} : Shape{hidden, size});
      (transposed ? weights.transposed.projection : weights.projection) = arg.matrix();
    }
    const Index output = weights.output_size;
    if (transposed) {
      const auto input_arg = required<const T>(Pair(kernel, "kernel").first, "kernel[0]");
      weights.input_size = input_arg.must_have_ndim(2, "[4*hidden_size, input_size]").size(1);
      weights.transposed.input = input_arg.must_have_shape({columns, weights.input_size}).matrix();
      weights.transposed.recurrent = recurrent_arg.must_have_shape({columns, output}).matrix();
    } else {
      if (recurrent_arg.size(0) < output)
        recurrent_arg.fail(std::string("must have input_size + ") +
                           (weights.projection ? "projection_size" : "hidden_size") + " rows, got shape " +
                           to_string(recurrent_arg.shape()));
      weights.input_size = recurrent_arg.size(0) - output;
      weights.kernel = recurrent_arg.matrix();
    }
    const auto checked_bias = [&](const py::object& one, const char* name) {
      return required<const T>(one, name).must_have_shape({columns}).contiguous();
    };
    if (Pair::is(bias)) {
      const Pair both(bias, "bias");
      weights.bias = checked_bias(both.first, "bias[0]");
      weights.second_bias = checked_bias(both.second, "bias[1]");
    } else if (!bias.is_none()) {
      weights.bias = checked_bias(bias, "bias");
    }
    return weights;
  }

  // The arrays of a layer normalisation: norm_gain, cell_gain, cell_shift.
  template <typename T>
  struct NormArrays {
    T *norm_gain, *cell_gain, *cell_shift;
  };
  template <typename T>
  NormArrays<T> checked_norms(const py::object& norms, Index hidden, const char* name) const {
    const auto arrays = py::reinterpret_borrow<py::tuple>(norms);
    if (!py::isinstance<py::tuple>(norms) || arrays.size() != 3)
      throw py::type_error(std::string(name) + " must be a tuple of norm_gain, cell_gain and cell_shift");
    const Index products = std::get<0>(cells_).layer_norm == LayerNorm::kProducts ? 2 : 1;
    return {required<T>(arrays[0], "norm_gain").must_have_shape({products, kGateCount * hidden}).contiguous(),
            required<T>(arrays[1], "cell_gain").must_have_shape({hidden}).contiguous(),
            required<T>(arrays[2], "cell_shift").must_have_shape({hidden}).contiguous()};
  }

  template <typename T>
  void add_norms(const py::object& norms, SequenceWeights<T>& weights) const {
    const bool has_norms = std::get<0>(cells_).layer_norm != LayerNorm::kNone;
    if (has_norms == norms.is_none())
      throw py::type_error(std::string("norms must be ") +
                           (has_norms ? "arrays for a cell with layer normalisation, got None"
                                      : "None for a cell without layer normalisation"));
    if (!has_norms) return;
    const auto arrays = checked_norms<const T>(norms, weights.hidden_size, "norms");
    weights.norm_gain = arrays.norm_gain;
    weights.cell_gain = arrays.cell_gain;
    weights.cell_shift = arrays.cell_shift;
  }

  template <typename T>
  void add_initial_state(const py::object& initial, SequenceWeights<T>& weights) const {
    if (learns_initial_state_ == initial.is_none())
      throw py::type_error(std::string("initial must be ") +
                           (learns_initial_state_ ? "a pair for a cell that learns its initial state, got None"
                                                  : "None for a cell that does not learn its initial state"));
    if (!learns_initial_state_) return;
    const Pair pair(initial, "initial");
    weights.initial_h = required<const T>(pair.first, "initial_h").must_have_shape({weights.output_size}).contiguous();
    weights.initial_c = required<const T>(pair.second, "initial_c").must_have_shape({weights.hidden_size}).contiguous();
  }

  // The seed, the number of the layer and that of its first time step.
  static Noise checked_noise(const py::object& noise) {
    if (noise.is_none()) return {};
    const auto parts = py::reinterpret_borrow<py::tuple>(noise);
    if (!py::isinstance<py::tuple>(noise) || parts.size() != 3)
      throw py::type_error("noise must be None or a tuple of seed, layer and first step");
    return {true, parts[0].cast<unsigned long long>(), parts[1].cast<unsigned>(), parts[2].cast<unsigned>()};
  }

  // The common arguments of forward and restore.
  template <typename T>
  static SequenceForwardArgs<T> checked_call(const SequenceWeights<T>& weights, const py::object& x,
                                             const py::object& h, const py::object& h0, const py::object& c0,
                                             const py::object& lengths, const py::object& resets,
                                             const std::string& matmul_precision, const py::object& noise) {
    SequenceForwardArgs<T> args{};
    args.noise = checked_noise(noise);
    const Index output = weights.output_size;
    if (py::isinstance<py::array>(x) && holds<int>(x)) {
      const ArrayArg<const int> ids(x, "x");
      if (weights.transposed) ids.fail("must be values, not token ids, if the kernel is transposed");
      ids.must_have_ndim(2, "[time_steps, batch] of token ids");
      args.time_steps = ids.size(0);
      args.batch = ids.size(1);
      args.ids = {ids.data(), ids.stride(0), ids.stride(1)};
      check_ids(ids, weights.input_size);
    } else {
      const ArrayArg<const T> x_arg(x, "x");
      x_arg.must_have_ndim(3, "[time_steps, batch, input_size]");
      args.time_steps = x_arg.size(0);
      args.batch = x_arg.size(1);
      args.x = x_arg.must_have_shape({args.time_steps, args.batch, weights.input_size}).sequence();
    }
    const Index steps = args.time_steps, batch = args.batch;
    args.h0 = ArrayArg<const T>(h0, "h0").must_have_shape({batch, output}).matrix();
    args.c0 = ArrayArg<const T>(c0, "c0").must_have_shape({batch, weights.hidden_size}).matrix();
    args.lengths = ArrayArg<const Index>(lengths, "lengths").must_have_shape({batch}).contiguous();
    for (Index b = 0; args.lengths && b < batch; ++b)
      if (args.lengths[b] < 0 || args.lengths[b] > steps)
        throw py::value_error("lengths must lie in [0, " + std::to_string(steps) + "], got " +
                              std::to_string(args.lengths[b]) + " at row " + std::to_string(b));
    args.resets = ArrayArg<const bool>(resets, "resets").must_have_shape({steps, batch}).contiguous();
    args.h = required<T>(h, "h").must_have_shape({steps, batch, output}).sequence();
    args.precision = precision_of(matmul_precision);
    return args;
  }

  template <typename T>
  T* checked_saved(const SequenceWeights<T>& weights, const SequenceForwardArgs<T>& args, const py::object& saved,
                   const char* name) const {
    const Index *lengths = args.lengths, batch = args.batch;
    const Index updates = lengths ? std::accumulate(lengths, lengths + batch, Index{0}) : args.time_steps * batch;
    const Index size = Sequence<T>::saved_size(updates, weights.hidden_size, weights.has_projection(),
                                               std::get<0>(cells_).layer_norm);
    return required<T>(saved, name).must_have_shape({size}).contiguous();
  }

  // Keeps these arrays alive: backward reads them again.
  template <typename T>
  void keep(const SequenceForwardArgs<T>& args, const py::tuple& arrays) {
    kept_ = args.keep_for_backward ? arrays : py::tuple();
    kept_for_backward_ = args.keep_for_backward;
  }

  void let_go() {
    weights_ = kept_ = py::tuple();
    kept_for_backward_ = false;
  }

  template <typename T>
  void backward_of(Sequence<T>& sequence, const py::object& d_h, const py::object& d_h_n, const py::object& d_c_n,
                   const py::object& d_x, const py::object& d_kernel, const py::object& d_bias, const py::object& d_h0,
                   const py::object& d_c0, const py::object& d_peepholes, const py::object& d_projection,
                   const py::object& d_norms, const py::object& d_initial) {
    const SequenceWeights<T>& weights = sequence.weights();
    const SequenceForwardArgs<T>& call = sequence.last_call();
    const Index steps = call.time_steps, batch = call.batch, columns = kGateCount * weights.hidden_size;
    const Index inputs = weights.input_size, hidden = weights.hidden_size, outputs = weights.output_size;
    const Shape state{batch, hidden}, output{batch, outputs};
    SequenceBackwardArgs<T> args{};
    args.d_h = ArrayArg<const T>(d_h, "d_h").must_have_shape({steps, batch, outputs}).sequence();
    args.d_h_n = ArrayArg<const T>(d_h_n, "d_h_n").must_have_shape(output).matrix();
    args.d_c_n = ArrayArg<const T>(d_c_n, "d_c_n").must_have_shape(state).matrix();
    const ArrayArg<T> d_x_arg(d_x, "d_x");
    if (d_x_arg && call.ids) d_x_arg.fail("must be None if x was token ids");
    args.d_x = d_x_arg.must_have_shape({steps, batch, inputs}).sequence();
    const bool transposed = static_cast<bool>(weights.transposed);
    if (!d_kernel.is_none() && Pair::is(d_kernel) != transposed)
      throw py::type_error(std::string("d_kernel must be ") + (transposed ? "a pair" : "one array") + " like kernel");
    if (Pair::is(d_kernel)) {
      const Pair pair(d_kernel, "d_kernel");
      const auto d_input = required<T>(pair.first, "d_kernel[0]");
      const auto d_recurrent = required<T>(pair.second, "d_kernel[1]");
      args.d_transposed.input = d_input.must_have_shape({columns, inputs}).matrix();
      args.d_transposed.recurrent = d_recurrent.must_have_shape({columns, outputs}).matrix();
    } else {
      args.d_kernel = ArrayArg<T>(d_kernel, "d_kernel").must_have_shape({inputs + outputs, columns}).matrix();
    }
    args.d_bias = ArrayArg<T>(d_bias, "d_bias").must_have_shape({columns}).contiguous();
    args.d_h0 = ArrayArg<T>(d_h0, "d_h0").must_have_shape(output).matrix();
    args.d_c0 = ArrayArg<T>(d_c0, "d_c0").must_have_shape(state).matrix();
    const ArrayArg<T> d_peepholes_arg(d_peepholes, "d_peepholes"), d_projection_arg(d_projection, "d_projection");
    if (d_peepholes_arg && !weights.peepholes) d_peepholes_arg.fail("must be None without peepholes");
    if (d_projection_arg && !weights.has_projection()) d_projection_arg.fail("must be None without a projection");
    args.d_peepholes = d_peepholes_arg.must_have_shape({kPeepholeCount, hidden}).contiguous();
    if (transposed)
      args.d_transposed.projection = d_projection_arg.must_have_shape({outputs, hidden}).matrix();
    else
      args.d_projection = d_projection_arg.must_have_shape({hidden, outputs}).matrix();
    if (!d_norms.is_none()) {
      if (!weights.norm_gain) throw py::value_error("d_norms must be None without layer normalisation");
      const auto arrays = checked_norms<T>(d_norms, hidden, "d_norms");
      args.d_norm_gain = arrays.norm_gain;
      args.d_cell_gain = arrays.cell_gain;
      args.d_cell_shift = arrays.cell_shift;
    }
    if (!d_initial.is_none()) {
      if (!weights.initial_h) throw py::value_error("d_initial must be None without learnt initial states");
      const Pair pair(d_initial, "d_initial");
      args.d_initial_h = required<T>(pair.first, "d_initial[0]").must_have_shape({outputs}).contiguous();
      args.d_initial_c = required<T>(pair.second, "d_initial[1]").must_have_shape({hidden}).contiguous();
    }
    const py::gil_scoped_release release;
    sequence.backward(args);
  }

  template <typename Body>
  void with_sequence(const Body& body) {
    if (auto* sequence = std::get_if<Sequence<float>>(&sequence_)) body(*sequence);
    if (auto* sequence = std::get_if<Sequence<double>>(&sequence_)) body(*sequence);
  }

  template <typename Body>
  void with_loaded_sequence(const char* what, const Body& body) {
    if (weights_.size() == 0) throw std::runtime_error(std::string(what) + " needs a load before it");
    with_sequence(body);
  }

  void release_memory() {
    with_sequence([&](auto& sequence) { sequence.release_memory(kept_for_backward_); });
  }

  std::variant<std::monostate, Sequence<float>, Sequence<double>> sequence_;
  const bool reverse_;
  const py::object cell_;
  const std::tuple<Cell<float>, Cell<double>> cells_;
  const bool has_peepholes_, has_projection_, learns_initial_state_;
  std::atomic<Use> use_{Use::kNone};
  bool kept_for_backward_ = false;
  py::tuple weights_, kept_;  // arrays kept alive
};

class PyStream {
 public:
  PyStream(const std::vector<py::object>& kernels, const std::vector<py::object>& biases, Index batch_size,
           bool token_input, double forget_bias, const std::string& weights) {
    const WeightFormat format = weight_format_of(weights);
    if (kernels.empty() || kernels.size() != biases.size())
      throw py::value_error("kernels and biases must have one entry per layer, got " + std::to_string(kernels.size()) +
                            " and " + std::to_string(biases.size()));
    if (batch_size < 1) throw py::value_error("batch_size must be at least 1, got " + std::to_string(batch_size));
    with_float_type(kernels[0], "kernels[0]", [&](auto type) {
      using T = decltype(type);
      if (std::is_same_v<T, double> && format != WeightFormat::kFloat32)
        throw py::value_error("weights must be float32, which leaves them as they are, for float64 kernels, got " +
                              weights);
      std::vector<StreamLayer<T>> layers;
      Index hidden = 0;
      for (std::size_t i = 0; i < kernels.size(); ++i) {
        const ArrayArg<const T> kernel(kernels[i], "kernel");
        kernel.must_have_ndim(2, "[input_size + hidden_size, 4*hidden_size]");
        if (i == 0) hidden = checked_hidden_size(kernel.size(1), "columns");
        const Index inputs = i == 0 ? kernel.size(0) - hidden : hidden;
        if (inputs < 0) kernel.fail("must have input_size + hidden_size rows, got shape " + to_string(kernel.shape()));
        kernel.must_have_shape({inputs + hidden, kGateCount * hidden});
        const ArrayArg<const T> bias(biases[i], "bias");
        if (!bias) throw py::type_error("bias must be a NumPy array, got None");
        layers.push_back({inputs, kernel.matrix(), bias.must_have_shape({kGateCount * hidden}).contiguous()});
      }
      stream_.template emplace<Holder<T>>(std::make_unique<Stream<T>>(layers, hidden, batch_size, token_input,
                                                                      static_cast<T>(forget_bias), format));
    });
    with_stream([&](auto& stream) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(stream.h())>>;
      py::array_t<T> out(Shape{stream.batch(), stream.hidden_size()});
      out_data_ = out.mutable_data();
      out_ = std::move(out);
    });
  }

  py::array step(const py::object& x) {
    const InUse in_use(use_, "Stream");
    with_stream([&](auto& stream) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(stream.h())>>;
      const Index batch = stream.batch(), input_size = stream.input_size();
      const int* tokens = nullptr;
      const T* values = nullptr;
      if (stream.takes_tokens()) {
        const auto ids = required<const int>(x, "x");
        tokens = ids.must_have_shape({batch}).contiguous();
        check_ids(ids, input_size);
      } else {
        values = required<const T>(x, "x").must_have_shape({batch, input_size}).contiguous();
      }
      // Steps of about 20 microseconds or more release the GIL, which costs 0.1.
      std::optional<py::gil_scoped_release> release;
      if (stream.multiply_adds() > 5e5) release.emplace();
      const T* h = tokens ? stream.step_tokens(tokens) : stream.step(values);
      std::copy_n(h, batch * stream.hidden_size(), static_cast<T*>(out_data_));
    });
    return out_;
  }

  void reset() {
    const InUse in_use(use_, "Stream");
    with_stream([](auto& stream) { stream.reset(); });
  }

  py::tuple state() {
    const InUse in_use(use_, "Stream");
    py::tuple result;
    with_stream([&](auto& stream) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(stream.h())>>;
      const Shape shape{stream.layers(), stream.batch(), stream.hidden_size()};
      result = py::make_tuple(py::array_t<T>(shape, stream.h()), py::array_t<T>(shape, stream.c()));
    });
    return result;
  }

  void set_state(const py::tuple& state) {
    if (state.size() != 2) throw py::value_error("state must be (h, c), got " + std::to_string(state.size()) + " items");
    const InUse in_use(use_, "Stream");
    with_stream([&](auto& stream) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(stream.h())>>;
      const Shape shape{stream.layers(), stream.batch(), stream.hidden_size()};
      const ArrayArg<const T> h(state[0], "h"), c(state[1], "c");
      if (!h || !c) throw py::type_error("state must be two NumPy arrays (h, c)");
      stream.set_state(h.must_have_shape(shape).contiguous(), c.must_have_shape(shape).contiguous());
    });
  }

  void generate(const py::object& projection_kernel, const py::object& projection_bias, const py::object& token,
                const py::object& uniforms, double temperature, Index top_k, double top_p, const py::object& out) {
    const InUse in_use(use_, "Stream");
    if (!(temperature >= 0))
      throw py::value_error("temperature must be at least 0, got " + std::to_string(temperature));
    if (top_k < 0) throw py::value_error("top_k must be at least 0, got " + std::to_string(top_k));
    if (!(top_p > 0 && top_p <= 1)) throw py::value_error("top_p must lie in (0, 1], got " + std::to_string(top_p));
    with_stream([&](auto& stream) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(stream.h())>>;
      if (!stream.takes_tokens()) throw py::value_error("generate needs a stream of token ids");
      const Index vocabulary = stream.input_size(), batch = stream.batch();
      const ArrayArg<const T> kernel(projection_kernel, "projection_kernel"), bias(projection_bias, "projection_bias");
      const ArrayArg<int> tokens(token, "token"), out_arg(out, "out");
      const ArrayArg<const double> uniform(uniforms, "uniforms");
      if (!kernel || !bias || !tokens || !uniform || !out_arg)
        throw py::type_error("generate needs all of its arrays, got None");
      uniform.must_have_ndim(2, "[steps, batch]");
      const Index steps = uniform.size(0);
      uniform.must_have_shape({steps, batch});
      check_ids(ArrayArg<const int>(token, "token").must_have_shape({batch}), vocabulary);
      const auto kernel_view = kernel.must_have_shape({stream.hidden_size(), vocabulary}).matrix();
      const T* bias_data = bias.must_have_shape({vocabulary}).contiguous();
      int* token_data = tokens.contiguous();
      const double* uniform_data = uniform.contiguous();
      int* out_data = out_arg.must_have_shape({steps, batch}).contiguous();
      const py::gil_scoped_release release;
      lstmfast::generate(stream, kernel_view, bias_data, vocabulary, {temperature, top_k, top_p}, token_data,
                         uniform_data, steps, out_data);
    });
  }

 private:
  template <typename T>
  using Holder = std::unique_ptr<Stream<T>>;

  template <typename Body>
  void with_stream(const Body& body) {
    if (std::holds_alternative<Holder<float>>(stream_))
      body(*std::get<Holder<float>>(stream_));
    else
      body(*std::get<Holder<double>>(stream_));
  }

  std::variant<Holder<float>, Holder<double>> stream_;
  std::atomic<Use> use_{Use::kNone};
  py::array out_;
  void* out_data_ = nullptr;
};

}  // namespace

void register_lstm(py::module_& module) {
  const py::none none;
  module.def("saved_size", [](Index updates, Index hidden_size, bool has_projection, bool is_float64,
                              int normalized_products) {
    const LayerNorm norm = normalized_products == 0   ? LayerNorm::kNone
                           : normalized_products == 1 ? LayerNorm::kGates
                                                      : LayerNorm::kProducts;
    return is_float64 ? Sequence<double>::saved_size(updates, hidden_size, has_projection, norm)
                      : Sequence<float>::saved_size(updates, hidden_size, has_projection, norm);
  }, "Number of values that a forward pass of this many row updates stores in `saved` for backward.",
      py::arg("updates"), py::arg("hidden_size"), py::arg("has_projection"), py::arg("is_float64"),
      py::arg("normalized_products") = 0);
  module.def("fingerprint", fingerprint, py::arg("values"));
  module.def("plan_of", plan_of, py::arg("time_steps"), py::arg("batch"), py::arg("input_size"), py::arg("hidden_size"),
             py::arg("dtype"), py::arg("matmul_precision"), py::arg("is_plain"), py::arg("is_projected"),
             py::arg("token_input"), py::arg("training"), py::arg("weights"));
  module.def("release_memory", [] {
    PySequence::release_all_memory();
    release_linear_workspaces();
    release_projected_loss_workspaces();
    trim_memory();
  }, "Free the spare memory of all sequences that are not running, and of the dense layers of this thread.");
  py::class_<PySequence>(module, "Sequence", "One direction of one LSTM layer; owns and reuses its workspace.")
      .def(py::init<bool, const py::object&>(), py::arg("reverse"), py::arg("cell"))
      .def("load", &PySequence::load, py::arg("kernel"), py::arg("bias"), py::arg("peepholes") = none,
           py::arg("projection") = none, py::arg("frozen") = false, py::arg("serves_one_call") = false,
           py::arg("weights") = "float32", py::arg("norms") = none, py::arg("initial") = none)
      // Callers need not name arguments: pybind11 creates a string to look up each name, 100 ns.
      .def("forward", &PySequence::forward, py::arg("x"), py::arg("h"), py::arg("h_n"), py::arg("c_n"),
           py::arg("h0") = none, py::arg("c0") = none, py::arg("lengths") = none, py::arg("resets") = none,
           py::arg("cells") = none, py::arg("gates") = none, py::arg("keep_for_backward") = false,
           py::arg("matmul_precision") = "highest", py::arg("noise") = none)
      .def("restore", &PySequence::restore, py::arg("x"), py::arg("h"), py::arg("saved"), py::arg("h0") = none,
           py::arg("c0") = none, py::arg("lengths") = none, py::arg("resets") = none,
           py::arg("matmul_precision") = "highest", py::arg("noise") = none)
      // A copy or unpickled Sequence has the same cell, but has not run and holds no weights.
      .def(py::pickle([](const PySequence& sequence) { return sequence.state(); },
                      [](const py::tuple& state) {
                        return std::make_unique<PySequence>(state[0].cast<bool>(), state[1]);
                      }))
      .def_property_readonly("workspace_bytes", &PySequence::workspace_bytes)
      .def_property_readonly("used_bf16x_products", &PySequence::used_bf16x_products)
      .def("release", &PySequence::release, "Release all arrays: weights, and those that a backward pass would read.")
      .def("backward", &PySequence::backward, py::arg("d_h") = none, py::arg("d_h_n") = none,
           py::arg("d_c_n") = none, py::arg("d_x") = none, py::arg("d_kernel") = none, py::arg("d_bias") = none,
           py::arg("d_h0") = none, py::arg("d_c0") = none, py::arg("d_peepholes") = none,
           py::arg("d_projection") = none, py::arg("d_norms") = none, py::arg("d_initial") = none);
  py::class_<PyStream>(module, "Stream", "A stack of layers advanced one step at a time; weights packed, state inside.")
      .def(py::init<const std::vector<py::object>&, const std::vector<py::object>&, Index, bool, double,
                    const std::string&>(),
           py::arg("kernels"), py::arg("biases"), py::kw_only(), py::arg("batch_size"), py::arg("token_input"),
           py::arg("forget_bias"), py::arg("weights") = "float32")
      .def("__reduce_ex__", [](const PyStream&, const py::object&) -> py::object {
        throw py::type_error("a stream cannot be copied or pickled: make another from its layer or model and set its "
                             "state");
      }, py::arg("protocol"))
      .def("step", &PyStream::step, py::arg("x"))
      .def("reset", &PyStream::reset)
      .def_property("state", &PyStream::state, &PyStream::set_state)
      .def("generate", &PyStream::generate, py::arg("projection_kernel"), py::arg("projection_bias"), py::arg("token"),
           py::arg("uniforms"), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("out"));
}

}  // namespace lstmfast::bindings
