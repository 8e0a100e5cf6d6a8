// The mainloop with products of warpgroups (wgmma) on Hopper, for layers with one position.
//
// In a persistent block one warp, the producer, brings slices of 64 numbers along k by bulk tensor copies into a ring
// of stages. Two warpgroups make tiles by turns, so that one keeps the tensor cores busy while the other works on its
// entries of K. Slices come in the order of the turns. A barrier tells only even phases from odd ones, so that nobody
// may wait for a slice before the earlier slice in the same stage has come. A group therefore hands over to the other
// when it has seen the last slice of its turn.
#pragma once

#include "gram_tile.cuh"
#include "near_constant.cuh"

namespace ahkernels::cuda::wgmma {

constexpr int kGroups = 2, kThreads = 128 * (1 + kGroups), kWarps = 4 * kGroups;
constexpr int kBlockRows = 64;
constexpr int kSlice = 64, kEights = 16;
constexpr uint32_t kRowBytes = kSlice * 2;
constexpr int kProducerRegisters = 24, kGroupRegisters = 240;
// Warpgroups trade the registers that the block was launched with: one that asks for more of them waits forever.
constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
static_assert(kProducerRegisters + kGroups * kGroupRegisters <= (1 + kGroups) * kLaunchRegisters);

template <int kParts>
struct Shape {
  // With three parts a turn is half a tile, 64 rows, since registers hold the sums of one slice beside those of all.
  static constexpr int kBlocks = kParts == 3 ? 1 : 2;
  static constexpr int kTurnRows = 64 * kBlocks, kTurnsPerTile = static_cast<int>(kTile) / kTurnRows;
  static constexpr int kStages = kParts == 1 ? 6 : 3;
  static constexpr uint32_t kStageBytes = kParts * (kTurnRows + kTile) * kRowBytes;
  // As many samples as there is room for: those of any tile from 10 or from 5 outputs on.
  using Gram = GramTile<kBlocks, kParts == 3 ? 14 : 27>;
  // Stages begin on 1024 bytes, as the swizzle asks for; the barriers and the groups' forward Grams follow them.
  static constexpr uint32_t kBarrierBytes = (2 * kStages + kGroups) * 8;
  static constexpr uint32_t kSharedBytes = 1024 + kStages * kStageBytes + kBarrierBytes + kGroups * Gram::kBytes;
  using Sums = Fragment<kBlocks, kEights>;
};

// The stages in shared memory and their barriers. Slices go through them in the order in which they come, turn by turn.
template <int kParts>
class Ring {
 public:
  __device__ Ring(uint32_t shared) : stages_((shared + 1023) / 1024 * 1024) {}

  __device__ uint32_t rows(int stage, int part) const {
    return stages_ + stage * Shape<kParts>::kStageBytes + part * Shape<kParts>::kTurnRows * kRowBytes;
  }
  __device__ uint32_t cols(int stage, int part) const {
    return rows(stage, kParts) + part * static_cast<uint32_t>(kTile) * kRowBytes;
  }
  __device__ uint32_t filled(int stage) const {
    return stages_ + Shape<kParts>::kStages * Shape<kParts>::kStageBytes + stage * 8;
  }
  __device__ uint32_t emptied(int stage) const { return filled(Shape<kParts>::kStages + stage); }

  __device__ uint32_t turn(int group) const { return filled(2 * Shape<kParts>::kStages + group); }

  __device__ uint32_t gram(int group) const { return turn(kGroups) + group * Shape<kParts>::Gram::kBytes; }

  __device__ void init() const {
    for (int stage = 0; stage < Shape<kParts>::kStages; ++stage) {
      barrier_init(filled(stage), 1);
      barrier_init(emptied(stage), 4);  // the warps of the group whose turn it is
    }
    for (int group = 0; group < kGroups; ++group) barrier_init(turn(group), 4);
    barriers_ready();
  }

 private:
  uint32_t stages_;
};

// Stage and parity of a slice.
template <int kParts>
struct Slot {
  int32_t stage;
  uint32_t parity;

