// The CUDA kernels as functions on host memory, for test_cuda_kernels.py: what csrc/cuda/launch.cuh does on a device.
#include "emulator.h"
#include "mainloop_mma.cuh"
#include "mainloop_wgmma.cuh"
#include "pack.cuh"

namespace {

using namespace ahkernels;
using namespace ahkernels::cuda;

std::string last_error;

// 0, or 1 with a message in error().
template <class Work>
int guarded(const Work& work) {
  try {
    work();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
    return 1;
  }
}

template <int kParts, bool kPromoted, bool kSum, Result kResult, bool kDeviations>
void run(Problem& problem, bool hopper, int64_t blocks) {
  problem.set_steps(hopper ? wgmma::kBlockRows : mma::kBlockRows);
  if (hopper) {
    using Shape = wgmma::Shape<kParts, kSum>;
    const int64_t rows = int64_t{kParts} * problem.blocks * problem.padded_rows;
    const emulator::Tensor row_tensor{problem.parts, rows, problem.k, Shape::kTurnRows, wgmma::kSlice};
    const emulator::Tensor col_tensor{problem.parts, rows, problem.k, static_cast<int32_t>(kTile), wgmma::kSlice};
    emulator::launch(blocks, wgmma::kThreads, Shape::kSharedBytes, [&] {
      wgmma::tiles<kParts, kPromoted, kSum, kResult, kDeviations>(problem, row_tensor, col_tensor);
    });
  } else {
    emulator::launch(blocks, mma::kThreads, mma::kSharedBytes<kParts>,
                     [&] { mma::tiles<kParts, kPromoted, kSum, kResult, kDeviations>(problem); });
  }
}

template <int kParts, bool kPromoted, Result kResult, bool kDeviations>
void run(Problem& problem, bool hopper, int64_t blocks) {
  if constexpr (kDeviations) {
    run<kParts, kPromoted, false, kResult, true>(problem, hopper, blocks);
  } else if (problem.layer_count == 0) {
    run<kParts, kPromoted, false, kResult, false>(problem, hopper, blocks);
  } else {
    run<kParts, kPromoted, true, kResult, false>(problem, hopper, blocks);
  }
}

template <int kParts, bool kPromoted, bool kDeviations>
void run(Problem& problem, Result result, bool hopper, int64_t blocks) {
  switch (result) {
    case Result::kSquares:
      return run<kParts, kPromoted, Result::kSquares, kDeviations>(problem, hopper, blocks);
    case Result::kMatrix:
      return run<kParts, kPromoted, Result::kMatrix, false>(problem, hopper, blocks);
    case Result::kRows:
      return run<kParts, kPromoted, Result::kRows, kDeviations>(problem, hopper, blocks);
    case Result::kProducts:
      return run<kParts, kPromoted, Result::kProducts, kDeviations>(problem, hopper, blocks);
  }
}

template <bool kDeviations>
void run(Problem& problem, Result result, int count, bool hopper, int64_t blocks) {
  visit_kernel(problem, count, [&]<int kParts, bool kPromoted>() {
    run<kParts, kPromoted, kDeviations>(problem, result, hopper, blocks);
  });
}

Problem problem_of(const uint16_t* parts, int64_t padded_rows, int k, int part_blocks, int n, int o, const float* p,
                   int sample, int straight, int64_t p_rows, double* sums, float* entries) {
  Problem problem{};
  problem.size = n * o;
  const auto tiles = [&](int64_t rows) { return static_cast<int32_t>(ceil_div(rows, kTile)); };
  problem.tiles = {tiles(int64_t{sample} * o), tiles((sample + p_rows) * o), tiles(problem.size)};
  problem.n = n;
  problem.o = o;
  problem.parts = parts;
  problem.padded_rows = padded_rows;
  problem.k = k;
  problem.straight = straight;
  problem.blocks = part_blocks;
  problem.p = p;
  problem.sample = sample;
  problem.p_rows = p_rows;
  problem.p_cols = n - sample;
  problem.sums = sums;
  problem.entries = entries;
  problem.first_row = sample * o;
  return problem;
}

// What both kinds of tiles read.
std::vector<emulator::Span> readable_by(const Problem& problem, int count, Result what) {
  const int64_t all_rows = int64_t{problem.blocks} * problem.padded_rows;
  int64_t pairs = problem.layer_count == 0 ? 1 : 0;
  for (int i = 0; i < problem.layer_count; ++i) {
    pairs += int64_t{problem.layers[i].positions} * problem.layers[i].positions;
  }
  return {{problem.parts, 2 * count * all_rows * problem.k},
          {problem.p, 4 * pairs * problem.p_rows * problem.p_cols},
          {problem.entries, what == Result::kProducts ? 4 * problem.p_rows * problem.o * int64_t{problem.size} : 0}};
}

}  // namespace

