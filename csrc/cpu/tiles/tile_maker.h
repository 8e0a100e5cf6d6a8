// Makes tiles of K from packed panels.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "../aligned_buffer.h"
#include "near_constant_centering.h"
#include "packed_panels.h"

namespace ahkernels::cpu {

// The forward tiles at all pairs of positions of a layer are cached for a pair of panels where they take no more than
// this, and otherwise made again for each tile.
constexpr int64_t kForwardTileBytes = 1 << 20;

// One thread's tiles at a pair of panels, times the kernel's scale: tiles of K, or of T for near-constant layers
// (near_constant_centering.h).
template <class T>
class TileMaker {
 public:
  TileMaker(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers,
            const std::vector<NearConstantCentering<T>>& centering)
      : tiles_(tiles),
        layers_(layers),
        centering_(centering),
        memory_(scratch_bytes(layers)),
        begun_(kernel_count(layers)) {
    int64_t slot = 0;
    for (const LayerFactors& layer : layers) {
      first_slot_.push_back(slot);
      slot += cached(layer) ? layer.s * layer.s : 0;
    }
  }

  // Turns to a pair of panels, and makes the forward tiles that are cached.
  void turn_to(const PackedPanels<T>& rows, int64_t row_panel, const PackedPanels<T>& cols, int64_t col_panel) {
    rows_ = &rows;
    cols_ = &cols;
    if (row_panel_ == row_panel && col_panel_ == col_panel) return;
    row_panel_ = row_panel;
    col_panel_ = col_panel;
    row_count_ = std::min(kPanel, layers_[0].n - row_panel * kPanel);
    col_count_ = std::min(kPanel, layers_[0].n - col_panel * kPanel);
    for (size_t which = 0; which < layers_.size(); ++which) {
      if (!cached(layers_[which])) continue;
      for (int64_t pair = 0; pair < layers_[which].s * layers_[which].s; ++pair) {
        forward_tile(which, pair, cached_tile(first_slot_[which] + pair));
      }
    }
  }

  int64_t row_count() const { return row_count_; }
  int64_t col_count() const { return col_count_; }

  // The tiles [(X, i), (X', j)], begin <= j < end, as products that need not be written. There is such a product where
  // the kernel is alone, has a single layer with one position, and is not near constant. The caller fills in the
  // vectors.
  std::optional<ProductTiles<T>> products(int64_t i, int64_t begin, int64_t end) const {
    const LayerFactors& layer = layers_[0];
    if (layers_.size() > 1 || layer.s > 1 || centering_[0].active()) return std::nullopt;
    ProductTiles<T> tiles{};
    tiles.k = tiles_.padded(layer.m);
    tiles.rows = row_count_;
    tiles.cols = col_count_;
    tiles.count = end - begin;
    tiles.a = rows_->backward(0, row_panel_, 0, i);
    tiles.b = cols_->backward(0, col_panel_, 0, begin);
    tiles.b_bytes = tiles_.panel_bytes(layer.m);
    tiles.p = cached_tile(0);
    tiles.bias = static_cast<T>(layer.scaled_bias());
    return tiles;
  }

