// Which tiles of K are made together, and their numbering.
#pragma once

#include <cstdint>

#include "../../tiling.h"

namespace ahkernels::cpu {

// A block of tiles: pairs of panels, and some of the outputs of the row panel. Where rows and columns are the same
// panels, it has the pairs with row panel >= column panel. An item is one pair and one output.
struct TileBlock {
  int64_t row_begin, row_end, col_begin, col_end, output_begin, output_end;

  struct Item {
    PanelPair pair;
    int64_t output;
  };

  bool diagonal() const { return row_begin == col_begin; }
  int64_t outputs() const { return output_end - output_begin; }
  int64_t pairs() const {
    const int64_t rows = row_end - row_begin;
    return diagonal() ? rows * (rows + 1) / 2 : rows * (col_end - col_begin);
  }
  int64_t items() const { return pairs() * outputs(); }
  PanelPair pair(int64_t index) const {
    const PanelPair local = diagonal() ? triangle_pair(index) : rectangle_pair(index, col_end - col_begin);
    return {row_begin + local.row, col_begin + local.col};
  }
  Item item(int64_t index) const { return {pair(index / outputs()), output_begin + index % outputs()}; }
  int64_t pair_index(const PanelPair& pair) const {
    const PanelPair local{pair.row - row_begin, pair.col - col_begin};
    return diagonal() ? triangle_index(local) : local.row * (col_end - col_begin) + local.col;
  }
  int64_t index(const Item& item) const { return pair_index(item.pair) * outputs() + item.output - output_begin; }
};

// The first output of the column panel for which a tile is made. On the diagonal tile (j, i) is the transpose of (i,
// j).
inline int64_t first_column(const TileBlock::Item& item) { return item.pair.row == item.pair.col ? item.output : 0; }

}  // namespace ahkernels::cpu
