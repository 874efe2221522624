// The library: checks arguments, lays out the workspace and launches. See lstmfast_cuda.h.
#include "cuda/lstmfast_cuda.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <iterator>

#include "cuda/plan.h"
#include "cuda/sequence.cuh"
#include "cuda/sequence_float32.cuh"
#include "cuda/step.cuh"

namespace lstmfast::cuda {
namespace {

constexpr int kDefaultSpinLimit = 1 << 22;

// --- launch arguments, from the arguments of the ABI -----------------------------------------------------------------

bool is_valid(const LstmfastCudaPlan& plan, Direction direction) {
  const LstmfastCudaDirectionPlan& d = direction_plan(plan, direction);
  const bool shape = plan.hidden_size >= 1 && plan.hidden_size <= kMostHidden && plan.batch >= 1;
  if (!shape || d.slice_rows < 1 || d.slice_rows % 4 != 0 || d.groups < 1 || d.launches < 1 || d.blocks_per_group < 1)
    return false;
  if (d.path == LSTMFAST_CUDA_STEP) return d.variant == 0 || (d.variant == 1 && plan.dtype == LSTMFAST_CUDA_FLOAT32);
  if (d.variant < 0 || d.variant >= variant_count(plan.dtype, direction)) return false;
  const VariantFacts v = variant_facts(plan.dtype, direction, d.variant);
  const int padded = padded_hidden(static_cast<int>(plan.hidden_size));
  const int depth = direction == kForward ? padded : kGateCount * padded;
  return v.path == d.path && depth <= v.most_depth && d.slice_rows % v.row_step == 0 && d.slice_rows <= v.most_rows &&
         d.threads == v.threads && static_cast<int64_t>(d.slice_rows) * d.groups * d.launches >= plan.batch &&
         d.blocks_per_group * v.block_units >= padded &&
         d.cluster_size == (d.path == LSTMFAST_CUDA_CLUSTER ? d.blocks_per_group : 1) &&
         d.shared_bytes == v.shared_bytes(depth, d.slice_rows);
}

// The checks of both directions, and the parts of the workspace.
template <class Args>
int check(const LstmfastCudaPlan* plan, Direction direction, const Args* args) {
  if (plan == nullptr || args == nullptr) return LSTMFAST_CUDA_MISSING_POINTER;
  if (plan->dtype != LSTMFAST_CUDA_FLOAT32 && plan->dtype != LSTMFAST_CUDA_BFLOAT16) return LSTMFAST_CUDA_INVALID_DTYPE;
  if (!is_valid(*plan, direction)) return LSTMFAST_CUDA_INVALID_PLAN;
  if (args->time_steps < 1 || args->time_steps >= INT32_MAX) return LSTMFAST_CUDA_INVALID_SHAPE;
  if (args->recurrent_kernel_stride < 4 * plan->hidden_size) return LSTMFAST_CUDA_INVALID_SHAPE;
  if (args->recurrent_kernel == nullptr || args->workspace == nullptr) return LSTMFAST_CUDA_MISSING_POINTER;
  if (reinterpret_cast<uintptr_t>(args->workspace) % 256 != 0) return LSTMFAST_CUDA_MISALIGNED_WORKSPACE;
  if (args->workspace_bytes < workspace_layout(*plan, direction, args->time_steps).bytes)
    return LSTMFAST_CUDA_WORKSPACE_TOO_SMALL;
  return 0;
}

template <class Args>
Problem problem_of(const LstmfastCudaPlan& plan, const Args& args) {
  return {static_cast<int>(args.time_steps), static_cast<int>(plan.batch), static_cast<int>(plan.hidden_size),
          args.reverse != 0, args.lengths, args.resets};
}

struct Workspace {
  WorkspaceLayout at;
  char* bytes;

