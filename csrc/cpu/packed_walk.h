// The walk over tiles of K from packed factors, each complete when it is visited. Those of the lower triangle, so that
// the short panel at the end of the samples is a tile's rows, whose number costs no efficiency, and not its columns.
//
// Two groups of sample panels at a time are packed into a workspace of fixed size (so memory does not grow with n), and
// threads take the work items of the pair of groups: a pair of panels X >= X' and one output i of the first, hence o
// tiles of each kernel. All work of an item is done by one thread in a fixed order, which makes every result
// independent of the number of threads.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "aligned.h"
#include "centering.h"
#include "parallel.h"
#include "term.h"

namespace ahkernels::cpu {

// For the packed factors of both groups; a single pair of panels is packed even where it takes more.
constexpr int64_t kWorkspaceBytes = 32 << 20;
// For each thread's forward-Gram tiles of the pairs of uses of a layer; further ones are computed anew for each tile.
constexpr int64_t kForwardTileBytes = 1 << 20;

// The panels [begin, end) of the samples, packed.
template <class T>
class PanelGroup {
 public:
  PanelGroup(const TileKernels<T>& tiles, const std::vector<Term>& terms, const std::vector<Centering<T>>& centering,
             int64_t capacity)
      : tiles_(tiles), terms_(terms), centering_(centering), memory_(capacity * panel_bytes(tiles, terms)) {
    for (const Term& term : terms) {
      forward_offsets_.push_back(stride_);
      stride_ += tiles.panel_bytes(term.d) * term.s;
    }
    for (size_t which = 0; which < terms.size(); ++which) {
      const Term& term = terms[which];
      const bool shared = term.backward_of != which;
      backward_offsets_.push_back(shared ? backward_offsets_[term.backward_of] : stride_);
      stride_ += shared ? 0 : tiles.panel_bytes(term.m) * term.s * term.o;
    }
  }

  static int64_t panel_bytes(const TileKernels<T>& tiles, const std::vector<Term>& terms) {
    int64_t total = 0;
    for (size_t which = 0; which < terms.size(); ++which) {
      const Term& term = terms[which];
      total += tiles.panel_bytes(term.d) * term.s;
      if (term.backward_of == which) total += tiles.panel_bytes(term.m) * term.s * term.o;
    }
    return total;
  }

  void pack(int64_t begin, int64_t end) {
    begin_ = begin;
    for (size_t which = 0; which < terms_.size(); ++which) {
      const Term& term = terms_[which];
      // Blocks of a panel: a forward one for each use, then the backward ones unless they are another term's.
      const int64_t blocks = term.s * (term.backward_of == which ? 1 + term.o : 1);
      for_each_item((end - begin) * blocks, 4, [&](int64_t item, int64_t) {
        const int64_t panel = begin + item / blocks, block = item % blocks;
        const int64_t first = panel * kPanel, count = std::min(kPanel, term.n - first);
        if (block < term.s) {
          tiles_.pack(term.forward_rows(first, block), mean(centering_[which].forward_mean, block * term.d), count,
                      term.d, forward(which, panel, block));
        } else {
          const int64_t use = (block - term.s) / term.o, output = (block - term.s) % term.o;
          tiles_.pack(term.backward_rows(first, use, output),
                      mean(centering_[which].backward_mean, (use * term.o + output) * term.m), count, term.m,
                      backward(which, panel, use, output));
        }
      });
    }
  }

  void* forward(size_t which, int64_t panel, int64_t use) const {
    return memory_.at<void>((panel - begin_) * stride_ + forward_offsets_[which] +
                            use * tiles_.panel_bytes(terms_[which].d));
  }
  void* backward(size_t which, int64_t panel, int64_t use, int64_t output) const {
    const Term& term = terms_[which];
    return memory_.at<void>((panel - begin_) * stride_ + backward_offsets_[which] +
                            (use * term.o + output) * tiles_.panel_bytes(term.m));
  }

 private:
  static const T* mean(const std::vector<T>& means, int64_t offset) {
    return means.empty() ? nullptr : means.data() + offset;
  }

  const TileKernels<T>& tiles_;
  const std::vector<Term>& terms_;
  const std::vector<Centering<T>>& centering_;
  int64_t stride_ = 0, begin_ = 0;
  std::vector<int64_t> forward_offsets_, backward_offsets_;
  AlignedBuffer memory_;
};

// One thread's tiles at a pair of panels: of K, or of what is left of it with the means taken out (see centering.h),
// times its scale.
template <class T>
class TileMaker {
 public:
  TileMaker(const TileKernels<T>& tiles, const std::vector<Term>& terms, const std::vector<Centering<T>>& centering)
      : tiles_(tiles),
        terms_(terms),
        centering_(centering),
        memory_(scratch_bytes(terms)),
        begun_(kernel_count(terms)) {
    int64_t slot = 0;
    for (const Term& term : terms) {
      first_slot_.push_back(slot);
      slot += cached(term) ? term.s * term.s : 0;
    }
  }

