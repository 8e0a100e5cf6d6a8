// What centering subtracts from the tiles of a kernel.
#pragma once

#include <vector>

#include "centering.h"
#include "kernel.h"

namespace ahkernels::cpu {

// Of the row means [n, o] of K: numbers for tiles of K times its scale, as [o][n rounded up to whole panels].
template <class T>
struct Means {
  // A tile entry less its column's and its row's number is the centered entry; the mean of all is in the latter.
  std::vector<T> col, row;
  int64_t stride;

  Means(const Kernel& kernel, const Centering<T>& centering, const double* row_means)
      : stride(ceil_div(kernel.n, kPanel) * kPanel) {
    double mean = 0;
    for (int64_t r = 0; r < kernel.n * kernel.o; ++r) mean += row_means[r];
    mean /= static_cast<double>(kernel.n * kernel.o);
    col.assign(kernel.o * stride, T{0});
    row.assign(kernel.o * stride, T{0});
    for (int64_t x = 0; x < kernel.n; ++x) {
      const double h = centering.active() ? centering.h[x] : 0.0;
      for (int64_t i = 0; i < kernel.o; ++i) {
        const double row_mean = row_means[x * kernel.o + i];
        col[i * stride + x] = static_cast<T>(row_mean * kernel.scale() - centering.constant - h);
        row[i * stride + x] = static_cast<T>((row_mean - mean) * kernel.scale() - h);
      }
    }
  }
};

}  // namespace ahkernels::cpu
