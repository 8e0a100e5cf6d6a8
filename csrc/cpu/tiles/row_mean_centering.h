// Centering by row means: what is subtracted from the tiles of a kernel before they are squared.
#pragma once

#include <vector>

#include "layer_factors.h"
#include "near_constant_centering.h"

namespace ahkernels::cpu {

// The row means of one kernel times its scale, less what its tiles leave out already (near_constant_centering.h).
template <class T>
struct RowMeanCentering {
  // An entry of a tile less its column's and its row's number is the centered entry; `row` includes the mean of all.
  std::vector<T> col, row;  // [o][stride]
  int64_t stride;           // n rounded up to whole panels

  // row_means is [n, o].
  RowMeanCentering(size_t kernel, const std::vector<LayerFactors>& layers,
                   const std::vector<NearConstantCentering<T>>& centering, const double* row_means)
      : stride(ceil_div(layers[0].n, kPanel) * kPanel) {
    const int64_t n = layers[0].n, o = layers[0].o;
    // h and the constant are left out of the tiles.
    std::vector<double> h(n, 0.0);
    double constant = 0, scale = 1;
    for (size_t t = 0; t < layers.size(); ++t) {
      if (layers[t].kernel != kernel) continue;
      scale = layers[t].scale;
      if (!centering[t].active()) continue;
      constant += centering[t].constant[0];  // near-constant kernels come here with one output alone
      for (int64_t x = 0; x < n; ++x) h[x] += centering[t].h[x];
    }
    double mean = 0;
    for (int64_t r = 0; r < n * o; ++r) mean += row_means[r];
    mean /= static_cast<double>(n * o);
    col.assign(o * stride, T{0});
    row.assign(o * stride, T{0});
    for (int64_t x = 0; x < n; ++x) {
      for (int64_t i = 0; i < o; ++i) {
        const double row_mean = row_means[x * o + i];
        col[i * stride + x] = static_cast<T>(row_mean * scale - constant - h[x]);
        row[i * stride + x] = static_cast<T>((row_mean - mean) * scale - h[x]);
      }
    }
  }

  const T* row_at(int64_t output, int64_t panel) const { return row.data() + output * stride + panel * kPanel; }
  const T* col_at(int64_t output, int64_t panel) const { return col.data() + output * stride + panel * kPanel; }
};

}  // namespace ahkernels::cpu