  uint32_t* status() const { return reinterpret_cast<uint32_t*>(bytes); }
  void* packed() const { return bytes + at.packed; }
  void* exchange() const { return bytes + at.exchange; }
  void* slot(int number) const {  // of the only slice
    return bytes + at.exchange + static_cast<int64_t>(number) * at.slice_rows * at.depth * at.element_bytes;
  }
  float* state(int number) const { return reinterpret_cast<float*>(bytes + at.state + number * at.state_bytes / 2); }
};

template <class T, class Weights>
int launch_prepare(const PrepareArgs& args, void* stream) {
  constexpr int64_t kMostBlocks = 2048;
  const int64_t vectors = std::max(args.packed_vectors, args.exchange_vectors);
  const int64_t blocks = std::max<int64_t>(1, std::min((vectors + kPrepareThreads - 1) / kPrepareThreads, kMostBlocks));
  return LSTMFAST_LAUNCH((prepare<T, Weights>), dim3(static_cast<unsigned>(blocks)), dim3(kPrepareThreads), 0, stream, args);
}

template <class Args>
int launch_prepare(const LstmfastCudaPlan& plan, Direction direction, const Args& args, const void* h0,
                   bool reuse_weights, const Workspace& workspace, void* stream) {
  const WorkspaceLayout& at = workspace.at;
  PrepareArgs a = {};
  a.hidden = static_cast<int>(plan.hidden_size);
  a.batch = static_cast<int>(plan.batch);
  a.recurrent_kernel = args.recurrent_kernel;
  a.stride = args.recurrent_kernel_stride;
  a.h0 = h0;
  a.packed = workspace.packed();
  const int64_t padded = padded_hidden(a.hidden);
  a.packed_vectors = reuse_weights ? 0 : kGateCount * padded * padded * at.element_bytes / kVectorBytes;
  a.exchange = workspace.exchange();
  a.exchange_vectors =
      static_cast<int64_t>(at.slices) * at.slots * at.slice_rows * at.depth * at.element_bytes / kVectorBytes;
  a.slots = std::max(at.slots, 1);
  a.slice_rows = at.slice_rows;
  a.depth = at.depth;
  const bool flagged = direction_plan(plan, direction).path == LSTMFAST_CUDA_SEQUENCE;
  a.fill = flagged ? kAbsent : 0;
  a.fill_first = direction == kBackward;
  a.status = workspace.status();
  if (plan.dtype == LSTMFAST_CUDA_FLOAT32)
    return direction == kForward ? launch_prepare<float, ForwardWeights<float>>(a, stream)
                                 : launch_prepare<float, BackwardWeights<float>>(a, stream);
  return direction == kForward ? launch_prepare<bfloat16, ForwardWeights<bfloat16>>(a, stream)
                               : launch_prepare<bfloat16, BackwardWeights<bfloat16>>(a, stream);
}

// --- steps -----------------------------------------------------------------------------------------------------------

int block_rows(const LstmfastCudaPlan& plan, const LstmfastCudaDirectionPlan& d) {
  if (plan.dtype == LSTMFAST_CUDA_BFLOAT16) return kStepTiles * kTileRows;
  return d.variant == 0 ? 4 : 16;
}

dim3 step_grid(const LstmfastCudaPlan& plan, const LstmfastCudaDirectionPlan& d, int block_units) {
  const int padded = padded_hidden(static_cast<int>(plan.hidden_size));
  return dim3(padded / block_units, (d.slice_rows + block_rows(plan, d) - 1) / block_rows(plan, d));
}

int launch_step(const LstmfastCudaPlan& plan, const ForwardStep& s, void* stream) {
  const dim3 block(kStepThreads);
  const dim3 grid = step_grid(plan, plan.forward, plan.dtype == LSTMFAST_CUDA_FLOAT32 ? kStepUnits : kForwardTileUnits);
  if (plan.dtype == LSTMFAST_CUDA_BFLOAT16) return LSTMFAST_LAUNCH(forward_step_bfloat16, grid, block, 0, stream, s);
  if (plan.forward.variant == 0) return LSTMFAST_LAUNCH((forward_step_float32<1>), grid, block, 0, stream, s);
  return LSTMFAST_LAUNCH((forward_step_float32<4>), grid, block, 0, stream, s);
}

int launch_step(const LstmfastCudaPlan& plan, const BackwardStep& s, void* stream) {
  const dim3 block(kStepThreads);
  const dim3 grid = step_grid(plan, plan.backward, plan.dtype == LSTMFAST_CUDA_FLOAT32 ? kStepUnits : kBackwardTileUnits);
  if (plan.dtype == LSTMFAST_CUDA_BFLOAT16) return LSTMFAST_LAUNCH(backward_step_bfloat16, grid, block, 0, stream, s);
  if (plan.backward.variant == 0) return LSTMFAST_LAUNCH((backward_step_float32<1>), grid, block, 0, stream, s);
  return LSTMFAST_LAUNCH((backward_step_float32<4>), grid, block, 0, stream, s);
}

int run_steps(const LstmfastCudaPlan& plan, const Problem& problem, const ForwardArrays& arrays,
              const Workspace& workspace, void* stream) {
  for (int step = 0; step < problem.time_steps; ++step) {
    ForwardStep s = {};
    s.problem = problem;
    s.arrays = arrays;
    s.t = problem.reverse ? problem.time_steps - 1 - step : step;
    s.first = step == 0;
    s.last = step == problem.time_steps - 1;
    s.exchanged_rows = workspace.at.slice_rows;
    s.packed = workspace.packed();
    s.h_before = workspace.slot(step % 2);
    s.h_after = workspace.slot((step + 1) % 2);
    if (const int error = launch_step(plan, s, stream)) return error;
  }
  return 0;
}

int run_steps(const LstmfastCudaPlan& plan, const Problem& problem, const BackwardArrays& arrays,
              const Workspace& workspace, void* stream) {
  for (int step = 0; step <= problem.time_steps; ++step) {
    const auto time = [&](int number) { return problem.reverse ? number : problem.time_steps - 1 - number; };
    BackwardStep s = {};
    s.problem = problem;
    s.arrays = arrays;
    s.t = step < problem.time_steps ? time(step) : -1;
    s.first = step == 0;
    s.t_after = step == 0 ? -1 : time(step - 1);
    s.exchanged_rows = workspace.at.slice_rows;
    s.packed = workspace.packed();
    s.d_z_after = workspace.slot((step + 1) % 2);
    s.d_z = workspace.slot(step % 2);
    s.d_h = workspace.state(0);
    s.d_c = workspace.state(1);
    if (const int error = launch_step(plan, s, stream)) return error;
  }
  return 0;
}

// --- sequences -------------------------------------------------------------------------------------------------------

template <class Arguments>
int launch_variant(void (*kernel)(Arguments), const LstmfastCudaDirectionPlan& d, const Arguments& s, int groups,
                   void* stream) {
  const dim3 grid(static_cast<unsigned>(groups * d.blocks_per_group)), block(static_cast<unsigned>(d.threads));
  const size_t bytes = static_cast<size_t>(d.shared_bytes) - LSTMFAST_PLANTED(kSharedBytes) * 16;
  if (d.path == LSTMFAST_CUDA_SEQUENCE && !LSTMFAST_PLANTED(kNotCooperative))
    return LSTMFAST_LAUNCH_COOPERATIVE(kernel, grid, block, bytes, stream, s);
  if (d.cluster_size > 1)
    return LSTMFAST_LAUNCH_CLUSTER(kernel, static_cast<unsigned>(d.cluster_size), grid, block, bytes, stream, s);
  return LSTMFAST_LAUNCH(kernel, grid, block, bytes, stream, s);
}

// The kernels by the numbers of their variants, in the order of the tables in plan.h.
int launch_sequence(const LstmfastCudaPlan& plan, const ForwardSequence& s, int groups, void* stream) {
  static constexpr void (*kBfloat16[])(ForwardSequence) = {
      forward_sequence<0>, forward_sequence<1>, forward_sequence<2>,
      forward_sequence<3>, forward_sequence<4>, forward_sequence<5>};
  static constexpr void (*kFloat32[])(ForwardSequence) = {forward_sequence_float32<0>, forward_sequence_float32<1>,
                                                          forward_sequence_float32<2>, forward_sequence_float32<3>};
  static_assert(std::size(kBfloat16) == std::size(kForwardVariants), "every variant has its kernel");
  static_assert(std::size(kFloat32) == std::size(kForwardFloat32Variants), "every variant has its kernel");
  const int variant = plan.forward.variant;
  return launch_variant(plan.dtype == LSTMFAST_CUDA_FLOAT32 ? kFloat32[variant] : kBfloat16[variant], plan.forward, s,
                        groups, stream);
}

int launch_sequence(const LstmfastCudaPlan& plan, const BackwardSequence& s, int groups, void* stream) {
  static constexpr void (*kBfloat16[])(BackwardSequence) = {backward_sequence<0>, backward_sequence<1>,
                                                            backward_sequence<2>, backward_sequence<3>};
  static constexpr void (*kFloat32[])(BackwardSequence) = {backward_sequence_float32<0>, backward_sequence_float32<1>,
                                                           backward_sequence_float32<2>};
  static_assert(std::size(kBfloat16) == std::size(kBackwardVariants), "every variant has its kernel");
  static_assert(std::size(kFloat32) == std::size(kBackwardFloat32Variants), "every variant has its kernel");
  const int variant = plan.backward.variant;
  return launch_variant(plan.dtype == LSTMFAST_CUDA_FLOAT32 ? kFloat32[variant] : kBfloat16[variant], plan.backward, s,
                        groups, stream);
}

template <class Arrays>
int run_sequence(const LstmfastCudaPlan& plan, const LstmfastCudaDirectionPlan& d, const Problem& problem,
                 const Arrays& arrays, const Workspace& workspace, int spin_limit, void* stream) {
  const WorkspaceLayout& at = workspace.at;
  Sequence<Arrays> s = {};
  s.problem = problem;
  s.arrays = arrays;
  s.exchange = {workspace.exchange(), at.slots, at.slice_rows, at.depth, d.cluster_size,
                spin_limit > 0 ? spin_limit : kDefaultSpinLimit, workspace.status()};
  s.packed = static_cast<const uint4*>(workspace.packed());
  s.blocks_per_group = d.blocks_per_group;
  for (s.first_slice = 0; s.first_slice < at.slices; s.first_slice += d.groups)
    if (const int error = launch_sequence(plan, s, std::min(d.groups, at.slices - s.first_slice), stream)) return error;
  return 0;
}

template <class Args, class Arrays>
int run(const LstmfastCudaPlan& plan, Direction direction, const Args& args, const Arrays& arrays, const void* h0,
        bool reuse_weights, void* stream) {
  const Workspace workspace = {workspace_layout(plan, direction, args.time_steps), static_cast<char*>(args.workspace)};
  if (const int error = launch_prepare(plan, direction, args, h0, reuse_weights, workspace, stream)) return error;
  const Problem problem = problem_of(plan, args);
  const LstmfastCudaDirectionPlan& d = direction_plan(plan, direction);
  if (d.path == LSTMFAST_CUDA_STEP) return run_steps(plan, problem, arrays, workspace, stream);
  return run_sequence(plan, d, problem, arrays, workspace, args.spin_limit, stream);
}

}  // namespace
}  // namespace lstmfast::cuda

