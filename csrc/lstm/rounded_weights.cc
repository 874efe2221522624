// Memory for rounded factors, and the rows of a step in runs: those that are rounded together, others one by one.
#include "lstm/rounded_weights.h"

#include <algorithm>

namespace lstmfast {

bool RoundedGates::pack(const KernelTable<float>& k, const DotKernels& dots, const KernelPart<float>& kernel,
                        Index hidden) {
  const PanelSizes<float> sizes(k);
  const Index blocks = sizes.gate_blocks(hidden), columns = sizes.gate_depth(hidden);
  const Index words = ceil_div(kernel.rows, dots.elements_per_word), pieces = ceil_div(words, kDotPiece);
  PackedGates<float> exact;
  exact.pack(k, kernel, hidden);
  int* starts = dots.needs_starts ? starts_.resize(pieces * columns) : nullptr;
  return dots.pack_gates(exact.data(), kernel.rows, blocks,
                         {words_.resize(words * columns), starts, scales_.resize(columns)});
}

bool RoundedRows::pack(const DotKernels& dots, const float* const* rows, Index count, Index depth) {
  // Rows a power of two apart would fall into few sets of the cache.
  constexpr Index kLine = 64 / sizeof(int);
  stride_ = (ceil_div(ceil_div(depth, dots.elements_per_word), kLine) + 1) * kLine;
  int* words = words_.resize((count + dots.rows_read_at_once - 1) * stride_);
  return dots.pack_rows(rows, count, depth, words, stride_, scales_.resize(count));
}

void RoundedRows::release() {
  words_.release();
  scales_.release();
}

namespace {

void step_in_float32(const KernelTable<float>& k, const DotKernels& dots, StepForwardArgs<float> step, Index row,
                     const DotPanels& input, const DotPanels& recurrent, AlignedBuffer<float>& memory) {
  const Index width = PanelSizes<float>(k).gate_width();
  float* z = memory.resize(step.block_end * width);
  for (Index block = step.block_begin; block < step.block_end; ++block)
    std::copy_n(step.init[row] + block * step.init_block_stride, width, z + block * width);
  const Range blocks{step.block_begin, step.block_end};
  if (step.input_size > 0) dots.add_unrounded_row(step.x[row], step.input_size, input, blocks, z, width);
  dots.add_unrounded_row(step.h_prev[row], step.recurrent_size, recurrent, blocks, z, width);
  const float* const init = z;
  step.init = &init - row;
  step.init_block_stride = width;
  step.input_size = step.recurrent_size = 0;
  step.row_begin = row;
  step.row_end = row + 1;
  step.variant ? k.variant_step_forward(step) : k.step_forward(step);
}

}  // namespace

void step_forward_rounded(const KernelTable<float>& k, const DotKernels& dots, const StepForwardArgs<float>& step,
                          const DotPanels& input, const DotPanels& recurrent, RoundedWorkspace& workspace) {
  const Index begin = step.row_begin, count = step.row_end - begin;
  auto &x = workspace.x, &h_prev = workspace.h_prev;
  bool all = h_prev.pack(dots, step.h_prev + begin, count, step.recurrent_size);
  if (step.input_size > 0) all &= x.pack(dots, step.x + begin, count, step.input_size);
  const auto is_rounded = [&](Index row) {
    return h_prev.is_rounded(row - begin) && (step.input_size == 0 || x.is_rounded(row - begin));
  };
  const auto run = step.variant ? dots.variant_step_forward : dots.step_forward;
  for (Index row = begin; row < step.row_end;) {
    Index end = all ? step.row_end : row;
    while (end < step.row_end && is_rounded(end)) ++end;
    DotStepArgs mine{step, step.input_size > 0 ? x.rows(row - begin) : DotRows{}, h_prev.rows(row - begin), input,
                     recurrent};
    mine.step.row_begin = row;
    mine.step.row_end = end;
    if (end > row) run(mine);
    if (end < step.row_end) step_in_float32(k, dots, step, end++, input, recurrent, workspace.z);
    row = end;
  }
}

}  // namespace lstmfast
