// The epilogue: from sums of products in registers to entries of K, and to the result that is asked for.
//
// A thread's share of a tile is Blocks x Eights products of 16 x 8 as the matrix instructions leave them: number
// [block][eight][2 h + e] is at row `row + block * block_rows + 8 h` and column `col + 8 eight + e`.
#pragma once

#include "instructions.cuh"
#include "problem.cuh"

namespace ahkernels::cuda {

template <int Blocks, int Eights>
using Fragment = float[Blocks][Eights][4];

template <int Blocks, int Eights>
__device__ inline void clear(Fragment<Blocks, Eights>& fragment) {
#pragma unroll
  for (int block = 0; block < Blocks; ++block) {
#pragma unroll
    for (int eight = 0; eight < Eights; ++eight) {
#pragma unroll
      for (int i = 0; i < 4; ++i) fragment[block][eight][i] = 0;
    }
  }
}

// sum += fragment, for as many blocks as that has
template <int Blocks, int Eights>
__device__ inline void add(const Fragment<Blocks, Eights>& fragment, float (*sum)[Eights][4]) {
#pragma unroll
  for (int block = 0; block < Blocks; ++block) {
#pragma unroll
    for (int eight = 0; eight < Eights; ++eight) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[block][eight][i] += fragment[block][eight][i];
    }
  }
}

// Where one thread's fragment lies in K.
struct Place {
  int32_t row, col, block_rows;
  PanelPair tile;

  // The place of a thread whose warp has the rows from first_row and the columns from first_col of a tile.
  static __device__ Place of(const PanelPair& tile, int32_t first_row, int32_t first_col, int32_t block_rows) {
    const int32_t lane = threadIdx.x % 32;
    return {static_cast<int32_t>(tile.row * kTile) + first_row + lane / 4,
            static_cast<int32_t>(tile.col * kTile) + first_col + lane % 4 * 2, block_rows, tile};
  }
  __device__ int32_t row_of(int block, int h) const { return row + block * block_rows + 8 * h; }
};

// Calls visit(block, h, number) for the numbers of a fragment, column by column, and before each column column(col, x)
// with its sample x. The last sample stands for those past it.
template <bool kWhole, int Blocks, int Eights, class Column, class Visit>
__device__ inline void for_each_entry(const Problem& problem, const Place& place, Fragment<Blocks, Eights>& fragment,
                                      const Column& column, const Visit& visit) {
  const int32_t o = problem.o;
  SampleOf at = SampleOf::row(place.col, o);
#pragma unroll
  for (int eight = 0; eight < Eights; ++eight) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int32_t sample = at.sample + (e == 1 && at.output + 1 == o ? 1 : 0);
      column(place.col + 8 * eight + e, kWhole || sample < problem.n ? sample : problem.n - 1);
#pragma unroll
      for (int block = 0; block < Blocks; ++block) {
#pragma unroll
        for (int h = 0; h < 2; ++h) visit(block, h, fragment[block][eight][2 * h + e]);
      }
    }
    at.advance(problem.eight_rows, o);
  }
}

// The forward Gram P at one pair of positions, for the rows of a fragment. Offsets are 32-bit and in bytes, so that an
// address takes one addition.
template <int Blocks>
class GramRows {
 public:
  __device__ GramRows(const Problem& problem, const Place& place, int pair)
      : base_(reinterpret_cast<const char*>(problem.p)), first_(problem.sample) {
    const int32_t o = problem.o, last = problem.n - 1;
    const uint32_t pair_row = static_cast<uint32_t>(pair * problem.p_rows);
    SampleOf sample = SampleOf::row(place.row, o);
#pragma unroll
    for (int block = 0; block < Blocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t x = (sample.sample < last ? sample.sample : last) - problem.sample;
        row_[block][h] = (pair_row + x) * static_cast<uint32_t>(problem.p_cols) * 4;
        sample.advance(h == 0 ? problem.eight_rows : problem.between_blocks, o);
      }
    }
  }

  __device__ float at(int block, int h, int32_t sample) const {
    const uint32_t offset = row_[block][h] + static_cast<uint32_t>(sample - first_) * 4;
    return __ldg(reinterpret_cast<const float*>(base_ + offset));
  }

 private:
  const char* base_;
  int32_t first_;
  uint32_t row_[Blocks][2];
};

