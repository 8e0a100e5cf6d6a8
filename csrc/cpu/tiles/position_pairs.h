// Pairs of positions with positions as the rows of tiles, for layers with many positions or few samples.
//
// A tile of the walk over packed panels has 48 samples as its rows. That wastes most of it where there are fewer
// samples, and it needs the forward Gram at every pair of positions, which fits no cache where there are many. Here the
// rows of a panel are the positions of a bundle: as many whole samples as fit the panel, or one sample, which may take
// several panels. A tile of the forward Gram serves the tiles of all pairs of outputs. A sum over the positions of two
// samples is an entry of K.
#pragma once

#include <algorithm>
#include <vector>

#include "packed_walk.h"

namespace ahkernels::cpu {

// Whether a layer takes its positions as rows. Near-constant layers do not: they have offsets for each pair of
// positions (near_constant_centering.h), which only the walk over packed panels adds.
inline bool takes_positions_as_rows(const LayerFactors& layer) {
  constexpr int64_t kMostCached = kForwardTileBytes / (kTileSize * 4);
  return layer.s > 1 && !layer.by_jacobian && !layer.near_constant &&
         (layer.n < kPanel || layer.s * layer.s > kMostCached);
}

// Maps the rows of panels to samples and positions.
class Bundles {
 public:
  Bundles(int64_t n, int64_t s) : n_(n), s_(s), most_(std::max<int64_t>(1, kPanel / s)) {}

  int64_t per_panel() const { return ceil_div(kPanel, most_); }  // bundles in a panel of samples
  int64_t panels() const { return ceil_div(s_, kPanel); }        // panels that a bundle takes
  int64_t first(int64_t bundle) const { return bundle / per_panel() * kPanel + bundle % per_panel() * most_; }
  int64_t samples(int64_t bundle) const {
    const int64_t end = std::min((bundle / per_panel() + 1) * kPanel, n_);
    return std::clamp<int64_t>(end - first(bundle), 0, most_);
  }
  // The positions of each sample that are rows of a bundle's panel: the first of them and their number.
  int64_t first_position(int64_t panel) const { return panel * kPanel; }
  int64_t positions(int64_t panel) const { return std::min(s_ - panel * kPanel, kPanel); }
  int64_t rows(int64_t bundle, int64_t panel) const { return samples(bundle) * positions(panel); }

 private:
  int64_t n_, s_, most_;
};

// The bundles [begin, end) that the last pack() names, for layers that share their backward factor, at some outputs.
template <class T>
class PackedBundles {
 public:
  PackedBundles(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers, const Bundles& bundles,
                int64_t output_begin, int64_t outputs, int64_t capacity)
      : tiles_(tiles),
        layers_(layers),
        bundles_(bundles),
        output_begin_(output_begin),
        outputs_(outputs),
        panel_bytes_(bytes(tiles, layers, outputs)),
        memory_(capacity * bundles.panels() * panel_bytes_),
        scratch_(thread_count() * kPanel * longest(layers) * static_cast<int64_t>(sizeof(T))) {}

  // Bytes for one panel of a bundle.
  static int64_t bytes(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers, int64_t outputs) {
    int64_t total = outputs * tiles.panel_bytes(layers[0].m);
    for (const LayerFactors& layer : layers) total += tiles.panel_bytes(layer.d);
    return total;
  }

  void pack(int64_t begin, int64_t end) {
    begin_ = begin;
    const int64_t layers = static_cast<int64_t>(layers_.size()), blocks = layers + outputs_;
    for_each_item((end - begin) * bundles_.panels() * blocks, 4, [&](int64_t item, int64_t thread) {
      const int64_t bundle = begin + item / blocks / bundles_.panels(), panel = item / blocks % bundles_.panels();
      const int64_t block = item % blocks, first = bundles_.first_position(panel);
      if (block < layers) {
        const LayerFactors& layer = layers_[block];
        pack_rows(bundle, panel, layer.d, thread, forward(block, bundle, panel), [&](int64_t sample) {
          Strided rows = layer.forward_rows(sample, first);
          rows.row_stride = layer.forward.stride(1);
          return rows;
        });
      } else {
        const LayerFactors& layer = layers_[0];
        const int64_t output = output_begin_ + block - layers;
        pack_rows(bundle, panel, layer.m, thread, backward(bundle, panel, output), [&](int64_t sample) {
          Strided rows = layer.backward_rows(sample, first, output);
          rows.row_stride = layer.backward.stride(1);
          return rows;
        });
      }
    });
  }

