// The parameters of the tile kernels: what they read and write, for tiles in some rows of K and all columns from there
// on.
#pragma once

#include <cstdint>

#include "../tiling.h"

namespace ahkernels::cuda {

// The numbers of a factor along k are padded to a multiple of this, a row of shared memory.
constexpr int64_t kKAlignment = 64;

// A tensor core shifts what it adds in a step to the largest exponent among the addends, and cuts off what falls below
// 2^-25 of it on Hopper and 2^-24 before. A sum of k numbers that only grows loses up to 17/16 k 2^-25 of itself in
// this way, or 9/8 k 2^-24. Sums over longer k than Problem::straight are therefore promoted: tensor cores sum up a
// slice of k at a time, and the sums of slices are added in fp32 with rounding. What is lost is then what a slice
// loses, however long k.

// The result, in which v is a centered entry of K.
enum class Result {
  kSquares,   // the sum of v v
  kMatrix,    // v itself on and above the diagonal, and its mirror image below
  kRows,      // v itself in the tiles alone
  kProducts,  // the sum of v w, with the entries w of another kernel as kRows has written them
};

// A layer of a sum: its positions, and the slices of kKAlignment numbers along k at each of them.
struct LayerSize {
  int32_t positions, slices;
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

  // The backward factors, scaled, as sums of bf16 parts. One layer with one position is one block. In a sum of layers
  // and of pairs of their positions, every slice along k is a block, and k = kKAlignment.
  const uint16_t* parts;  // [parts][blocks][padded_rows][k]
  int64_t padded_rows;
  int32_t k, blocks;
  int32_t layer_count;  // 0 for one layer with one position
  LayerSize layers[kMostLayers];
  int32_t straight;  // the largest k of sums in tensor cores alone

  // The forward Grams, scaled, at samples from `sample` on, in rows and in columns.
  const float* p;  // [pairs of positions of all layers][p_rows][p_cols]
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

  bool promoted() const {
    bool longer = k > straight;
    for (int layer = 0; layer < layer_count; ++layer) longer |= layers[layer].slices * kKAlignment > straight;
    return longer;
  }

  AHK_HOST_DEVICE int64_t part_rows(int part, int block) const {
    return (int64_t{part} * blocks + block) * padded_rows;
  }
};

// Calls visit<kParts, kPromoted>() for the kernel of so many parts. Three are of fp32 quality at any k.
template <class Visit>
auto visit_kernel(const Problem& problem, int64_t parts, const Visit& visit) {
  const bool promoted = problem.promoted();
  if (parts == 1) return promoted ? visit.template operator()<1, true>() : visit.template operator()<1, false>();
  if (parts == 2) return promoted ? visit.template operator()<2, true>() : visit.template operator()<2, false>();
  return visit.template operator()<3, true>();
}

// Calls visit(pair, row_block, col_block, slices) for the products that K is the sum of, each times the forward Gram of
// its pair: the blocks at which factors begin, and slices along k.
template <bool kSum, class Visit>
AHK_HOST_DEVICE inline void for_each_pair(const Problem& problem, const Visit& visit) {
  if constexpr (!kSum) {
    visit(0, 0, 0, static_cast<int32_t>(problem.k / kKAlignment));
  } else {
    int32_t pair = 0, first = 0;
    for (int layer = 0; layer < problem.layer_count; ++layer) {
      const LayerSize size = problem.layers[layer];
      for (int row = 0; row < size.positions; ++row) {
        for (int col = 0; col < size.positions; ++col, ++pair) {
          visit(pair, first + row * size.slices, first + col * size.slices, size.slices);
        }
      }
      first += size.positions * size.slices;
    }
  }
}

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
