// What a set of kernels for one instruction set (ISA) can do: plain structs of arguments and one table of functions.
// This header is all that the kernels and their callers share. Its only function is always inlined, so objects compiled
// for different CPUs can include it.
//
// Memory layouts (V = `vector_length` elements of T, W = kPanelVectors * V):
//
//   gate block u    the W columns of a [., 4*hidden] matrix that hold units [u*V, (u+1)*V): gate by gate, V units each.
//                   There are ceil(hidden / V) blocks; units past `hidden` are zero.
//   gate panels     [block][row][W]: a [rows, 4*hidden] matrix cut into gate blocks. One register tile of rows x W then
//                   holds whole LSTM cells. Packed weights, pre-activations, kept gates and their gradients use it.
//   plain panels    [panel][row][width]: a [rows, columns] matrix cut into panels of kPanelVectors vectors; the last panel
//                   is as many vectors wide as it needs (`width` = 1..kPanelVectors times V), padded with zeros.
//
// Rows of unpacked operands are given as arrays of row pointers: lengths, resets, initial states, reversed and strided
// sequences then cost the kernels nothing and are invisible to them.
#pragma once

#include "core/inline.h"
#include "core/views.h"
#include "cpu/bf16x_kernels.h"

namespace lstmfast {

constexpr int kPanelVectors = 4;  // one per gate

// How a cell differs from the plain one. `reference.py` has the equations.
template <typename T>
struct CellVariant {
  const T* peepholes;  // [kPeepholeCount, hidden_size], or null: none
  T cell_clip;         // infinity: none
  bool coupled_gates;  // f = 1 - i; the forget gate's product is ignored

