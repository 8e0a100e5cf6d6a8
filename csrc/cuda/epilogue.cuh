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

  // The place of a thread whose warp has the rows from first_row and the columns from first_col of a tile.
  static __device__ Place of(const PanelPair& tile, int32_t first_row, int32_t first_col, int32_t block_rows) {
    const int32_t lane = threadIdx.x % 32;
    return {static_cast<int32_t>(tile.row * kTile) + first_row + lane / 4,
            static_cast<int32_t>(tile.col * kTile) + first_col + lane % 4 * 2, block_rows};
  }
  __device__ int32_t row_of(int block, int h) const { return row + block * block_rows + 8 * h; }
  __device__ int32_t col_of(int eight, int e) const { return col + 8 * eight + e; }

  __device__ bool on_diagonal() const { return row / kTile == col / kTile; }
  // Whether all of the tile lies in K.
  __device__ bool whole(const Problem& problem) const { return (row > col ? row : col) / kTile < problem.size / kTile; }
};

// Calls visit(block, h, number) for the numbers of a fragment, column by column, and column(eight, e) before each of
// the columns.
template <int Blocks, int Eights, class Column, class Visit>
__device__ inline void for_each_entry(Fragment<Blocks, Eights>& fragment, const Column& column, const Visit& visit) {
#pragma unroll
  for (int eight = 0; eight < Eights; ++eight) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      column(eight, e);
#pragma unroll
      for (int block = 0; block < Blocks; ++block) {
#pragma unroll
        for (int h = 0; h < 2; ++h) visit(block, h, fragment[block][eight][2 * h + e]);
      }
    }
  }
}

// The forward Gram P at one pair of positions from global memory, for the entries of a fragment in their order. Offsets
// are 32-bit and in bytes, so that an address takes one addition. The last sample stands for those past it.
template <bool kWhole, int Blocks>
class GramEntries {
 public:
  __device__ GramEntries(const Problem& problem, const Place& place, int pair)
      : problem_(problem), at_(SampleOf::row(place.col, problem.o)) {
    const int32_t last = problem.n - 1;
    const uint32_t pair_row = static_cast<uint32_t>(pair * problem.p_rows);
    SampleOf sample = SampleOf::row(place.row, problem.o);
#pragma unroll
    for (int block = 0; block < Blocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t x = (sample.sample < last ? sample.sample : last) - problem.sample;
        row_[block][h] = (pair_row + x) * static_cast<uint32_t>(problem.p_cols) * 4;
        sample.advance(h == 0 ? problem.eight_rows : problem.between_blocks, problem.o);
      }
    }
  }

  // Moves on to column e of the next two.
  __device__ void column(int e) {
    const int32_t sample = at_.sample + (e == 1 && at_.output + 1 == problem_.o ? 1 : 0);
    sample_ = kWhole || sample < problem_.n ? sample : problem_.n - 1;
    if (e == 1) at_.advance(problem_.eight_rows, problem_.o);
  }

  __device__ float at(int block, int h) const {
    const uint32_t offset = row_[block][h] + static_cast<uint32_t>(sample_ - problem_.sample) * 4;
    return __ldg(reinterpret_cast<const float*>(reinterpret_cast<const char*>(problem_.p) + offset));
  }

 private:
  const Problem& problem_;
  SampleOf at_;
  int32_t sample_ = 0;
  uint32_t row_[Blocks][2];
};

// sum += P o fragment, at one pair of positions, with operands as for finish_entries().
template <int Blocks, int Eights, class Operands>
__device__ inline void add_position_pair(Operands operands, Fragment<Blocks, Eights>& fragment,
                                         Fragment<Blocks, Eights>& sum) {
  for_each_entry<Blocks, Eights>(
      fragment, [&](int eight, int e) { operands.column(eight, e); },
      [&](int block, int h, float& number) { number *= operands.p(block, h); });
  add<Blocks, Eights>(fragment, sum);
}

// What goes into entries beside the products, read from global memory where it is needed: P with kGram, at one pair of
// positions, and the means.
template <bool kGram, bool kMeans, bool kWhole, int Blocks>
class FromGlobal {
 public:
  __device__ FromGlobal(const Problem& problem, const Place& place, int pair)
      : problem_(problem), place_(place), p_(problem, place, pair) {
#pragma unroll
    for (int block = 0; block < Blocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (kMeans) row_mean_[block][h] = __ldg(problem.row_means + place.row_of(block, h));
      }
    }
  }

  __device__ void column(int eight, int e) {
    if (kGram) p_.column(e);
    if (kMeans) col_mean_ = __ldg(problem_.col_means + place_.col_of(eight, e));
  }
  __device__ float p(int block, int h) const { return kGram ? p_.at(block, h) : 1; }
  __device__ float row_mean(int block, int h) const { return row_mean_[block][h]; }
  __device__ float col_mean() const { return col_mean_; }

 private:
  const Problem& problem_;
  const Place& place_;
  GramEntries<kWhole, Blocks> p_;
  float row_mean_[Blocks][2] = {}, col_mean_ = 0;
};

