// Pairs of positions with the positions folded into the rows of the tiles, for layers with many positions or few
// samples.
//
// A tile of the walk over packed panels is made of 48 samples, which wastes most of it where there are fewer, and needs
// the forward Gram at every pair of positions, which fits no cache where there are many. Here the rows of a panel are
// the positions of as many whole samples as fit it (a bundle), or a sample takes several panels; a tile of the forward
// Gram serves the tiles of all pairs of outputs, and what is summed over the positions of two samples is an entry of K.
#pragma once

#include <algorithm>
#include <vector>

#include "packed_walk.h"

namespace ahkernels::cpu {

// Factors whose means are taken out lose them for each pair of positions (centering.h), which only the walk over packed
// panels does.
inline bool folds(const Term& term) {
  constexpr int64_t kMostCached = kForwardTileBytes / (kTileSize * 4);
  return term.s > 1 && !term.by_jacobian && !term.means_out && (term.n < kPanel || term.s * term.s > kMostCached);
}

// Which samples and positions the rows of the panels are.
class Bundles {
 public:
  Bundles(int64_t n, int64_t s) : n_(n), s_(s), most_(std::max<int64_t>(1, kPanel / s)) {}

  int64_t per_panel() const { return ceil_div(kPanel, most_); }  // bundles of a panel of samples
  int64_t panels() const { return ceil_div(s_, kPanel); }        // of a bundle
  int64_t first(int64_t bundle) const { return bundle / per_panel() * kPanel + bundle % per_panel() * most_; }
  int64_t samples(int64_t bundle) const {
    const int64_t end = std::min((bundle / per_panel() + 1) * kPanel, n_);
    return std::clamp<int64_t>(end - first(bundle), 0, most_);
  }
  // Positions of each sample in the rows of the bundle's panel, from the first on.
  int64_t first_position(int64_t panel) const { return panel * kPanel; }
  int64_t positions(int64_t panel) const { return std::min(s_ - panel * kPanel, kPanel); }
  int64_t rows(int64_t bundle, int64_t panel) const { return samples(bundle) * positions(panel); }

 private:
  int64_t n_, s_, most_;
};

// The bundles [begin, end) of terms that share their backward factor, packed at some outputs.
template <class T>
class PackedBundles {
 public:
  PackedBundles(const TileKernels<T>& tiles, const std::vector<Term>& terms, const Bundles& bundles,
                int64_t output_begin, int64_t outputs, int64_t capacity)
      : tiles_(tiles),
        terms_(terms),
        bundles_(bundles),
        output_begin_(output_begin),
        outputs_(outputs),
        panel_bytes_(bytes(tiles, terms, outputs)),
        memory_(capacity * bundles.panels() * panel_bytes_),
        scratch_(thread_count() * kPanel * longest(terms) * static_cast<int64_t>(sizeof(T))) {}

  // Of a panel of a bundle.
  static int64_t bytes(const TileKernels<T>& tiles, const std::vector<Term>& terms, int64_t outputs) {
    int64_t total = outputs * tiles.panel_bytes(terms[0].m);
    for (const Term& term : terms) total += tiles.panel_bytes(term.d);
    return total;
  }

  void pack(int64_t begin, int64_t end) {
    begin_ = begin;
    const int64_t terms = static_cast<int64_t>(terms_.size()), blocks = terms + outputs_;
    for_each_item((end - begin) * bundles_.panels() * blocks, 4, [&](int64_t item, int64_t thread) {
      const int64_t bundle = begin + item / blocks / bundles_.panels(), panel = item / blocks % bundles_.panels();
      const int64_t block = item % blocks, first = bundles_.first_position(panel);
      if (block < terms) {
        const Term& term = terms_[block];
        pack_rows(bundle, panel, term.d, thread, forward(block, bundle, panel), [&](int64_t sample) {
          Strided rows = term.forward_rows(sample, first);
          rows.row_stride = term.forward.stride(1);
          return rows;
        });
      } else {
        const Term& term = terms_[0];
        const int64_t output = output_begin_ + block - terms;
        pack_rows(bundle, panel, term.m, thread, backward(bundle, panel, output), [&](int64_t sample) {
          Strided rows = term.backward_rows(sample, first, output);
          rows.row_stride = term.backward.stride(1);
          return rows;
        });
      }
    });
  }

