// The walk over tiles of K from packed factors: a tile is complete when it is visited. It goes over the lower triangle,
// so that the short panel at the end of the samples is a tile's rows, whose number costs no efficiency, and not its
// columns.
//
// Two groups of panels at a time are packed into a workspace of fixed size, so that memory does not grow with n.
// Threads take the work items of the pair of groups. An item is a pair of panels X >= X' and one output i of the first,
// hence o tiles of each kernel. One thread does all work of an item in a fixed order, so that no result depends on the
// number of threads.
#pragma once

#include <algorithm>
#include <vector>

#include "../parallel.h"
#include "packed_panels.h"
#include "tile_block.h"
#include "tile_maker.h"

namespace ahkernels::cpu {

// For the packed factors of both groups. A single pair of panels is packed even where it takes more.
constexpr MemoryLimit kWorkspaceBytes{32 << 20};

// For what a visitor holds of all items of a part at once.
constexpr MemoryLimit kVisitorBytes{64 << 20};

// Calls visit(part, index, maker, thread) once for every item of the block. A part is a piece of the block, and index
// counts its items; begin(part) comes before each part and done(part) after it. The visitor holds `held_bytes` for each
// item of a part.
template <class T, class Begin, class Visit, class Done>
void walk_packed(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers,
                 const std::vector<NearConstantCentering<T>>& centering, const TileBlock& block, const Begin& begin,
                 const Visit& visit, const Done& done, int64_t held_bytes = 0) {
  const int64_t rows = block.row_end - block.row_begin, cols = block.col_end - block.col_begin;
  const int64_t per_panel = std::max<int64_t>(1, PackedPanels<T>::panel_bytes(tiles, layers));
  const bool one_group =
      block.diagonal() && rows * per_panel <= kWorkspaceBytes && block.items() * held_bytes <= kVisitorBytes;
  int64_t capacity = one_group ? rows : std::clamp<int64_t>(kWorkspaceBytes / 2 / per_panel, 1, rows);
  const int64_t of_pair = block.outputs() * held_bytes;
  while (!one_group && capacity > 1 && capacity * capacity * of_pair > kVisitorBytes) --capacity;

  PackedPanels<T> first(tiles, layers, centering, capacity);
  PackedPanels<T> second(tiles, layers, centering, one_group ? 0 : std::min(capacity, cols));
  std::vector<TileMaker<T>> makers;
  for (int64_t thread = 0; thread < thread_count(); ++thread) makers.emplace_back(tiles, layers, centering);

  for (int64_t row = block.row_begin; row < block.row_end; row += capacity) {
    first.pack(row, std::min(row + capacity, block.row_end));
    const int64_t col_end = block.diagonal() ? row + 1 : block.col_end;
    for (int64_t col = block.col_begin; col < col_end; col += capacity) {
      const TileBlock part{row,
                           std::min(row + capacity, block.row_end),
                           col,
                           std::min(col + capacity, block.col_end),
                           block.output_begin,
                           block.output_end};
      if (!part.diagonal()) second.pack(part.col_begin, part.col_end);
      const PackedPanels<T>& columns = part.diagonal() ? first : second;
      begin(part);
      // Neighbouring items share their forward-Gram tiles: take them together while there are enough for all.
      const int64_t chunk = std::clamp<int64_t>(part.items() / (16 * thread_count()), 1, part.outputs());
      for_each_item(part.items(), chunk, [&](int64_t index, int64_t thread) {
        const GemmScope<T> gemms(tiles);
        const PanelPair pair = part.pair(index / part.outputs());
        makers[thread].turn_to(first, pair.row, columns, pair.col);
        visit(part, index, makers[thread], thread);
      });
      done(part);
    }
  }
}

}  // namespace ahkernels::cpu
