// The walk over all tiles of the lower triangle of K, for the ops that need every entry of it.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>

#include "tiles_in_memory.h"

namespace ahkernels::cpu {

// For the tiles of several kernels that a thread has at a time.
constexpr MemoryLimit kScratchBytes{1 << 20};

// Room for each thread's tiles of some kernels, at as many outputs of an item as fit.
template <class T>
class TileScratch {
 public:
  TileScratch(int64_t kernels, int64_t o)
      : kernels_(kernels),
        // The tile of a lone kernel is used while it is in the first-level cache.
        outputs_(kernels == 1 ? 1 : std::clamp<int64_t>(kScratchBytes / (kernels * kTileBytes), 1, o)),
        memory_(thread_count() * kernels * outputs_ * kTileBytes) {}

  // Calls visit(j, tile) for every tile (i, j), j < outputs, that an item has; tile(kernel) is the tile of a kernel.
  template <class Maker, class Visit>
  void for_each_tile(const TileBlock::Item& item, int64_t outputs, Maker& maker, int64_t thread,
                     const Visit& visit) const {
    for (int64_t first = first_column(item); first < outputs; first += outputs_) {
      const int64_t end = std::min(first + outputs_, outputs);
      const auto tile = [&](int64_t kernel, int64_t j) {
        return of_thread(thread) + ((j - first) * kernels_ + kernel) * kTileSize;
      };
      maker.make(item.output, first, end, tile);
      for (int64_t j = first; j < end; ++j) visit(j, [&](int64_t kernel) { return tile(kernel, j); });
    }
  }

  // Room for the tiles of at least one output.
  T* of_thread(int64_t thread) const { return memory_.template at<T>(thread * outputs_ * kernels_ * kTileBytes); }

 private:
  static constexpr int64_t kTileBytes = kTileSize * static_cast<int64_t>(sizeof(T));

  const int64_t kernels_, outputs_;
  const AlignedBuffer memory_;
};

// Hands out the tiles of one item that are in memory, as TileMaker does.
template <class T>
class ItemInMemory {
 public:
  ItemInMemory(const TilesInMemory<T>& kept, int64_t index, int64_t kernels)
      : kept_(kept), index_(index), kernels_(kernels), pair_(kept.block().item(index).pair) {}

  int64_t row_count() const { return kept_.row_count(pair_); }
  int64_t col_count() const { return kept_.col_count(pair_); }

  // There is nothing to save: the tiles have been written.
  std::optional<ProductTiles<T>> products(int64_t, int64_t, int64_t) const { return std::nullopt; }
  std::optional<CenteredTiles<T>> centered_products(int64_t, int64_t, int64_t) const { return std::nullopt; }

  template <class Out>
  void make(int64_t, int64_t begin, int64_t end, const Out& out) const {
    for (int64_t j = begin; j < end; ++j) {
      for (int64_t kernel = 0; kernel < kernels_; ++kernel) {
        std::memcpy(out(kernel, j), kept_.tile(index_, j, kernel), row_count() * kPanel * sizeof(T));
      }
    }
  }

 private:
  const TilesInMemory<T>& kept_;
  const int64_t index_, kernels_;
  const PanelPair pair_;
};

// All tiles of K.
inline TileBlock all_tiles(const std::vector<LayerFactors>& layers) {
  const int64_t panels = ceil_div(layers[0].n, kPanel);
  return {0, panels, 0, panels, 0, layers[0].o};
}

// Like walk_packed(), for any layers: over `whole`, which has all outputs. A visitor asks only for tiles (i, j) with j
// >= first_column(item).
template <class T, class Begin, class Visit, class Done>
void walk_tiles(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers,
                const std::vector<NearConstantCentering<T>>& centering, const TileBlock& whole, const Begin& begin,
                const Visit& visit, const Done& done, int64_t held_bytes = 0) {
  const int64_t panels = ceil_div(layers[0].n, kPanel), o = layers[0].o, kernels = kernel_count(layers);
  if (fits_packed(tiles, layers)) {
    walk_packed(tiles, layers, centering, whole, begin, visit, done, held_bytes);
    return;
  }
  // Squares of panels with all outputs, or a single pair of panels with as many outputs as fit.
  const int64_t side = std::min(block_side_in_memory(o, kernels, sizeof(T)), panels);
  const int64_t item_bytes = o * kernels * kTileSize * static_cast<int64_t>(sizeof(T));
  const int64_t outputs = panel_pairs_in_memory(o, kernels, sizeof(T)) >= 1
                              ? o
                              : std::clamp<int64_t>(kTilesInMemoryBytes / item_bytes, 1, o);
  for (int64_t row = whole.row_begin; row < whole.row_end; row += side) {
    const int64_t col_end = whole.diagonal() ? row + 1 : whole.col_end;
    for (int64_t col = whole.col_begin; col < col_end; col += side) {
      for (int64_t output = 0; output < o; output += outputs) {
        const TileBlock block{row,    std::min(row + side, whole.row_end), col, std::min(col + side, whole.col_end),
                              output, std::min(output + outputs, o)};
        TilesInMemory<T> kept(tiles, layers, centering, block);
        begin(block);
        kept.make([&](int64_t index, int64_t thread) {
          ItemInMemory<T> item(kept, index, kernels);
          visit(block, index, item, thread);
        });
        done(block);
      }
    }
  }
}

}  // namespace ahkernels::cpu
