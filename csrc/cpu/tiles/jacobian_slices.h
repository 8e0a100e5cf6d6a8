// Jacobians J(x, i) = sum_s g_s^i(x) a_s(x)^T of a layer with many positions, one slice of the parameters at a time, so
// that no whole Jacobian is held.
//
// The weight [m, d] is cut into tiles of kPanel x kPanel, where J is a product over positions. A slice is a few tiles
// side by side, in the order [tile][m][d], with the rows that the weight has and zeros where its columns end. The bias
// comes last, as sqrt(b) sum_s g_s.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../aligned_buffer.h"
#include "../parallel.h"
#include "layer_factors.h"

namespace ahkernels::cpu {

template <class T>
class JacobianSlices {
 public:
  // `mean` is subtracted from every J^i unless it is null: for each of the o outputs [m, d] for the weight, then [m]
  // for a bias. A slice has at most `most_tiles` tiles.
  JacobianSlices(const TileKernels<T>& tiles, const LayerFactors& layer, const double* mean, int64_t most_tiles)
      : tiles_(tiles),
        layer_(layer),
        mean_(mean),
        d_tiles_(ceil_div(layer.d, kPanel)),
        width_(std::clamp<int64_t>(most_tiles, 1, std::max<int64_t>(d_tiles_, 1))),
        d_slices_(ceil_div(d_tiles_, width_)),
        weight_slices_(ceil_div(layer.m, kPanel) * d_slices_),
        memory_(thread_count() * (width_ + 1) * packed_bytes()) {}

  int64_t slices() const { return weight_slices_ + (layer_.bias > 0 ? ceil_div(layer_.m, row_numbers()) : 0); }
  // Numbers from one row of `out` to the next, and numbers of a row that a slice fills.
  int64_t row_numbers() const { return width_ * kTileSize; }
  int64_t numbers(int64_t slice) const {
    if (slice >= weight_slices_) return std::min(row_numbers(), layer_.m - (slice - weight_slices_) * row_numbers());
    return tiles_of(slice) * m_count(slice) * kPanel;
  }

  // out [(x, i), row_numbers()] for the samples [first, first + count)
  void fill(int64_t slice, int64_t first, int64_t count, T* out) const {
    for_each_item(count, 1, [&](int64_t x, int64_t thread) {
      T* rows = out + x * layer_.o * row_numbers();
      if (slice < weight_slices_) {
        weight(slice, first + x, thread, rows);
      } else {
        bias(slice, first + x, rows);
      }
    });
  }

 private:
  // Bytes of kPanel rows with a number for each position.
  int64_t packed_bytes() const { return tiles_.panel_bytes(layer_.s); }

  // Tiles side by side in a slice of the weight, and their rows.
  int64_t tiles_of(int64_t slice) const { return std::min(width_, d_tiles_ - slice % d_slices_ * width_); }
  int64_t m_count(int64_t slice) const { return std::min(kPanel, layer_.m - slice / d_slices_ * kPanel); }

  void weight(int64_t slice, int64_t x, int64_t thread, T* rows) const {
    const int64_t m_begin = slice / d_slices_ * kPanel, m_count = this->m_count(slice);
    const int64_t first_tile = slice % d_slices_ * width_, count = tiles_of(slice), numbers_of_tile = m_count * kPanel;
    std::byte* packed = memory_.at<std::byte>(thread * (width_ + 1) * packed_bytes());
    const auto columns = [&](int64_t tile) { return std::min(kPanel, layer_.d - (first_tile + tile) * kPanel); };
    for (int64_t tile = 0; tile < count; ++tile) {
      const Strided a = transposed(layer_.forward_rows(x, 0), layer_.forward.stride(1));
      tiles_.pack(a.from_row((first_tile + tile) * kPanel), nullptr, columns(tile), layer_.s,
                  packed + (1 + tile) * packed_bytes());
    }
    const GemmScope<T> gemms(tiles_);
    for (int64_t i = 0; i < layer_.o; ++i) {
      const Strided g = transposed(layer_.backward_rows(x, 0, i), layer_.backward.stride(1));
      tiles_.pack(g.from_row(m_begin), nullptr, m_count, layer_.s, packed);
      for (int64_t tile = 0; tile < count; ++tile) {
        // A product may write rows past m_count, where the next tile comes or the row of the slice has ended.
        T* to = rows + i * row_numbers() + tile * numbers_of_tile;
        if (columns(tile) < kPanel) std::fill(to, to + numbers_of_tile, T{0});
        tiles_.gemm(tiles_.padded(layer_.s), packed, packed + (1 + tile) * packed_bytes(), m_count, columns(tile),
                    /*accumulate=*/false, to);
        if (mean_ == nullptr) continue;
        for (int64_t r = 0; r < m_count; ++r) {
          const double* from = mean_of(i) + (m_begin + r) * layer_.d + (first_tile + tile) * kPanel;
          for (int64_t c = 0; c < columns(tile); ++c) {
            to[r * kPanel + c] -= static_cast<T>(from[c]);
          }
        }
      }
    }
  }

  void bias(int64_t slice, int64_t x, T* rows) const {
    const int64_t begin = (slice - weight_slices_) * row_numbers(), count = numbers(slice);
    const T root = static_cast<T>(std::sqrt(layer_.scaled_bias()));
    for (int64_t i = 0; i < layer_.o; ++i) {
      T* to = rows + i * row_numbers();
      std::fill(to, to + count, T{0});
      for (int64_t position = 0; position < layer_.s; ++position) {
        tiles_.axpy(root, layer_.backward_rows(x, position, i).from_k(begin), count, to);
      }
      if (mean_ == nullptr) continue;
      const double* from = mean_of(i) + layer_.m * layer_.d + begin;
      for (int64_t c = 0; c < count; ++c) to[c] -= static_cast<T>(from[c]);
    }
  }

  const double* mean_of(int64_t output) const { return mean_ + output * layer_.m * (layer_.d + 1); }

  // The view of one position, turned into rows along its k and positions along the new k.
  static Strided transposed(Strided row, int64_t position_stride) {
    row.row_stride = row.k_stride;
    row.k_stride = position_stride;
    return row;
  }

  const TileKernels<T>& tiles_;
  const LayerFactors& layer_;
  const double* mean_;
  const int64_t d_tiles_, width_, d_slices_, weight_slices_;
  AlignedBuffer memory_;  // for each thread: the gradients of one output, then the inputs of every tile
};

}  // namespace ahkernels::cpu
