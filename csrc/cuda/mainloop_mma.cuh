// The mainloop with products of warps (mma.sync), for sm_80 and later.
//
// A block of 8 warps makes a tile, and a warp 64 x 32 of it. Asynchronous copies bring slices of 32 numbers along k
// into a ring of stages, [stage][part][rows or columns][128][32]. The four 16-byte pieces of a row are swapped around,
// so that a matrix of eight rows is read from all banks at once.
#pragma once

#include "near_constant.cuh"

namespace ahkernels::cuda::mma {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kBlockRows = 16;
constexpr int kSlice = 32;
constexpr int kBlocks = 4, kEights = 4;
constexpr uint32_t kPanelBytes = kTile * kSlice * 2;

template <int kParts>
constexpr int kStages = kParts == 1   ? 4
                        : kParts == 2 ? 3
                                      : 2;

template <int kParts>
constexpr uint32_t kSharedBytes = kStages<kParts> * kParts * 2 * kPanelBytes;

__device__ inline uint32_t piece(uint32_t panel, int32_t row, int32_t piece) {
  return panel + row * (kSlice * 2) + ((piece ^ (row / 2 % 4)) * 16);
}

// One tile of the backward Gram at one pair of positions.
template <int kParts, bool kSum>
class Product {
 public:
  __device__ Product(const Problem& problem, uint32_t shared, const PanelPair& tile, int row_block, int col_block,
                     int slices)
      : problem_(problem), shared_(shared), slices_(slices * static_cast<int>(kKAlignment) / kSlice) {
    from_[0] = problem.parts + (problem.part_rows(0, row_block) + tile.row * kTile) * problem.k;
    from_[1] = problem.parts + (problem.part_rows(0, col_block) + tile.col * kTile) * problem.k;
  }

  // With kPromoted, the sums of kBlocksAtOnce blocks of rows are added at a time.
  template <bool kPromoted, int kBlocksAtOnce>
  __device__ void make(Fragment<kBlocks, kEights>& fragment) const {
    sync_threads();  // the last product has been read
#pragma unroll
    for (int slice = 0; slice < kStages<kParts> - 1; ++slice) load(slice);
    clear<kBlocks, kEights>(fragment);
    for (int slice = 0; slice < slices_; ++slice) {
      copies_wait<kStages<kParts> - 2>();
      sync_threads();  // this slice is there for all, and all are done with the one before
      load(slice + kStages<kParts> - 1);
      if constexpr (kPromoted) {
#pragma unroll
        for (int first = 0; first < kBlocks; first += kBlocksAtOnce) {
          float of_slice[kBlocksAtOnce][kEights][4];
          clear<kBlocksAtOnce, kEights>(of_slice);
          multiply<kBlocksAtOnce>(slice, first, of_slice);
          add<kBlocksAtOnce, kEights>(of_slice, fragment + first);
        }
      } else {
        multiply<kBlocks>(slice, 0, fragment);
      }
    }
    copies_wait<0>();
  }

 private:
  __device__ uint32_t panel(int slice, int part, int side) const {
    return shared_ + ((slice % kStages<kParts> * kParts + part) * 2 + side) * kPanelBytes;
  }

