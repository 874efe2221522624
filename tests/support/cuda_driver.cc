// Runs problems through the C ABI of the CUDA kernels, emulated: `driver SEED BUG FILE...`. Each FILE holds a problem as
// cuda_cases.py writes it; FILE.out gets the results. Every array is a heap block of its own, of exactly its size, so that
// AddressSanitizer sees the first byte past it. Says nothing about right and wrong: Python compares.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "cuda/lstmfast_cuda.h"
#include "cuda_emu.h"
#include "cuda_planted.h"

namespace lstmfast::cuda {
PlantedBug planted_bug = PlantedBug::kNone;
}

namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Bytes = std::unique_ptr<char, Free>;

// The file's order: these numbers, then the arrays that `given` names, in the order of its bits.
struct Header {
  int64_t time_steps, batch, hidden, dtype, z_dtype, path, reverse, spin_limit;
  int64_t compute_major, compute_minor, sm_count, shared_bytes, forward_only, reuse_weights, given;
};

class Problem {
 public:
  explicit Problem(const char* name) : file_(name, std::ios::binary) {
    file_.read(reinterpret_cast<char*>(&header), sizeof header);
  }

  // The next array of the file, or null where the problem has none.
  Bytes array(int64_t elements, int64_t element_bytes) {
    const bool is_given = header.given >> next_++ & 1;
    if (!is_given) return nullptr;
    Bytes bytes(static_cast<char*>(std::malloc(elements * element_bytes)));
    file_.read(bytes.get(), elements * element_bytes);
    if (!file_) std::exit(3);
    return bytes;
  }

  Header header;

 private:
  std::ifstream file_;
  int next_ = 0;
};

Bytes output(int64_t bytes) {
  char* p = static_cast<char*>(std::malloc(bytes));
  std::memset(p, 0xff, bytes);  // NaN: what is not written shows
  return Bytes(p);
}

Bytes workspace_of(int64_t bytes) {
  char* p = static_cast<char*>(std::aligned_alloc(256, bytes));
  std::memset(p, 0x40, bytes);  // floats of about 3: what is read without having been written shows
  return Bytes(p);
}

void write(std::ofstream& file, const Bytes& bytes, int64_t size) { file.write(bytes.get(), size); }

