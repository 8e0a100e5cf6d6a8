// Panels of samples packed for products of tiles: all factors of all layers.
#pragma once

#include <algorithm>
#include <vector>

#include "../aligned_buffer.h"
#include "../parallel.h"
#include "layer_factors.h"
#include "near_constant_centering.h"

namespace ahkernels::cpu {

// The panels [begin, end) that the last pack() names, less the means of near-constant layers.
template <class T>
class PackedPanels {
 public:
  PackedPanels(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers,
               const std::vector<NearConstantCentering<T>>& centering, int64_t capacity)
      : tiles_(tiles), layers_(layers), centering_(centering), memory_(capacity * panel_bytes(tiles, layers)) {
    for (const LayerFactors& layer : layers) {
      forward_offsets_.push_back(stride_);
      stride_ += tiles.panel_bytes(layer.d) * layer.s;
    }
    for (size_t which = 0; which < layers.size(); ++which) {
      const LayerFactors& layer = layers[which];
      const bool shared = layer.backward_of != which;
      backward_offsets_.push_back(shared ? backward_offsets_[layer.backward_of] : stride_);
      stride_ += shared ? 0 : tiles.panel_bytes(layer.m) * layer.s * layer.o;
    }
  }

  static int64_t panel_bytes(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers) {
    int64_t total = 0;
    for (size_t which = 0; which < layers.size(); ++which) {
      const LayerFactors& layer = layers[which];
      total += tiles.panel_bytes(layer.d) * layer.s;
      if (layer.backward_of == which) total += tiles.panel_bytes(layer.m) * layer.s * layer.o;
    }
    return total;
  }

  // There is room for the `capacity` panels that the constructor was told.
  void pack(int64_t begin, int64_t end) {
    begin_ = begin;
    for (size_t which = 0; which < layers_.size(); ++which) {
      const LayerFactors& layer = layers_[which];
      // Blocks of a panel: a forward one for each position, then the backward ones unless another layer has them.
      const int64_t blocks = layer.s * (layer.backward_of == which ? 1 + layer.o : 1);
      for_each_item((end - begin) * blocks, 4, [&](int64_t item, int64_t) {
        const int64_t panel = begin + item / blocks, block = item % blocks;
        const int64_t first = panel * kPanel, count = std::min(kPanel, layer.n - first);
        if (block < layer.s) {
          tiles_.pack(layer.forward_rows(first, block), mean(centering_[which].forward_mean, block * layer.d), count,
                      layer.d, forward(which, panel, block));
        } else {
          const int64_t position = (block - layer.s) / layer.o, output = (block - layer.s) % layer.o;
          tiles_.pack(layer.backward_rows(first, position, output),
                      mean(centering_[which].backward_mean, (position * layer.o + output) * layer.m), count, layer.m,
                      backward(which, panel, position, output));
        }
      });
    }
  }

  void* forward(size_t which, int64_t panel, int64_t position) const {
    return memory_.at<void>((panel - begin_) * stride_ + forward_offsets_[which] +
                            position * tiles_.panel_bytes(layers_[which].d));
  }
  void* backward(size_t which, int64_t panel, int64_t position, int64_t output) const {
    const LayerFactors& layer = layers_[which];
    return memory_.at<void>((panel - begin_) * stride_ + backward_offsets_[which] +
                            (position * layer.o + output) * tiles_.panel_bytes(layer.m));
  }

 private:
  static const T* mean(const std::vector<T>& means, int64_t offset) {
    return means.empty() ? nullptr : means.data() + offset;
  }

  const TileKernels<T>& tiles_;
  const std::vector<LayerFactors>& layers_;
  const std::vector<NearConstantCentering<T>>& centering_;
  int64_t stride_ = 0, begin_ = 0;
  std::vector<int64_t> forward_offsets_, backward_offsets_;
  AlignedBuffer memory_;
};

}  // namespace ahkernels::cpu
