// Entries of near-constant kernels: of T, which is what is left of K when the means leave its factors first
// (ahkernels/ops/near_constant.py), from Grams of the deviations. With P' = alpha^2 pi and Q' = beta^2 gamma, where pi
// and gamma have numbers near one, and with t = max(alpha, beta) and p, q divided by t,
//
//     T_ri,sj / t^2 = gamma (p0 beta^2 / t^2 + kappa (p_r + p_s + z)) + pi x_ij + q_s,ji (p_r + z) + q_r,ij (p_s + z)
//     z = lambda pi    lambda = alpha^2 / t    kappa = beta^2 / t    x_ij = q0_ij alpha^2 / t^2
//
// in which no number is much larger than one, and those that fp32 is too small for count for nothing.
#pragma once

#include "epilogue.cuh"

namespace ahkernels::cuda {

// What goes into the entries of one thread beside gamma, as finish_entries() takes it: what gamma is multiplied by, and
// all else as a number to subtract. `Operands` has pi in the place of P, and p in that of the means. Numbers of pairs
// of outputs lie row by row of K, so that what a thread reads of them is at fixed distances from one address for each
// column and one for each of its rows.
template <int Blocks, class Operands>
class DeviationOperands {
 public:
  __device__ DeviationOperands(const Problem& problem, const Place& place, const Operands& operands)
      : problem_(problem),
        place_(place),
        operands_(operands),
        lambda_(__ldg(problem.offsets.factors)),
        kappa_(__ldg(problem.offsets.factors + 1)),
        constant_(__ldg(problem.offsets.factors + 2)),
        next_(SampleOf::row(place.col, problem.o)) {
    SampleOf row = SampleOf::row(place.row, problem.o);
#pragma unroll
    for (int block = 0; block < Blocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        of_row_[block][h] = offset(row.output, place.col);
        row.advance(h == 0 ? problem.eight_rows : problem.between_blocks, problem.o);
      }
    }
  }

  __device__ void column(int eight, int e) {
    operands_.column(eight, e);
    if (e == 0) {
      of_eight_ = next_.output;
      next_.advance(problem_.eight_rows, problem_.o);
    }
    of_col_ = offset(of_eight_ + e == problem_.o ? 0 : of_eight_ + e, place_.row);
    col_ = 8 * eight + e;
  }

  // Reads all that one entry takes, so that row_mean() comes after it.
  __device__ float p(int block, int h) {
    const float2 pair = at<float2>(of_col_, block * place_.block_rows + 8 * h);  // x_ij and q_r,ij
    const float q_col = at<float>(of_row_[block][h] + 4, col_);
    const float pi = operands_.p(block, h), z = lambda_ * pi;
    const float p_row = operands_.row_mean(block, h), p_col = operands_.col_mean();
    const float row = p_row + z, col = p_col + z;
    rest_ = pi * pair.x + q_col * row + pair.y * col;
    return constant_ + kappa_ * (p_row + col);
  }
  __device__ float row_mean(int, int) const { return -rest_; }
  __device__ float col_mean() const { return 0; }

 private:
  static constexpr uint32_t kPairBytes = 8;

  // Where the pair of numbers of a row of K with an output is, in bytes: 32 bits, as in GramEntries.
  __device__ uint32_t offset(int32_t output, int32_t row) const {
    return (static_cast<uint32_t>(output) * static_cast<uint32_t>(problem_.padded_rows) + static_cast<uint32_t>(row)) *
           kPairBytes;
  }
  // What is there so many rows later.
  template <class Number>
  __device__ Number at(uint32_t offset, int rows) const {
    const char* const pairs = reinterpret_cast<const char*>(problem_.offsets.pairs);
    return __ldg(reinterpret_cast<const Number*>(pairs + offset + rows * static_cast<int>(kPairBytes)));
  }

  const Problem& problem_;
  const Place& place_;
  Operands operands_;
  float lambda_, kappa_, constant_;
  SampleOf next_;
  uint32_t of_row_[Blocks][2];  // with the row's output, at the first column
  uint32_t of_col_ = 0;         // with the column's output, at the first row
  int32_t of_eight_ = 0;        // the output of the first of two columns
  int col_ = 0;                 // counted from the first one
  float rest_ = 0;              // what an entry has without gamma
};

// finish() for entries of T, with operands that serve any tile and have the places of the means.
template <Result kResult, int Blocks, int Eights, class Operands>
__device__ inline double finish_deviations(const Problem& problem, const Place& place, const Operands& operands,
                                           Fragment<Blocks, Eights>& fragment) {
  const DeviationOperands<Blocks, Operands> of_entries(problem, place, operands);
  return finish<kResult, Blocks, Eights>(problem, place, of_entries, fragment);
}

// The same with operands from global memory. Registers would spill with code for whole tiles, too.
template <Result kResult, int Blocks, int Eights>
__device__ inline double finish_deviations_from_global(const Problem& problem, const Place& place,
                                                       Fragment<Blocks, Eights>& fragment) {
  if constexpr (Blocks > 2) {
    // One block after the other: what goes into the entries of all would take the registers of a second block of warps.
    double total = 0;
#pragma unroll
    for (int block = 0; block < Blocks; ++block) {
      const Place of_block{place.row_of(block, 0), place.col, place.block_rows};
      total += finish_deviations_from_global<kResult>(problem, of_block,
                                                      reinterpret_cast<Fragment<1, Eights>&>(fragment[block]));
    }
    return total;
  } else {
    const FromGlobal<true, true, false, Blocks> given(problem, place, 0);
    const DeviationOperands<Blocks, FromGlobal<true, true, false, Blocks>> operands(problem, place, given);
    return finish_entries<kResult, false, Blocks, Eights>(problem, place, operands, fragment);
  }
}

}  // namespace ahkernels::cuda