  // Turns to a pair of panels.
  void turn_to(const PanelGroup<T>& rows, int64_t row_panel, const PanelGroup<T>& cols, int64_t col_panel) {
    rows_ = &rows;
    cols_ = &cols;
    if (row_panel_ == row_panel && col_panel_ == col_panel) return;
    row_panel_ = row_panel;
    col_panel_ = col_panel;
    row_count_ = std::min(kPanel, terms_[0].n - row_panel * kPanel);
    col_count_ = std::min(kPanel, terms_[0].n - col_panel * kPanel);
    for (size_t which = 0; which < terms_.size(); ++which) {
      if (!cached(terms_[which])) continue;
      for (int64_t use = 0; use < terms_[which].s * terms_[which].s; ++use) {
        forward_tile(which, use, cached_tile(first_slot_[which] + use));
      }
    }
  }

  int64_t row_count() const { return row_count_; }
  int64_t col_count() const { return col_count_; }

  // Tiles [(X, i), (X', j)], begin <= j < end, as products, where each is one: of a single kernel, layer and use of it,
  // with no means taken out. What goes with them is left for the caller to fill in.
  std::optional<ProductTiles<T>> products(int64_t i, int64_t begin, int64_t end) const {
    const Term& term = terms_[0];
    if (terms_.size() > 1 || term.s > 1 || centering_[0].active()) return std::nullopt;
    ProductTiles<T> tiles{};
    tiles.k = tiles_.padded(term.m);
    tiles.rows = row_count_;
    tiles.cols = col_count_;
    tiles.count = end - begin;
    tiles.a = rows_->backward(0, row_panel_, 0, i);
    tiles.b = cols_->backward(0, col_panel_, 0, begin);
    tiles.b_bytes = tiles_.panel_bytes(term.m);
    tiles.p = cached_tile(0);
    tiles.bias = static_cast<T>(term.scaled_bias());
    return tiles;
  }

  // The same of tiles of T, where means are taken out.
  std::optional<CenteredTiles<T>> centered_products(int64_t i, int64_t begin, int64_t end) const {
    const Term& term = terms_[0];
    const Centering<T>& c = centering_[0];
    if (terms_.size() > 1 || term.s > 1 || !c.active()) return std::nullopt;
    const int64_t o = term.o, ij = i * o + begin, ji = begin * o + i;
    CenteredTiles<T> tiles{};
    tiles.k = tiles_.padded(term.m);
    tiles.rows = row_count_;
    tiles.cols = col_count_;
    tiles.count = end - begin;
    tiles.a = rows_->backward(0, row_panel_, 0, i);
    tiles.b = cols_->backward(0, col_panel_, 0, begin);
    tiles.b_bytes = tiles_.panel_bytes(term.m);
    tiles.p = cached_tile(0);
    tiles.p0 = c.p0[0];
    tiles.p_row = &c.p[row_panel_ * kPanel];
    tiles.p_col = &c.p[col_panel_ * kPanel];
    tiles.q0 = &c.q0[ij];
    tiles.q_row = &c.q[ij * c.stride + row_panel_ * kPanel];
    tiles.q_col = &c.q[ji * c.stride + col_panel_ * kPanel];
    tiles.q0_step = 1;
    tiles.q_row_step = c.stride;
    tiles.q_col_step = o * c.stride;
    return tiles;
  }

  // out(kernel, j) [row_count, kPanel] (+)= the tile [(X, i), (X', j)] of each kernel, for begin <= j < end. One factor
  // after the other: the panels of one fit the second-level cache, those of many layers do not.
  template <class Out>
  void make(int64_t i, int64_t begin, int64_t end, const Out& out, bool accumulate = false) {
    T* q = memory_.at<T>(0);
    std::fill(begun_.begin(), begun_.end(), accumulate);
    for (size_t owner = 0; owner < terms_.size(); ++owner) {
      const Term& term = terms_[owner];
      if (term.backward_of != owner) continue;
      const std::vector<bool> before = begun_;
      for (int64_t j = begin; j < end; ++j) {
        begun_ = before;
        for (int64_t use = 0; use < term.s * term.s; ++use) {
          tiles_.gemm(tiles_.padded(term.m), rows_->backward(owner, row_panel_, use / term.s, i),
                      cols_->backward(owner, col_panel_, use % term.s, j), row_count_, col_count_,
                      /*accumulate=*/false, q);
          for (size_t which = owner; which < terms_.size(); ++which) {
            if (terms_[which].backward_of == owner) multiply(which, use, i, j, q, out(terms_[which].kernel, j));
          }
        }
      }
    }
  }