using namespace lstmfast::cuda;

extern "C" int lstmfast_cuda_forward(const LstmfastCudaPlan* plan, const LstmfastCudaForward* args, void* stream) {
  if (const int error = check(plan, kForward, args)) return error;
  if (args->z_dtype != LSTMFAST_CUDA_FLOAT32 && args->z_dtype != LSTMFAST_CUDA_BFLOAT16) return LSTMFAST_CUDA_INVALID_DTYPE;
  if (!args->z || !args->h || !args->h_n || !args->c_n) return LSTMFAST_CUDA_MISSING_POINTER;
  const ForwardArrays arrays = {args->z, args->z_dtype == LSTMFAST_CUDA_BFLOAT16, args->c0, args->h, args->h_n, args->c_n,
                                args->gates, args->cells};
  return run(*plan, kForward, *args, arrays, args->h0, args->reuse_weights != 0, stream);
}

extern "C" int lstmfast_cuda_backward(const LstmfastCudaPlan* plan, const LstmfastCudaBackward* args, void* stream) {
  if (const int error = check(plan, kBackward, args)) return error;
  if (!args->gates || !args->cells || !args->d_z || !args->d_h0 || !args->d_c0) return LSTMFAST_CUDA_MISSING_POINTER;
  const BackwardArrays arrays = {args->c0, args->gates, args->cells, args->d_h, args->d_h_n, args->d_c_n,
                                 args->d_z, args->d_h0, args->d_c0};
  return run(*plan, kBackward, *args, arrays, nullptr, false, stream);
}

