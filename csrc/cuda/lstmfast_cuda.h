// The C ABI of liblstmfast_cuda: recurrent sequences on an NVIDIA GPU, forward and backward, from raw device pointers.
// No Python, no framework, no cuBLAS: z = x·kernel + bias and every weight gradient are large plain products and stay
// with the caller. Nothing here allocates, synchronises or keeps state: memory, workspace and stream are the caller's.
// Works without a driver: there are no devices then, and a launch returns an error code. python/lstmfast/reference.py
// defines the results; the order of gates is i, f, g, o (core/gates.h).
//
// Order of calls: lstmfast_cuda_device_properties -> lstmfast_cuda_plan -> lstmfast_cuda_workspace_bytes ->
// lstmfast_cuda_forward -> lstmfast_cuda_backward. All arrays are C-contiguous unless a stride is named; "dtype" is the
// plan's. Functions that return int return 0, a negative LstmfastCudaError, or a positive cudaError_t.
#ifndef LSTMFAST_CUDA_H
#define LSTMFAST_CUDA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LSTMFAST_CUDA_API __attribute__((visibility("default")))
#define LSTMFAST_CUDA_ABI_VERSION 1

enum LstmfastCudaDtype { LSTMFAST_CUDA_FLOAT32 = 0, LSTMFAST_CUDA_BFLOAT16 = 1 };

enum LstmfastCudaPath {
  LSTMFAST_CUDA_NO_PATH = 0,   // in a plan: this direction was not requested
  LSTMFAST_CUDA_STEP = 1,      // one launch per time step; any device, any shape
  LSTMFAST_CUDA_SEQUENCE = 2,  // one cooperative launch; weights stay in registers of many SMs, h travels through L2
  LSTMFAST_CUDA_CLUSTER = 3,   // one launch; weights stay in registers of one block or cluster, h in its shared memory
};

enum LstmfastCudaError {
  LSTMFAST_CUDA_INVALID_SHAPE = -1,
  LSTMFAST_CUDA_INVALID_DTYPE = -2,
  LSTMFAST_CUDA_MISSING_POINTER = -3,
  LSTMFAST_CUDA_MISALIGNED_WORKSPACE = -4,
  LSTMFAST_CUDA_WORKSPACE_TOO_SMALL = -5,
  LSTMFAST_CUDA_INVALID_PLAN = -6,
  LSTMFAST_CUDA_UNSUPPORTED_DEVICE = -7,
};

typedef struct {
  int32_t compute_major, compute_minor;
  int32_t sm_count;
  int32_t shared_bytes_per_block;  // the most that a kernel may request (opt-in)
  int32_t registers_per_sm;
  int32_t threads_per_sm;
  int32_t clock_mhz;
  int32_t cooperative_launch;  // 1 if the device supports it
  int64_t l2_bytes;
  char name[256];
} LstmfastCudaDevice;

// How one direction of time runs. A batch is cut into slices of at most `slice_rows` rows; `groups` of them run in
// parallel in one launch, and `launches` launches run in sequence (of T steps each; the step path needs one per step).
typedef struct {
  int32_t path;     // LstmfastCudaPath
  int32_t variant;  // which kernel of that path: an index into its table
  int32_t threads;  // of a block
  int32_t blocks_per_group;
  int32_t groups;
  int32_t slice_rows;
  int32_t launches;
  int32_t cluster_size;       // blocks of a cluster, 1 without
  int32_t shared_bytes;       // of a block, dynamic
  float microseconds_per_step;  // estimated from data sheets, of all rows; only good for choosing
} LstmfastCudaDirectionPlan;

typedef struct {
  int64_t hidden_size, batch;
  int32_t dtype;  // LstmfastCudaDtype of h, recurrent_kernel and their gradients; cells and gates are float32
  int32_t training;
  LstmfastCudaDirectionPlan forward, backward;
} LstmfastCudaPlan;

