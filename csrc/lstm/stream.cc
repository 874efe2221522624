// See stream.h.
#include "lstm/stream.h"

#include <algorithm>

#include "cpu/dispatch.h"

namespace lstmfast {

template <typename T>
Stream<T>::Stream(const std::vector<StreamLayer<T>>& layers, Index hidden_size, Index batch, bool takes_tokens,
                  T forget_bias)
    : k_(&kernels<T>()), hidden_(hidden_size), batch_(batch), takes_tokens_(takes_tokens), layers_(layers.size()) {
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const StreamLayer<T>& given = layers[i];
    Layer& layer = layers_[i];
    layer.input_size = given.input_size;
    if (i == 0 && takes_tokens) {
      layer.starting_values.pack_rows(*k_, given.kernel, given.input_size, nullptr, given.input_size, hidden_,
                                      given.bias, forget_bias);
    } else {
      layer.input_weights.pack(*k_, given.kernel, given.input_size, hidden_);
      layer.starting_values.pack_bias(*k_, given.bias, forget_bias, hidden_);
    }
    layer.recurrent_weights.pack(*k_, {given.kernel.row(given.input_size), given.kernel.stride}, hidden_, hidden_);
  }
  for (auto& h : h_) h.resize(this->layers() * batch_ * hidden_);
  c_.resize(this->layers() * batch_ * hidden_);
  for (auto* pointers : {&init_, &x_, &h_prev_, &c_prev_}) pointers->resize(static_cast<std::size_t>(batch_));
  for (auto* pointers : {&h_out_, &c_out_}) pointers->resize(static_cast<std::size_t>(batch_));
  reset();
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
  return advance(x, nullptr);
}

template <typename T>
const T* Stream<T>::step_tokens(const int* ids) {
  return advance(nullptr, ids);
}

template <typename T>
const T* Stream<T>::advance(const T* x, const int* ids) {
  const PanelSizes<T> sizes(*k_);
  const T* h_old = h_[current_].data();
  T* h_new = h_[1 - current_].data();
  T* c = c_.data();
  Index x_stride = layers_.front().input_size;
  for (Layer& layer : layers_) {
    for (Index b = 0; b < batch_; ++b) {
      init_[b] = ids ? layer.starting_values.of_id(b, ids[b]) : layer.starting_values.of_all();
      x_[b] = ids ? nullptr : x + b * x_stride;
      h_prev_[b] = h_old + b * hidden_;
      h_out_[b] = h_new + b * hidden_;
      c_prev_[b] = c_out_[b] = c + b * hidden_;
    }
    StepForwardArgs<T> step{};
    step.row_end = batch_;
    step.block_end = sizes.gate_blocks(hidden_);
    step.hidden_size = hidden_;
    step.init = init_.data();
    step.init_block_stride = layer.starting_values.block_stride();
    step.x = x_.data();
    step.input_size = ids ? 0 : layer.input_size;
    step.input_panels = layer.input_weights.data();
    step.h_prev = h_prev_.data();
    step.recurrent_size = hidden_;
    step.recurrent_panels = layer.recurrent_weights.data();
    step.c_prev = c_prev_.data();
    step.h = h_out_.data();
    step.c = c_out_.data();
    k_->step_forward(step);
    x = h_new;
    x_stride = hidden_;
    ids = nullptr;
    h_old += batch_ * hidden_;
    h_new += batch_ * hidden_;
    c += batch_ * hidden_;
  }
  current_ = 1 - current_;
  return x;
}

template class Stream<float>;
template class Stream<double>;

}  // namespace lstmfast
