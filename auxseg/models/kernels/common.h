// What all kernels stand on: vectors, buffers, threads and the strips of rows that they share out.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Array>;
using Index = std::int64_t;

#if defined(__AVX512F__)
constexpr Index kLanes = 16, kRows = 12;
#elif defined(__AVX__)
constexpr Index kLanes = 8, kRows = 6;
#elif defined(__aarch64__)
constexpr Index kLanes = 4, kRows = 12;
#else
constexpr Index kLanes = 4, kRows = 6;
#endif
constexpr Index kPanel = 2 * kLanes;          // columns of a matrix product's tile; it has kRows rows
constexpr Index kTileFloats = 20 * 1024;      // of a tile: with what it is made of, within a second-level cache
constexpr Index kBusyPixels = 96;             // the least that a product of bfloat16 is given at once, if there are
constexpr Index kBlock = 4;                   // neighbouring pixels that are filtered at once

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));
#define ALWAYS_INLINE inline __attribute__((always_inline))

ALWAYS_INLINE Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
ALWAYS_INLINE void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }

template <typename T>
class BufferOf {
 public:
  BufferOf() = default;
  explicit BufferOf(Index size, bool cleared = true) {
    const std::size_t bytes = (size * sizeof(T) + 63) / 64 * 64 + 64;
    data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
    if (cleared) std::memset(static_cast<void*>(data_.get()), 0, bytes);
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};
using Buffer = BufferOf<float>;

// Calls `call.template run<M>()` with M the number of rows, 1 to kMax.
template <Index kMax, typename Call>
ALWAYS_INLINE void with_rows(Index rows, Call call) {
  if constexpr (kMax > 0) {
    if (rows == kMax) {
      call(std::integral_constant<Index, kMax>());
    } else {
      with_rows<kMax - 1>(rows, call);
    }
  }
}

// ---- threads -------------------------------------------------------------------------------------------------------

Index count_threads(ffi::ThreadPool& pool) { return std::max<Index>(1, pool.num_threads()); }

struct Job {
  std::function<void(Index)> run;
  Index total = 0;
  std::atomic<Index> next{0}, done{0};
  std::mutex mutex;
  std::condition_variable finished;
  std::exception_ptr error;

  void work() {
    for (Index item; (item = next.fetch_add(1)) < total;) {
      try {
        run(item);
      } catch (...) {  // out of memory: the caller raises it, once nobody works on the job any more
        std::lock_guard<std::mutex> lock(mutex);
        error = std::current_exception();
      }
      if (done.fetch_add(1) + 1 == total) {
        std::lock_guard<std::mutex> lock(mutex);
        finished.notify_all();
      }
    }
  }
};

// Runs items 0 to total - 1. The caller takes part and waits only for items that others have begun, so that a pool
// whose threads are all busy (or are themselves callers) delays nothing.
void parallel_for(ffi::ThreadPool& pool, Index total, std::function<void(Index)> run) {
  auto job = std::make_shared<Job>();
  job->run = std::move(run);
  job->total = total;
  for (Index helper = 1; helper < std::min<Index>(total, pool.num_threads()); ++helper) {
    pool.Schedule([job] { job->work(); });
  }
  job->work();
  std::unique_lock<std::mutex> lock(job->mutex);
  job->finished.wait(lock, [&] { return job->done.load() == job->total; });
  if (job->error) std::rethrow_exception(job->error);
}

struct Strip {
  Index image, start, end;
};

// Cuts images into strips of rows, so that the threads get as many; strip i is of slot i % slots.
std::vector<Strip> cut_strips(Index images, Index rows, Index threads) {
  Index parts = 1;
  while (images * parts % threads && parts < threads) ++parts;
  parts = std::max<Index>(1, std::min(parts, rows / 4));
  std::vector<Strip> strips;
  for (Index image = 0; image < images; ++image) {
    for (Index part = 0; part < parts; ++part) {
      strips.push_back({image, rows * part / parts, rows * (part + 1) / parts});
    }
  }
  return strips;
}

Index count_slots(ffi::ThreadPool& pool, Index strips) {
  return std::min(count_threads(pool), strips);
}

// Runs `run(slot, strip)`; the strips of a slot one after another.
template <typename Run>
void over_strips(ffi::ThreadPool& pool, const std::vector<Strip>& strips, Index slots, Run run) {
  parallel_for(pool, slots, [&strips, slots, &run](Index slot) {
    for (Index i = slot; i < static_cast<Index>(strips.size()); i += slots) run(slot, strips[i]);
  });
}

// Adds the slots' sums [slots][size] into `out`, in their order.
void add_slots(ffi::ThreadPool& pool, const std::vector<Buffer>& slots, float* out, Index size) {
  const Index pieces = std::max<Index>(1, std::min(count_threads(pool), size / 4096));
  parallel_for(pool, pieces, [&slots, out, size, pieces](Index piece) {
    const Index start = size * piece / pieces, end = size * (piece + 1) / pieces;
    std::memcpy(out + start, slots[0].get() + start, (end - start) * sizeof(float));
    for (std::size_t slot = 1; slot < slots.size(); ++slot) {
      const float* __restrict from = slots[slot].get();
      for (Index i = start; i < end; ++i) out[i] += from[i];
    }
  });
}

}  // namespace