// sum += P o fragment, at one pair of positions.
template <int Blocks, int Eights>
__device__ inline void add_position_pair(const Problem& problem, const Place& place, int pair,
                                         Fragment<Blocks, Eights>& fragment, Fragment<Blocks, Eights>& sum) {
  const GramRows<Blocks> p(problem, place, pair);
  int32_t sample = 0;
  for_each_entry<false, Blocks, Eights>(
      problem, place, fragment, [&](int32_t, int32_t x) { sample = x; },
      [&](int block, int h, float& number) { number *= p.at(block, h, sample); });
  add<Blocks, Eights>(fragment, sum);
}

// Does with the entries of K what kResult says: the fragment's numbers, times P with kGram. Returns this thread's sum.
template <Result kResult, bool kGram, bool kWhole, int Blocks, int Eights>
__device__ inline double finish_entries(const Problem& problem, const Place& place,
                                        Fragment<Blocks, Eights>& fragment) {
  constexpr bool kCentered = kResult != Result::kMatrix;
  const GramRows<Blocks> p(problem, place, 0);
  float row_mean[Blocks][2] = {}, sum[Blocks][2] = {};  // a sum for each row: short chains of additions
#pragma unroll
  for (int block = 0; block < Blocks; ++block) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (kCentered) row_mean[block][h] = __ldg(problem.row_means + place.row_of(block, h));
    }
  }
  int32_t col = 0, sample = 0;
  float col_mean = 0;
  for_each_entry<kWhole, Blocks, Eights>(
      problem, place, fragment,
      [&](int32_t column, int32_t x) {
        col = column;
        sample = x;
        if (kCentered) col_mean = __ldg(problem.col_means + column);
      },
      [&](int block, int h, float& number) {
        const int32_t row = place.row_of(block, h);
        const float entry = kGram ? number * p.at(block, h, sample) : number;
        if (!kWhole && (row >= problem.size || col >= problem.size)) return;
        const float centered = entry - col_mean - row_mean[block][h];
        if constexpr (kResult == Result::kSquares) {
          sum[block][h] += centered * centered;
          return;
        }
        float* at = problem.entries + int64_t{row - problem.first_row} * problem.size + col;
        if constexpr (kResult == Result::kProducts) {
          sum[block][h] += centered * __ldg(at);
        } else if constexpr (kResult == Result::kRows) {
          *at = centered;
        } else if (col >= row) {
          const float value = static_cast<float>(static_cast<double>(entry) * problem.unscale[0] * problem.unscale[1]);
          *at = value;
          problem.entries[int64_t{col - problem.first_row} * problem.size + row] = value;
        }
      });
  double total = 0;
#pragma unroll
  for (int block = 0; block < Blocks; ++block) {
#pragma unroll
    for (int h = 0; h < 2; ++h) total += static_cast<double>(sum[block][h]);
  }
  // A tile off the diagonal stands for its mirror image too.
  return place.tile.row == place.tile.col ? total : 2 * total;
}

template <Result kResult, bool kGram, int Blocks, int Eights>
__device__ inline double finish(const Problem& problem, const Place& place, Fragment<Blocks, Eights>& fragment) {
  const int64_t last = (place.tile.row > place.tile.col ? place.tile.row : place.tile.col) + 1;
  if (last * kTile <= problem.size) return finish_entries<kResult, kGram, true>(problem, place, fragment);
  return finish_entries<kResult, kGram, false>(problem, place, fragment);
}

// Stores each warp's sum in a place of its own, so that they can be added in a fixed order.
__device__ inline void store_sum(const Problem& problem, double sum, int64_t warp) {
  sum = add_over_warp(sum);
  if (threadIdx.x % 32 == 0) problem.sums[warp] = sum;
}

}  // namespace ahkernels::cuda
