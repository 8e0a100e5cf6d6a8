// A vector in the type of the tiles, scaled to be near one, and how to undo scales.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../isa/kernel_table.h"

namespace ahkernels::cpu {

// v [n, o] as numbers [o][n rounded up to whole panels], times the power of two `scale` that brings its largest
// magnitude to [1, 2).
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

// Form and square of a kernel and a vector, from those of the scaled kernel and the scaled vector. Scales are divided
// by one after the other, since the product of two extreme ones can leave the range of fp64.
inline FormAndSquare unscaled(double form, double square, double scale, double vector_scale) {
  return {form / scale / vector_scale / vector_scale, square / scale / scale};
}

}  // namespace ahkernels::cpu
