// The pool: workers that spin, then sleep; made at first use, and again for another number of threads or after fork.
#include "cpu/parallel.h"

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/float_mode.h"
#include "core/system.h"

namespace lstmfast {
namespace {

constexpr int kSpins = 2000;  // about 50-100 microseconds of pauses: longer than the gaps inside a training step
constexpr int kMaxThreads = 256;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int initial_threads() {
  for (const char* name : {"LSTMFAST_NUM_THREADS", "OMP_NUM_THREADS"}) {
    const char* value = std::getenv(name);
    if (value == nullptr) continue;
    const int threads = std::atoi(value);
    if (threads >= 1) return std::min(threads, kMaxThreads);
  }
  return std::min(usable_cores(), kMaxThreads);
}

std::atomic<int>& thread_setting() {
  static std::atomic<int> threads{initial_threads()};
  return threads;
}

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {
    workers_.reserve(static_cast<std::size_t>(threads - 1));
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (...) {
      stop();
      throw;
    }
  }
  ~Pool() { stop(); }

  int threads() const { return threads_; }

  void run(int parts, detail::PartFunction function, const void* context) {
    function_ = function;
    context_ = context;
    parts_ = parts;
    float_mode_ = float_mode();
    unfinished_.store(threads_ - 1, std::memory_order_relaxed);
    start();
    function(context, 0, parts);
    for (int spins = 0; unfinished_.load(std::memory_order_acquire) != 0; ++spins)
      spins < kSpins ? pause() : std::this_thread::yield();
  }

 private:
  void start() {
    bool somebody_sleeps;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      region_.fetch_add(1, std::memory_order_release);
      somebody_sleeps = sleepers_ > 0;
    }
    if (somebody_sleeps) wake_.notify_all();
  }

  void work(int part) {
    unsigned seen = 0;
    for (;;) {
      for (int spins = 0; region_.load(std::memory_order_acquire) == seen; ++spins) {
        if (spins < kSpins) {
          pause();
          continue;
        }
        std::unique_lock<std::mutex> lock(mutex_);
        ++sleepers_;
        wake_.wait(lock, [&] { return region_.load(std::memory_order_relaxed) != seen; });
        --sleepers_;
      }
      ++seen;
      if (stopping_.load(std::memory_order_acquire)) return;
      if (part < parts_) {
        set_float_mode(float_mode_);
        function_(context_, part, parts_);
      }
      unfinished_.fetch_sub(1, std::memory_order_release);
    }
  }

  void stop() {
    stopping_.store(true, std::memory_order_release);
    start();
    for (std::thread& worker : workers_) worker.join();
  }

  const int threads_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  int sleepers_ = 0;
  std::atomic<unsigned> region_{0};
  std::atomic<int> unfinished_{0};
  std::atomic<bool> stopping_{false};
  detail::PartFunction function_ = nullptr;
  const void* context_ = nullptr;
  int parts_ = 0;
  FloatMode float_mode_ = 0;
};

// One pool per process, used by one caller at a time. Never destroyed: joining threads while a process exits can hang.
struct SharedPool {
  std::mutex in_use;
  Pool* pool = nullptr;
};
SharedPool* shared_pool = nullptr;
std::once_flag shared_pool_once;

SharedPool& get_shared_pool() {
  std::call_once(shared_pool_once, [] {
    shared_pool = new SharedPool;
    // The child of a fork has the pool's memory but not its threads, and the lock may be held by a thread that is gone.
    call_after_fork([] { shared_pool = new SharedPool; });
  });
  return *shared_pool;
}

}  // namespace

int num_threads() { return thread_setting().load(std::memory_order_relaxed); }

void set_num_threads(int threads) {
  if (threads < 1 || threads > kMaxThreads)
    throw std::invalid_argument("number of threads must be between 1 and " + std::to_string(kMaxThreads) + ", got " +
                                std::to_string(threads));
  thread_setting().store(threads, std::memory_order_relaxed);
}

void Barrier::wait(int parties) {
  if (parties == 1) return;
  const unsigned generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == parties) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    return;
  }
  for (int spins = 0; generation_.load(std::memory_order_acquire) == generation; ++spins)
    spins < kSpins ? pause() : std::this_thread::yield();
}

void detail::run_parts(int wanted, PartFunction function, const void* context) {
  const int threads = num_threads();
  const int parts = std::min(wanted, threads);
  if (parts <= 1) {
    function(context, 0, 1);
    return;
  }
  SharedPool& shared = get_shared_pool();
  const std::unique_lock<std::mutex> lock(shared.in_use, std::try_to_lock);
  if (!lock.owns_lock()) {  // another Python thread uses the pool
    function(context, 0, 1);
    return;
  }
  if (shared.pool == nullptr || shared.pool->threads() != threads) {
    delete shared.pool;
    shared.pool = nullptr;
    shared.pool = new Pool(threads);
  }
  shared.pool->run(parts, function, context);
}

int threads_for_work(double multiply_adds) {
  // Below about 0.4 million multiply-adds (10 microseconds of one core) a second thread does not pay.
  constexpr double kWorkPerThread = 2.0e5;
  return static_cast<int>(std::clamp(multiply_adds / kWorkPerThread, 1.0, static_cast<double>(num_threads())));
}

}  // namespace lstmfast
