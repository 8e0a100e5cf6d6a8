// The mainloop with products of warpgroups (wgmma) on Hopper.
//
// In a persistent block one warp, the producer, brings slices of 64 numbers along k by bulk tensor copies into a ring
// of stages. Two warpgroups make tiles by turns, so that one keeps the tensor cores busy while the other works on its
// entries of K. Slices come in the order of the turns. A barrier tells only even phases from odd ones, so that nobody
// may wait for a slice before the earlier slice in the same stage has come. A group therefore hands over to the other
// when it has seen the last slice of its turn. In a sum of layers and positions a turn is one pair of positions: while
// a group multiplies its sums by the forward Gram there, the other one has the tensor cores.
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

static_assert(sizeof(Problem) + 2 * sizeof(TensorMap) <= 4096, "a launch has 4096 bytes of arguments");

template <int kNumberParts, bool kOfLayers>
struct Shape {
  static constexpr int kParts = kNumberParts;
  static constexpr bool kSum = kOfLayers;
  // A turn is half a tile, 64 rows, with three parts, of which shared memory holds too few slices of whole ones, and
  // in a sum of layers, since registers hold the entries of K beside the sums.
  static constexpr int kBlocks = kParts == 3 || kSum ? 1 : 2;
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
template <class Shape>
class Ring {
 public:
  __device__ Ring(uint32_t shared) : stages_((shared + 1023) / 1024 * 1024) {}

  __device__ uint32_t rows(int stage, int part) const {
    return stages_ + stage * Shape::kStageBytes + part * Shape::kTurnRows * kRowBytes;
  }
  __device__ uint32_t cols(int stage, int part) const {
    return rows(stage, Shape::kParts) + part * static_cast<uint32_t>(kTile) * kRowBytes;
  }
  __device__ uint32_t filled(int stage) const { return stages_ + Shape::kStages * Shape::kStageBytes + stage * 8; }
  __device__ uint32_t emptied(int stage) const { return filled(Shape::kStages + stage); }

  __device__ uint32_t turn(int group) const { return filled(2 * Shape::kStages + group); }

  __device__ uint32_t gram(int group) const { return turn(kGroups) + group * Shape::Gram::kBytes; }