  // The same for tiles of T, where the layer is near constant.
  std::optional<CenteredTiles<T>> centered_products(int64_t i, int64_t begin, int64_t end) const {
    const LayerFactors& layer = layers_[0];
    const NearConstantCentering<T>& c = centering_[0];
    if (layers_.size() > 1 || layer.s > 1 || !c.active()) return std::nullopt;
    const int64_t o = layer.o, ij = i * o + begin, ji = begin * o + i;
    CenteredTiles<T> tiles{};
    tiles.k = tiles_.padded(layer.m);
    tiles.rows = row_count_;
    tiles.cols = col_count_;
    tiles.count = end - begin;
    tiles.a = rows_->backward(0, row_panel_, 0, i);
    tiles.b = cols_->backward(0, col_panel_, 0, begin);
    tiles.b_bytes = tiles_.panel_bytes(layer.m);
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

  // out(kernel, j) [row_count, kPanel] (+)= the tile [(X, i), (X', j)] of each kernel, for begin <= j < end. Takes one
  // layer after the other, since the panels of one layer fit the second-level cache and those of many layers do not.
  template <class Out>
  void make(int64_t i, int64_t begin, int64_t end, const Out& out, bool accumulate = false) {
    T* q = memory_.at<T>(0);
    std::fill(begun_.begin(), begun_.end(), accumulate);
    for (size_t owner = 0; owner < layers_.size(); ++owner) {
      const LayerFactors& layer = layers_[owner];
      if (layer.backward_of != owner) continue;
      const std::vector<bool> before = begun_;
      for (int64_t j = begin; j < end; ++j) {
        begun_ = before;
        for (int64_t pair = 0; pair < layer.s * layer.s; ++pair) {
          tiles_.gemm(tiles_.padded(layer.m), rows_->backward(owner, row_panel_, pair / layer.s, i),
                      cols_->backward(owner, col_panel_, pair % layer.s, j), row_count_, col_count_,
                      /*accumulate=*/false, q);
          for (size_t which = owner; which < layers_.size(); ++which) {
            if (layers_[which].backward_of == owner) multiply(which, pair, i, j, q, out(layers_[which].kernel, j));
          }
        }
      }
    }
  }

 private:
  static constexpr int64_t kTileBytes = kTileSize * static_cast<int64_t>(sizeof(T));

  static bool cached(const LayerFactors& layer) { return layer.s * layer.s * kTileBytes <= kForwardTileBytes; }
  static int64_t scratch_bytes(const std::vector<LayerFactors>& layers) {
    int64_t tiles = 2;
    for (const LayerFactors& layer : layers) tiles += cached(layer) ? layer.s * layer.s : 0;
    return tiles * kTileBytes;
  }
  T* cached_tile(int64_t slot) const { return memory_.at<T>((2 + slot) * kTileBytes); }

  // tile (+)= the forward tile at a pair of positions o q, at the outputs (i, j)
  void multiply(size_t which, int64_t pair, int64_t i, int64_t j, const T* q, T* tile) {
    const LayerFactors& layer = layers_[which];
    const NearConstantCentering<T>& c = centering_[which];
    const bool accumulate = begun_[layer.kernel];
    begun_[layer.kernel] = true;
    const T* p = cached(layer) ? cached_tile(first_slot_[which] + pair) : memory_.at<T>(kTileBytes);
    if (!cached(layer)) forward_tile(which, pair, memory_.at<T>(kTileBytes));
    if (c.active()) {
      const int64_t turned = pair % layer.s * layer.s + pair / layer.s;
      c.add_tile(tiles_, pair, turned, i, j, row_panel_ * kPanel, col_panel_ * kPanel, p, q, row_count_, col_count_,
                 accumulate, tile);
    } else {
      tiles_.hadamard(p, static_cast<T>(layer.scaled_bias()), q, row_count_, col_count_, accumulate, tile);
    }
  }

  // tile = the forward Gram at a pair of positions
  void forward_tile(size_t which, int64_t pair, T* tile) {
    const LayerFactors& layer = layers_[which];
    tiles_.gemm(tiles_.padded(layer.d), rows_->forward(which, row_panel_, pair / layer.s),
                cols_->forward(which, col_panel_, pair % layer.s), row_count_, col_count_, /*accumulate=*/false, tile);
  }

  const TileKernels<T>& tiles_;
  const std::vector<LayerFactors>& layers_;
  const std::vector<NearConstantCentering<T>>& centering_;
  AlignedBuffer memory_;             // q, a p that is not cached, the cached p
  std::vector<bool> begun_;          // for each kernel: whether a layer is in its tile already
  std::vector<int64_t> first_slot_;  // for each layer: where its cached p begin
  const PackedPanels<T>* rows_ = nullptr;
  const PackedPanels<T>* cols_ = nullptr;
  int64_t row_panel_ = -1, col_panel_ = -1, row_count_ = 0, col_count_ = 0;
};

}  // namespace ahkernels::cpu
