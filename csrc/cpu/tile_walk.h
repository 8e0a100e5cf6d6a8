// The walk over all tiles of the lower triangle of K, for the ops that need every entry of it.
#pragma once

#include <cmath>
#include <cstring>

#include "kept_tiles.h"

namespace ahkernels::cpu {

// Of the tiles kept at a time, where they cannot be visited as they are made.
constexpr int64_t kKeptBytes = 128 << 20;

// Of the tiles of several kernels that a thread has at a time.
constexpr int64_t kScratchBytes = 1 << 20;

// Room for each thread's tiles of some kernels, at as many outputs of an item as fit.
template <class T>
class TileScratch {
 public:
  TileScratch(int64_t kernels, int64_t o)
      : kernels_(kernels),
        // The tile of a lone kernel is used while it is in the first-level cache.
        outputs_(kernels == 1 ? 1 : std::clamp<int64_t>(kScratchBytes / (kernels * kTileBytes), 1, o)),
        memory_(thread_count() * kernels * outputs_ * kTileBytes) {}

  // visit(j, tile) for every tile (i, j), j < outputs, that is made of an item; tile(kernel) is that of a kernel.
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

  // The tiles of one output at least.
  T* of_thread(int64_t thread) const { return memory_.template at<T>(thread * outputs_ * kernels_ * kTileBytes); }

 private:
  static constexpr int64_t kTileBytes = kTileSize * static_cast<int64_t>(sizeof(T));

  const int64_t kernels_, outputs_;
  const AlignedBuffer memory_;
};

// Hands out the tiles of one item as TileMaker does.
template <class T>
class KeptItem {
 public:
  KeptItem(const KeptTiles<T>& kept, int64_t index, int64_t kernels)
      : kept_(kept), index_(index), kernels_(kernels), pair_(kept.block().item(index).pair) {}

  int64_t row_count() const { return kept_.row_count(pair_); }
  int64_t col_count() const { return kept_.col_count(pair_); }

  // The tiles are made.
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
  const KeptTiles<T>& kept_;
  const int64_t index_, kernels_;
  const PanelPair pair_;
};

// As walk_packed() over all of K. A visitor asks for tiles (i, j) with j >= first_column(item) alone.
template <class T, class Begin, class Visit, class Done>
void walk_tiles(const TileKernels<T>& tiles, const std::vector<Term>& terms, const std::vector<Centering<T>>& centering,
                const Begin& begin, const Visit& visit, const Done& done, int64_t held_bytes = 0) {
  const int64_t panels = ceil_div(terms[0].n, kPanel), o = terms[0].o, kernels = kernel_count(terms);
  if (fits_packed(tiles, terms)) {
    walk_packed(tiles, terms, centering, TileBlock{0, panels, 0, panels, 0, o}, begin, visit, done, held_bytes);
    return;
  }
  // Squares of panels with all outputs, or a single pair with as many as fit.
  const int64_t item_bytes = o * kernels * kTileSize * static_cast<int64_t>(sizeof(T));
  const double pairs = static_cast<double>(kKeptBytes) / static_cast<double>(item_bytes * o);
  const int64_t side = std::clamp<int64_t>(static_cast<int64_t>(std::sqrt(pairs)), 1, panels);
  const int64_t outputs = pairs >= 1 ? o : std::clamp<int64_t>(kKeptBytes / item_bytes, 1, o);
  for (int64_t row = 0; row < panels; row += side) {
    for (int64_t col = 0; col <= row; col += side) {
      for (int64_t output = 0; output < o; output += outputs) {
        const TileBlock block{row,    std::min(row + side, panels), col, std::min(col + side, panels),
                              output, std::min(output + outputs, o)};
        KeptTiles<T> kept(tiles, terms, centering, block);
        begin(block);
        kept.make([&](int64_t index, int64_t thread) {
          KeptItem<T> item(kept, index, kernels);
          visit(block, index, item, thread);
        });
        done(block);
      }
    }
  }
}

}  // namespace ahkernels::cpu