extern "C" int lstmfast_cuda_abi_version(void) { return LSTMFAST_CUDA_ABI_VERSION; }

#ifdef __CUDACC__

extern "C" int lstmfast_cuda_runtime_version(void) { return CUDART_VERSION; }
extern "C" int lstmfast_cuda_is_emulated(void) { return 0; }
static const char* runtime_error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

extern "C" int lstmfast_cuda_device_count(int* count) {
  if (count == nullptr) return LSTMFAST_CUDA_MISSING_POINTER;
  const cudaError_t error = cudaGetDeviceCount(count);
  if (error != cudaSuccess) *count = 0;
  cudaGetLastError();  // clears the error: a missing driver is a valid answer
  return error;
}

extern "C" int lstmfast_cuda_set_device(int device) { return cudaSetDevice(device); }

extern "C" int lstmfast_cuda_device_properties(int device, LstmfastCudaDevice* properties) {
  if (properties == nullptr) return LSTMFAST_CUDA_MISSING_POINTER;
  cudaDeviceProp found;
  if (const cudaError_t error = cudaGetDeviceProperties(&found, device)) return error;
  int clock_khz = 0;
  if (const cudaError_t error = cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, device)) return error;
  *properties = {found.major, found.minor, found.multiProcessorCount, static_cast<int32_t>(found.sharedMemPerBlockOptin),
                 found.regsPerMultiprocessor, found.maxThreadsPerMultiProcessor, clock_khz / 1000, found.cooperativeLaunch,
                 found.l2CacheSize, {}};
  std::strncpy(properties->name, found.name, sizeof properties->name - 1);
  return 0;
}

