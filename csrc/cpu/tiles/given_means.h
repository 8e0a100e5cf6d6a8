// Centering by means that the caller gives: where the tiles at hand are only some of those of a kernel.
#pragma once

#include <vector>

#include "layer_factors.h"

namespace ahkernels::cpu {

// What is subtracted from the rows and from the columns of one kernel's tiles, times its scale.
template <class T>
struct GivenMeans {
  int64_t o, width;  // one number for each row, or one for each output of the columns
  int64_t stride;    // n rounded up to whole panels
  std::vector<T> numbers;

  // means [n, o, width], of which entry (r, i, j) is subtracted from K_ri,sj and from K_sj,ri for all s.
  GivenMeans(int64_t n, int64_t o, int64_t width, const double* means, double scale)
      : o(o), width(width), stride(ceil_div(n, kPanel) * kPanel), numbers(o * width * stride, T{0}) {
    for (int64_t ij = 0; ij < o * width; ++ij) {
      for (int64_t x = 0; x < n; ++x) numbers[ij * stride + x] = static_cast<T>(means[x * o * width + ij] * scale);
    }
  }

  // For the samples of a panel at output i, in tiles at outputs (i, j) or (j, i).
  const T* at(int64_t i, int64_t j, int64_t panel) const {
    return numbers.data() + (i * width + (width > 1 ? j : 0)) * stride + panel * kPanel;
  }
};

}  // namespace ahkernels::cpu