  // Whether the variant kernels must run. Weights read in place support plain cells only.
  LSTMFAST_INLINE bool has_hooks() const { return peepholes || coupled_gates || cell_clip < T(__builtin_huge_val()); }
};

// Factors of a step's rows, each [rows] -> [hidden_size], or null.
template <typename T>
struct CellMasks {
  const T* const* candidate;  // of g on its way to c
  const T* const* kept_cell;  // zoneout: the share of c_prev in c, which h and the output's peephole do not see
};

// Factors of some rows: the word of each unit in [unit_begin, unit_end) becomes `below` if it is smaller than
// `threshold`, else `above`. The words are those of Philox4x32-10 (Salmon et al. 2011) with this key and, after the
// unit's, these last three of its counter; `reference.py` has their order. Equal on every ISA.
struct MaskRow {
  unsigned row, step;
};
template <typename T>
struct MaskArgs {
  unsigned key[2], stream;
  unsigned threshold;
  T below, above;
  const MaskRow* rows;
  Index row_count;
  Index unit_begin, unit_end;
  T* factors;  // of unit 0 in row 0
  Index stride;
};

// Completes the gradient of a row's h, for units [unit_begin, unit_end). The next step's share of it is
//   from_next = d_h * next_mask + kept,
// and the whole is d_h = from_next + d_h_out + d_h_extra, of which with zoneout `kept` = d_h * share belongs to the state
// before, and the rest to what the step computed.
template <typename T>
struct StateGradientArgs {
  Index unit_begin, unit_end;
  T* d_h;
  const T *d_h_out, *d_h_extra;
  const T* next_mask;  // or null
  T* kept;             // or null, and then there is no zoneout; carried from step to step
  const T* share;
  T* d_initial;  // or null; receives `from_next`, which then does not flow to this row: the next step begins anew
};

// One LSTM step for rows [row_begin, row_end) and gate blocks [block_begin, block_end):
//   z = init + x·input_panels + h_prev·recurrent_panels, then the gates, c and h.
template <typename T>
struct StepForwardArgs {
  Index row_begin, row_end;
  Index block_begin, block_end;
  Index hidden_size;
  const T* const* init;     // [rows] -> the row's first gate block of starting values: bias, looked-up kernel row, ...
  Index init_block_stride;  // from one gate block to the next
  const T* const* x;        // [rows] -> [input_size]; without input, pointers to anything
  Index input_size;
  const T* input_panels;      // gate panels, input_size rows
  const T* const* h_prev;     // [rows] -> [recurrent_size]; must not overlap h
  Index recurrent_size;       // hidden_size, or 0: init holds the recurrent product already
  const T* recurrent_panels;  // gate panels, recurrent_size rows
  const T* const* c_prev;     // [rows] -> [hidden_size]; a row may be the same memory as its c
  T* const* h;                // [rows] -> [hidden_size]
  T* const* c;                // [rows] -> [hidden_size]
  T* gates;  // gate panels, indexed by row: activated i f g o; may overlap init; null: not wanted
  Index gate_block_stride;
  bool descending;  // from the last block to the first, which starts with weights still in cache from the last step
  const CellVariant<T>* variant;  // for variant_step_forward only, and so are these
  CellMasks<T> masks;
};

// The same step with weights in bfloat16: [block][row][2][V] words, the halves of the first word gates 0 (low) and 1
// (high), of the second 2 and 3.
struct BFloat16StepArgs {
  StepForwardArgs<float> step;  // its own panels are not read
  const int *input, *recurrent;
};

// The input's part of z for many steps at once: z[r] = init + x[r]·input_panels for rows [row_begin, row_end) and gate
// blocks [block_begin, block_end).
template <typename T>
struct GateProductArgs {
  Index row_begin, row_end;
  Index block_begin, block_end;
  const T* init;            // one row of starting values for all, gate blocks side by side
  const T* const* x;        // [rows] -> [input_size]
  Index input_size;
  const T* input_panels;    // gate panels, input_size rows
  T* z;                     // gate panels, from row `z_first_row` on
  Index z_block_stride, z_first_row;
};

// The same step backward, for the plain panels [panel_begin, panel_end) of hidden units:
//   d_h = d_h + d_h_extra + d_gates_next·recurrent_transposed, then the derivatives of the four gates and of c_prev.
template <typename T>
struct StepBackwardArgs {
  Index row_begin, row_end;
  Index panel_begin, panel_end;
  Index hidden_size;
  const T* const* d_gates_next;   // [rows] -> the row's first gate block of the step after this one, or `no_next`
  const T* no_next;               // a row of zeros in the same panels: there is no later step
  const T* recurrent_transposed;  // plain panels: (gate blocks * W) rows, hidden_size columns; or null, and then
  const T* d_h_next;              // [rows, hidden_size] from row_begin on holds that product
  const T* const* d_h;            // [rows] -> [hidden_size]
  const T* const* d_h_extra;      // [rows] -> [hidden_size]
  const T* const* d_c;            // [rows] -> [hidden_size]; may be the same memory as d_c_prev
  T* const* d_c_prev;             // [rows] -> [hidden_size]
  const T* const* c_prev;         // [rows] -> [hidden_size]
  const T* const* c;              // [rows] -> [hidden_size]
  const T* gates;                 // gate panels, indexed by row, as the forward step left them
  Index gate_block_stride;
  T* d_gates;  // gate panels, from row `d_gates_first_row` on: gradient of z
  Index d_gate_block_stride, d_gates_first_row;
  const CellVariant<T>* variant;  // for variant_step_backward only, and so are these
  CellMasks<T> masks;
  T* const* new_c;  // [rows] -> [hidden_size], written: c before zoneout, if `c` is not that; or null
  T* const* d_new_c;  // [rows] -> [hidden_size]: its gradient, with which that of o's z, in d_gates, and new_c are there
                      // already, because c was normalised; or null
};

// Layer normalisation between product and gates, for rows [row_begin, row_end) of gate panels: in each of `groups` groups
// of a row, all of it (1) or a gate (4), v = (v - mean) / sqrt(variance + epsilon); then z = init + gain * v.
template <typename T>
struct NormalizeGatesArgs {
  Index row_begin, row_end;
  Index hidden_size;
  int groups;
  T epsilon;
  T* v;  // gate panels, from row `v_first_row` on; may be z
  Index v_block_stride, v_first_row;
  bool adds_z;    // v + z is normalised
  T* scales;      // [rows, groups]: 1 / sqrt(variance + epsilon); or null
  const T* gain;  // one row of gate panels, blocks side by side
  const T* init;  // likewise; or null: z
  T* z;           // gate panels, from row `z_first_row` on
  Index z_block_stride, z_first_row;
};

// From the gradient of z to that of v before. `v` and `scales` are those of the forward step, from row 0 on.
template <typename T>
struct NormalizeGatesBackwardArgs {
  Index row_begin, row_end;
  Index hidden_size;
  int groups;
  const T* v;
  Index v_block_stride;
  const T *scales, *gain;
  const T* d_z;  // gate panels, from row `d_first_row` on
  T* d_v;        // likewise; may be d_z
  Index d_block_stride, d_first_row;
};

// Every row's gradient of z times v, for gate blocks [block_begin, block_end), added to sums.
template <typename T>
struct GateGainGradientArgs {
  Index block_begin, block_end;
  Index rows, hidden_size;
  const T* d_gates;  // gate panels, from row 0 on
  Index block_stride;
  const T* v;  // likewise
  Index v_block_stride;
  T* sums;  // [4*hidden_size]
};

// The end of a step whose c is normalised: h = o * tanh(n) with n = norm(new_c) * cell_gain + cell_shift; c is n or
// new_c, with zoneout mixed with c_prev. All [rows] -> [hidden_size].
template <typename T>
struct NormalizedCellsArgs {
  Index row_begin, row_end;
  Index hidden_size;
  T epsilon;
  bool carries_norm;
  const T *cell_gain, *cell_shift;
  const T* gates;  // gate panels, indexed by row
  Index gate_block_stride;
  T* const* new_c;
  T* statistics;  // [rows, 2], written: mean and 1 / sqrt(variance + epsilon) of new_c; or null
  const T* const* kept_cell;  // as in CellMasks
  const T* const* c_prev;
  T* const* c;
  T* const* h;
};

// And backward: writes new_c and d_new_c of `step` and its gradient of o's z. `d_gain` and `d_shift` are each row's share.
template <typename T>
struct NormalizedCellsBackwardArgs {
  StepBackwardArgs<T> step;
  const T* statistics;  // as written in the forward step
  bool carries_norm;
  const T *cell_gain, *cell_shift;
  T* const* d_gain;
  T* const* d_shift;
};

// Gradients of peepholes for gate blocks [block_begin, block_end): every row's gradient of a gate's z times the c that
// the gate saw, in order of rows, added to sums.
template <typename T>
struct PeepholeGradientArgs {
  Index block_begin, block_end;
  Index rows, hidden_size;
  const T* d_gates;  // gate panels, from row 0 on
  Index block_stride;
  const T* const* c_prev;  // [rows] -> [hidden_size]
  const T* const* c;       // [rows] -> [hidden_size]
  T* sums;                 // [kPeepholeCount, hidden_size]
};

// out[r, :] = bias + a[r, :]·panels for rows [row_begin, row_end) and plain panels [panel_begin, panel_end).
// A row of `a` consists of `depth_blocks` pieces of `block_length`, `block_stride` apart: 1 if plain, else gate panels.
template <typename T>
struct ProductArgs {
  Index row_begin, row_end;
  Index panel_begin, panel_end;
  const T* const* a;
  Index depth_blocks, block_length, block_stride;
  const T* panels;
  const T* bias;  // [columns] or null
  T* const* out;  // [rows] -> [columns]
  Index columns;
};

// out[m, :] = sum over r of a[r][m] * b[r, :] for m in [m_begin, m_end), added to what is there if `add`: the weight
// gradients. The sum runs over r in order, for any split of m and of the panels.
template <typename T>
struct TransposedLeft {
  const T* const* a;  // [rows] -> at least m_end elements
  Index m_begin, m_end;
  MatrixView<T> out;
};
template <typename T>
struct TransposedProductArgs : TransposedLeft<T> {
  Index panel_begin, panel_end;
  Index rows;
  const T* b;            // gate panels if gate_hidden_size > 0, plain panels else
  Index b_panel_stride;  // from one full panel to the next
  Index columns;
  Index gate_hidden_size;
  bool add;
  T* workspace;  // kTransposedWorkspace elements, this thread's own
};
constexpr Index kTransposedRows = 1024, kTransposedColumns = 96;  // of `a`, packed at once
constexpr Index kTransposedWorkspace = kTransposedRows * kTransposedColumns;

// The same for few rows: out[m, n] = sum over r of a[r][m] * b[r][n].
template <typename T>
struct OuterProductsArgs {
  Range m, n;
  const T* const* a;
  const T* const* b;
  Index rows;
  MatrixView<T> out;
  bool add;
};

// One kind of parameter update. Gradients are first multiplied by `scale`; slots are arrays as long as the parameters.
// Its formula in kernels/training-inl.h defines the constants.
template <typename T>
struct OptimizerKernel {
  const char* name;
  int constants, slots;  // how many of each
  void (*update)(T* p, const T* g, T* const* slots, Index count, const T* constants, T scale);
};
constexpr int kMostConstants = 9, kMostSlots = 2;

// Of a fingerprint (lstm/fingerprint.h): memory that one sum covers, and how many words on the second sum's keys begin.
constexpr Index kFingerprintBytes = 4096, kFingerprintShift = 16;

template <typename T>
struct KernelTable {
  int vector_length;
  int tile_rows;

