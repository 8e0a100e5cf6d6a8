// How the tangent kernel is cut into tiles: index arithmetic alone, usable on host and device.
//
// Samples are taken in panels of kPanel. A panel of samples and an output index i together name a block of kPanel
// rows of K, so that one forward-Gram tile P[X, X'] serves all o*o backward-Gram tiles Q[(X, i), (X', j)] of a pair
// of panels: K[(X, i), (X', j)] = P[X, X'] o Q[(X, i), (X', j)] elementwise, with no broadcast in the epilogue.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define AHK_HOST_DEVICE __host__ __device__
#else
#define AHK_HOST_DEVICE
#endif

namespace ahkernels {

// A multiple of every register tile's rows (4, 6, 8) and columns (8 to 48).
constexpr int64_t kPanel = 48;

AHK_HOST_DEVICE inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct PanelPair {
  int64_t row, col;
};

// The t-th pair (row <= col) of the upper triangle of count x count panels, row by row.
AHK_HOST_DEVICE inline PanelPair triangle_pair(int64_t t, int64_t count) {
  int64_t row = 0, high = count - 1;
  // Row r starts at r*count - r(r-1)/2; a binary search stays exact where a square root would not.
  while (row < high) {
    const int64_t middle = (row + high + 1) / 2;
    if (middle * count - middle * (middle - 1) / 2 <= t) {
      row = middle;
    } else {
      high = middle - 1;
    }
  }
  return {row, row + t - (row * count - row * (row - 1) / 2)};
}

// The t-th pair of a rows x cols rectangle of panels, row by row.
AHK_HOST_DEVICE inline PanelPair rectangle_pair(int64_t t, int64_t cols) { return {t / cols, t % cols}; }

}  // namespace ahkernels
