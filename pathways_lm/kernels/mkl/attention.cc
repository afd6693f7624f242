// Softmax attention in fp32 whose scores stay in a core's own cache, those of some queries at a time.
// The backward pass makes them again (Dao et al., arXiv:2205.14135, section 3.1 and appendix B.2).

#include <cmath>
#include <cstring>
#include <vector>

#include "parts.h"

namespace pathways {
namespace {

using Mask = ffi::Buffer<ffi::PRED>;

constexpr int64_t kQueriesTogether = 64;  // Few, so that what no query of them sees is left out; many, for products.
constexpr int64_t kFewestTogether = 16;
constexpr int64_t kSequences = 8;
constexpr int64_t kScoresTogether = int64_t{1} << 17;  // 512 KiB; the backward pass has twice as many.

// Heads of one sequence with the same keys and values, one or all. The rows of their queries lie query by query.
struct Heads {
  const float *q, *k, *v;  // Rows of `size` numbers, q_step and k_step apart.
  const uint8_t* mask;        // [queries, keys]
  int64_t count, queries, keys, size, q_step, k_step;
  float scale;

  int64_t queries_together() const {
    int64_t fit = kScoresTogether / std::max<int64_t>(keys * count, 1) / kFewestTogether * kFewestTogether;
    return std::clamp(fit, kFewestTogether, kQueriesTogether);
  }
  const uint8_t* seen_by(int64_t row) const { return mask + row / count * keys; }
  bool sees_nothing(int64_t row) const { return std::memchr(seen_by(row), 1, keys) == nullptr; }
};

// Rows of queries from `first` to `end`, and the keys between which lie all that one of them sees.
struct Tile {
  int64_t first, end, key, key_end;
  int64_t rows() const { return end - first; }
  int64_t columns() const { return key_end - key; }
};

Tile tile_of(const Heads& heads, int64_t query) {
  int64_t end = std::min(query + heads.queries_together(), heads.queries);
  Tile tile{query * heads.count, end * heads.count, heads.keys, 0};
  for (; query < end; ++query) {
    const uint8_t* seen = heads.mask + query * heads.keys;
    auto from = static_cast<const uint8_t*>(std::memchr(seen, 1, heads.keys));
    if (from == nullptr) return {tile.first, tile.end, 0, heads.keys};  // All are as far from it as any.
    tile.key = std::min<int64_t>(tile.key, from - seen);
    int64_t last = heads.keys - 1;
    while (!seen[last]) --last;
    tile.key_end = std::max(tile.key_end, last + 1);
  }
  return tile;
}

// factor x k^T of rows x [rows, size], q_step apart, and the tile's rows of k: [rows, columns]
void by_keys(const Heads& heads, const Tile& tile, float factor, const float* x, const float* k, float* y) {
  sgemm(kByRows, kAsItIs, kTurned, tile.rows(), tile.columns(), heads.size, factor, x + tile.first * heads.q_step,
        heads.q_step, k + tile.key * heads.k_step, heads.k_step, 0, y, tile.columns());
}

// A row's scores less a shift, where exp makes normal numbers of them: those that are not take MKL a hundred times as
// long. What is not a number stays so.
void shift_by(float shift, float* scores, int64_t columns) {
  constexpr float kLeast = -87;
#pragma omp simd
  for (int64_t s = 0; s < columns; ++s) {
    float x = scores[s] - shift;
    x = x > 0 ? 0 : x;  // Only of keys that are not seen, but for rounding.
    scores[s] = x < kLeast ? kLeast : x;
  }
}

// 0 for what a row does not see; all 1 where it sees nothing.
void mask_out(const Heads& heads, const Tile& tile, int64_t row, float* exponentials) {
  const uint8_t* seen = heads.seen_by(row) + tile.key;
  int64_t columns = tile.columns();
  if (heads.sees_nothing(row)) {
    std::fill(exponentials, exponentials + columns, 1.0f);
    return;
  }
#pragma omp simd
  for (int64_t s = 0; s < columns; ++s) {
    float x = exponentials[s];
    exponentials[s] = seen[s] ? x : 0.0f;
  }
}

float largest_seen(const Heads& heads, const Tile& tile, int64_t row, const float* scores) {
  const uint8_t* seen = heads.seen_by(row) + tile.key;
  // Lane by lane: compilers do not reorder comparisons of what may not be a number.
  constexpr int64_t kLanes = 16;
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, -INFINITY);
  int64_t whole = tile.columns() / kLanes * kLanes;
  for (int64_t s = 0; s < whole; s += kLanes) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      float x = scores[s + lane], y = seen[s + lane] ? x : -INFINITY;
      lanes[lane] = y > lanes[lane] ? y : lanes[lane];
    }
  }
  for (int64_t s = whole; s < tile.columns(); ++s) {
    if (seen[s] && scores[s] > lanes[0]) lanes[0] = scores[s];
  }
  float largest = *std::max_element(lanes, lanes + kLanes);
  return largest == -INFINITY ? 0 : largest;  // Where nothing is seen.
}