void run(const std::string& name) {
  Problem problem(name.c_str());
  const Header& p = problem.header;
  const int64_t state = p.batch * p.hidden, all = p.time_steps * state, element = p.dtype == 0 ? 4 : 2;
  const Bytes z = problem.array(4 * all, p.z_dtype == 0 ? 4 : 2);
  const Bytes recurrent_kernel = problem.array(4 * p.hidden * p.hidden, element);
  const Bytes h0 = problem.array(state, element), c0 = problem.array(state, 4);
  const Bytes lengths = problem.array(p.batch, 4), resets = problem.array(p.time_steps * p.batch, 1);
  const Bytes d_h = problem.array(all, element), d_h_n = problem.array(state, element), d_c_n = problem.array(state, 4);

  LstmfastCudaDevice device = {};
  lstmfast_cuda_device_properties(0, &device);
  device.compute_major = static_cast<int32_t>(p.compute_major);
  device.compute_minor = static_cast<int32_t>(p.compute_minor);
  device.sm_count = static_cast<int32_t>(p.sm_count);
  device.shared_bytes_per_block = static_cast<int32_t>(p.shared_bytes);
  LstmfastCudaPlan plan = {};
  std::ofstream out(name + ".out", std::ios::binary);
  int64_t codes[8] = {};
  codes[0] = lstmfast_cuda_plan_path(&device, p.hidden, p.batch, static_cast<int32_t>(p.dtype), !p.forward_only,
                                     static_cast<int32_t>(p.path), &plan);
  codes[5] = plan.forward.variant;
  codes[6] = plan.backward.variant;
  codes[7] = plan.forward.groups;

  const Bytes h = output(all * element), h_n = output(state * element), c_n = output(state * 4);
  const Bytes gates = output(4 * all * 4), cells = output(all * 4);
  const Bytes d_z = output(4 * all * element), d_h0 = output(state * element), d_c0 = output(state * 4);
  const auto floats = [](const Bytes& bytes) { return reinterpret_cast<float*>(bytes.get()); };
  if (codes[0] == 0) {
    const int64_t bytes = lstmfast_cuda_workspace_bytes(&plan, p.time_steps, 0);
    const Bytes workspace = workspace_of(bytes);
    LstmfastCudaForward a = {};
    a.time_steps = p.time_steps;
    a.z = z.get();
    a.z_dtype = static_cast<int32_t>(p.z_dtype);
    a.recurrent_kernel = recurrent_kernel.get();
    a.recurrent_kernel_stride = 4 * p.hidden;
    a.h0 = h0.get();
    a.c0 = floats(c0);
    a.lengths = reinterpret_cast<int32_t*>(lengths.get());
    a.resets = reinterpret_cast<uint8_t*>(resets.get());
    a.h = h.get();
    a.h_n = h_n.get();
    a.c_n = floats(c_n);
    a.gates = floats(gates);
    a.cells = floats(cells);
    a.workspace = workspace.get();
    a.workspace_bytes = bytes;
    a.reverse = static_cast<int32_t>(p.reverse);
    a.spin_limit = static_cast<int32_t>(p.spin_limit);
    codes[1] = lstmfast_cuda_forward(&plan, &a, nullptr);
    if (p.reuse_weights) {  // a second call, to which the weights themselves are lost
      std::memset(recurrent_kernel.get(), 0xff, 4 * p.hidden * p.hidden * element);
      std::memset(h.get(), 0xff, all * element);
      a.reuse_weights = 1;
      codes[1] |= lstmfast_cuda_forward(&plan, &a, nullptr);
    }
    std::memcpy(&codes[2], workspace.get(), 4);
  }
  if (codes[0] == 0 && codes[1] == 0 && !p.forward_only) {
    const int64_t bytes = lstmfast_cuda_workspace_bytes(&plan, p.time_steps, 1);
    const Bytes workspace = workspace_of(bytes);
    LstmfastCudaBackward a = {};
    a.time_steps = p.time_steps;
    a.recurrent_kernel = recurrent_kernel.get();
    a.recurrent_kernel_stride = 4 * p.hidden;
    a.c0 = floats(c0);
    a.gates = floats(gates);
    a.cells = floats(cells);
    a.lengths = reinterpret_cast<int32_t*>(lengths.get());
    a.resets = reinterpret_cast<uint8_t*>(resets.get());
    a.d_h = d_h.get();
    a.d_h_n = d_h_n.get();
    a.d_c_n = floats(d_c_n);
    a.d_z = d_z.get();
    a.d_h0 = d_h0.get();
    a.d_c0 = floats(d_c0);
    a.workspace = workspace.get();
    a.workspace_bytes = bytes;
    a.reverse = static_cast<int32_t>(p.reverse);
    a.spin_limit = static_cast<int32_t>(p.spin_limit);
    codes[3] = lstmfast_cuda_backward(&plan, &a, nullptr);
    std::memcpy(&codes[4], workspace.get(), 4);
  }
  out.write(reinterpret_cast<const char*>(codes), sizeof codes);
  write(out, h, all * element);
  write(out, h_n, state * element);
  write(out, c_n, state * 4);
  write(out, gates, 4 * all * 4);
  write(out, cells, all * 4);
  write(out, d_z, 4 * all * element);
  write(out, d_h0, state * element);
  write(out, d_c0, state * 4);
}

lstmfast::cuda::PlantedBug bug_of(const char* wanted) {
  using lstmfast::cuda::PlantedBug;
  if (std::strcmp(wanted, "none") == 0) return PlantedBug::kNone;
#define LSTMFAST_MATCH(name) \
  if (std::strcmp(wanted, #name) == 0) return PlantedBug::name;
  LSTMFAST_PLANTED_BUGS_BY_NAME(LSTMFAST_MATCH)
#undef LSTMFAST_MATCH
  std::fprintf(stderr, "no bug is called %s\n", wanted);
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  cuda_emu::set_schedule(static_cast<unsigned>(std::atoi(argv[1])));
  lstmfast::cuda::planted_bug = bug_of(argv[2]);
  for (int i = 3; i < argc; ++i) run(argv[i]);
}
