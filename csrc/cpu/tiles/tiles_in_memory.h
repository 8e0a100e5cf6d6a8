// Tiles of a block of K kept in memory, to which one layer after the other is added. This is for layers whose rows have
// so many numbers that packing all of them would take more than the workspace: Jacobians, and sums over many layers.
//
// A layer with one position is taken in slices along its numbers. So is a layer that goes by its Jacobian, which exists
// only one slice at a time. A layer that goes by pairs of positions takes a walk of its own.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "jacobian_slices.h"
#include "packed_walk.h"
#include "position_pairs.h"
#include "products_across_outputs.h"

namespace ahkernels::cpu {

// Whether the rows of a Jacobian at all outputs are taken together, since there are too few samples to fill a panel. A
// near-constant layer loses its means either as its Jacobian is formed in slices or as the rows of a single output are
// packed, and the latter rules this out.
inline bool takes_outputs_together(const LayerFactors& layer) {
  return layer.n < kPanel && layer.o > 1 && (layer.by_jacobian || !layer.near_constant);
}

// Whether the backward factor is a Jacobian: with no forward factor beside a bias of 1, K is the backward Gram itself.
inline bool is_jacobian(const LayerFactors& layer) { return layer.s == 1 && layer.d == 0 && layer.bias == 1; }

// Whether the rows of the backward factor are evenly spaced, output by output or sample by sample.
inline bool output_major(const LayerFactors& layer) {
  return layer.backward.stride(2) == layer.n * layer.backward.stride(0);
}
inline bool evenly_spaced(const LayerFactors& layer) {
  return output_major(layer) || layer.backward.stride(0) == layer.o * layer.backward.stride(2);
}

// Whether the walk over packed panels can make the tiles: all layers fit the workspace and go by pairs of positions,
// with samples as rows.
template <class T>
bool fits_packed(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers) {
  const auto otherwise = [](const LayerFactors& layer) {
    return layer.by_jacobian || takes_positions_as_rows(layer) || (is_jacobian(layer) && takes_outputs_together(layer));
  };
  const int64_t bytes = 2 * PackedPanels<T>::panel_bytes(tiles, layers);
  // A single layer that goes by pairs of positions has no other way.
  const bool lone_pairs = layers.size() == 1 && layers[0].s > 1;
  return std::none_of(layers.begin(), layers.end(), otherwise) && (bytes <= kWorkspaceBytes || lone_pairs);
}

template <class T>
class TilesInMemory {
 public:
  TilesInMemory(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers,
                const std::vector<NearConstantCentering<T>>& centering, const TileBlock& block)
      : tiles_(tiles),
        layers_(layers),
        centering_(centering),
        block_(block),
        kernels_(kernel_count(layers)),
        o_(layers[0].o),
        memory_(static_cast<int64_t>(bytes(layers, block))) {}

  // Of any block, also one that fits no memory.
  static double bytes(const std::vector<LayerFactors>& layers, const TileBlock& block) {
    return static_cast<double>(block.items()) * static_cast<double>(layers[0].o * kernel_count(layers) * kTileBytes);
  }

  const TileBlock& block() const { return block_; }

  // Makes the tiles (i, j) with j >= first_column(item), and calls after(index, thread) once an item has all of them.
  template <class After>
  void make(const After& after) {
    if (fits_packed(tiles_, layers_)) {
      walk(layers_, centering_, /*accumulate=*/false, after);
      return;
    }
    for_each_item(block_.items(), 1,
                  [&](int64_t index, int64_t) { std::memset(tile(index, 0, 0), 0, o_ * kernels_ * kTileBytes); });
    for (size_t owner = 0; owner < layers_.size(); ++owner) {
      if (layers_[owner].backward_of != owner) continue;
      if (layers_[owner].by_jacobian) {
        add_jacobian(owner);
      } else if (layers_[owner].s == 1) {
        add_single_position(owner);
      } else if (takes_positions_as_rows(layers_[owner])) {
        add_pairs_as_rows(owner);
      } else {
        add_pairs(owner);
      }
    }
    for_each_item(block_.items(), 4, [&](int64_t index, int64_t thread) { after(index, thread); });
  }

  // Tile (item, j) of a kernel.
  T* tile(int64_t index, int64_t j, int64_t kernel) const {
    return memory_.at<T>(((index * o_ + j) * kernels_ + kernel) * kTileBytes);
  }

  int64_t row_count(const PanelPair& pair) const { return count(pair.row); }
  int64_t col_count(const PanelPair& pair) const { return count(pair.col); }

 private:
  static constexpr int64_t kTileBytes = kTileSize * static_cast<int64_t>(sizeof(T));

