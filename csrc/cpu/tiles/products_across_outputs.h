// Products of Jacobians for few samples. No forward Gram enters, so that rows of all outputs can be in one panel, which
// the samples alone would fill only in part.
#pragma once

#include <algorithm>

#include "packed_walk.h"

namespace ahkernels::cpu {

template <class T>
class ProductsAcrossOutputs {
 public:
  // There are n*o rows in the order (output, sample) with output_major, else (sample, output), and up to `width`
  // numbers of each at a time.
  ProductsAcrossOutputs(const TileKernels<T>& tiles, int64_t n, int64_t o, bool output_major, int64_t width)
      : tiles_(tiles),
        n_(n),
        o_(o),
        output_major_(output_major),
        bytes_(tiles.panel_bytes(width)),
        packed_(panels() * bytes_),
        scratch_(thread_count() * kTileSize * static_cast<int64_t>(sizeof(T))) {}

  static int64_t panels(int64_t n, int64_t o) { return ceil_div(n * o, kPanel); }

  // entry(i, j, x, y) += <row of (x, i), row of (y, j)> for i <= j, from `rows` [n*o, k].
  template <class Entry>
  void add_products(const Strided& rows, int64_t k, const Entry& entry) {
    for_each_item(panels(), 1, [&](int64_t panel, int64_t) {
      tiles_.pack(rows.from_row(panel * kPanel), nullptr, count(panel), k, packed_.template at<void>(panel * bytes_));
    });
    for_each_item(panels() * (panels() + 1) / 2, 1, [&](int64_t item, int64_t thread) {
      const PanelPair pair = triangle_pair(item);
      T* tile = scratch_.template at<T>(thread * kTileSize * static_cast<int64_t>(sizeof(T)));
      tiles_.gemm(tiles_.padded(k), packed_.template at<void>(pair.row * bytes_),
                  packed_.template at<void>(pair.col * bytes_), count(pair.row), count(pair.col),
                  /*accumulate=*/false, tile);
      for (int64_t r = 0; r < count(pair.row); ++r) {
        const int64_t row = pair.row * kPanel + r;
        for (int64_t c = 0; c < count(pair.col) && pair.col * kPanel + c <= row; ++c) {
          const int64_t col = pair.col * kPanel + c;
          add(row, col, tile[r * kPanel + c], entry);
        }
      }
    });
  }

 private:
  int64_t panels() const { return panels(n_, o_); }
  int64_t count(int64_t panel) const { return std::min(kPanel, n_ * o_ - panel * kPanel); }
  int64_t sample(int64_t row) const { return output_major_ ? row % n_ : row / o_; }
  int64_t output(int64_t row) const { return output_major_ ? row / n_ : row % o_; }

  // Adds an entry on or below the diagonal of K, also as its mirror image where that has i <= j.
  template <class Entry>
  void add(int64_t row, int64_t col, T value, const Entry& entry) const {
    const int64_t i = output(row), j = output(col), x = sample(row), y = sample(col);
    if (i <= j) entry(i, j, x, y) += value;
    if (j <= i && row != col) entry(j, i, y, x) += value;
  }

  const TileKernels<T>& tiles_;
  const int64_t n_, o_;
  const bool output_major_;
  const int64_t bytes_;
  AlignedBuffer packed_, scratch_;
};

}  // namespace ahkernels::cpu