  void* forward(int64_t which, int64_t bundle, int64_t panel) const {
    int64_t offset = 0;
    for (int64_t before = 0; before < which; ++before) offset += tiles_.panel_bytes(layers_[before].d);
    return memory_.template at<void>(panel_offset(bundle, panel) + offset);
  }
  void* backward(int64_t bundle, int64_t panel, int64_t output) const {
    const int64_t from_end = output_begin_ + outputs_ - output;
    return memory_.template at<void>(panel_offset(bundle, panel) + panel_bytes_ -
                                     from_end * tiles_.panel_bytes(layers_[0].m));
  }

 private:
  int64_t panel_offset(int64_t bundle, int64_t panel) const {
    return ((bundle - begin_) * bundles_.panels() + panel) * panel_bytes_;
  }
  static int64_t longest(const std::vector<LayerFactors>& layers) {
    int64_t most = layers[0].m;
    for (const LayerFactors& layer : layers) most = std::max(most, layer.d);
    return most;
  }

  // Packs the positions of a bundle's samples, where rows_of(sample) are those of one sample.
  template <class Rows>
  void pack_rows(int64_t bundle, int64_t panel, int64_t k, int64_t thread, void* to, const Rows& rows_of) const {
    const int64_t samples = bundles_.samples(bundle), positions = bundles_.positions(panel);
    if (samples <= 1) {
      if (samples == 1) tiles_.pack(rows_of(bundles_.first(bundle)), nullptr, positions, k, to);
      return;
    }
    // Samples and positions together have no single stride.
    T* scratch = scratch_.template at<T>(thread * kPanel * longest(layers_) * static_cast<int64_t>(sizeof(T)));
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
  const std::vector<LayerFactors>& layers_;
  const Bundles& bundles_;
  const int64_t output_begin_, outputs_, panel_bytes_;
  int64_t begin_ = 0;
  AlignedBuffer memory_, scratch_;
};

// Adds the entries of K in a block of tiles, for layers that share their backward factor.
template <class T>
class PositionPairs {
 public:
  PositionPairs(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers, const TileBlock& block)
      : tiles_(tiles),
        layers_(layers),
        block_(block),
        o_(layers[0].o),
        count_(static_cast<int64_t>(layers.size())),
        bundles_(layers[0].n, layers[0].s),
        row_begin_(block.row_begin * bundles_.per_panel()),
        row_end_(block.row_end * bundles_.per_panel()),
        col_begin_(block.col_begin * bundles_.per_panel()),
        col_end_(block.col_end * bundles_.per_panel()),
        row_step_(step(block.outputs(), row_end_ - row_begin_)),
        col_step_(step(o_, col_end_ - col_begin_)),
        rows_(tiles, layers, bundles_, block.output_begin, block.outputs(), row_step_),
        cols_(tiles, layers, bundles_, 0, o_, col_step_),
        scratch_(thread_count() * (1 + count_) * kTileBytes) {}

  // *entry(index, j, which, x, x') += the entry of K at output j of an item of the block, from layer `which`; x and x'
  // count the samples of the item's panels.
  template <class Entry>
  void add(const Entry& entry) {
    for (int64_t row = row_begin_; row < row_end_; row += row_step_) {
      const int64_t row_stop = std::min(row + row_step_, row_end_);
      rows_.pack(row, row_stop);
      for (int64_t col = col_begin_; col < col_end_; col += col_step_) {
        // Nothing of a diagonal block is right of its diagonal panels.
        if (col / bundles_.per_panel() > (row_stop - 1) / bundles_.per_panel()) break;
        const int64_t col_stop = std::min(col + col_step_, col_end_);
        cols_.pack(col, col_stop);
        for_each_item((row_stop - row) * (col_stop - col), 1, [&](int64_t index, int64_t thread) {
          add_bundles(row + index / (col_stop - col), col + index % (col_stop - col), thread, entry);
        });
      }
    }
  }

