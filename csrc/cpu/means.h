// What centering subtracts from the tiles of a kernel.
#pragma once

#include <vector>

#include "centering.h"
#include "term.h"

namespace ahkernels::cpu {

// Of the row means [n, o] of a kernel: numbers for tiles of it times its scale, as [o][n rounded up to whole panels].
template <class T>
struct Means {
  // A tile entry less its column's and its row's number is the centered entry; the mean of all is in the latter.
  std::vector<T> col, row;
  int64_t stride;

  Means(size_t kernel, const std::vector<Term>& terms, const std::vector<Centering<T>>& centering,
        const double* row_means)
      : stride(ceil_div(terms[0].n, kPanel) * kPanel) {
    const int64_t n = terms[0].n, o = terms[0].o;
    // What the tiles leave out.
    std::vector<double> h(n, 0.0);
    double constant = 0, scale = 1;
    for (size_t t = 0; t < terms.size(); ++t) {
      if (terms[t].kernel != kernel) continue;
      scale = terms[t].scale();
      if (!centering[t].active()) continue;
      constant += centering[t].constant[0];  // only kernels of one output are here with means taken out
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