// Does with the entries of K what kResult says: the fragment's numbers, times P. Returns this thread's sum.
template <Result kResult, bool kWhole, int Blocks, int Eights, class Operands>
__device__ inline double finish_entries(const Problem& problem, const Place& place, Operands operands,
                                        Fragment<Blocks, Eights>& fragment) {
  float sum[Blocks][2] = {};  // for each row: short chains of additions
  // Where the fragment's first entry of each row is, and its mirror image of the first.
  float *row_at[Blocks][2] = {}, *mirrored = nullptr;
  const int64_t size = problem.size;
  double unscale[2] = {};
  if constexpr (kResult != Result::kSquares) {
#pragma unroll
    for (int block = 0; block < Blocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        row_at[block][h] = problem.entries + (place.row_of(block, h) - problem.first_row) * size + place.col;
      }
    }
  }
  if constexpr (kResult == Result::kMatrix) {
    mirrored = problem.entries + place.col * size + place.row;
    for (int i = 0; i < 2; ++i) unscale[i] = problem.unscale[i];
  }
  int32_t col = 0;
  for_each_entry<Blocks, Eights>(
      fragment,
      [&](int eight, int e) {
        col = place.col_of(eight, e);
        operands.column(eight, e);
      },
      [&](int block, int h, float& number) {
        const int32_t row = place.row_of(block, h);
        const float entry = number * operands.p(block, h);
        if (!kWhole && (row >= problem.size || col >= problem.size)) return;
        const float centered = entry - operands.col_mean() - operands.row_mean(block, h);
        if constexpr (kResult == Result::kSquares) {
          sum[block][h] += centered * centered;
          return;
        }
        float* at = row_at[block][h] + (col - place.col);
        if constexpr (kResult == Result::kProducts) {
          sum[block][h] += centered * __ldg(at);
        } else if constexpr (kResult == Result::kRows) {
          *at = centered;
        } else if (col >= row) {
          const float value = static_cast<float>(static_cast<double>(entry) * unscale[0] * unscale[1]);
          *at = value;
          mirrored[(col - place.col) * size + (row - place.row)] = value;
        }
      });
  double total = 0;
#pragma unroll
  for (int block = 0; block < Blocks; ++block) {
#pragma unroll
    for (int h = 0; h < 2; ++h) total += static_cast<double>(sum[block][h]);
  }
  // A tile off the diagonal stands for its mirror image too.
  return place.on_diagonal() ? total : 2 * total;
}

template <Result kResult>
constexpr bool kHasMeans = kResult != Result::kMatrix;

// With operands that serve any tile.
template <Result kResult, int Blocks, int Eights, class Operands>
__device__ inline double finish(const Problem& problem, const Place& place, const Operands& operands,
                                Fragment<Blocks, Eights>& fragment) {
  return place.whole(problem) ? finish_entries<kResult, true, Blocks, Eights>(problem, place, operands, fragment)
                              : finish_entries<kResult, false, Blocks, Eights>(problem, place, operands, fragment);
}

// With operands from global memory.
template <Result kResult, bool kGram, bool kWhole, int Blocks, int Eights>
__device__ inline double finish_from_global(const Problem& problem, const Place& place,
                                            Fragment<Blocks, Eights>& fragment) {
  const FromGlobal<kGram, kHasMeans<kResult>, kWhole, Blocks> operands(problem, place, 0);
  return finish_entries<kResult, kWhole, Blocks, Eights>(problem, place, operands, fragment);
}
template <Result kResult, bool kGram, int Blocks, int Eights>
__device__ inline double finish(const Problem& problem, const Place& place, Fragment<Blocks, Eights>& fragment) {
  return place.whole(problem) ? finish_from_global<kResult, kGram, true, Blocks, Eights>(problem, place, fragment)
                              : finish_from_global<kResult, kGram, false, Blocks, Eights>(problem, place, fragment);
}

// Stores each warp's sum in a place of its own, so that they can be added in a fixed order.
__device__ inline void store_sum(const Problem& problem, double sum, int64_t warp) {
  sum = add_over_warp(sum);
  if (threadIdx.x % 32 == 0) problem.sums[warp] = sum;
}

}  // namespace ahkernels::cuda
