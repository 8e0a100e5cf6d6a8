// What the ops on tiles take, checked and put together: the factors of a kernel, and where entries are.
#pragma once

#include <string>
#include <vector>

#include "launch.cuh"

namespace ahkernels::cuda {

// Of the layers of a sum there are positions and slices at each of them; a single layer with one position has none.
inline void check_factors(const char* op, const Tensor& parts, const Tensor& p, int64_t n, int64_t o, int64_t sample,
                          const std::vector<int64_t>& layers) {
  const int64_t size = n * o;
  STD_TORCH_CHECK(parts.dim() == 4 && parts.is_contiguous() && parts.scalar_type() == ScalarType::BFloat16 &&
                      parts.size(0) >= 1 && parts.size(0) <= 3 && parts.size(2) == ceil_div(size, kTile) * kTile &&
                      parts.size(3) % kKAlignment == 0,
                  op, ": parts: expected what pack_parts makes of a factor of n * o = ", size, " rows");
  int64_t blocks = layers.empty() ? 1 : 0, pairs = blocks;
  STD_TORCH_CHECK(layers.size() % 2 == 0 && layers.size() <= 2 * kMostLayers, op,
                  ": layers: expected positions and slices of up to ", kMostLayers, " layers, got ", layers.size(),
                  " numbers");
  for (size_t i = 0; i < layers.size(); i += 2) {
    blocks += layers[i] * layers[i + 1];
    pairs += layers[i] * layers[i];
  }
  STD_TORCH_CHECK(parts.size(1) == blocks && (layers.empty() || parts.size(3) == kKAlignment), op, ": parts: expected ",
                  blocks, " blocks, got ", parts.size(1), " of ", parts.size(3), " numbers");
  STD_TORCH_CHECK(p.dim() == 3 && p.is_contiguous() && p.scalar_type() == ScalarType::Float && p.size(0) == pairs &&
                      p.size(2) == n - sample && sample * o % kTile == 0 &&
                      (p.size(1) * o % kTile == 0 || sample + p.size(1) == n),
                  op, ": p: expected a contiguous float32 tensor [", pairs, ", rows, n - sample] about whole tiles");
  STD_TORCH_CHECK(p.size(1) > 0, op, ": p: expected at least one row, got shape [", pairs, ", 0, ", p.size(2), "]");
  STD_TORCH_CHECK(parts.size(2) < (int64_t{1} << 31), op, ": n: expected n * o below 2^31, got ", n, " * ", o);
  STD_TORCH_CHECK(p.numel() < (int64_t{1} << 30), op, ": p: expected fewer than 2^30 numbers, got ", p.numel());
}

// Entries are those of `rows` rows of K.
inline void check_entries(const char* op, const Tensor& entries, int64_t rows, int64_t size) {
  STD_TORCH_CHECK(entries.dim() == 2 && entries.size(0) == rows && entries.size(1) == size && entries.is_contiguous() &&
                      entries.scalar_type() == ScalarType::Float,
                  op, ": entries: expected a contiguous float32 tensor [", rows, ", ", size, "]");
}

// The rows of K in the tiles of the samples that p begins at.
inline int64_t rows_of_tiles(const Tensor& p, int64_t n, int64_t o, int64_t sample) {
  const int64_t end = ceil_div((sample + p.size(1)) * o, kTile) * kTile;
  return std::min(end, n * o) - sample * o;
}

inline Problem problem_of(const Tensor& parts, const Tensor& p, int64_t n, int64_t o, int64_t sample, int64_t straight,
                          const std::vector<int64_t>& layers, const Tensor& entries) {
  const int64_t size = n * o;
  Problem problem{};
  problem.tiles = {static_cast<int32_t>(sample * o / kTile),
                   static_cast<int32_t>(ceil_div((sample + p.size(1)) * o, kTile)),
                   static_cast<int32_t>(ceil_div(size, kTile))};
  problem.size = static_cast<int32_t>(size);
  problem.n = static_cast<int32_t>(n);
  problem.o = static_cast<int32_t>(o);
  problem.parts = static_cast<const uint16_t*>(parts.const_data_ptr());
  problem.padded_rows = parts.size(2);
  problem.k = static_cast<int32_t>(parts.size(3));
  problem.straight = static_cast<int32_t>(straight);
  problem.blocks = static_cast<int32_t>(parts.size(1));
  problem.layer_count = static_cast<int32_t>(layers.size() / 2);
  for (size_t i = 0; i < layers.size(); i += 2) {
    problem.layers[i / 2] = {static_cast<int32_t>(layers[i]), static_cast<int32_t>(layers[i + 1])};
  }
  problem.p = data<float>(p);
  problem.sample = static_cast<int32_t>(sample);
  problem.p_rows = p.size(1);
  problem.p_cols = p.size(2);
  problem.entries = data<float>(entries);
  problem.first_row = static_cast<int32_t>(sample * o);
  return problem;
}

}  // namespace ahkernels::cuda
