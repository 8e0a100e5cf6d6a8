// What the entries of a turn need beside its products, in shared memory: the forward Gram P at the turn's rows and the
// samples of its columns, and the means. A warpgroup brings it while products run.
#pragma once

#include <cstddef>

#include "epilogue.cuh"

namespace ahkernels::cuda {

// The numbers of the rows that one thread has: [Blocks][2].
template <int Blocks>
struct alignas(8 * Blocks) OfRows {
  float at[Blocks][2];
};

// The means of two columns, and where the P of their samples is.
struct alignas(16) TwoColumns {
  float mean[2];
  uint32_t p[2];
};

// For a warpgroup, whose warp w has the rows 16 w to 16 w + 15 of each of Blocks x 64 rows, and all columns of a tile.
// In shared memory are TwoColumns [64], the means of the rows, and P as [Samples][rows]. A thread's rows are side by
// side there, so that it reads them at once.
template <int Blocks, int Samples>
class GramTile {
  static constexpr uint32_t kRows = 64 * Blocks, kThreads = 128, kStep = kThreads / kRows;
  // With 8 more numbers, threads that read P at up to four samples in a row find them in different banks.
  static constexpr uint32_t kRowsBytes = (kRows + (Blocks == 1 ? 0 : 8)) * 4;
  static constexpr uint32_t kColumnsBytes = kTile / 2 * sizeof(TwoColumns);

 public:
  static constexpr uint32_t kBytes = kColumnsBytes + (1 + Samples) * kRowsBytes;

  // Whether the samples of a tile's columns fit, wherever they begin and end.
  static __device__ bool fits(int32_t o) { return (static_cast<int32_t>(kTile) - 2) / o + 2 <= Samples; }

  __device__ explicit GramTile(uint32_t shared, int group)
      : columns_(shared), rows_(shared + kColumnsBytes), group_(group) {}

  // Begins to bring what the rows from first_row and the columns from first_col of K need at a pair of positions.
  template <bool kMeans>
  __device__ void bring(const Problem& problem, uint32_t first_row, uint32_t first_col, int32_t pair) const {
    sync_warpgroup(group_);  // the last turn's has been read
    const uint32_t o = problem.o, thread = threadIdx.x % kThreads;
    const uint32_t first_sample = first_col / o;

    const uint32_t col = first_col + thread, column = columns_ + thread / 2 * sizeof(TwoColumns) + thread % 2 * 4;
    store_shared(column + offsetof(TwoColumns, p), rows_ + (1 + col / o - first_sample) * kRowsBytes);
    if (kMeans) copy_4(column, problem.col_means + col);

    // The row whose place is number `slot`, those of one thread side by side. With one block, two threads share a row.
    const uint32_t slot = thread % kRows, begin = thread / kRows;
    const uint32_t row =
        first_row + slot / 2 % Blocks * 64 + slot / (16 * Blocks) * 16 + slot % 2 * 8 + slot / (2 * Blocks) % 8;
    uint32_t to = rows_ + slot * 4;
    if (kMeans && begin == 0) copy_4(to, problem.row_means + row);
    to += (1 + begin) * kRowsBytes;
    const uint32_t last = problem.n - 1, x = row / o, end = (first_col + kTile - 1) / o;
    const uint32_t p_row = pair * static_cast<uint32_t>(problem.p_rows) + ((x < last ? x : last) - problem.sample);
    const uint32_t first_p = p_row * static_cast<uint32_t>(problem.p_cols) - problem.sample;
    const float* p = problem.p + (first_p + first_sample + begin);
    const float* const p_end = problem.p + (first_p + (end < last ? end : last) + 1);
#pragma unroll 4
    for (; p < p_end; p += kStep, to += kStep * kRowsBytes) copy_4(to, p);
    copies_commit();
  }

  // This thread's share of it, for finish().
  class Operands {
   public:
    __device__ Operands(uint32_t columns, uint32_t rows)
        : columns_(columns + threadIdx.x % 4 * sizeof(TwoColumns)),
          rows_(threadIdx.x % kThreads / 4 * sizeof(OfRows<Blocks>)),
          row_means_(load_shared<OfRows<Blocks>>(rows + rows_)) {}

    __device__ void column(int eight, int e) {
      if (e == 0) two_ = load_shared<TwoColumns>(columns_ + eight * 4 * sizeof(TwoColumns));
      p_ = load_shared<OfRows<Blocks>>(two_.p[e] + rows_);
      col_mean_ = two_.mean[e];
    }
    __device__ float p(int block, int h) const { return p_.at[block][h]; }
    __device__ float row_mean(int block, int h) const { return row_means_.at[block][h]; }
    __device__ float col_mean() const { return col_mean_; }

   private:
    uint32_t columns_, rows_;
    OfRows<Blocks> row_means_, p_{};
    TwoColumns two_{};
    float col_mean_ = 0;
  };
  // When all threads of the warpgroup have brought theirs.
  __device__ Operands brought() const {
    copies_wait<0>();
    sync_warpgroup(group_);
    return {columns_, rows_};
  }

 private:
  uint32_t columns_, rows_;
  int group_;
};

}  // namespace ahkernels::cuda