  // Packing. `hidden` = hidden_size. All pad with zeros.
  // Rows `ids[i]` (or i) of kernel [., 4*hidden] plus bias, as gate panels with `count` rows. Either may be null.
  void (*pack_gate_rows)(const T* kernel, Index kernel_stride, const int* ids, Index count, Index hidden, const T* bias,
                         T forget_bias, T* panels, Index block_stride);
  // kernel [rows, 4*hidden] transposed: plain panels of (gate blocks * W) rows and `rows` columns.
  void (*pack_gates_transposed)(const T* kernel, Index kernel_stride, Index rows, Index hidden, T* panels);
  // The panels of the two above, from a transposed kernel [4*hidden, rows].
  void (*pack_gate_columns)(const T* kernel, Index kernel_stride, Index rows, Index hidden, T* panels,
                            Index block_stride);
  void (*pack_gate_columns_transposed)(const T* kernel, Index kernel_stride, Index rows, Index hidden, T* panels);
  void (*pack)(const T* matrix, Index stride, Index rows, Index columns, T* panels);             // plain panels
  void (*pack_transposed)(const T* matrix, Index stride, Index rows, Index columns, T* panels);  // `columns` rows
  // out[c, r] = matrix[r, c]
  void (*transpose)(const T* matrix, Index stride, Index rows, Index columns, T* out, Index out_stride);
  // Gate panels back to rows of [4, hidden].
  void (*unpack_gates)(const T* panels, Index block_stride, Index hidden, T* const* out, Index rows);