  int64_t count(int64_t panel) const { return std::min(kPanel, layers_[0].n - panel * kPanel); }
  int64_t row_blocks() const { return (block_.row_end - block_.row_begin) * block_.outputs(); }
  int64_t col_blocks() const { return (block_.col_end - block_.col_begin) * o_; }
  // Whether rows and columns of the block take the same rows of a factor.
  bool shared() const { return block_.diagonal() && block_.outputs() == o_; }

  template <class After>
  void walk(const std::vector<LayerFactors>& layers, const std::vector<NearConstantCentering<T>>& centering,
            bool accumulate, const After& after) {
    const auto visit = [&](const TileBlock& part, int64_t in_part, TileMaker<T>& maker, int64_t thread) {
      const TileBlock::Item item = part.item(in_part);
      const int64_t index = block_.index(item);
      const auto kept = [&](size_t kernel, int64_t j) { return tile(index, j, kernel); };
      maker.make(item.output, first_column(item), o_, kept, accumulate);
      after(index, thread);
    };
    const auto nothing = [](const TileBlock&) {};
    walk_packed(tiles_, layers, centering, block_, nothing, visit, nothing);
  }

  // The layers that share the backward factor of `owner`.
  std::vector<size_t> sharing(size_t owner) const {
    std::vector<size_t> found;
    for (size_t which = owner; which < layers_.size(); ++which) {
      if (layers_[which].backward_of == owner) found.push_back(which);
    }
    return found;
  }

  void add_pairs(size_t owner) {
    std::vector<LayerFactors> layers;
    std::vector<NearConstantCentering<T>> centering;
    for (const size_t which : sharing(owner)) {
      layers.push_back(layers_[which]);
      layers.back().backward_of = 0;
      centering.push_back(centering_[which]);
    }
    walk(layers, centering, /*accumulate=*/true, [](int64_t, int64_t) {});
  }

  void add_pairs_as_rows(size_t owner) {
    const std::vector<size_t> sharing_it = sharing(owner);
    std::vector<LayerFactors> layers;
    for (const size_t which : sharing_it) layers.push_back(layers_[which]);
    PositionPairs<T>(tiles_, layers, block_).add([&](int64_t index, int64_t j, int64_t which, int64_t x, int64_t y) {
      return tile(index, j, layers[which].kernel) + x * kPanel + y;
    });
  }

  void add_single_position(size_t owner) {
    const LayerFactors& layer = layers_[owner];
    const std::vector<size_t> layers = sharing(owner);
    const auto backward = [&](int64_t begin) {
      return [&layer, begin](int64_t panel, int64_t output) {
        return layer.backward_rows(panel * kPanel, 0, output).from_k(begin);
      };
    };
    if (layers.size() == 1 && is_jacobian(layer) && takes_outputs_together(layer) && evenly_spaced(layer) &&
        block_.outputs() == o_) {
      const int64_t width = width_of(ProductsAcrossOutputs<T>::panels(layer.n, o_), layer.m);
      ProductsAcrossOutputs<T> gathered(tiles_, layer.n, o_, output_major(layer), width);
      Strided rows = layer.backward_rows(0, 0, 0);
      rows.row_stride = std::min(layer.backward.stride(0), layer.backward.stride(2));
      for (int64_t begin = 0; begin < layer.m; begin += width) {
        gathered.add_products(rows.from_k(begin), std::min(width, layer.m - begin), entry_of(layer.kernel));
      }
      return;
    }
    const auto add_slices = [&](const auto& tile_at) {
      const int64_t width = width_of(row_blocks() + (shared() ? 0 : col_blocks()), layer.m);
      Packed packed(*this, block_.outputs(), o_, width);
      for (int64_t begin = 0; begin < layer.m; begin += width) {
        packed.pack(
            backward(begin), [&](int64_t output) { return centering_[owner].backward_mean_at(output, layer.m, begin); },
            std::min(width, layer.m - begin));
        add_products(packed, tile_at);
      }
    };
    if (layers.size() == 1 && is_jacobian(layer)) {
      add_slices([&](int64_t index, int64_t j) { return tile(index, j, layer.kernel); });
      return;
    }
    const AlignedBuffer q(block_.items() * o_ * kTileBytes);
    std::memset(q.at<void>(0), 0, block_.items() * o_ * kTileBytes);
    const auto q_at = [&](int64_t index, int64_t j) { return q.at<T>((index * o_ + j) * kTileBytes); };
    add_slices(q_at);
    for (const size_t which : layers) multiply(which, q_at);
  }