 private:
  static constexpr int64_t kTileBytes = kTileSize * static_cast<int64_t>(sizeof(T));

  // Bundles that fit half of the workspace, packed at so many outputs.
  int64_t step(int64_t outputs, int64_t most) const {
    const int64_t bytes = bundles_.panels() * PackedBundles<T>::bytes(tiles_, layers_, outputs);
    return std::clamp<int64_t>(kWorkspaceBytes / 2 / std::max<int64_t>(bytes, 1), 1, most);
  }

  // The entries of two bundles, from all pairs of their panels.
  template <class Entry>
  void add_bundles(int64_t row, int64_t col, int64_t thread, const Entry& entry) const {
    const PanelPair pair{row / bundles_.per_panel(), col / bundles_.per_panel()};
    if (pair.row < pair.col || bundles_.samples(row) == 0 || bundles_.samples(col) == 0) return;
    T* q = scratch_.template at<T>(thread * (1 + count_) * kTileBytes);
    const GemmScope<T> gemms(tiles_);
    for (int64_t row_panel = 0; row_panel < bundles_.panels(); ++row_panel) {
      for (int64_t col_panel = 0; col_panel < bundles_.panels(); ++col_panel) {
        const int64_t tile_rows = bundles_.rows(row, row_panel), tile_cols = bundles_.rows(col, col_panel);
        for (int64_t which = 0; which < count_; ++which) {
          tiles_.gemm(tiles_.padded(layers_[which].d), rows_.forward(which, row, row_panel),
                      cols_.forward(which, col, col_panel), tile_rows, tile_cols, /*accumulate=*/false,
                      q + (1 + which) * kTileSize);
        }
        for (int64_t i = block_.output_begin; i < block_.output_end; ++i) {
          const int64_t index = block_.index({pair, i});
          for (int64_t j = first_column({pair, i}); j < o_; ++j) {
            tiles_.gemm(tiles_.padded(layers_[0].m), rows_.backward(row, row_panel, i),
                        cols_.backward(col, col_panel, j), tile_rows, tile_cols, /*accumulate=*/false, q);
            add_sums_over_positions(q, row, row_panel, col, col_panel,
                                    [&](int64_t which, int64_t x, int64_t y) { return entry(index, j, which, x, y); });
          }
        }
      }
    }
  }

  // *entry(which, x, x') += the sum over the positions of x and x' of (p + bias) o q, where `q` points to the tile of q
  // and the tiles of each layer's p follow it.
  template <class Entry>
  void add_sums_over_positions(const T* q, int64_t row, int64_t row_panel, int64_t col, int64_t col_panel,
                               const Entry& entry) const {
    const int64_t first_row = bundles_.first(row) % kPanel, first_col = bundles_.first(col) % kPanel;
    const int64_t tile_cols = bundles_.rows(col, col_panel);
    T sums[kPanel];
    for (int64_t which = 0; which < count_; ++which) {
      const T bias = static_cast<T>(layers_[which].scaled_bias());
      const T* p = q + (1 + which) * kTileSize;
      for (int64_t x = 0; x < bundles_.samples(row); ++x) {
        const int64_t skip = x * bundles_.positions(row_panel) * kPanel;
        tiles_.hadamard_sums(p + skip, bias, q + skip, bundles_.positions(row_panel), tile_cols, sums);
        for (int64_t y = 0; y < bundles_.samples(col); ++y) {
          const T* of_sample = sums + y * bundles_.positions(col_panel);
          T total = 0;
          for (int64_t c = 0; c < bundles_.positions(col_panel); ++c) total += of_sample[c];
          *entry(which, first_row + x, first_col + y) += total;
        }
      }
    }
  }

  const TileKernels<T>& tiles_;
  const std::vector<LayerFactors>& layers_;
  const TileBlock block_;
  const int64_t o_, count_;
  const Bundles bundles_;
  const int64_t row_begin_, row_end_, col_begin_, col_end_, row_step_, col_step_;  // in bundles
  PackedBundles<T> rows_, cols_;
  const AlignedBuffer scratch_;  // for each thread: a tile of q, then one of p for each layer
};

}  // namespace ahkernels::cpu
