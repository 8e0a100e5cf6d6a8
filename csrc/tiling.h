// How the tangent kernel K is cut into tiles: index arithmetic alone, for host and device.
//
// Samples are taken in panels of kPanel. A panel of samples and an output i together name a block of kPanel rows of K,
// so that one tile of the forward Gram P[X, X'] serves all o*o tiles of the backward Gram Q[(X, i), (X', j)] of a pair
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

// ---- memory of the CPU ops

// What limits are divided by. Tests build the ops so that they can change it: with little memory, small problems are
// cut into as many pieces as large ones.
#if defined(AHK_TEST_MEMORY_LIMITS)
inline int64_t memory_divisor = 1;
#else
constexpr int64_t memory_divisor = 1;
#endif

// Bytes that are held at a time, as far as a problem can be cut to fit them.
struct MemoryLimit {
  int64_t bytes;
  operator int64_t() const { return bytes / memory_divisor; }
};

// Where tiles cannot be visited as they are made (cpu/tiles/tiles_in_memory.h), K is made in square blocks. This is for
// the tiles of one of them.
constexpr MemoryLimit kTilesInMemoryBytes{128 << 20};

// Pairs of panels, as a fraction where it is less than one, whose tiles at all pairs of outputs take so much memory.
inline double panel_pairs_in_memory(int64_t o, int64_t kernels, int64_t number_bytes) {
  const double of_outputs = static_cast<double>(o) * static_cast<double>(o) * static_cast<double>(kernels);
  return static_cast<double>(kTilesInMemoryBytes) / (of_outputs * static_cast<double>(kPanel * kPanel * number_bytes));
}

// Panels along a side of a block, at least one.
inline int64_t block_side_in_memory(int64_t o, int64_t kernels, int64_t number_bytes) {
  const int64_t side = static_cast<int64_t>(std::sqrt(panel_pairs_in_memory(o, kernels, number_bytes)));
  return side > 1 ? side : 1;
}

// ---- tiles of the CUDA kernels
//
// There the rows of K come in their own order (x, i), and a tile is kTile x kTile of them wherever samples begin and
// end; the forward Gram enters elementwise, with P at the samples of row and column (SampleOf).

constexpr int32_t kTile = 128;

// Layers that a kernel can be the sum of in one pass over its tiles. A launch takes their sizes as arguments.
constexpr int kMostLayers = 256;

// The tiles (row, col) with first <= row < end and row <= col < size, in bands of rows that are taken column by column,
// so that blocks running at the same time share the panels they read. Bands are of one height, as far as rows go: in a
// low one, blocks would share little.
struct TileBands {
  static constexpr int32_t kMostBandRows = 16;
  int32_t first, end, size, bands, band_rows;

  TileBands() = default;
  TileBands(int64_t first_row, int64_t end_row, int64_t rows_of_tiles)
      : first(static_cast<int32_t>(first_row)),
        end(static_cast<int32_t>(end_row)),
        size(static_cast<int32_t>(rows_of_tiles)) {
    const int64_t rows = end_row > first_row ? end_row - first_row : 1;  // without rows there is a band without tiles
    band_rows = static_cast<int32_t>(ceil_div(rows, ceil_div(rows, kMostBandRows)));
    bands = static_cast<int32_t>(ceil_div(rows, band_rows));
  }

  // Number of tiles in the rows [first, row).
  AHK_HOST_DEVICE int64_t before(int32_t row) const {
    const int32_t rows = row - first, width = size - first;
    return int64_t{rows} * (2 * width - rows + 1) / 2;
  }
  AHK_HOST_DEVICE int64_t count() const { return before(end); }

  AHK_HOST_DEVICE PanelPair at(int64_t t) const {
    int32_t low = 0, high = bands - 1;
    while (low < high) {  // the last band that starts at t or before
      const int32_t middle = (low + high + 1) / 2;
      if (before(first + middle * band_rows) <= t) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    const int32_t top = first + low * band_rows;
    const int32_t height = end - top < band_rows ? end - top : band_rows;
    int32_t in_band = static_cast<int32_t>(t - before(top));
    const int32_t rest = in_band - height * (height + 1) / 2;
    if (rest >= 0) return {top + rest % height, top + height + rest / height};
    int32_t col = 0;  // the columns of the band's own rows: 1, 2, ... tiles
    while (in_band > col) in_band -= ++col;
    return {top + in_band, top + col};
  }
};

// The sample and the output of a row of K. It moves on to a later row without a division.
struct SampleOf {
  int32_t sample, output;

  AHK_HOST_DEVICE static SampleOf row(int32_t row, int32_t o) { return {row / o, row % o}; }
  // Moves on by as many rows as `step` = row(rows, o) stands for.
  AHK_HOST_DEVICE void advance(const SampleOf& step, int32_t o) {
    sample += step.sample;
    output += step.output;
    if (output >= o) {
      output -= o;
      ++sample;
    }
  }
};

}  // namespace ahkernels