float sum_of(const float* x, int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t s = 0; s < count; ++s) sum += x[s];
  return sum;
}

float product_of(const float* left, const float* right, int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t h = 0; h < count; ++h) sum += left[h] * right[h];
  return sum;
}

void times(float factor, float* x, int64_t count) {
#pragma omp simd
  for (int64_t s = 0; s < count; ++s) x[s] *= factor;
}

// y, as the queries lie, and the logarithm of each row's sum of exponentials, log_step apart.
void forward(const Heads& heads, float* y, float* log_z, int64_t log_step) {
  thread_local std::vector<float> scores;
  for (int64_t query = 0; query < heads.queries; query += heads.queries_together()) {
    Tile tile = tile_of(heads, query);
    int64_t columns = tile.columns();
    scores.resize(std::max<size_t>(scores.size(), tile.rows() * columns));
    by_keys(heads, tile, heads.scale, heads.q, heads.k, scores.data());
    for (int64_t row = tile.first; row < tile.end; ++row) {
      float* own = scores.data() + (row - tile.first) * columns;
      log_z[row * log_step] = largest_seen(heads, tile, row, own);
      shift_by(log_z[row * log_step], own, columns);
    }
    exp_of(tile.rows() * columns, scores.data(), scores.data(), kWithinFourUlp);
    for (int64_t row = tile.first; row < tile.end; ++row) {
      float* own = scores.data() + (row - tile.first) * columns;
      mask_out(heads, tile, row, own);
      float sum = sum_of(own, columns);
      log_z[row * log_step] += std::log(sum);
      times(1 / sum, own, columns);
    }
    sgemm(kByRows, kAsItIs, kAsItIs, tile.rows(), heads.size, columns, 1, scores.data(), columns,
          heads.v + tile.key * heads.k_step, heads.k_step, 0, y + tile.first * heads.q_step, heads.q_step);
  }
}

// What the forward pass made and gradients; those of queries lie as they do, those of keys through these heads as
// rows `to_step` apart.
struct Gradients {
  const float *y, *log_z, *dy;
  int64_t log_step;
  float *dq, *dk, *dv;
  int64_t to_step;
};

void backward(const Heads& heads, const Gradients& gradients) {
  thread_local std::vector<float> weights, dscores;
  auto [y, log_z, dy, log_step, dq, dk, dv, to_step] = gradients;
  int64_t step = heads.q_step;
  for (int64_t s = 0; s < heads.keys; ++s) {
    std::memset(dk + s * to_step, 0, heads.size * sizeof(float));
    std::memset(dv + s * to_step, 0, heads.size * sizeof(float));
  }
  for (int64_t query = 0; query < heads.queries; query += heads.queries_together()) {
    Tile tile = tile_of(heads, query);
    int64_t columns = tile.columns(), rows = tile.rows(), from = tile.first * step;
    weights.resize(std::max<size_t>(weights.size(), rows * columns));
    dscores.resize(std::max<size_t>(dscores.size(), rows * columns));
    by_keys(heads, tile, heads.scale, heads.q, heads.k, weights.data());
    by_keys(heads, tile, 1, dy, heads.v, dscores.data());
    for (int64_t row = tile.first; row < tile.end; ++row) {
      shift_by(log_z[row * log_step], weights.data() + (row - tile.first) * columns, columns);
    }
    exp_of(rows * columns, weights.data(), weights.data(), kWithinFourUlp);
    for (int64_t row = tile.first; row < tile.end; ++row) {
      float* weight = weights.data() + (row - tile.first) * columns;
      float* dscore = dscores.data() + (row - tile.first) * columns;
      mask_out(heads, tile, row, weight);
      if (heads.sees_nothing(row)) {
        times(std::exp(-log_z[row * log_step]), weight, columns);
        std::fill(dscore, dscore + columns, 0.0f);  // Its scores are the same whatever it asks.
        continue;
      }
      float inner = product_of(dy + row * step, y + row * step, heads.size);
#pragma omp simd
      for (int64_t s = 0; s < columns; ++s) dscore[s] = weight[s] * (dscore[s] - inner) * heads.scale;
    }
    auto add_by_queries = [&](const std::vector<float>& left, const float* right, float* to) {
      sgemm(kByRows, kTurned, kAsItIs, columns, heads.size, rows, 1, left.data(), columns, right + from, step, 1,
            to + tile.key * to_step, to_step);
    };
    add_by_queries(weights, dy, dv);
    add_by_queries(dscores, heads.q, dk);
    sgemm(kByRows, kAsItIs, kAsItIs, rows, heads.size, columns, 1, dscores.data(), columns,
          heads.k + tile.key * heads.k_step, heads.k_step, 0, dq + from, step);
  }
}

