// The parameters of the tile kernels: what they read and write, for tiles in some rows of K and all columns from there
// on.
#pragma once

#include <cstdint>

#include "../tiling.h"

namespace ahkernels::cuda {

// The numbers of a factor along k are padded to a multiple of this, a row of shared memory.
constexpr int64_t kKAlignment = 64;

// The result, in which v is a centered entry of K.
enum class Result {
  kSquares,   // the sum of v v
  kMatrix,    // v itself on and above the diagonal, and its mirror image below
  kRows,      // v itself in the tiles alone
  kProducts,  // the sum of v w, with the entries w of another kernel as kRows has written them
};

// What entries of T, the part of a near-constant kernel that is for tiles, have beside the Grams of deviations
// (near_constant.cuh). In the place of the means they have p.
struct Offsets {
  const float* pairs;    // [o][padded_rows][2]: at [j][(r, i)] x_ij and q_r,ij
  const float* factors;  // [3]: lambda, kappa and p0 beta^2 / t^2
};

struct Problem {
  TileBands tiles;
  int32_t size;  // n * o, the rows of K; less than 2^31 also in whole tiles
  int32_t n, o;
  SampleOf eight_rows, between_blocks;  // steps between rows and between columns of a fragment: see set_steps()

  // The backward factor, scaled, as a sum of bf16 parts.
  const uint16_t* parts;  // [parts][positions][padded_rows][k]
  int64_t padded_rows;
  int32_t k, positions;

  // The forward Gram, scaled, at samples from `sample` on, in rows and in columns.
  const float* p;  // [positions][positions][p_rows][p_cols]
  int32_t sample;
  int64_t p_rows, p_cols;

  // Subtracted from each entry, scaled; kMatrix has none.
  const float* row_means;  // [padded_rows]
  const float* col_means;  // [padded_rows]
  Offsets offsets;         // for T

  double* sums;    // kSquares, kProducts: [blocks * warps]
  float* entries;  // kMatrix, kRows, kProducts: [*, size], rows of K from first_row on
  int32_t first_row;
  const double* unscale;  // kMatrix: [2], by which entries are multiplied

  // Sets the steps for fragments whose blocks begin `block_rows` rows apart.
  void set_steps(int32_t block_rows) {
    eight_rows = SampleOf::row(8, o);
    between_blocks = SampleOf::row(block_rows - 8, o);
  }

  AHK_HOST_DEVICE int64_t part_rows(int part, int position) const {
    return (int64_t{part} * positions + position) * padded_rows;
  }
};

// Calls visit(a, b) for the products of parts that matter, a + b < parts, the smallest products first.
template <int kParts, class Visit>
AHK_HOST_DEVICE inline void for_each_product(const Visit& visit) {
#pragma unroll
  for (int order = kParts - 1; order >= 0; --order) {
#pragma unroll
    for (int a = 0; a <= order; ++a) visit(a, order - a);
  }
}

}  // namespace ahkernels::cuda
