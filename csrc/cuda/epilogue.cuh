// From sums of products in registers to entries of K, and to what is asked of them.
//
// A thread's share of a tile are Blocks x Eights products of 16 x 8 as the matrix instructions leave them: number
// [block][eight][2 h + e] is at row `row + block * block_rows + 8 h` and column `col + 8 eight + e`.
#pragma once

#include "instructions.cuh"
#include "problem.cuh"

namespace ahkernels::cuda {

template <int Blocks, int Eights>
using Fragment = float[Blocks][Eights][4];

// Where one thread's fragment lies in K.
struct Place {
  int64_t row, col;
  int32_t block_rows;
  PanelPair tile;

  // The place of a thread whose warp has the rows from first_row and the columns from first_col of a tile.
  static __device__ Place of(const PanelPair& tile, int32_t first_row, int32_t first_col, int32_t block_rows) {
    const int32_t lane = threadIdx.x % 32;
    return {tile.row * kTile + first_row + lane / 4, tile.col * kTile + first_col + lane % 4 * 2, block_rows, tile};
  }
  __device__ int64_t row_of(int block, int h) const { return row + block * block_rows + 8 * h; }
};

// visit(block, h, number, row x, column x) over a fragment, column by column; x are samples, those past the last one
// replaced by it. column(col) comes before the entries of each column.
template <bool kWhole, int Blocks, int Eights, class Column, class Visit>
__device__ inline void for_each_entry(const Problem& problem, const Place& place, Fragment<Blocks, Eights>& fragment,
                                      const Column& column, const Visit& visit) {
  const int32_t o = problem.o, samples = 8 / o, outputs = 8 % o;
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
    at.advance(samples, outputs, o);
  }
}

// The rows of P at one pair of uses for the rows of a fragment.
template <int Blocks>
struct GramRows {
  const float* row[Blocks][2];

  __device__ GramRows(const Problem& problem, const Place& place, int pair) {
#pragma unroll
    for (int block = 0; block < Blocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int32_t x = static_cast<int32_t>(place.row_of(block, h) / problem.o);
        const int32_t last = problem.n - 1;
        row[block][h] = problem.p + (pair * problem.p_rows + (x < last ? x : last) - problem.sample) * problem.p_cols -
                        problem.sample;
      }
    }
  }
};

// sum += P o fragment, at one pair of uses.
template <int Blocks, int Eights>
__device__ inline void add_term(const Problem& problem, const Place& place, int pair,
                                Fragment<Blocks, Eights>& fragment, Fragment<Blocks, Eights>& sum) {
  const GramRows<Blocks> p(problem, place, pair);
  int32_t sample = 0;
  for_each_entry<false, Blocks, Eights>(
      problem, place, fragment, [&](int64_t, int32_t x) { sample = x; },
      [&](int block, int h, float& number) { number *= __ldg(p.row[block][h] + sample); });
#pragma unroll
  for (int block = 0; block < Blocks; ++block) {
#pragma unroll
    for (int eight = 0; eight < Eights; ++eight) {
#pragma unroll
      for (int number = 0; number < 4; ++number) sum[block][eight][number] += fragment[block][eight][number];
    }
  }
}

// What is asked of the entries of K, which are the fragment's numbers, with kGram times P. Returns this thread's sum.
template <Result kResult, bool kGram, bool kWhole, int Blocks, int Eights>
__device__ inline double finish_entries(const Problem& problem, const Place& place,
                                        Fragment<Blocks, Eights>& fragment) {
  const GramRows<Blocks> p(problem, place, 0);
  float row_mean[Blocks][2], col_mean = 0, sum = 0;
#pragma unroll
  for (int block = 0; block < Blocks; ++block) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      row_mean[block][h] = problem.row_means == nullptr ? 0.0f : __ldg(problem.row_means + place.row_of(block, h));
    }
  }
  const double unscale[2] = {problem.unscale == nullptr ? 1.0 : problem.unscale[0],
                             problem.unscale == nullptr ? 1.0 : problem.unscale[1]};
  int64_t col = 0;
  int32_t sample = 0;
  for_each_entry<kWhole, Blocks, Eights>(
      problem, place, fragment,
      [&](int64_t column, int32_t x) {
        col = column;
        sample = x;
        col_mean = problem.col_means == nullptr ? 0.0f : __ldg(problem.col_means + column);
      },
      [&](int block, int h, float& number) {
        const int64_t row = place.row_of(block, h);
        const float entry = kGram ? number * __ldg(p.row[block][h] + sample) : number;
        const float centered = entry - col_mean - row_mean[block][h];
        if (!kWhole && (row >= problem.size || col >= problem.size)) return;
        float* at = problem.entries + (row - problem.first_row) * problem.size + col;
        if constexpr (kResult == Result::kSquares) {
          sum += centered * centered;
        } else if constexpr (kResult == Result::kProducts) {
          sum += centered * __ldg(at);
        } else if constexpr (kResult == Result::kRows) {
          *at = centered;
        } else if (col >= row) {
          const float unscaled = static_cast<float>(static_cast<double>(centered) * unscale[0] * unscale[1]);
          *at = unscaled;
          problem.entries[(col - problem.first_row) * problem.size + row] = unscaled;
        }
      });
  // A tile off the diagonal stands for its mirror image too.
  return (place.tile.row == place.tile.col ? 1.0 : 2.0) * static_cast<double>(sum);
}

template <Result kResult, bool kGram, int Blocks, int Eights>
__device__ inline double finish(const Problem& problem, const Place& place, Fragment<Blocks, Eights>& fragment) {
  const int64_t last = (place.tile.row > place.tile.col ? place.tile.row : place.tile.col) + 1;
  if (last * kTile <= problem.size) return finish_entries<kResult, kGram, true>(problem, place, fragment);
  return finish_entries<kResult, kGram, false>(problem, place, fragment);
}

// Each warp's sum to its place, so that the order of the last sum is fixed.
__device__ inline void store_sum(const Problem& problem, double sum, int64_t warp) {
  sum = add_over_warp(sum);
  if (threadIdx.x % 32 == 0) problem.sums[warp] = sum;
}

}  // namespace ahkernels::cuda