  void* forward(int64_t which, int64_t bundle, int64_t panel) const {
    int64_t offset = 0;
    for (int64_t before = 0; before < which; ++before) offset += tiles_.panel_bytes(terms_[before].d);
    return memory_.template at<void>(panel_offset(bundle, panel) + offset);
  }
  void* backward(int64_t bundle, int64_t panel, int64_t output) const {
    const int64_t from_end = output_begin_ + outputs_ - output;
    return memory_.template at<void>(panel_offset(bundle, panel) + panel_bytes_ -
                                     from_end * tiles_.panel_bytes(terms_[0].m));
  }

 private:
  int64_t panel_offset(int64_t bundle, int64_t panel) const {
    return ((bundle - begin_) * bundles_.panels() + panel) * panel_bytes_;
  }
  static int64_t longest(const std::vector<Term>& terms) {
    int64_t most = terms[0].m;
    for (const Term& term : terms) most = std::max(most, term.d);
    return most;
  }

  // rows_of(sample) are the rows of a sample's positions.
  template <class Rows>
  void pack_rows(int64_t bundle, int64_t panel, int64_t k, int64_t thread, void* to, const Rows& rows_of) const {
    const int64_t samples = bundles_.samples(bundle), positions = bundles_.positions(panel);
    if (samples <= 1) {
      if (samples == 1) tiles_.pack(rows_of(bundles_.first(bundle)), nullptr, positions, k, to);
      return;
    }
    // Samples and positions together have no single stride.
    T* scratch = scratch_.template at<T>(thread * kPanel * longest(terms_) * static_cast<int64_t>(sizeof(T)));
    std::fill(scratch, scratch + samples * positions * k, T{0});
    for (int64_t x = 0; x < samples; ++x) {
      const Strided rows = rows_of(bundles_.first(bundle) + x);
      for (int64_t position = 0; position < positions; ++position) {
        tiles_.axpy(T{1}, rows.from_row(position), k, scratch + (x * positions + position) * k);
      }
    }
    constexpr Element kElement = sizeof(T) == 8 ? Element::kDouble : Element::kFloat;
    tiles_.pack(Strided{scratch, kElement, k, 1, 1.0}, nullptr, samples * positions, k, to);
  }

