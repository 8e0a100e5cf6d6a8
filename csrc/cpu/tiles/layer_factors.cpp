#include "layer_factors.h"

#include <cmath>
#include <limits>

#include "../parallel.h"

namespace ahkernels::cpu {
namespace {

using torch::headeronly::ScalarType;

Element element_of(const std::string& what, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Element::kFloat;
    case ScalarType::Double:
      return Element::kDouble;
    case ScalarType::Half:
      return Element::kHalf;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    default:
      STD_TORCH_CHECK(false, what, ": expected float32, float64, float16 or bfloat16 numbers");
  }
}

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

void check_columns(const std::string& op, const LayerFactors& layer, const Tensor& v) {
  STD_TORCH_CHECK(v.dim() == 3 && v.size(0) == layer.n && v.size(1) == layer.o && v.size(2) > 0 && v.is_contiguous() &&
                      v.scalar_type() == torch::headeronly::ScalarType::Double,
                  op, ": v: expected a contiguous float64 tensor of shape [n, o, columns] = [", layer.n, ", ", layer.o,
                  ", columns]");
}

void check_precision(const std::string& op, const std::string& precision) {
  STD_TORCH_CHECK(precision == "highest" || precision == "high" || precision == "medium", op,
                  ": precision: expected highest, high or medium, got ", precision);
}

namespace {

void check_counts(const std::string& op, const KernelBatch& batch) {
  const size_t count = batch.forward.size();
  STD_TORCH_CHECK(count > 0, op, ": forward: expected at least one factor, got none");
  STD_TORCH_CHECK(batch.backward.size() == count, op, ": backward: expected as many factors as forward (", count,
                  "), got ", batch.backward.size());
  STD_TORCH_CHECK(batch.bias.size() == count, op, ": bias: expected as many numbers as forward has factors (", count,
                  "), got ", batch.bias.size());
  STD_TORCH_CHECK(batch.by_jacobian.size() == count, op, ": by_jacobian: expected as many as forward has factors (",
                  count, "), got ", batch.by_jacobian.size());
}

// The kernel of each layer.
std::vector<size_t> kernels_of_layers(const std::string& op, const KernelBatch& batch) {
  std::vector<size_t> kernels;
  for (size_t kernel = 0; kernel < batch.layers.size(); ++kernel) {
    STD_TORCH_CHECK(batch.layers[kernel] > 0, op, ": layers: expected at least one for each kernel, got ",
                    batch.layers[kernel]);
    kernels.insert(kernels.end(), batch.layers[kernel], kernel);
  }
  STD_TORCH_CHECK(kernels.size() == batch.forward.size(), op, ": layers: expected a sum of ", batch.forward.size(),
                  ", the factors of forward, got ", kernels.size());
  return kernels;
}

// Checks the factors of layer i, also against those of the first layer.
void check_layer(const std::string& op, const KernelBatch& batch, size_t i) {
  const Tensor &a = batch.forward[i], &g = batch.backward[i];
  const Tensor &first_a = batch.forward[0], &first_g = batch.backward[0];
  const std::string which = op + ": forward[" + std::to_string(i) + "]";
  STD_TORCH_CHECK(a.dim() == 3, which, ": expected shape [n, s, d], got ", a.dim(), " dimensions");
  STD_TORCH_CHECK(g.dim() == 4, op, ": backward[", i, "]: expected shape [n, s, o, m], got ", g.dim(), " dimensions");
  STD_TORCH_CHECK(a.size(0) == g.size(0) && a.size(1) == g.size(1), op, ": backward[", i,
                  "]: expected n and s of forward (", a.size(0), ", ", a.size(1), "), got (", g.size(0), ", ",
                  g.size(1), ")");
  STD_TORCH_CHECK(a.size(0) > 0 && a.size(1) > 0 && g.size(2) > 0, which, ": expected n, s and o of at least 1, got ",
                  a.size(0), ", ", a.size(1), " and ", g.size(2));
  STD_TORCH_CHECK(a.scalar_type() == g.scalar_type(), op, ": backward[", i, "]: expected the dtype of forward");
  STD_TORCH_CHECK(a.size(0) == first_a.size(0) && g.size(2) == first_g.size(2), which,
                  ": expected n and o of the first kernel (", first_a.size(0), ", ", first_g.size(2), "), got (",
                  a.size(0), ", ", g.size(2), ")");
  STD_TORCH_CHECK(a.scalar_type() == first_a.scalar_type(), which, ": expected the dtype of the first kernel");
}

// Near-constant kernels have offsets for each pair of positions, pair of outputs and sample
// (near_constant_centering.h). Where these would take more bytes, a layer goes by its Jacobian, which has one mean for
// each output. Kernels over samples alone have few of them.
constexpr int64_t kOffsetBytes = 64 << 20;
int64_t offset_bytes(const LayerFactors& layer) {
  return layer.o == 1 ? 0 : layer.s * layer.o * layer.s * layer.o * layer.n * static_cast<int64_t>(sizeof(float));
}

// A scale must itself be a number of the tiles' type: 2^126 is the largest power that fp32 and its inverse have.
double scale_of(double magnitude) { return std::ldexp(1.0, -std::clamp(exponent_of(magnitude), -126, 126)); }

void find_scales(LayerFactors& layer) {
  const double largest = max_magnitude(layer.n, layer.s, layer.d, [&](int64_t sample, int64_t position) {
    return layer.forward_rows(sample, position);
  });
  // A bias is one more number of the forward factor, sqrt(b).
  layer.forward_scale = scale_of(std::max(std::sqrt(layer.bias), largest));
  layer.backward_scale =
      scale_of(max_magnitude(layer.n, layer.s * layer.o, layer.m, [&](int64_t sample, int64_t block) {
        return layer.backward_rows(sample, block / layer.o, block % layer.o);
      }));
}

// Gives the layers of a kernel the scale of the largest of them.
void share_scales(std::vector<LayerFactors>& layers) {
  std::vector<double> smallest(kernel_count(layers), std::numeric_limits<double>::infinity());
  for (const LayerFactors& layer : layers) {
    smallest[layer.kernel] = std::min(smallest[layer.kernel], layer.forward_scale * layer.backward_scale);
  }
  for (LayerFactors& layer : layers) layer.backward_scale = smallest[layer.kernel] / layer.forward_scale;
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

void require_one_kernel(const std::string& op, const KernelBatch& batch, const std::string& argument) {
  STD_TORCH_CHECK(batch.layers.size() == 1, op, ": ", argument, ": expected one kernel, got ", batch.layers.size());
}

std::vector<LayerFactors> layer_factors_of(const std::string& op, const KernelBatch& batch, Scaling scaling,
                                           std::optional<bool> near_constant) {
  check_counts(op, batch);
  const std::vector<size_t> kernels = kernels_of_layers(op, batch);
  std::vector<LayerFactors> layers;
  for (size_t i = 0; i < batch.forward.size(); ++i) {
    check_layer(op, batch, i);
    const Tensor &a = batch.forward[i], &g = batch.backward[i];
    LayerFactors layer{a,
                       g,
                       element_of(op + ": forward[" + std::to_string(i) + "]", a),
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
    if (scaling != Scaling::kNone) find_scales(layer);
    layers.push_back(layer);
  }
  if (scaling == Scaling::kByKernel) share_scales(layers);
  find_shared_backward_factors(layers);
  return layers;
}

std::vector<double> kernel_scales(const std::vector<LayerFactors>& layers) {
  std::vector<double> scales(kernel_count(layers));
  for (const LayerFactors& layer : layers) scales[layer.kernel] = layer.scale();
  return scales;
}

}  // namespace ahkernels::cpu