  // The tiles of the kernel of layer `which` += its forward Gram o q.
  template <class Tile>
  void multiply(size_t which, const Tile& q_at) {
    const LayerFactors& layer = layers_[which];
    const NearConstantCentering<T>& c = centering_[which];
    const AlignedBuffer p(block_.pairs() * kTileBytes);
    std::memset(p.at<void>(0), 0, block_.pairs() * kTileBytes);
    const int64_t width = width_of(
        block_.row_end - block_.row_begin + (block_.diagonal() ? 0 : block_.col_end - block_.col_begin), layer.d);
    Packed packed(*this, 1, 1, width);
    for (int64_t begin = 0; begin < layer.d; begin += width) {
      const auto forward = [&](int64_t panel, int64_t) { return layer.forward_rows(panel * kPanel, 0).from_k(begin); };
      const T* mean = c.forward_mean.empty() ? nullptr : c.forward_mean.data() + begin;
      packed.pack(forward, [&](int64_t) { return mean; }, std::min(width, layer.d - begin));
      for_each_item(block_.pairs(), 1, [&](int64_t index, int64_t) {
        packed.multiply(block_.pair(index), 0, 0, p.at<T>(index * kTileBytes));
      });
    }
    for_each_item(block_.items(), 1, [&](int64_t index, int64_t) {
      const TileBlock::Item item = block_.item(index);
      const T* forward = p.at<T>(index / block_.outputs() * kTileBytes);
      const int64_t row = item.pair.row * kPanel, col = item.pair.col * kPanel;
      for (int64_t j = first_column(item); j < o_; ++j) {
        T* to = tile(index, j, layer.kernel);
        if (c.active()) {
          c.add_tile(tiles_, /*pair=*/0, /*turned=*/0, item.output, j, row, col, forward, q_at(index, j),
                     row_count(item.pair), col_count(item.pair), /*accumulate=*/true, to);
        } else {
          tiles_.hadamard(forward, static_cast<T>(layer.scaled_bias()), q_at(index, j), row_count(item.pair),
                          col_count(item.pair), /*accumulate=*/true, to);
        }
      }
    });
  }

  void add_jacobian(size_t owner) {
    // Means are taken out in fp64, since J is near its mean where K is near constant.
    if (centering_[owner].active() || std::is_same_v<T, double>) {
      add_jacobian<double>(owner, double_kernels(), Element::kDouble);
    } else {
      add_jacobian<float>(owner, float_kernels("highest"), Element::kFloat);
    }
  }

  template <class F>
  void add_jacobian(size_t owner, const TileKernels<F>& forming, Element element) {
    const LayerFactors& layer = layers_[owner];
    const double* mean = centering_[owner].active() ? centering_[owner].jacobian_mean.data() : nullptr;
    const int64_t rows = samples(block_.row_begin, block_.row_end), cols = samples(block_.col_begin, block_.col_end);
    const int64_t formed = (rows + (block_.diagonal() ? 0 : cols)) * o_;
    const JacobianSlices<F> jacobian(forming, layer, mean,
                                     kWorkspaceBytes / (formed * kTileSize * static_cast<int64_t>(sizeof(F))));
    const int64_t stride = jacobian.row_numbers();
    const AlignedBuffer memory(formed * stride * static_cast<int64_t>(sizeof(F)));
    F* of_cols =
        block_.diagonal() ? memory.at<F>(0) : memory.at<F>(rows * o_ * stride * static_cast<int64_t>(sizeof(F)));
    if (takes_outputs_together(layer) && block_.outputs() == o_) {
      ProductsAcrossOutputs<T> gathered(tiles_, layer.n, o_, /*output_major=*/false, stride);
      for (int64_t slice = 0; slice < jacobian.slices(); ++slice) {
        jacobian.fill(slice, 0, rows, memory.at<F>(0));
        const Strided of_slice{memory.at<F>(0), element, stride, 1, 1.0};
        gathered.add_products(of_slice, jacobian.numbers(slice), entry_of(layer.kernel));
      }
      return;
    }
    Packed packed(*this, block_.outputs(), o_, stride);
    for (int64_t slice = 0; slice < jacobian.slices(); ++slice) {
      jacobian.fill(slice, block_.row_begin * kPanel, rows, memory.at<F>(0));
      if (!block_.diagonal()) jacobian.fill(slice, block_.col_begin * kPanel, cols, of_cols);
      packed.pack(
          [&](int64_t panel, int64_t output) {
            const bool in_rows = panel >= block_.row_begin && panel < block_.row_end;
            const F* from = in_rows ? memory.at<F>(0) : of_cols;
            const int64_t sample = (panel - (in_rows ? block_.row_begin : block_.col_begin)) * kPanel;
            return Strided{from + (sample * o_ + output) * stride, element, o_ * stride, 1, 1.0};
          },
          [](int64_t) { return nullptr; }, jacobian.numbers(slice));
      add_products(packed, [&](int64_t index, int64_t j) { return tile(index, j, layer.kernel); });
    }
  }

