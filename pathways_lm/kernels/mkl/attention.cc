// Softmax attention in fp32 whose scores stay in a core's own cache, some queries of one head at a time.
// The backward pass makes them again (Dao et al., arXiv:2205.14135, section 3.1 and appendix B.2).

#include <cmath>
#include <cstring>
#include <vector>

#include "parts.h"

namespace pathways {
namespace {

using Mask = ffi::Buffer<ffi::PRED>;

constexpr int64_t kQueriesTogether = 64;  // Few, so that what no query of them sees is left out; many, for products.
constexpr int64_t kScoresTogether = int64_t{1} << 16;  // 256 KiB; the backward pass has twice as many.
constexpr int64_t kTile = 16;

// One head of one sequence: queries [T, H] and keys and values [S, H], so many numbers apart.
struct Head {
  const float *q, *k, *v;
  const bool* mask;  // [T, S]
  int64_t T, S, H, q_step, k_step;
  float scale;

  int64_t queries_together() const {
    int64_t fit = kScoresTogether / std::max<int64_t>(S, 1) / kTile * kTile;
    return std::clamp(fit, kTile, kQueriesTogether);
  }
};

// Queries from `first` to `end`, and the keys between which lie all that one of them sees.
struct Tile {
  int64_t first, end, key, key_end;
  int64_t rows() const { return end - first; }
  int64_t columns() const { return key_end - key; }
};

bool sees_nothing(const Head& head, int64_t query) {
  return std::memchr(head.mask + query * head.S, 1, head.S) == nullptr;
}

Tile tile_of(const Head& head, int64_t first) {
  Tile tile{first, std::min(first + head.queries_together(), head.T), head.S, 0};
  for (int64_t query = tile.first; query < tile.end; ++query) {
    const bool* seen = head.mask + query * head.S;
    auto from = static_cast<const bool*>(std::memchr(seen, 1, head.S));
    if (from == nullptr) return {tile.first, tile.end, 0, head.S};  // All are as far from it as any.
    tile.key = std::min<int64_t>(tile.key, from - seen);
    int64_t last = head.S - 1;
    while (!seen[last]) --last;
    tile.key_end = std::max(tile.key_end, last + 1);
  }
  return tile;
}

// scale q k^T, [rows, columns]
void scores_of(const Head& head, const Tile& tile, float* scores) {
  sgemm(kByRows, kAsItIs, kTurned, tile.rows(), tile.columns(), head.H, head.scale,
        head.q + tile.first * head.q_step, head.q_step, head.k + tile.key * head.k_step, head.k_step, 0, scores,
        tile.columns());
}

// exp(score - shift) where it is seen, else 0, in place of a query's scores; all 1 where it sees nothing.
// What is not a number stays so.
void exponentials(const Head& head, const Tile& tile, int64_t query, float shift, float* row) {
  const bool* seen = head.mask + query * head.S + tile.key;
  int64_t columns = tile.columns();
  if (sees_nothing(head, query)) {
    std::fill(row, row + columns, 1.0f);
    return;
  }
#pragma omp simd
  for (int64_t s = 0; s < columns; ++s) {
    float x = row[s] - shift;
    row[s] = x > 0 ? 0 : x;  // Only of keys that are not seen, but for rounding.
  }
  exp_of(columns, row, row, kWithinFourUlp);
#pragma omp simd
  for (int64_t s = 0; s < columns; ++s) row[s] = seen[s] ? row[s] : 0.0f;
}

float largest_seen(const Head& head, const Tile& tile, int64_t query, const float* row) {
  const bool* seen = head.mask + query * head.S + tile.key;
  float largest = -INFINITY;
#pragma omp simd reduction(max : largest)
  for (int64_t s = 0; s < tile.columns(); ++s) {
    float x = seen[s] ? row[s] : -INFINITY;
    largest = x > largest ? x : largest;
  }
  return std::isinf(largest) ? 0 : largest;
}

float sum_of(const float* row, int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t s = 0; s < count; ++s) sum += row[s];
  return sum;
}

float product_of(const float* left, const float* right, int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t h = 0; h < count; ++h) sum += left[h] * right[h];
  return sum;
}

void times(float factor, float* row, int64_t count) {
#pragma omp simd
  for (int64_t s = 0; s < count; ++s) row[s] *= factor;
}

// y [T, H] of one head, q_step numbers apart, and the logarithm of each query's sum of exponentials, [T].
void forward(const Head& head, float* y, float* log_z) {
  thread_local std::vector<float> scores;
  for (int64_t first = 0; first < head.T; first += head.queries_together()) {
    Tile tile = tile_of(head, first);
    int64_t columns = tile.columns();
    scores.resize(std::max<size_t>(scores.size(), tile.rows() * columns));
    scores_of(head, tile, scores.data());
    for (int64_t query = tile.first; query < tile.end; ++query) {
      float* row = scores.data() + (query - tile.first) * columns;
      float shift = largest_seen(head, tile, query, row);
      exponentials(head, tile, query, shift, row);
      float sum = sum_of(row, columns);
      log_z[query] = (sees_nothing(head, query) ? 0 : shift) + std::log(sum);
      times(1 / sum, row, columns);
    }
    sgemm(kByRows, kAsItIs, kAsItIs, tile.rows(), head.H, columns, 1, scores.data(), columns,
          head.v + tile.key * head.k_step, head.k_step, 0, y + tile.first * head.q_step, head.q_step);
  }
}

