// A vector in the numbers of the tiles, near one, and what forms with it are divided by.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "tile.h"

namespace ahkernels::cpu {

// v [n, o] as [o][n rounded up to whole panels], times the power of two that brings its largest magnitude to [1, 2).
template <class T>
struct ScaledVector {
  std::vector<T> numbers;
  int64_t stride;
  double scale = 1;

  ScaledVector(const double* v, int64_t n, int64_t o)
      : numbers(ceil_div(n, kPanel) * kPanel * o, T{0}), stride(ceil_div(n, kPanel) * kPanel) {
    double largest = 0;
    for (int64_t r = 0; r < n * o; ++r) largest = std::max(largest, std::abs(v[r]));
    if (largest > 0 && std::isfinite(largest)) scale = std::ldexp(1.0, -std::clamp(std::ilogb(largest), -1000, 1000));
    for (int64_t x = 0; x < n; ++x) {
      for (int64_t i = 0; i < o; ++i) numbers[i * stride + x] = static_cast<T>(v[x * o + i] * scale);
    }
  }
  const T* at(int64_t output, int64_t panel) const { return numbers.data() + output * stride + panel * kPanel; }
};

// Of a kernel times its scale and a vector times its own; one after the other, as the product of two extreme scales can
// leave the range of fp64.
inline void unscale(double form, double square, double scale, double vector_scale, double* out) {
  out[0] = form / scale / vector_scale / vector_scale;
  out[1] = square / scale / scale;
}

}  // namespace ahkernels::cpu