typedef struct {
  int64_t time_steps;               //              1 or more
  const void* z;                    // [T, B, 4H]  x·kernel + bias (+ forget_bias), of z_dtype
  const void* recurrent_kernel;     // [H, 4H]     dtype; rows `recurrent_kernel_stride` elements apart
  int64_t recurrent_kernel_stride;  //             at least 4H
  const void* h0;                   // [B, H]      dtype; null is zero
  const float* c0;                  // [B, H]      null is zero
  const int32_t* lengths;           // [B]         each 0..T; null: all T
  const uint8_t* resets;            // [T, B]      not 0: the state is zeroed before that step; null: none
  void* h;                          // [T, B, H]   dtype; zero past a row's length
  void* h_n;                        // [B, H]      dtype
  float* c_n;                       // [B, H]
  float* gates;                     // [T, B, 4, H] activated, zero past a row's length; null: not kept
  float* cells;                     // [T, B, H]   c after each step, zero past a row's length; null: not kept
  void* workspace;                  // lstmfast_cuda_workspace_bytes of them, at a multiple of 256
  int64_t workspace_bytes;
  int32_t z_dtype;     // LstmfastCudaDtype
  int32_t reverse;     // not 0: each row runs from its own last step down to step 0
  int32_t spin_limit;  // polls of a word of h before the launch gives up; 0: 2^22, about two seconds
  int32_t reuse_weights;  // not 0: the workspace still holds the weights packed by a forward call with this plan
} LstmfastCudaForward;

typedef struct {
  int64_t time_steps;
  const void* recurrent_kernel;  // as in the forward call
  int64_t recurrent_kernel_stride;
  const float* c0;         // [B, H]       as in the forward call
  const float* gates;      // [T, B, 4, H] as the forward call left them
  const float* cells;      // [T, B, H]
  const int32_t* lengths;  // [B]          as in the forward call
  const uint8_t* resets;   // [T, B]
  const void* d_h;         // [T, B, H]    dtype; not read past a row's length; null is zero
  const void* d_h_n;       // [B, H]       dtype; null is zero
  const float* d_c_n;      // [B, H]       null is zero
  void* d_z;               // [T, B, 4H]   dtype; gradient of z, zero past a row's length
  void* d_h0;              // [B, H]       dtype
  float* d_c0;             // [B, H]
  void* workspace;
  int64_t workspace_bytes;
  int32_t reverse;
  int32_t spin_limit;
} LstmfastCudaBackward;

// The first 32-bit word of the workspace after a launch. If it is not 0, results are NaN from some step on.
enum LstmfastCudaStatus { LSTMFAST_CUDA_STATUS_GOOD = 0, LSTMFAST_CUDA_STATUS_SPIN_LIMIT = 1 };

LSTMFAST_CUDA_API int lstmfast_cuda_abi_version(void);
LSTMFAST_CUDA_API int lstmfast_cuda_runtime_version(void);  // of the CUDA runtime linked in, 13000 for 13.0; 0 emulated
LSTMFAST_CUDA_API int lstmfast_cuda_is_emulated(void);      // 1: kernels run on the CPU and pointers are the host's
LSTMFAST_CUDA_API const char* lstmfast_cuda_error_string(int error);

// *count becomes 0 without a driver or device; the return value gives the reason.
LSTMFAST_CUDA_API int lstmfast_cuda_device_count(int* count);
LSTMFAST_CUDA_API int lstmfast_cuda_device_properties(int device, LstmfastCudaDevice* properties);

// A pure function of its arguments. hidden_size 1..2048, batch 1 or more; training: plan the backward direction too.
LSTMFAST_CUDA_API int lstmfast_cuda_plan(const LstmfastCudaDevice* device, int64_t hidden_size, int64_t batch,
                                         int32_t dtype, int32_t training, LstmfastCudaPlan* plan);
// The same with one path forced (LstmfastCudaPath), for tests and benches; INVALID_PLAN if the shape does not fit it.
LSTMFAST_CUDA_API int lstmfast_cuda_plan_path(const LstmfastCudaDevice* device, int64_t hidden_size, int64_t batch,
                                              int32_t dtype, int32_t training, int32_t path, LstmfastCudaPlan* plan);
// Bytes of workspace of a forward (backward != 0: backward) call; 0 if the plan has no such direction.
LSTMFAST_CUDA_API int64_t lstmfast_cuda_workspace_bytes(const LstmfastCudaPlan* plan, int64_t time_steps, int32_t backward);

// Launch on the current device and this stream (cudaStream_t; null: the default one). Returns before the work is done.
LSTMFAST_CUDA_API int lstmfast_cuda_forward(const LstmfastCudaPlan* plan, const LstmfastCudaForward* args, void* stream);
LSTMFAST_CUDA_API int lstmfast_cuda_backward(const LstmfastCudaPlan* plan, const LstmfastCudaBackward* args, void* stream);

// Makes a device the calling thread's current one, on which launches run.
LSTMFAST_CUDA_API int lstmfast_cuda_set_device(int device);

#ifdef __cplusplus
}
#endif
#endif