// How the heads of q [B, T, N, H] and k [B, S, K, H] are taken: one by one, or all that share the only head of keys,
// whose rows lie one behind the other, where there are sequences enough to work on. What does not depend on threads
// makes the same sums on every machine.
//
// It has all that parts need, as XLA may take its own description of the operands back when a handler returns.
struct Shape {
  const float *q, *k, *v;
  const uint8_t* mask;
  int64_t B, T, N, H, S, K, together;
  bool one_mask;
  float scale;

  Shape(Array of_q, Array of_k, Array of_v, Mask of_mask, float scale)
      : q(of_q.typed_data()),
        k(of_k.typed_data()),
        v(of_v.typed_data()),
        mask(reinterpret_cast<const uint8_t*>(of_mask.typed_data())),
        one_mask(of_mask.dimensions()[0] == 1),
        scale(scale) {
    auto queries = of_q.dimensions(), keys = of_k.dimensions();
    B = queries[0], T = queries[1], N = queries[2], H = queries[3], S = keys[1], K = keys[2];
    bool fits = S * N * kFewestTogether <= kScoresTogether;
    together = K == 1 && fits && B >= kSequences ? N : 1;
  }
  int64_t parts() const { return B * N / together; }
  int64_t sequence(int64_t part) const { return part * together / N; }
  int64_t head(int64_t part) const { return part * together % N; }
  int64_t row_step() const { return together > 1 ? 1 : N; }
  // Where the part's first row lies in [B, T, N].
  int64_t row(int64_t part) const { return sequence(part) * T * N + head(part); }

  Heads heads(int64_t part) const {
    int64_t key = (sequence(part) * S * K + head(part) / (N / K)) * H;
    const uint8_t* seen = mask + (one_mask ? 0 : sequence(part) * T * S);
    return {q + row(part) * H, k + key, v + key, seen, together, T, S, H, row_step() * H, K * H, scale};
  }
};

// q [B, T, N, H], k and v [B, S, K, H], mask [B or 1, T, S]: y [B, T, N, H] and log_z [B, T, N].
ffi::Future attend(ffi::ThreadPool pool, Array q, Array k, Array v, Mask mask, Result y, Result log_z, float scale) {
  Shape shape(q, k, v, mask, scale);
  float *to = y->typed_data(), *sums = log_z->typed_data();
  return in_parts(pool, shape.parts(), [=](int64_t part) {
    int64_t row = shape.row(part);
    forward(shape.heads(part), to + row * shape.H, sums + row, shape.row_step());
  });
}

// Gradients of q, and of k and v through each head, [B, S, N, H], which those that share them have still to add.
ffi::Future attend_gradient(ffi::ThreadPool pool, Array q, Array k, Array v, Mask mask, Array y, Array log_z, Array dy,
                            Result dq, Result dk, Result dv, float scale) {
  Shape shape(q, k, v, mask, scale);
  const float *ended = y.typed_data(), *sums = log_z.typed_data(), *gradient = dy.typed_data();
  float *to_q = dq->typed_data(), *to_k = dk->typed_data(), *to_v = dv->typed_data();
  return in_parts(pool, shape.parts(), [=](int64_t part) {
    int64_t row = shape.row(part), H = shape.H, N = shape.N;
    int64_t of_keys = (shape.sequence(part) * shape.S * N + shape.head(part)) * H;
    backward(shape.heads(part), {ended + row * H, sums + row, gradient + row * H, shape.row_step(), to_q + row * H,
                                 to_k + of_keys, to_v + of_keys, N * H});
    // Heads taken together have added already what the first of them has here.
    for (int64_t s = 0; s < (shape.together > 1 ? shape.S : 0); ++s) {
      std::memset(to_k + of_keys + (s * N + 1) * H, 0, (N - 1) * H * sizeof(float));
      std::memset(to_v + of_keys + (s * N + 1) * H, 0, (N - 1) * H * sizeof(float));
    }
  });
}

}  // namespace
}  // namespace pathways

using namespace pathways;

XLA_FFI_DEFINE_HANDLER_SYMBOL(pathways_attend, attend,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Mask>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Attr<float>("scale"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(pathways_attend_gradient, attend_gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Mask>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Attr<float>("scale"));