  // The slot of a slice that is counted from the start of the kernel.
  __device__ static Slot of(int64_t slice) {
    return {static_cast<int32_t>(slice % Shape<kParts>::kStages),
            static_cast<uint32_t>(slice / Shape<kParts>::kStages % 2)};
  }
  __device__ Slot next() const {
    const bool last = stage + 1 == Shape<kParts>::kStages;
    return {last ? 0 : stage + 1, last ? parity ^ 1 : parity};
  }
};

// The number of turns of this block, each of which makes a tile or half of one. It is below 2^31, an hour's work.
template <int kParts>
__device__ inline int32_t turns(const Problem& problem) {
  const int64_t tiles = problem.tiles.count() - blockIdx.x;
  return tiles <= 0 ? 0 : static_cast<int32_t>(ceil_div(tiles, gridDim.x)) * Shape<kParts>::kTurnsPerTile;
}
template <int kParts>
__device__ inline PanelPair tile_of(const Problem& problem, int32_t turn) {
  return problem.tiles.at(blockIdx.x + int64_t{turn / Shape<kParts>::kTurnsPerTile} * gridDim.x);
}

template <int kParts>
__device__ inline void produce(const Problem& problem, const TensorMap& row_tensor, const TensorMap& col_tensor,
                               const Ring<kParts>& ring) {
  const int slices = problem.k / kSlice;
  const int32_t count = turns<kParts>(problem);
  auto slot = Slot<kParts>::of(0);
  for (int32_t turn = 0; turn < count; ++turn) {
    const PanelPair tile = tile_of<kParts>(problem, turn);
    const int64_t row = tile.row * kTile + turn % Shape<kParts>::kTurnsPerTile * Shape<kParts>::kTurnRows,
                  col = tile.col * kTile;
    for (int slice = 0; slice < slices; ++slice, slot = slot.next()) {
      barrier_wait(ring.emptied(slot.stage), slot.parity ^ 1);  // at first all are empty
      barrier_arrive_expecting(ring.filled(slot.stage), Shape<kParts>::kStageBytes);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int64_t first = problem.part_rows(part, 0);
        copy_box(ring.rows(slot.stage, part), row_tensor, slice * kSlice, static_cast<int32_t>(first + row),
                 ring.filled(slot.stage));
        copy_box(ring.cols(slot.stage, part), col_tensor, slice * kSlice, static_cast<int32_t>(first + col),
                 ring.filled(slot.stage));
      }
    }
  }
}

// fragment (+)= the products of one slice
template <int kParts>
__device__ inline void multiply(const Ring<kParts>& ring, int stage, bool accumulate,
                                typename Shape<kParts>::Sums& fragment) {
  products_begin();
  for_each_product<kParts>([&](int part_a, int part_b) {
#pragma unroll
    for (int step = 0; step < kSlice / 16; ++step) {
      const uint64_t b = matrix_descriptor(ring.cols(stage, part_b) + step * 32);
#pragma unroll
      for (int block = 0; block < Shape<kParts>::kBlocks; ++block) {
        const uint64_t a = matrix_descriptor(ring.rows(stage, part_a) + block * 64 * kRowBytes + step * 32);
        multiply_64x128(fragment[block], a, b, accumulate);
      }
      accumulate = true;
    }
  });
  products_commit();
}

