// A stack of LSTM layers advanced one step at a time: weights packed once, state inside, no allocation in `step`.
#pragma once

#include <vector>

#include "core/aligned_buffer.h"
#include "cpu/kernel_table.h"
#include "lstm/packed_weights.h"

namespace lstmfast {

template <typename T>
struct StreamLayer {
  Index input_size;  // of the first layer of a token stream: the vocabulary
  MatrixView<const T> kernel;
  const T* bias;
};

template <typename T>
class Stream {
 public:
  // All layers have hidden_size units. Copies the weights; `takes_tokens`: the first layer's input is a token id.
  Stream(const std::vector<StreamLayer<T>>& layers, Index hidden_size, Index batch, bool takes_tokens, T forget_bias);

  const T* step(const T* x);           // x [batch, input_size]; returns h [batch, hidden_size] of the top layer
  const T* step_tokens(const int* ids);  // ids [batch]
  void reset();

  // Of all layers: [layers, batch, hidden_size].
  const T* h() const { return h_[current_].data(); }
  const T* c() const { return c_.data(); }
  void set_state(const T* h, const T* c);

  Index layers() const { return static_cast<Index>(layers_.size()); }
  Index batch() const { return batch_; }
  Index hidden_size() const { return hidden_; }
  Index input_size() const { return layers_.front().input_size; }
  bool takes_tokens() const { return takes_tokens_; }
  const KernelTable<T>& kernel_table() const { return *k_; }

 private:
  struct Layer {
    Index input_size;
    PackedGates<T> input_weights, recurrent_weights;
    StartingValues<T> starting_values;
  };
  const T* advance(const T* x, const int* ids);

  const KernelTable<T>* k_;
  Index hidden_, batch_;
  bool takes_tokens_;
  std::vector<Layer> layers_;
  AlignedBuffer<T> h_[2], c_;  // h in two copies: a step reads all units of the old one while it writes the new one
  int current_ = 0;
  std::vector<const T*> init_, x_, h_prev_, c_prev_;  // [batch]
  std::vector<T*> h_out_, c_out_;
};

}  // namespace lstmfast