extern "C" {

const char* error() { return last_error.c_str(); }

// The kernels that come next take the schedules from this one on.
void set_schedule(uint32_t schedule) { emulator::next_schedule = schedule; }

int64_t warps(int hopper, int64_t blocks) { return blocks * (hopper ? wgmma::kWarps : mma::kWarps); }

int pack(const void* factor, int element, const int64_t* strides, int n, int positions, int o, int m,
         const double* scale, uint16_t* parts, int64_t part_size, int count, int blocks, int64_t padded_rows, int k) {
  return guarded([&] {
    Packing packing{factor,
                    static_cast<Element>(element),
                    {strides[0], strides[1], strides[2], strides[3]},
                    n,
                    positions,
                    o,
                    m,
                    scale,
                    parts,
                    part_size,
                    count,
                    blocks,
                    padded_rows,
                    k};
    emulator::launch(2, 64, 0, [&] { cuda::pack(packing); });
  });
}

int tangent_tiles(int hopper, int64_t blocks, int count, int result, const uint16_t* parts, int64_t padded_rows, int k,
                  int part_blocks, const int64_t* layers, int layer_count, int n, int o, const float* p, int sample,
                  int straight, int64_t p_rows, const float* means, double* sums, float* entries,
                  const double* unscale) {
  return guarded([&] {
    Problem problem = problem_of(parts, padded_rows, k, part_blocks, n, o, p, sample, straight, p_rows, sums, entries);
    problem.layer_count = layer_count;
    for (int i = 0; i < layer_count; ++i) {
      problem.layers[i] = {static_cast<int32_t>(layers[2 * i]), static_cast<int32_t>(layers[2 * i + 1])};
    }
    problem.row_means = means;
    problem.col_means = means == nullptr ? nullptr : means + padded_rows;
    problem.unscale = unscale;
    const Result what = static_cast<Result>(result);
    if (what == Result::kMatrix) problem.first_row = 0;
    emulator::readable = readable_by(problem, count, what);
    emulator::readable.push_back({means, means == nullptr ? 0 : 4 * 2 * padded_rows});
    run<false>(problem, what, count, hopper, blocks);
  });
}

int deviation_tiles(int hopper, int64_t blocks, int count, int result, const uint16_t* parts, int64_t padded_rows,
                    int k, int n, int o, const float* gram, int sample, int straight, int64_t p_rows, const float* p,
                    const float* pairs, const float* factors, double* sums, float* entries) {
  return guarded([&] {
    Problem problem = problem_of(parts, padded_rows, k, 1, n, o, gram, sample, straight, p_rows, sums, entries);
    problem.row_means = problem.col_means = p;
    problem.offsets = {pairs, factors};
    const Result what = static_cast<Result>(result);
    emulator::readable = readable_by(problem, count, what);
    emulator::readable.insert(emulator::readable.end(),
                              {{p, 4 * padded_rows}, {pairs, 4 * 2 * o * padded_rows}, {factors, 4 * 3}});
    run<true>(problem, what, count, hopper, blocks);
  });
}

// Every tile of TileBands in its order, as (row, col).
int64_t tile_bands(int32_t first, int32_t end, int32_t size, int64_t* pairs) {
  const TileBands tiles{first, end, size};
  for (int64_t t = 0; t < tiles.count(); ++t) {
    const PanelPair pair = tiles.at(t);
    pairs[2 * t] = pair.row;
    pairs[2 * t + 1] = pair.col;
  }
  return tiles.count();
}

void tile_at(int32_t first, int32_t end, int32_t size, int64_t t, int64_t* pair) {
  const PanelPair found = TileBands{first, end, size}.at(t);
  pair[0] = found.row;
  pair[1] = found.col;
}
}