  const TileKernels<T>& tiles_;
  const std::vector<Term>& terms_;
  const Bundles& bundles_;
  const int64_t output_begin_, outputs_, panel_bytes_;
  int64_t begin_ = 0;
  AlignedBuffer memory_, scratch_;
};

// entry(index, j, term, x, x') += the entries of K of each item of the block and output j; x and x' count the samples
// of the item's panels. The terms share their backward factor.
template <class T, class Entry>
void add_folded_pairs(const TileKernels<T>& tiles, const std::vector<Term>& terms, const TileBlock& block,
                      const Entry& entry) {
  constexpr int64_t kTileBytes = kTileSize * static_cast<int64_t>(sizeof(T));
  const int64_t o = terms[0].o, count = static_cast<int64_t>(terms.size());
  const Bundles bundles(terms[0].n, terms[0].s);
  const int64_t row_bytes = bundles.panels() * PackedBundles<T>::bytes(tiles, terms, block.outputs());
  const int64_t col_bytes = bundles.panels() * PackedBundles<T>::bytes(tiles, terms, o);
  const int64_t row_begin = block.row_begin * bundles.per_panel(), row_end = block.row_end * bundles.per_panel();
  const int64_t col_begin = block.col_begin * bundles.per_panel(), col_end = block.col_end * bundles.per_panel();
  const int64_t row_step = std::clamp<int64_t>(kWorkspaceBytes / 2 / row_bytes, 1, row_end - row_begin);
  const int64_t col_step = std::clamp<int64_t>(kWorkspaceBytes / 2 / col_bytes, 1, col_end - col_begin);
  PackedBundles<T> rows(tiles, terms, bundles, block.output_begin, block.outputs(), row_step);
  PackedBundles<T> cols(tiles, terms, bundles, 0, o, col_step);
  const AlignedBuffer scratch(thread_count() * (1 + count) * kTileBytes);

  const auto item = [&](int64_t row, int64_t col, int64_t thread) {
    const PanelPair pair{row / bundles.per_panel(), col / bundles.per_panel()};
    if (pair.row < pair.col || bundles.samples(row) == 0 || bundles.samples(col) == 0) return;
    const int64_t first_row = bundles.first(row) - pair.row * kPanel,
                  first_col = bundles.first(col) - pair.col * kPanel;
    T* q = scratch.template at<T>(thread * (1 + count) * kTileBytes);
    T sums[kPanel];
    const GemmScope<T> gemms(tiles);
    for (int64_t row_panel = 0; row_panel < bundles.panels(); ++row_panel) {
      for (int64_t col_panel = 0; col_panel < bundles.panels(); ++col_panel) {
        const int64_t tile_rows = bundles.rows(row, row_panel), tile_cols = bundles.rows(col, col_panel);
        for (int64_t which = 0; which < count; ++which) {
          tiles.gemm(tiles.padded(terms[which].d), rows.forward(which, row, row_panel),
                     cols.forward(which, col, col_panel), tile_rows, tile_cols, /*accumulate=*/false,
                     q + (1 + which) * kTileSize);
        }
        for (int64_t i = block.output_begin; i < block.output_end; ++i) {
          const int64_t index = block.index({pair, i});
          for (int64_t j = first_column({pair, i}); j < o; ++j) {
            tiles.gemm(tiles.padded(terms[0].m), rows.backward(row, row_panel, i), cols.backward(col, col_panel, j),
                       tile_rows, tile_cols, /*accumulate=*/false, q);
            for (int64_t which = 0; which < count; ++which) {
              const T bias = static_cast<T>(terms[which].scaled_bias());
              const T* p = q + (1 + which) * kTileSize;
              for (int64_t x = 0; x < bundles.samples(row); ++x) {
                const int64_t skip = x * bundles.positions(row_panel) * kPanel;
                tiles.hadamard_sums(p + skip, bias, q + skip, bundles.positions(row_panel), tile_cols, sums);
                for (int64_t y = 0; y < bundles.samples(col); ++y) {
                  const T* of_sample = sums + y * bundles.positions(col_panel);
                  T total = 0;
                  for (int64_t c = 0; c < bundles.positions(col_panel); ++c) total += of_sample[c];
                  *entry(index, j, which, first_row + x, first_col + y) += total;
                }
              }
            }
          }
        }
      }
    }
  };

  for (int64_t row = row_begin; row < row_end; row += row_step) {
    const int64_t row_stop = std::min(row + row_step, row_end);
    rows.pack(row, row_stop);
    for (int64_t col = col_begin; col < col_end; col += col_step) {
      // Nothing of a diagonal block is right of its diagonal panels.
      if (col / bundles.per_panel() > (row_stop - 1) / bundles.per_panel()) break;
      const int64_t col_stop = std::min(col + col_step, col_end);
      cols.pack(col, col_stop);
      for_each_item((row_stop - row) * (col_stop - col), 1, [&](int64_t index, int64_t thread) {
        item(row + index / (col_stop - col), col + index % (col_stop - col), thread);
      });
    }
  }
}

}  // namespace ahkernels::cpu