  // One group of copies, empty past the last slice.
  __device__ void load(int slice) const {
    if (slice < slices_) {
      const int64_t part_size = problem_.part_rows(1, 0) * problem_.k;
      constexpr int kOfBlock = kKAlignment / kSlice;  // slices of a block of a sum
      const int64_t first = kSum ? slice / kOfBlock * problem_.padded_rows * problem_.k + slice % kOfBlock * kSlice
                                 : int64_t{slice} * kSlice;
#pragma unroll 1  // the addresses of all parts would take the registers of the sums
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
#pragma unroll
          for (int copy = 0; copy < kTile * 4 / kThreads; ++copy) {
            const int32_t row = (threadIdx.x + copy * kThreads) / 4, which = threadIdx.x % 4;
            copy_16(piece(panel(slice, part, side), row, which),
                    from_[side] + part * part_size + first + int64_t{row} * problem_.k + which * 8);
          }
        }
      }
    }
    copies_commit();
  }

  // fragment += the products of one slice, for the blocks of rows from first_block on.
  template <int Blocks>
  __device__ void multiply(int slice, int first_block, Fragment<Blocks, kEights>& fragment) const {
    const int32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int32_t first_row = warp % 2 * 64 + first_block * 16, first_col = warp / 2 * 32;
#pragma unroll
    for (int step = 0; step < kSlice / 16; ++step) {
      for_each_product<kParts>([&](int part_a, int part_b) {
        uint32_t a[Blocks][4];
#pragma unroll
        for (int block = 0; block < Blocks; ++block) {
          // Rows 0 to 15 of the first eight k, then of the next.
          load_matrices(a[block],
                        piece(panel(slice, part_a, 0), first_row + block * 16 + lane % 16, step * 2 + lane / 16));
        }
#pragma unroll
        for (int pair = 0; pair < kEights / 2; ++pair) {
          // Columns 0 to 7 of both eights of k, then columns 8 to 15.
          uint32_t b[4];
          load_matrices(b, piece(panel(slice, part_b, 1), first_col + pair * 16 + lane / 16 * 8 + lane % 8,
                                 step * 2 + lane / 8 % 2));
#pragma unroll
          for (int block = 0; block < Blocks; ++block) {
            multiply_16x8(fragment[block][pair * 2], a[block], b[0], b[1]);
            multiply_16x8(fragment[block][pair * 2 + 1], a[block], b[2], b[3]);
          }
        }
      });
    }
  }

  const Problem& problem_;
  const uint32_t shared_;
  const int slices_;
  const uint16_t* from_[2];
};

// With kDeviations the entries are those of T, as they are for near-constant kernels. Promoted sums take the registers
// of a second block.
template <int kParts, bool kPromoted, bool kSum, Result kResult, bool kDeviations>
__global__ void __launch_bounds__(kThreads, kPromoted ? 1 : 0) tiles(const __grid_constant__ Problem problem) {
  double sum = 0;
  for (int64_t t = blockIdx.x; t < problem.tiles.count(); t += gridDim.x) {
    const PanelPair tile = problem.tiles.at(t);
    const int32_t warp = thread_number() / 32;
    const Place place = Place::of(tile, warp % 2 * 64, warp / 2 * 32, kBlockRows);
    float fragment[kBlocks][kEights][4];
    if constexpr (kSum) {
      float entries[kBlocks][kEights][4] = {};
      for_each_pair<kSum>(problem, [&](int32_t pair, int32_t row_block, int32_t col_block, int32_t slices) {
        Product<kParts, kSum>(problem, shared_address(shared_memory()), tile, row_block, col_block, slices)
            .template make<kPromoted, kBlocks / 2>(fragment);  // with fewer registers beside the entries
        const FromGlobal<true, false, false, kBlocks> operands(problem, place, pair);
        add_position_pair<kBlocks, kEights>(operands, fragment, entries);
      });
      sum += finish<kResult, false, kBlocks, kEights>(problem, place, entries);
    } else {
      Product<kParts, kSum>(problem, shared_address(shared_memory()), tile, 0, 0,
                            static_cast<int>(problem.k / kKAlignment))
          .template make<kPromoted, kBlocks>(fragment);
      if constexpr (kDeviations) {
        sum += finish_deviations_from_global<kResult, kBlocks, kEights>(problem, place, fragment);
      } else {
        sum += finish<kResult, true, kBlocks, kEights>(problem, place, fragment);
      }
    }
  }
  if constexpr (kResult == Result::kSquares || kResult == Result::kProducts) {
    store_sum(problem, sum, int64_t{blockIdx.x} * kWarps + thread_number() / 32);
  }
}

}  // namespace ahkernels::cuda::mma
