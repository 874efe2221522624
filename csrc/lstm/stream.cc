// Pointers to weights and states, set up once; a step then swaps the copies of h and divides gate blocks among threads.
#include "lstm/stream.h"

#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include "cpu/dispatch.h"

namespace lstmfast {

template <typename T>
Stream<T>::Stream(const std::vector<StreamLayer<T>>& layers, Index hidden_size, Index batch, bool takes_tokens,
                  T forget_bias, WeightFormat format)
    : kernels_(&current_kernels()),
      k_(&kernels<T>()),
      hidden_(hidden_size),
      batch_(batch),
      input_size_(layers.front().input_size),
      takes_tokens_(takes_tokens),
      layers_(layers.size()) {
  for (auto& h : h_) h.resize(this->layers() * batch_ * hidden_);
  c_.resize(this->layers() * batch_ * hidden_);
  for (Index i = 0; i < this->layers(); ++i) {
    pack(layers_[i], layers[i], i == 0 && takes_tokens, forget_bias, format);
    point_to_state(i);
  }
  reset();
}

template <typename T>
void Stream<T>::pack(Layer& layer, const StreamLayer<T>& given, bool by_id, T forget_bias, WeightFormat format) {
  const MatrixView<const T> recurrent{given.kernel.row(given.input_size), given.kernel.stride};
  const Index input_size = by_id ? 0 : given.input_size;
  StepForwardArgs<T>& step = layer.step = {};
  if (by_id)
    layer.starting_values.pack_rows(*k_, given.kernel, given.input_size, nullptr, given.input_size, hidden_, given.bias,
                                    forget_bias);
  else
    layer.starting_values.pack_bias(*k_, given.bias, forget_bias, hidden_);
  if (format == WeightFormat::kFloat32) {
    Packed& weights = layer.weights.template emplace<Packed>();
    if (!by_id) weights.input.pack(*k_, {given.kernel, input_size}, hidden_);
    weights.recurrent.pack(*k_, {recurrent, hidden_}, hidden_);
    step.input_panels = weights.input.data();
    step.recurrent_panels = weights.recurrent.data();
  } else if constexpr (std::is_same_v<T, float>) {
    if (format == WeightFormat::kInt8) {
      Int8& weights = layer.weights.template emplace<Int8>();
      const DotKernels& dots = kernels_->dots->int8;
      if (!weights.input.pack(*k_, dots, {given.kernel, input_size}, hidden_) ||
          !weights.recurrent.pack(*k_, dots, {recurrent, hidden_}, hidden_))
        throw std::invalid_argument("kernel must be finite, and at most 2.8e14, where weights are int8");
    } else {
      BFloat16& weights = layer.weights.template emplace<BFloat16>();
      if (!by_id) weights.input.pack(*k_, given.kernel, input_size, hidden_);
      weights.recurrent.pack(*k_, recurrent, hidden_, hidden_);
    }
  }
  step.row_end = batch_;
  step.hidden_size = hidden_;
  step.init_block_stride = layer.starting_values.block_stride();
  step.input_size = input_size;
  step.recurrent_size = hidden_;
  multiply_adds_ += static_cast<double>(batch_ * (input_size + hidden_) * kGateCount * hidden_);
}

// All pointers of a layer's steps except those to the first layer's input, which comes with the step.
template <typename T>
void Stream<T>::point_to_state(Index index) {
  Layer& layer = layers_[index];
  const Index first = index * batch_;
  for (Index row = first; row < first + batch_; ++row) {
    layer.init.push_back(layer.starting_values.of_all());
    layer.x.push_back(nullptr);
    for (int current = 0; current < 2; ++current) {
      layer.h_prev[current].push_back(h_[current].data() + row * hidden_);
      layer.h[current].push_back(h_[1 - current].data() + row * hidden_);
    }
    layer.c.push_back(c_.data() + row * hidden_);
  }
  layer.c_prev.assign(layer.c.begin(), layer.c.end());
  layer.step.init = layer.init.data();
  layer.step.x = layer.x.data();
  layer.step.c_prev = layer.c_prev.data();
  layer.step.c = layer.c.data();
}

template <typename T>
void Stream<T>::reset() {
  const Index size = layers() * batch_ * hidden_;
  std::fill_n(h_[current_].data(), size, T(0));
  std::fill_n(c_.data(), size, T(0));
}

template <typename T>
void Stream<T>::set_state(const T* h, const T* c) {
  const Index size = layers() * batch_ * hidden_;
  std::copy_n(h, size, h_[current_].data());
  std::copy_n(c, size, c_.data());
}

template <typename T>
const T* Stream<T>::step(const T* x) {
  for (Index b = 0; b < batch_; ++b) layers_.front().x[b] = x + b * input_size_;
  return advance();
}

template <typename T>
const T* Stream<T>::step_tokens(const int* ids) {
  Layer& first = layers_.front();
  for (Index b = 0; b < batch_; ++b) first.init[b] = first.starting_values.of_id(b, ids[b]);
  return advance();
}

// A thread takes the same gate blocks in every step, and passes over them in alternating direction: of weights that do
// not fit in its L2, what it read last is still there.
template <typename T>
const T* Stream<T>::advance() {
  const Index blocks = PanelSizes<T>(*k_).gate_blocks(hidden_);
  for (Index i = 0; i < layers(); ++i) {
    StepForwardArgs<T>& step = layers_[i].step;
    if (i > 0) step.x = const_cast<const T* const*>(layers_[i - 1].h[current_].data());
    step.h_prev = layers_[i].h_prev[current_].data();
    step.h = layers_[i].h[current_].data();
    step.descending = current_ == 1;
  }
  // Fewer threads than a step inside a sequence would get: others may let the pool fall asleep between two steps, and
  // waking it takes about 50 microseconds.
  const Index threads = std::min<Index>(threads_for_work(multiply_adds_ / 4), blocks);
  if (static_cast<Index>(workspaces_.size()) < threads) workspaces_.resize(static_cast<std::size_t>(threads));
  run_parallel(static_cast<int>(threads), [&](int part, int parts) {
    for (const Layer& layer : layers_) {
      run(layer, share(blocks, part, parts), part);
      if (&layer != &layers_.back()) between_layers_.wait(parts);
    }
  });
  current_ = 1 - current_;
  return h() + (layers() - 1) * batch_ * hidden_;
}

template <typename T>
void Stream<T>::run(const Layer& layer, Range blocks, [[maybe_unused]] int part) {
  StepForwardArgs<T> step = layer.step;
  step.block_begin = blocks.begin;
  step.block_end = blocks.end;
  if (std::holds_alternative<Packed>(layer.weights)) {
    k_->step_forward(step);
  } else if constexpr (std::is_same_v<T, float>) {
    if (const BFloat16* weights = std::get_if<BFloat16>(&layer.weights)) {
      kernels_->step_bfloat16({step, weights->input.panels(), weights->recurrent.panels()});
    } else {
      const Int8& rounded = std::get<Int8>(layer.weights);
      step_forward_rounded(*k_, kernels_->dots->int8, step, rounded.input.panels(), rounded.recurrent.panels(),
                           workspaces_[static_cast<std::size_t>(part)]);
    }
  }
}

template class Stream<float>;
template class Stream<double>;

}  // namespace lstmfast