  void (*step_forward)(const StepForwardArgs<T>&);
  void (*gate_product)(const GateProductArgs<T>&);
  void (*step_backward)(const StepBackwardArgs<T>&);
  // The same for cells with a `variant`. The backward one does not multiply: it needs d_h_next.
  void (*variant_step_forward)(const StepForwardArgs<T>&);
  void (*variant_step_backward)(const StepBackwardArgs<T>&);
  void (*peephole_gradients)(const PeepholeGradientArgs<T>&);
  void (*fill_mask)(const MaskArgs<T>&);
  void (*complete_state_gradient)(const StateGradientArgs<T>&);
  void (*normalize_gates)(const NormalizeGatesArgs<T>&);
  void (*normalize_gates_backward)(const NormalizeGatesBackwardArgs<T>&);
  void (*gate_gain_gradients)(const GateGainGradientArgs<T>&);
  void (*normalized_cells)(const NormalizedCellsArgs<T>&);
  void (*normalized_cells_backward)(const NormalizedCellsBackwardArgs<T>&);
  // out = a * b, and out = share * a + (1 - share) * b; out may be one of them.
  void (*multiply)(const T* a, const T* b, Index count, T* out);
  void (*mix)(const T* share, const T* a, const T* b, Index count, T* out);
  void (*product)(const ProductArgs<T>&);
  void (*transposed_product)(const TransposedProductArgs<T>&);

  // out[columns] += x[rows]·matrix, and out[rows] = matrix·x[columns], with an unpacked matrix [rows, columns].
  void (*add_row_product)(const T* x, const T* matrix, Index stride, Index rows, Index columns, T* out);
  void (*row_dot_products)(const T* matrix, Index stride, Index rows, Index columns, const T* x, T* out);
  void (*outer_products)(const OuterProductsArgs<T>&);

  // Sums over rows, in order: added to sums [4*hidden] for gate blocks [begin, end), or set for columns.
  void (*sum_gate_rows)(const T* panels, Index block_stride, Index rows, Index hidden, Index begin, Index end, T* sums);
  void (*sum_rows)(const T* const* rows, Index count, Index begin, Index end, T* sums);
  // table[ids[r], gate block] += panels[block][r] for gate blocks [begin, end); table [., 4*hidden].
  void (*scatter_gate_rows)(const T* panels, Index block_stride, const int* ids, Index rows, Index hidden, Index begin,
                            Index end, T* table, Index table_stride);

  // Rows [begin, end): losses[r] = -log softmax(logits[r])[targets[r]]; gradients (may be null, may be the logits)
  // become scale * (softmax - one_hot).
  void (*softmax_cross_entropy)(const T* const* logits, const int* targets, Index begin, Index end, Index columns,
                                T scale, T* losses, T* const* gradients);

  double (*sum_of_squares)(const T* values, Index count);
  const OptimizerKernel<T>* optimizers;
  int optimizer_count;

  // The inner hash of a fingerprint: two sums over at most kFingerprintBytes of values, taken as words of 32 bits, with
  // as many keys and kFingerprintShift more. Equal on every ISA.
  void (*fingerprint)(const T* values, Index count, const unsigned* keys, unsigned long long* sums);

  // For tests: the functions that the step uses, element by element.
  void (*sigmoid)(const T* x, T* out, Index count);
  void (*tanh)(const T* x, T* out, Index count);
  void (*exp)(const T* x, T* out, Index count);

  // For benches: the limits of a core, see probes.h. Multiply-adds on registers: returns the number of operations, and
  // a sum that depends on them. Reads of whole vectors: returns a sum.
  Index (*fma_probe)(Index rounds, T* sum);
  T (*read_probe)(const T* data, Index count);
};

struct DotKernelSet;  // dot_kernels.h

struct Kernels {
  KernelTable<float> float32;
  KernelTable<double> float64;
  void (*step_bfloat16)(const BFloat16StepArgs&);
  const DotKernelSet* dots;
  const Bf16xKernels* bf16x = nullptr;  // null if the ISA has no bfloat16 products, or none faster than float32
};

}  // namespace lstmfast