 private:
  static constexpr int64_t kTileBytes = kTileSize * static_cast<int64_t>(sizeof(T));

  static bool cached(const Term& term) { return term.s * term.s * kTileBytes <= kForwardTileBytes; }
  static int64_t scratch_bytes(const std::vector<Term>& terms) {
    int64_t tiles = 2;
    for (const Term& term : terms) tiles += cached(term) ? term.s * term.s : 0;
    return tiles * kTileBytes;
  }
  T* cached_tile(int64_t slot) const { return memory_.at<T>((2 + slot) * kTileBytes); }

  // tile (+)= the forward tile of a pair of uses o q, at the outputs (i, j)
  void multiply(size_t which, int64_t use, int64_t i, int64_t j, const T* q, T* tile) {
    const Term& term = terms_[which];
    const Centering<T>& c = centering_[which];
    const bool accumulate = begun_[term.kernel];
    begun_[term.kernel] = true;
    const T* p = cached(term) ? cached_tile(first_slot_[which] + use) : memory_.at<T>(kTileBytes);
    if (!cached(term)) forward_tile(which, use, memory_.at<T>(kTileBytes));
    if (c.active()) {
      const int64_t turned = use % term.s * term.s + use / term.s;
      c.add_tile(tiles_, use, turned, i, j, row_panel_ * kPanel, col_panel_ * kPanel, p, q, row_count_, col_count_,
                 accumulate, tile);
    } else {
      tiles_.hadamard(p, static_cast<T>(term.scaled_bias()), q, row_count_, col_count_, accumulate, tile);
    }
  }

  void forward_tile(size_t which, int64_t use, T* tile) {
    const Term& term = terms_[which];
    tiles_.gemm(tiles_.padded(term.d), rows_->forward(which, row_panel_, use / term.s),
                cols_->forward(which, col_panel_, use % term.s), row_count_, col_count_, /*accumulate=*/false, tile);
  }

  const TileKernels<T>& tiles_;
  const std::vector<Term>& terms_;
  const std::vector<Centering<T>>& centering_;
  AlignedBuffer memory_;             // q, a spare p, the cached p
  std::vector<bool> begun_;          // of each kernel, whether its tile has a term
  std::vector<int64_t> first_slot_;  // of each term's cached p
  const PanelGroup<T>* rows_ = nullptr;
  const PanelGroup<T>* cols_ = nullptr;
  int64_t row_panel_ = -1, col_panel_ = -1, row_count_ = 0, col_count_ = 0;
};

// Pairs of panels, those with row panel >= column panel where rows and columns are the same, and some of the outputs of
// the row panel: an item is one pair and one output.
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

// The first output of the column panel for which a tile is made: on the diagonal, tile (j, i) is the transpose of (i,
// j).
inline int64_t first_column(const TileBlock::Item& item) { return item.pair.row == item.pair.col ? item.output : 0; }

// What a visitor holds for all items of a part at once, where it holds something.
constexpr int64_t kVisitorBytes = 64 << 20;

// visit(part, index, maker, thread) once for every item of the block, where index counts the items of part, a piece of
// the block; begin(part) before and done(part) after each piece. The visitor holds so many bytes for each item.
template <class T, class Begin, class Visit, class Done>
void walk_packed(const TileKernels<T>& tiles, const std::vector<Term>& terms,
                 const std::vector<Centering<T>>& centering, const TileBlock& block, const Begin& begin,
                 const Visit& visit, const Done& done, int64_t held_bytes = 0) {
  const int64_t rows = block.row_end - block.row_begin, cols = block.col_end - block.col_begin;
  const int64_t per_panel = std::max<int64_t>(1, PanelGroup<T>::panel_bytes(tiles, terms));
  const bool one_group =
      block.diagonal() && rows * per_panel <= kWorkspaceBytes && block.items() * held_bytes <= kVisitorBytes;
  int64_t capacity = one_group ? rows : std::clamp<int64_t>(kWorkspaceBytes / 2 / per_panel, 1, rows);
  const int64_t of_pair = block.outputs() * held_bytes;
  while (!one_group && capacity > 1 && capacity * capacity * of_pair > kVisitorBytes) --capacity;

  PanelGroup<T> first(tiles, terms, centering, capacity);
  PanelGroup<T> second(tiles, terms, centering, one_group ? 0 : std::min(capacity, cols));
  std::vector<TileMaker<T>> makers;
  for (int64_t thread = 0; thread < thread_count(); ++thread) makers.emplace_back(tiles, terms, centering);

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
      const PanelGroup<T>& columns = part.diagonal() ? first : second;
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
