#include "layer_factors.h"

#include <cmath>
#include <limits>

#include "../parallel.h"

namespace ahkernels::cpu {
namespace {

// The exponent e with 2^e <= magnitude < 2^(e+1), or 0 for zero, infinity and nan.
int exponent_of(double magnitude) { return magnitude > 0 && std::isfinite(magnitude) ? std::ilogb(magnitude) : 0; }

// The largest magnitude in rows_of(sample, block) [*, k] over all samples and blocks.
template <class Rows>
double max_magnitude(int64_t samples, int64_t blocks, int64_t k, const Rows& rows_of) {
  const int64_t panels = ceil_div(samples, kPanel);
  std::vector<double> largest(panels * blocks, 0.0);
  for_each_item(panels * blocks, std::max<int64_t>(1, (1 << 18) / (kPanel * std::max<int64_t>(k, 1))),
                [&](int64_t item, int64_t) {
                  const int64_t first = item / blocks * kPanel;
                  const int64_t count = std::min(kPanel, samples - first);
                  largest[item] = double_kernels().largest(rows_of(first, item % blocks), count, k);
                });
  double result = 0;
  for (const double value : largest) {
    if (!(value <= result)) result = value;  // a nan stays
  }
  return result;
}

bool same_memory(const Tensor& a, const Tensor& b) {
  if (a.const_data_ptr() != b.const_data_ptr()) return false;
  for (int64_t dim = 0; dim < 4; ++dim) {
    if (a.size(dim) != b.size(dim) || a.stride(dim) != b.stride(dim)) return false;
  }
  return true;
}

}  // namespace

Strided LayerFactors::forward_rows(int64_t sample, int64_t position) const {
  const Strided all{forward.const_data_ptr(), element, 1, forward.stride(2), forward_scale};
  Strided rows = all.from_row(sample * forward.stride(0) + position * forward.stride(1));
  rows.row_stride = forward.stride(0);
  return rows;
}

Strided LayerFactors::backward_rows(int64_t sample, int64_t position, int64_t output) const {
  return BackwardRows(*this).at(sample, position, output);
}

BackwardRows::BackwardRows(const LayerFactors& layer)
    : elements_{layer.backward.const_data_ptr(), layer.element, 1, layer.backward.stride(3), layer.backward_scale},
      sample_stride_(layer.backward.stride(0)),
      position_stride_(layer.backward.stride(1)),
      output_stride_(layer.backward.stride(2)) {}

namespace {

// The kernel of each layer.
std::vector<size_t> kernels_of_layers(const KernelBatch& batch) {
  std::vector<size_t> kernels;
  for (size_t kernel = 0; kernel < batch.layers.size(); ++kernel) {
    kernels.insert(kernels.end(), batch.layers[kernel], kernel);
  }
  return kernels;
}

// Near-constant kernels have offsets for each pair of positions, pair of outputs and sample
// (near_constant_centering.h). Where these would take more bytes, a layer goes by its Jacobian, which has one mean for
// each output. Kernels over samples alone have few of them.
constexpr MemoryLimit kOffsetBytes{64 << 20};
double offset_bytes(const LayerFactors& layer) {
  const double rows = static_cast<double>(layer.s) * static_cast<double>(layer.o);
  return layer.o == 1 ? 0 : rows * rows * static_cast<double>(layer.n) * sizeof(float);
}

// A scale must itself be a number of the tiles' type: 2^126 is the largest power that fp32 and its inverse have.
constexpr int kMostExponent = 126;
double scale_of(double magnitude) {
  return std::ldexp(1.0, -std::clamp(exponent_of(magnitude), -kMostExponent, kMostExponent));
}

// Scales a layer by its largest magnitudes. Returns whether the kernel is zero.
bool find_scales(LayerFactors& layer) {
  // A bias is one more number of the forward factor, sqrt(b).
  const double forward =
      std::max(std::sqrt(layer.bias), max_magnitude(layer.n, layer.s, layer.d, [&](int64_t sample, int64_t position) {
                 return layer.forward_rows(sample, position);
               }));
  const double backward = max_magnitude(layer.n, layer.s * layer.o, layer.m, [&](int64_t sample, int64_t block) {
    return layer.backward_rows(sample, block / layer.o, block % layer.o);
  });
  layer.forward_scale = forward == 0 ? 1 : scale_of(forward);
  layer.backward_scale = backward == 0 ? 1 : scale_of(backward);
  const double scale = layer.forward_scale * layer.backward_scale;
  layer.scale = scale * scale;
  return forward == 0 || backward == 0;
}

// Gives the layers of a kernel the scale of the largest of them, or 1 where all are `aside`: those take no part.
void share_scales(std::vector<LayerFactors>& layers, const std::vector<bool>& aside) {
  constexpr double kNone = std::numeric_limits<double>::infinity();
  std::vector<double> smallest(kernel_count(layers), kNone);
  for (size_t i = 0; i < layers.size(); ++i) {
    double& scale = smallest[layers[i].kernel];
    if (!aside[i]) scale = std::min(scale, layers[i].forward_scale * layers[i].backward_scale);
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    const double scale = smallest[layers[i].kernel] == kNone ? 1 : smallest[layers[i].kernel];
    layers[i].scale = scale * scale;
    if (!aside[i]) layers[i].backward_scale = scale / layers[i].forward_scale;
  }
}

// Finds for each layer the first one with the same backward factor and scale. A layer that goes by its Jacobian has no
// tiles to share.
void find_shared_backward_factors(std::vector<LayerFactors>& layers) {
  for (size_t i = 0; i < layers.size(); ++i) {
    LayerFactors& layer = layers[i];
    layer.backward_of = i;
    for (size_t earlier = 0; earlier < i && layer.backward_of == i; ++earlier) {
      const LayerFactors& other = layers[earlier];
      if (!layer.by_jacobian && !other.by_jacobian && layer.backward_scale == other.backward_scale &&
          same_memory(layer.backward, other.backward)) {
        layer.backward_of = earlier;
      }
    }
  }
}

}  // namespace

std::vector<LayerFactors> layer_factors_of(const std::string& op, const KernelBatch& batch, Scaling scaling,
                                           std::optional<bool> near_constant, const std::string& prefix) {
  check_batch(op, batch, prefix);
  const std::vector<size_t> kernels = kernels_of_layers(batch);
  std::vector<LayerFactors> layers;
  std::vector<bool> aside;  // layers of zeros, unless they are to deviate from other means
  for (size_t i = 0; i < batch.forward.size(); ++i) {
    const Tensor &a = batch.forward[i], &g = batch.backward[i];
    LayerFactors layer{a,
                       g,
                       element_of(a),
                       batch.bias[i],
                       a.size(0),
                       a.size(1),
                       a.size(2),
                       g.size(2),
                       g.size(3),
                       kernels[i],
                       /*by_jacobian=*/false,
                       near_constant.value_or(g.size(2) == 1)};
    layer.by_jacobian =
        layer.s > 1 && (batch.by_jacobian[i] || (layer.near_constant && offset_bytes(layer) > kOffsetBytes));
    if (scaling != Scaling::kNone) aside.push_back(find_scales(layer) && scaling == Scaling::kByKernel);
    layers.push_back(layer);
  }
  if (scaling == Scaling::kByKernel || scaling == Scaling::kBesideMeans) share_scales(layers, aside);
  find_shared_backward_factors(layers);
  return layers;
}

std::vector<double> kernel_scales(const std::vector<LayerFactors>& layers) {
  std::vector<double> scales(kernel_count(layers));
  for (const LayerFactors& layer : layers) scales[layer.kernel] = layer.scale;
  return scales;
}

}  // namespace ahkernels::cpu
