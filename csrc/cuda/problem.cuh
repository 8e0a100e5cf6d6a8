// What the tile kernels read and write, for the tiles of some rows of K and all columns from there on.
#pragma once

#include <cstdint>

#include "../tiling.h"

namespace ahkernels::cuda {

// Rows of K in a whole number of tiles, and numbers of a factor along k in a whole number of shared-memory rows.
constexpr int64_t kKAlignment = 64;

// What becomes of a centered entry v of K.
enum class Result {
  kSquares,   // the sum of v v
  kMatrix,    // v itself on and above the diagonal, and its mirror image below
  kRows,      // v itself in the tiles alone
  kProducts,  // the sum of v w, with the entries w of another kernel that kRows has left
};

struct Problem {
  TileBands tiles;
  int32_t size;  // rows of K, n * o, and up to whole tiles less than 2^31
  int32_t n, o;
  SampleOf eight_rows, between_blocks;  // steps between the rows and columns of a fragment: see set_steps()

  // The backward factor, scaled, as a sum of bf16 parts: [parts][uses][padded_rows][k].
  const uint16_t* parts;
  int64_t padded_rows;
  int32_t k, uses;

  // The forward Gram, scaled, at the samples [sample, ...) of rows and of columns: [uses][uses][p_rows][p_cols].
  const float* p;
  int32_t sample;
  int64_t p_rows, p_cols;

  // Subtracted from each entry, scaled, but for kMatrix: [padded_rows] each.
  const float* row_means;
  const float* col_means;

  double* sums;    // kSquares, kProducts: one for each warp of each block
  float* entries;  // the others and kProducts: rows of K from first_row on, [*, size]
  int32_t first_row;
  const double* unscale;  // kMatrix: two numbers that entries are multiplied by

  // For fragments whose blocks begin so many rows apart.
  void set_steps(int32_t block_rows) {
    eight_rows = SampleOf::row(8, o);
    between_blocks = SampleOf::row(block_rows - 8, o);
  }

  AHK_HOST_DEVICE int64_t part_rows(int part, int use) const { return (int64_t{part} * uses + use) * padded_rows; }
};

// The products of parts (a, b) that matter, a + b < parts: the smallest first.
template <int kParts, class Visit>
AHK_HOST_DEVICE inline void for_each_product(const Visit& visit) {
#pragma unroll
  for (int order = kParts - 1; order >= 0; --order) {
#pragma unroll
    for (int a = 0; a <= order; ++a) visit(a, order - a);
  }
}

}  // namespace ahkernels::cuda