#else  // the emulator: one device with the properties of an H100

extern "C" int lstmfast_cuda_runtime_version(void) { return 0; }
extern "C" int lstmfast_cuda_is_emulated(void) { return 1; }
static const char* runtime_error_string(int) { return cuda_emu::last_error().c_str(); }

extern "C" int lstmfast_cuda_device_count(int* count) {
  if (count == nullptr) return LSTMFAST_CUDA_MISSING_POINTER;
  *count = 1;
  return 0;
}

extern "C" int lstmfast_cuda_set_device(int device) { return device == 0 ? 0 : 101; }  // cudaErrorInvalidDevice

extern "C" int lstmfast_cuda_device_properties(int device, LstmfastCudaDevice* properties) {
  if (properties == nullptr) return LSTMFAST_CUDA_MISSING_POINTER;
  if (device != 0) return 101;
  const cuda_emu::Device& d = cuda_emu::device();
  *properties = {d.major, d.minor, static_cast<int32_t>(d.multiprocessors), static_cast<int32_t>(d.shared_per_block),
                 65536, static_cast<int32_t>(d.threads_per_multiprocessor), 1755, 1, 50 << 20, {}};
  std::strncpy(properties->name, "emulated on the CPU", sizeof properties->name - 1);
  return 0;
}

#endif

extern "C" const char* lstmfast_cuda_error_string(int error) {
  switch (error) {
    case 0: return "no error";
    case LSTMFAST_CUDA_INVALID_SHAPE: return "a size is out of range (hidden_size 1..2048, batch and time_steps 1 or more)";
    case LSTMFAST_CUDA_INVALID_DTYPE: return "the dtype is neither float32 nor bfloat16";
    case LSTMFAST_CUDA_MISSING_POINTER: return "a required pointer is null";
    case LSTMFAST_CUDA_MISALIGNED_WORKSPACE: return "the workspace does not begin at a multiple of 256 bytes";
    case LSTMFAST_CUDA_WORKSPACE_TOO_SMALL: return "the workspace is smaller than lstmfast_cuda_workspace_bytes";
    case LSTMFAST_CUDA_INVALID_PLAN: return "the plan has no kernel for this direction, shape or path";
    case LSTMFAST_CUDA_UNSUPPORTED_DEVICE:
      return "the device's compute capability is too low: 7.5 for float32, 8.0 for bfloat16";
    default: return error < 0 ? "unknown error" : runtime_error_string(error);
  }
}