  // Entries of the block's only pair of panels.
  auto entry_of(size_t kernel) const {
    return [this, kernel](int64_t i, int64_t j, int64_t x, int64_t y) -> T& {
      return tile(block_.index({{block_.row_begin, block_.col_begin}, i}), j, kernel)[x * kPanel + y];
    };
  }

  int64_t samples(int64_t begin, int64_t end) const { return std::min(end * kPanel, layers_[0].n) - begin * kPanel; }

  // Numbers along k with which so many panels fit the workspace. A multiple of 16, since 16 are packed at a time.
  static int64_t width_of(int64_t panels, int64_t k) {
    const int64_t fitting = kWorkspaceBytes / (panels * kPanel * static_cast<int64_t>(sizeof(T))) / 16 * 16;
    return std::clamp<int64_t>(fitting, 16, std::max<int64_t>(k, 16));
  }

  // A slice of a factor, packed at the panels and outputs of the block's rows and columns.
  class Packed {
   public:
    Packed(const TilesInMemory& kept, int64_t row_outputs, int64_t col_outputs, int64_t width)
        : kept_(kept),
          row_outputs_(row_outputs),
          col_outputs_(col_outputs),
          shared_(kept.block_.diagonal() && row_outputs == col_outputs),
          bytes_(kept.tiles_.panel_bytes(width)),
          row_blocks_((kept.block_.row_end - kept.block_.row_begin) * row_outputs),
          col_blocks_(shared_ ? 0 : (kept.block_.col_end - kept.block_.col_begin) * col_outputs),
          memory_((row_blocks_ + col_blocks_) * bytes_) {}

    // Packs rows_of(panel, output) less mean_of(output), unless that is null.
    template <class Rows, class Mean>
    void pack(const Rows& rows_of, const Mean& mean_of, int64_t k) {
      k_ = kept_.tiles_.padded(k);
      for_each_item(row_blocks_ + col_blocks_, 1, [&](int64_t index, int64_t) {
        const bool row = index < row_blocks_;
        const int64_t local = row ? index : index - row_blocks_, outputs = row ? row_outputs_ : col_outputs_;
        const int64_t panel = (row ? kept_.block_.row_begin : kept_.block_.col_begin) + local / outputs;
        const int64_t output = local % outputs + (row ? kept_.block_.output_begin : 0);
        kept_.tiles_.pack(rows_of(panel, output), mean_of(output), kept_.count(panel), k,
                          memory_.template at<void>(index * bytes_));
      });
    }

    // tile += the product at a pair of panels and a pair of outputs
    void multiply(const PanelPair& pair, int64_t row_output, int64_t col_output, T* tile) const {
      const int64_t row = (pair.row - kept_.block_.row_begin) * row_outputs_ + row_output;
      const int64_t col = (pair.col - kept_.block_.col_begin) * col_outputs_ + col_output;
      kept_.tiles_.gemm(k_, memory_.template at<void>(row * bytes_),
                        memory_.template at<void>(((shared_ ? 0 : row_blocks_) + col) * bytes_), kept_.count(pair.row),
                        kept_.count(pair.col), /*accumulate=*/true, tile);
    }

   private:
    const TilesInMemory& kept_;
    const int64_t row_outputs_, col_outputs_;
    const bool shared_;
    const int64_t bytes_, row_blocks_, col_blocks_;
    int64_t k_ = 0;
    AlignedBuffer memory_;
  };

  // tile_at(index, j) += the products of the packed slice, for each item and output j
  template <class Tile>
  void add_products(const Packed& packed, const Tile& tile_at) {
    for_each_item(block_.items(), 1, [&](int64_t index, int64_t) {
      const TileBlock::Item item = block_.item(index);
      const GemmScope<T> gemms(tiles_);
      for (int64_t j = first_column(item); j < o_; ++j) {
        packed.multiply(item.pair, item.output - block_.output_begin, j, tile_at(index, j));
      }
    });
  }

  const TileKernels<T>& tiles_;
  const std::vector<LayerFactors>& layers_;
  const std::vector<NearConstantCentering<T>>& centering_;
  const TileBlock block_;
  const int64_t kernels_, o_;
  AlignedBuffer memory_;
};

}  // namespace ahkernels::cpu