// Gradients of one head, all q_step numbers apart: of its queries [T, H], and of keys and values [S, H] through it.
void backward(const Head& head, const float* y, const float* log_z, const float* dy, float* dq, float* dk, float* dv) {
  thread_local std::vector<float> weights, dscores;
  int64_t step = head.q_step;
  for (int64_t s = 0; s < head.S; ++s) {
    std::memset(dk + s * step, 0, head.H * sizeof(float));
    std::memset(dv + s * step, 0, head.H * sizeof(float));
  }
  for (int64_t first = 0; first < head.T; first += head.queries_together()) {
    Tile tile = tile_of(head, first);
    int64_t columns = tile.columns(), from = tile.first * step, keys = tile.key * head.k_step;
    weights.resize(std::max<size_t>(weights.size(), tile.rows() * columns));
    dscores.resize(std::max<size_t>(dscores.size(), tile.rows() * columns));
    scores_of(head, tile, weights.data());
    sgemm(kByRows, kAsItIs, kTurned, tile.rows(), columns, head.H, 1, dy + from, step, head.v + keys, head.k_step, 0,
          dscores.data(), columns);
    for (int64_t query = tile.first; query < tile.end; ++query) {
      float* weight = weights.data() + (query - tile.first) * columns;
      float* dscore = dscores.data() + (query - tile.first) * columns;
      exponentials(head, tile, query, log_z[query], weight);
      if (sees_nothing(head, query)) {
        times(std::exp(-log_z[query]), weight, columns);
        std::fill(dscore, dscore + columns, 0.0f);  // Its scores are the same whatever it asks.
        continue;
      }
      float inner = product_of(dy + query * step, y + query * step, head.H);
#pragma omp simd
      for (int64_t s = 0; s < columns; ++s) dscore[s] = weight[s] * (dscore[s] - inner) * head.scale;
    }
    sgemm(kByRows, kTurned, kAsItIs, columns, head.H, tile.rows(), 1, weights.data(), columns, dy + from, step, 1,
          dv + tile.key * step, step);
    sgemm(kByRows, kTurned, kAsItIs, columns, head.H, tile.rows(), 1, dscores.data(), columns, head.q + from, step, 1,
          dk + tile.key * step, step);
    sgemm(kByRows, kAsItIs, kAsItIs, tile.rows(), head.H, columns, 1, dscores.data(), columns, head.k + keys,
          head.k_step, 0, dq + from, step);
  }
}

// Head `at` of all sequences' [B, N].
Head head_at(int64_t at, Array q, Array k, Array v, Mask mask, float scale) {
  auto dims = q.dimensions(), of_keys = k.dimensions();
  int64_t T = dims[1], N = dims[2], H = dims[3], S = of_keys[1], K = of_keys[2], b = at / N, n = at % N;
  int64_t key = (b * S * K + n / (N / K)) * H, masked = mask.dimensions()[0] > 1 ? b : 0;
  return {q.typed_data() + (b * T * N + n) * H,
          k.typed_data() + key,
          v.typed_data() + key,
          mask.typed_data() + masked * T * S,
          T,
          S,
          H,
          N * H,
          K * H,
          scale};
}

// q [B, T, N, H], k and v [B, S, K, H], mask [B or 1, T, S]: y [B, T, N, H] and log_z [B, N, T].
ffi::Future attend(ffi::ThreadPool pool, Array q, Array k, Array v, Mask mask, Result y, Result log_z, float scale) {
  auto dims = q.dimensions();
  int64_t T = dims[1], N = dims[2], H = dims[3];
  float *to = y->typed_data(), *sums = log_z->typed_data();
  return in_parts(pool, dims[0] * N, [=](int64_t at) {
    forward(head_at(at, q, k, v, mask, scale), to + (at / N * T * N + at % N) * H, sums + at * T);
  });
}

// Gradients of q, and of k and v through each head, [B, S, N, H], which those that share them have still to add.
ffi::Future attend_gradient(ffi::ThreadPool pool, Array q, Array k, Array v, Mask mask, Array y, Array log_z, Array dy,
                            Result dq, Result dk, Result dv, float scale) {
  auto dims = q.dimensions();
  int64_t T = dims[1], N = dims[2], H = dims[3], S = k.dimensions()[1];
  const float *ended = y.typed_data(), *sums = log_z.typed_data(), *gradient = dy.typed_data();
  float *to_q = dq->typed_data(), *to_k = dk->typed_data(), *to_v = dv->typed_data();
  return in_parts(pool, dims[0] * N, [=](int64_t at) {
    int64_t query = (at / N * T * N + at % N) * H, key = (at / N * S * N + at % N) * H;
    backward(head_at(at, q, k, v, mask, scale), ended + query, sums + at * T, gradient + query, to_q + query,
             to_k + key, to_v + key);
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
