// Jacobians J(x, i) = sum_s g_s^i(x) a_s(x)^T of a layer with many positions, a slice of the parameters at a time, so
// that the whole of them is never held.
//
// The weight [m, d] is cut into tiles of kPanel x kPanel, whose parts of J are products over positions; a slice is a
// few tiles side by side, in the order [tile][m][d] with zeros where the weight ends. The bias comes last, as sqrt(b)
// sum_s g_s.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "aligned.h"
#include "parallel.h"
#include "term.h"

namespace ahkernels::cpu {

template <class T>
class JacobianSlices {
 public:
  // mean is taken out of every J^i: [o] times [m, d] and [m] for a bias; null for none. most_tiles is of a slice.
  JacobianSlices(const TileKernels<T>& tiles, const Term& term, const double* mean, int64_t most_tiles)
      : tiles_(tiles),
        term_(term),
        mean_(mean),
        d_tiles_(ceil_div(term.d, kPanel)),
        width_(std::clamp<int64_t>(most_tiles, 1, std::max<int64_t>(d_tiles_, 1))),
        d_slices_(ceil_div(d_tiles_, width_)),
        weight_slices_(ceil_div(term.m, kPanel) * d_slices_),
        memory_(thread_count() * (width_ + 1) * packed_bytes()) {}

  int64_t slices() const { return weight_slices_ + (term_.bias > 0 ? ceil_div(term_.m, row_numbers()) : 0); }
  // Numbers from one row of `out` to the next, and those that a slice has.
  int64_t row_numbers() const { return width_ * kTileSize; }
  int64_t numbers(int64_t slice) const {
    if (slice >= weight_slices_) return std::min(row_numbers(), term_.m - (slice - weight_slices_) * row_numbers());
    return std::min(width_, d_tiles_ - slice % d_slices_ * width_) * kTileSize;
  }

  // out [(x, i), row_numbers()] for the samples [first, first + count)
  void fill(int64_t slice, int64_t first, int64_t count, T* out) const {
    for_each_item(count, 1, [&](int64_t x, int64_t thread) {
      T* rows = out + x * term_.o * row_numbers();
      if (slice < weight_slices_) {
        weight(slice, first + x, thread, rows);
      } else {
        bias(slice, first + x, rows);
      }
    });
  }

 private:
  // Of kPanel rows with a number for each position.
  int64_t packed_bytes() const { return tiles_.panel_bytes(term_.s); }

  void weight(int64_t slice, int64_t x, int64_t thread, T* rows) const {
    const int64_t m_begin = slice / d_slices_ * kPanel, m_count = std::min(kPanel, term_.m - m_begin);
    const int64_t first_tile = slice % d_slices_ * width_, count = numbers(slice) / kTileSize;
    std::byte* packed = memory_.at<std::byte>(thread * (width_ + 1) * packed_bytes());
    const auto columns = [&](int64_t tile) { return std::min(kPanel, term_.d - (first_tile + tile) * kPanel); };
    for (int64_t tile = 0; tile < count; ++tile) {
      const Strided a = transposed(term_.forward_rows(x, 0), term_.forward.stride(1));
      tiles_.pack(a.from_row((first_tile + tile) * kPanel), nullptr, columns(tile), term_.s,
                  packed + (1 + tile) * packed_bytes());
    }
    const GemmScope<T> gemms(tiles_);
    for (int64_t i = 0; i < term_.o; ++i) {
      const Strided g = transposed(term_.backward_rows(x, 0, i), term_.backward.stride(1));
      tiles_.pack(g.from_row(m_begin), nullptr, m_count, term_.s, packed);
      for (int64_t tile = 0; tile < count; ++tile) {
        T* to = rows + i * row_numbers() + tile * kTileSize;
        if (columns(tile) < kPanel) std::fill(to, to + kTileSize, T{0});
        tiles_.gemm(tiles_.padded(term_.s), packed, packed + (1 + tile) * packed_bytes(), m_count, columns(tile),
                    /*accumulate=*/false, to);
        // A product may write rows beyond its own, from a part of the panel that nothing was packed into.
        std::fill(to + m_count * kPanel, to + kTileSize, T{0});
        if (mean_ == nullptr) continue;
        for (int64_t r = 0; r < m_count; ++r) {
          const double* from = mean_of(i) + (m_begin + r) * term_.d + (first_tile + tile) * kPanel;
          for (int64_t c = 0; c < columns(tile); ++c) {
            to[r * kPanel + c] -= static_cast<T>(from[c]);
          }
        }
      }
    }
  }

  void bias(int64_t slice, int64_t x, T* rows) const {
    const int64_t begin = (slice - weight_slices_) * row_numbers(), count = numbers(slice);
    const T root = static_cast<T>(std::sqrt(term_.scaled_bias()));
    for (int64_t i = 0; i < term_.o; ++i) {
      T* to = rows + i * row_numbers();
      std::fill(to, to + count, T{0});
      for (int64_t use = 0; use < term_.s; ++use) {
        tiles_.axpy(root, term_.backward_rows(x, use, i).from_k(begin), count, to);
      }
      if (mean_ == nullptr) continue;
      const double* from = mean_of(i) + term_.m * term_.d + begin;
      for (int64_t c = 0; c < count; ++c) to[c] -= static_cast<T>(from[c]);
    }
  }

  const double* mean_of(int64_t output) const { return mean_ + output * term_.m * (term_.d + 1); }

  // Rows along what was k, and positions along k.
  static Strided transposed(Strided row, int64_t use_stride) {
    row.row_stride = row.k_stride;
    row.k_stride = use_stride;
    return row;
  }

  const TileKernels<T>& tiles_;
  const Term& term_;
  const double* mean_;
  const int64_t d_tiles_, width_, d_slices_, weight_slices_;
  AlignedBuffer memory_;  // of each thread: gradients of one output, then the inputs of every tile
};

}  // namespace ahkernels::cpu
