// A stack of LSTM layers advanced one step at a time: weights packed once, state inside, no allocation in `step`.
#pragma once

#include <variant>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/precision.h"
#include "cpu/kernel_table.h"
#include "cpu/parallel.h"
#include "lstm/bfloat16_weights.h"
#include "lstm/packed_weights.h"
#include "lstm/rounded_weights.h"

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
  // All layers have hidden_size units. Copies the weights, in another format if float32; biases and the kernel rows
  // that token ids select stay as they are, because they do not limit speed. Throws std::invalid_argument for int8 if a
  // weight is not finite. `takes_tokens`: the first layer's input is an id.
  Stream(const std::vector<StreamLayer<T>>& layers, Index hidden_size, Index batch, bool takes_tokens, T forget_bias,
         WeightFormat format = WeightFormat::kFloat32);
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

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
  Index input_size() const { return input_size_; }
  bool takes_tokens() const { return takes_tokens_; }
  double multiply_adds() const { return multiply_adds_; }  // of one step
  const KernelTable<T>& kernel_table() const { return *k_; }

 private:
  struct Packed {
    PackedGates<T> input, recurrent;
  };
  struct BFloat16 {
    BFloat16Gates input, recurrent;
  };
  struct Int8 {
    RoundedGates input, recurrent;
  };
  struct Layer {
    std::variant<Packed, BFloat16, Int8> weights;
    StartingValues<T> starting_values;
    std::vector<const T*> init, x, c_prev;  // [batch]
    std::vector<const T*> h_prev[2];        // by the copy of h that is current
    std::vector<T*> h[2], c;
    StepForwardArgs<T> step;
  };
  void pack(Layer& layer, const StreamLayer<T>& given, bool by_id, T forget_bias, WeightFormat format);
  void point_to_state(Index layer);
  const T* advance();
  void run(const Layer& layer, Range blocks, int part);

  const Kernels* kernels_;  // those that the weights are packed for
  const KernelTable<T>* k_;
  Index hidden_, batch_, input_size_;
  bool takes_tokens_;
  double multiply_adds_ = 0;
  std::vector<Layer> layers_;
  AlignedBuffer<T> h_[2], c_;  // h in two copies: a step reads all units of the old one while it writes the new one
  int current_ = 0;
  std::vector<RoundedWorkspace> workspaces_;  // one for each thread, of int8
  Barrier between_layers_;
};

}  // namespace lstmfast
