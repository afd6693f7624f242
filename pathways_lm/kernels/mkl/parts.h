// What the kernels here have in common: MKL's functions, and work in parts on XLA's own threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include "xla/ffi/api/ffi.h"

namespace pathways {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

constexpr int kByRows = 101, kAsItIs = 111, kTurned = 112;  // of cblas.h
using Sgemm = void(int order, int turn_left, int turn_right, int rows, int columns, int summed, float factor,
                   const float* left, int left_step, const float* right, int right_step, float kept, float* y,
                   int y_step);
constexpr int64_t kWithinFourUlp = 1;  // VML_LA of mkl_vml_defines.h
using Exp = void(int count, const float* x, float* y, int64_t accuracy);

extern Sgemm* sgemm;
extern Exp* exp_of;

inline int64_t threads_of(const ffi::ThreadPool& pool) { return std::max<int64_t>(pool.num_threads(), 1); }

inline int64_t divided_up(int64_t number, int64_t by) { return (number + by - 1) / by; }

// Does `count` parts on all threads, this one too. It does not wait for the others: XLA has more to do.
template <typename Part>
ffi::Future in_parts(ffi::ThreadPool& pool, int64_t count, Part part) {
  if (count == 0) {
    ffi::Promise kept;
    kept.SetAvailable();
    return ffi::Future(kept);
  }
  ffi::CountDownPromise missing(count);
  ffi::Future done(missing);
  auto next = std::make_shared<std::atomic<int64_t>>(0);
  auto work = [next, count, part, missing]() mutable {
    for (int64_t at; (at = next->fetch_add(1)) < count;) {
      part(at);
      missing.CountDown();
    }
  };
  for (int64_t others = std::min(count, threads_of(pool)) - 1; others > 0; --others) {
    pool.Schedule([work]() mutable { work(); });
  }
  work();
  return done;
}

}  // namespace pathways
