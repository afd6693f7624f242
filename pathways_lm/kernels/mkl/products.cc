// Products in fp32 for XLA's programs on CPUs, multiplied by Intel's MKL.

#include <cstring>
#include <functional>
#include <numeric>
#include <utility>
#include <vector>

#include "parts.h"

namespace pathways {

Sgemm* sgemm;
Exp* exp_of;

namespace {

using Sizes = ffi::Buffer<ffi::S32>;

constexpr int64_t kRowsTogether = 16;  // Parts begin where MKL's tiles and cache lines do.

// Some rows and columns of a product of matrices [rows, summed] and [summed, columns] that lie as they are or turned.
struct Matrices {
  const float *left, *right;
  float* y;
  int64_t rows, summed, columns;
  bool left_turned, right_turned;

  void multiply(int64_t row, int64_t row_end, int64_t column, int64_t column_end) const {
    if (row == row_end || column == column_end) return;
    int64_t step = std::max<int64_t>(summed, 1);  // MKL takes no step of none.
    sgemm(kByRows, left_turned ? kTurned : kAsItIs, right_turned ? kTurned : kAsItIs, row_end - row,
          column_end - column, summed, 1, left + row * (left_turned ? 1 : summed), left_turned ? rows : step,
          right + column * (right_turned ? summed : 1), right_turned ? step : columns, 0,
          y + row * columns + column, columns);
  }
};

// Into how many lines each part of `all` goes. What is to be multiplied decides alone, as results must not depend on how
// many threads there are: in which order MKL adds what has fewer lines is not promised.
int64_t cut(int64_t all, int64_t multiplications, int64_t matrices) {
  constexpr int64_t kLeast = int64_t{1} << 26, kMost = int64_t{1} << 30;  // A third of a millisecond, and sixteen thirds.
  int64_t work = multiplications * matrices;
  int64_t parts = std::max(std::clamp<int64_t>(work / kLeast, 1, 8), work / kMost);
  int64_t lines = divided_up(std::max<int64_t>(all, 1), divided_up(parts, std::max<int64_t>(matrices, 1)));
  return divided_up(lines, kRowsTogether) * kRowsTogether;
}

// [..., rows, summed] times [..., summed, columns], both perhaps turned: [..., rows, columns].
ffi::Future product(ffi::ThreadPool pool, Array left, Array right, Result y, bool left_turned, bool right_turned) {
  auto dims = y->dimensions();
  int64_t rank = dims.size(), rows = dims[rank - 2], columns = dims[rank - 1];
  int64_t summed = left.dimensions()[left_turned ? rank - 2 : rank - 1];
  int64_t batch = std::accumulate(dims.begin(), dims.end() - 2, int64_t{1}, std::multiplies<int64_t>());
  Matrices all{left.typed_data(), right.typed_data(), y->typed_data(), rows, summed, columns,
               left_turned,       right_turned};
  bool by_rows = rows >= columns;
  int64_t lines = by_rows ? rows : columns;
  int64_t size = cut(lines, rows * summed * columns, batch), each = divided_up(lines, size);
  return in_parts(pool, batch * each, [=](int64_t at) {
    int64_t matrix = at / each, begin = at % each * size, end = std::min(begin + size, lines);
    Matrices one = all;
    one.left += matrix * rows * summed;
    one.right += matrix * summed * columns;
    one.y += matrix * rows * columns;
    by_rows ? one.multiply(begin, end, 0, columns) : one.multiply(0, rows, begin, end);
  });
}

// The first row of each expert, and behind the last one's. No size is believed that leads out of the rows.
std::vector<int64_t> firsts_of(Sizes sizes, int64_t rows) {
  std::vector<int64_t> firsts{0};
  int64_t experts = sizes.element_count();
  for (int64_t expert = 0; expert < experts; ++expert) {
    int64_t size = std::max<int64_t>(sizes.typed_data()[expert], 0);
    firsts.push_back(std::min(firsts.back() + size, rows));
  }
  return firsts;
}

// Rows [rows, summed] of one expert after the other, times its own of `kernels` [experts, summed, columns], which may
// be turned: [rows, columns], zero behind the last expert's.
ffi::Future ragged(ffi::ThreadPool pool, Array left, Array kernels, Sizes sizes, Result y, bool right_turned) {
  int64_t rows = y->dimensions()[0], columns = y->dimensions()[1], summed = left.dimensions()[1];
  int64_t experts = sizes.element_count();
  auto firsts = firsts_of(sizes, rows);
  int64_t size = cut(rows, rows * summed * columns, 1);
  auto parts = std::make_shared<std::vector<std::pair<int64_t, int64_t>>>();  // expert, and first row
  for (int64_t expert = 0; expert < experts; ++expert) {
    for (int64_t row = firsts[expert]; row < firsts[expert + 1]; row += size) parts->emplace_back(expert, row);
  }
  int64_t behind = firsts.back();
  const float *from = left.typed_data(), *kernel = kernels.typed_data();
  float* to = y->typed_data();
  return in_parts(pool, parts->size() + 1, [=](int64_t at) {
    if (at == static_cast<int64_t>(parts->size())) {
      std::memset(to + behind * columns, 0, (rows - behind) * columns * sizeof(float));
      return;
    }
    auto [expert, row] = (*parts)[at];
    int64_t end = std::min(row + size, firsts[expert + 1]);
    Matrices{from, kernel + expert * summed * columns, to, rows, summed, columns, false, right_turned}.multiply(
        row, end, 0, columns);
  });
}

// The gradient of `kernels` above: [experts, summed, columns], of `left` [rows, summed] and that of y, [rows, columns].
ffi::Future ragged_gradient(ffi::ThreadPool pool, Array left, Array dy, Sizes sizes, Result dkernels) {
  int64_t rows = left.dimensions()[0], summed = left.dimensions()[1], columns = dy.dimensions()[1];
  int64_t experts = sizes.element_count();
  auto firsts = firsts_of(sizes, rows);
  int64_t size = cut(summed, rows / std::max<int64_t>(experts, 1) * summed * columns, experts);
  int64_t each = divided_up(summed, size);
  const float *x = left.typed_data(), *gradient = dy.typed_data();
  float* y = dkernels->typed_data();
  return in_parts(pool, columns == 0 ? 0 : experts * each, [=](int64_t at) {
    int64_t expert = at / each, line = at % each * size, end = std::min(line + size, summed);
    int64_t first = firsts[expert], own = firsts[expert + 1] - first;
    float* to = y + (expert * summed + line) * columns;
    if (own == 0) {
      std::memset(to, 0, (end - line) * columns * sizeof(float));
      return;
    }
    sgemm(kByRows, kTurned, kAsItIs, end - line, columns, own, 1, x + first * summed + line, summed,
          gradient + first * columns, columns, 0, to, columns);
  });
}

}  // namespace
}  // namespace pathways

using namespace pathways;

extern "C" void pathways_use(void* mkl_sgemm, void* mkl_exp) {
  sgemm = reinterpret_cast<Sgemm*>(mkl_sgemm);
  exp_of = reinterpret_cast<Exp*>(mkl_exp);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(pathways_product, product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<bool>("left_turned")
                                  .Attr<bool>("right_turned"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    pathways_ragged, ragged,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Arg<Sizes>().Ret<Array>().Attr<bool>(
        "right_turned"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    pathways_ragged_gradient, ragged_gradient,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Arg<Sizes>().Ret<Array>());