// Each warp arrives once.
__device__ inline void arrive(uint32_t barrier) {
  if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

// fragment = a turn's sums over k
template <int kParts>
__device__ inline void consume(const Ring<kParts>& ring, int32_t turn, int slices,
                               typename Shape<kParts>::Sums& fragment) {
  auto slot = Slot<kParts>::of(int64_t{turn} * slices);
  // Every other turn is the group's, and each of them is a phase of its barrier. The first turn of group 0 needs none.
  if (turn > 0) barrier_wait(ring.turn(turn % kGroups), static_cast<uint32_t>((turn - 1) / kGroups % 2));
  const auto hand_over = [&](int slice) {
    if (slice == slices - 1) arrive(ring.turn((turn + 1) % kGroups));
  };
  if constexpr (kParts == 3) {
    // The tensor cores cut off what does not fit an fp32 sum. Sums of a slice alone, added with rounding, keep that
    // from growing with k.
    typename Shape<kParts>::Sums of_slice;
    for (int slice = 0; slice < slices; ++slice, slot = slot.next()) {
      barrier_wait(ring.filled(slot.stage), slot.parity);
      multiply<kParts>(ring, slot.stage, false, of_slice);
      hand_over(slice);
      products_wait<0>();
      arrive(ring.emptied(slot.stage));
#pragma unroll
      for (int block = 0; block < Shape<kParts>::kBlocks; ++block) {
#pragma unroll
        for (int eight = 0; eight < kEights; ++eight) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            fragment[block][eight][i] =
                slice == 0 ? of_slice[block][eight][i] : fragment[block][eight][i] + of_slice[block][eight][i];
          }
        }
      }
    }
  } else {
    int32_t before = slot.stage;
    for (int slice = 0; slice < slices; ++slice, slot = slot.next()) {
      barrier_wait(ring.filled(slot.stage), slot.parity);
      multiply<kParts>(ring, slot.stage, slice > 0, fragment);
      hand_over(slice);
      if (slice > 0) {
        products_wait<1>();
        arrive(ring.emptied(before));
      }
      before = slot.stage;
    }
    products_wait<0>();
    arrive(ring.emptied(before));
  }
}

// With kDeviations the entries are those of T, as they are for near-constant kernels.
template <int kParts, Result kResult, bool kDeviations>
__global__ void __launch_bounds__(kThreads, 1)
    tiles(const __grid_constant__ Problem problem, const __grid_constant__ TensorMap row_tensor,
          const __grid_constant__ TensorMap col_tensor) {
#if AHK_WITH_HOPPER
  const Ring<kParts> ring(shared_address(shared_memory()));
  if (threadIdx.x == 0) ring.init();
  sync_threads();

  const int32_t group = static_cast<int32_t>(threadIdx.x) / 128 - 1;
  if (group < 0) {
    release_registers<kProducerRegisters>();
    if (threadIdx.x < 32 && elect_one()) {
      prefetch_tensor(row_tensor);
      prefetch_tensor(col_tensor);
      produce<kParts>(problem, row_tensor, col_tensor, ring);
    }
  } else {
    acquire_registers<kGroupRegisters>();
    const int32_t warp = threadIdx.x / 32 % 4;
    const int slices = problem.k / kSlice;
    const int32_t count = turns<kParts>(problem);
    using Gram = typename Shape<kParts>::Gram;
    const bool in_shared = Gram::fits(problem.o);
    double sum = 0;
    for (int32_t turn = group; turn < count; turn += kGroups) {
      const Gram gram(ring.gram(turn % kGroups), turn % kGroups);
      const PanelPair tile = tile_of<kParts>(problem, turn);
      const int32_t first_row = turn % Shape<kParts>::kTurnsPerTile * Shape<kParts>::kTurnRows;
      const Place place = Place::of(tile, first_row + warp * 16, 0, kBlockRows);
      if (in_shared) {
        gram.template bring<kHasMeans<kResult>>(problem, static_cast<uint32_t>(tile.row * kTile + first_row),
                                                static_cast<uint32_t>(tile.col * kTile));
      }
      typename Shape<kParts>::Sums fragment;
      consume<kParts>(ring, turn, slices, fragment);
      // Tiles of so few outputs are not worth an epilogue of their own where they are whole.
      constexpr int kBlocks = Shape<kParts>::kBlocks;
      if constexpr (kDeviations) {
        sum += in_shared ? finish_deviations<kResult, kBlocks, kEights>(problem, place, gram.brought(), fragment)
                         : finish_deviations_from_global<kResult, kBlocks, kEights>(problem, place, fragment);
      } else {
        sum += in_shared ? finish<kResult, kBlocks, kEights>(problem, place, gram.brought(), fragment)
                         : finish_from_global<kResult, true, false, kBlocks, kEights>(problem, place, fragment);
      }
    }
    if constexpr (kResult == Result::kSquares || kResult == Result::kProducts) {
      store_sum(problem, sum, (int64_t{blockIdx.x} * kGroups + group) * 4 + warp);
    }
  }
#endif
}

}  // namespace ahkernels::cuda::wgmma
