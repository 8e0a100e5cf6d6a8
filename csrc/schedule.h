// How the tangent kernel is cut into tiles: index arithmetic alone, usable on host and device.
//
// Samples are taken in panels of kPanel. A panel of samples and an output index i together name a block of kPanel
// rows of K, so that one forward-Gram tile P[X, X'] serves all o*o backward-Gram tiles Q[(X, i), (X', j)] of a pair
// of panels: K[(X, i), (X', j)] = P[X, X'] o Q[(X, i), (X', j)] elementwise, with no broadcast in the epilogue.
#pragma once

#include <cmath>
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

// The t-th pair (row >= col) of the lower triangle, row by row: row r starts at r(r+1)/2.
AHK_HOST_DEVICE inline PanelPair triangle_pair(int64_t t) {
  int64_t row = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(t) + 1.0) - 1.0) / 2.0);
  // The square root may be off by one either way.
  while (row * (row + 1) / 2 > t) --row;
  while ((row + 1) * (row + 2) / 2 <= t) ++row;
  return {row, t - row * (row + 1) / 2};
}

// Inverse of triangle_pair().
AHK_HOST_DEVICE inline int64_t triangle_index(const PanelPair& pair) {
  return pair.row * (pair.row + 1) / 2 + pair.col;
}

// The t-th pair of a rows x cols rectangle of panels, row by row.
AHK_HOST_DEVICE inline PanelPair rectangle_pair(int64_t t, int64_t cols) { return {t / cols, t % cols}; }

}  // namespace ahkernels