  __device__ void init() const {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
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
template <class Shape>
struct Slot {
  int32_t stage;
  uint32_t parity;

  // The slot of a slice that is counted from the start of the kernel.
  __device__ static Slot of(int64_t slice) {
    return {static_cast<int32_t>(slice % Shape::kStages), static_cast<uint32_t>(slice / Shape::kStages % 2)};
  }
  __device__ Slot next() const {
    const bool last = stage + 1 == Shape::kStages;
    return {last ? 0 : stage + 1, last ? parity ^ 1 : parity};
  }
};

// The number of tiles of this block. It is below 2^31, an hour's work.
__device__ inline int32_t tile_count(const Problem& problem) {
  const int64_t tiles = problem.tiles.count() - blockIdx.x;
  return tiles <= 0 ? 0 : static_cast<int32_t>(ceil_div(tiles, gridDim.x));
}
__device__ inline PanelPair tile_of(const Problem& problem, int32_t number) {
  return problem.tiles.at(blockIdx.x + int64_t{number} * gridDim.x);
}

template <class Shape>
__device__ inline void produce(const Problem& problem, const TensorMap& row_tensor, const TensorMap& col_tensor,
                               const Ring<Shape>& ring) {
  const int32_t tiles = tile_count(problem);
  auto slot = Slot<Shape>::of(0);
  for (int32_t number = 0; number < tiles; ++number) {
    const PanelPair tile = tile_of(problem, number);
    for_each_pair<Shape::kSum>(problem, [&](int32_t, int32_t row_block, int32_t col_block, int32_t slices) {
      for (int half = 0; half < Shape::kTurnsPerTile; ++half) {
        const int64_t row = tile.row * kTile + half * Shape::kTurnRows, col = tile.col * kTile;
        for (int slice = 0; slice < slices; ++slice, slot = slot.next()) {
          const int32_t block = Shape::kSum ? slice : 0, first = Shape::kSum ? 0 : slice * kSlice;
          barrier_wait(ring.emptied(slot.stage), slot.parity ^ 1);  // at first all are empty
          barrier_arrive_expecting(ring.filled(slot.stage), Shape::kStageBytes);
#pragma unroll
          for (int part = 0; part < Shape::kParts; ++part) {
            copy_box(ring.rows(slot.stage, part), row_tensor, first,
                     static_cast<int32_t>(problem.part_rows(part, row_block + block) + row), ring.filled(slot.stage));
            copy_box(ring.cols(slot.stage, part), col_tensor, first,
                     static_cast<int32_t>(problem.part_rows(part, col_block + block) + col), ring.filled(slot.stage));
          }
        }
      }
    });
  }
}

// fragment (+)= the products of one slice, for the blocks of rows from first_block on.
template <class Shape, int Blocks>
__device__ inline void multiply(const Ring<Shape>& ring, int stage, int first_block, bool accumulate,
                                Fragment<Blocks, kEights>& fragment) {
  products_begin();
  for_each_product<Shape::kParts>([&](int part_a, int part_b) {
#pragma unroll
    for (int step = 0; step < kSlice / 16; ++step) {
      const uint64_t b = matrix_descriptor(ring.cols(stage, part_b) + step * 32);
#pragma unroll
      for (int block = 0; block < Blocks; ++block) {
        const uint64_t a =
            matrix_descriptor(ring.rows(stage, part_a) + (first_block + block) * 64 * kRowBytes + step * 32);
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

// fragment = a turn's sums over k, whose slices begin with the one in this slot.
template <class Shape, bool kPromoted>
__device__ inline void consume(const Ring<Shape>& ring, int32_t turn, Slot<Shape> slot, int32_t slices,
                               typename Shape::Sums& fragment) {
  constexpr int kBlocks = Shape::kBlocks;
  // Every other turn is the group's, and each of them is a phase of its barrier. The first turn of group 0 needs none.
  if (turn > 0) barrier_wait(ring.turn(turn % kGroups), static_cast<uint32_t>((turn - 1) / kGroups % 2));
  const auto hand_over = [&](int slice) {
    if (slice == slices - 1) arrive(ring.turn((turn + 1) % kGroups));
  };
  if constexpr (kPromoted) {
    clear<kBlocks, kEights>(fragment);
    // A block of rows at a time, since registers hold the sums of one beside those of all.
    for (int slice = 0; slice < slices; ++slice, slot = slot.next()) {
      barrier_wait(ring.filled(slot.stage), slot.parity);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        Fragment<1, kEights> of_slice;
        multiply<Shape, 1>(ring, slot.stage, block, false, of_slice);
        if (block == kBlocks - 1) hand_over(slice);
        products_wait<0>();
        if (block == kBlocks - 1) arrive(ring.emptied(slot.stage));
        add<1, kEights>(of_slice, fragment + block);
      }
    }
  } else {
    int32_t before = slot.stage;
    for (int slice = 0; slice < slices; ++slice, slot = slot.next()) {
      barrier_wait(ring.filled(slot.stage), slot.parity);
      multiply<Shape, kBlocks>(ring, slot.stage, 0, slice > 0, fragment);
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
template <int kParts, bool kPromoted, bool kSum, Result kResult, bool kDeviations>
__global__ void __launch_bounds__(kThreads, 1)
    tiles(const __grid_constant__ Problem problem, const __grid_constant__ TensorMap row_tensor,
          const __grid_constant__ TensorMap col_tensor) {
#if AHK_WITH_HOPPER
  using Shape = wgmma::Shape<kParts, kSum>;
  const Ring<Shape> ring(shared_address(shared_memory()));
  if (threadIdx.x == 0) ring.init();
  sync_threads();

  if (threadIdx.x < 128) {
    release_registers<kProducerRegisters>();
    if (threadIdx.x < 32 && elect_one()) {
      prefetch_tensor(row_tensor);
      prefetch_tensor(col_tensor);
      produce<Shape>(problem, row_tensor, col_tensor, ring);
    }
  } else {
    acquire_registers<kGroupRegisters>();
    const auto group_number = [] { return thread_number() / 128 - 1; };
    // A group's tiles, or its half of all tiles.
    constexpr int32_t kStep = kGroups / Shape::kTurnsPerTile;
    const int32_t tiles = tile_count(problem);
    using Gram = typename Shape::Gram;
    const bool in_shared = Gram::fits(problem.o);
    double sum = 0;
    int32_t turn = group_number();
    int32_t before = 0;  // slices of both groups up to these turns, modulo the slots
    for (int32_t number = kStep == 1 ? 0 : turn; number < tiles; number += kStep) {
      const int32_t group = group_number(), first_row = kStep == 1 ? group * Shape::kTurnRows : 0;
      // Where all turns have as many slices, registers hold no counts of them.
      if constexpr (!kSum) turn = number * Shape::kTurnsPerTile + (kStep == 1 ? group : 0);
      const Gram gram(ring.gram(group), group);
      const PanelPair tile = tile_of(problem, number);
      const Place place = Place::of(tile, first_row + thread_number() / 32 % 4 * 16, 0, kBlockRows);
      constexpr int kBlocks = Shape::kBlocks;
      typename Shape::Sums fragment, entries;
      if constexpr (kSum) clear<kBlocks, kEights>(entries);
      for_each_pair<kSum>(problem, [&](int32_t pair, int32_t, int32_t, int32_t slices) {
        if (in_shared) {
          gram.template bring<kHasMeans<kResult> && !kSum>(problem, static_cast<uint32_t>(tile.row * kTile + first_row),
                                                           static_cast<uint32_t>(tile.col * kTile), pair);
        }
        const auto slot = Slot<Shape>::of(kSum ? int64_t{before + group * slices} : int64_t{turn} * slices);
        consume<Shape, kPromoted>(ring, turn, slot, slices, fragment);
        if constexpr (kSum) {
          turn += kGroups;
          before = (before + kGroups * slices) % (2 * Shape::kStages);
          if (in_shared) {
            add_position_pair<kBlocks, kEights>(gram.brought(), fragment, entries);
          } else {
            const FromGlobal<true, false, false, kBlocks> operands(problem, place, pair);
            add_position_pair<kBlocks, kEights>(operands, fragment, entries);
          }
        }
      });
      // Tiles of so few outputs that their Grams are not in shared memory are not worth an epilogue of their own where
      // they are whole.
      if constexpr (kSum) {
        sum += finish<kResult, false, kBlocks, kEights>(problem, place, entries);
      } else if constexpr (kDeviations) {
        sum += in_shared ? finish_deviations<kResult, kBlocks, kEights>(problem, place, gram.brought(), fragment)
                         : finish_deviations_from_global<kResult, kBlocks, kEights>(problem, place, fragment);
      } else {
        sum += in_shared ? finish<kResult, kBlocks, kEights>(problem, place, gram.brought(), fragment)
                         : finish_from_global<kResult, true, false, kBlocks, kEights>(problem, place, fragment);
      }
    }
    if constexpr (kResult == Result::kSquares || kResult == Result::kProducts) {
      store_sum(problem, sum, int64_t{blockIdx.x} * kWarps + thread_number() / 32 - 4);
    }
  }
#endif
}

}  // namespace ahkernels::cuda::wgmma
