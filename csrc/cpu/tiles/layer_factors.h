// The factors of a layer as the CPU ops read them: checked and scaled. A tangent kernel is a sum over layers.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "arguments.h"

namespace ahkernels::cpu {

struct LayerFactors {
  Tensor forward;   // [n, s, d] inputs of the layer at each of its s positions
  Tensor backward;  // [n, s, o, m] gradients of the outputs by its pre-activations
  Element element;
  double bias;
  int64_t n, s, d, o, m;
  size_t kernel;       // index of the kernel that it belongs to
  bool by_jacobian;    // contracted through sum_s g_s a_s^T instead of by pairs of positions
  bool near_constant;  // the centered kernel may be too small for fp32: near_constant_centering.h centers it
  // Powers of two that bring the largest magnitude of each factor to [1, 2), so that fp32 tiles neither overflow nor
  // vanish. All layers of a kernel are computed at the scale of the largest, so that the backward factors of the others
  // become smaller still; a layer of zeros keeps its own, since its tiles are zero at any.
  double forward_scale = 1, backward_scale = 1;
  // What tiles of the layer are computed times, the product of the squares of both.
  double scale = 1;

  // Index of the first layer with the same backward factor and scale, whose tiles this one shares.
  size_t backward_of = 0;

  double scaled_bias() const { return bias * forward_scale * forward_scale; }

  // Rows of the forward factor at `position`, from `sample` on: [*, d].
  Strided forward_rows(int64_t sample, int64_t position) const;
  // Rows of the backward factor at `position` and `output`, from `sample` on: [*, m].
  Strided backward_rows(int64_t sample, int64_t position, int64_t output) const;
};

// The rows of a layer's backward factor, for loops over single rows: a tensor takes as long to tell a stride as a short
// row takes to be multiplied.
class BackwardRows {
 public:
  explicit BackwardRows(const LayerFactors& layer);

  // Rows at `position` and `output`, from `sample` on: [*, m].
  Strided at(int64_t sample, int64_t position, int64_t output) const {
    Strided rows = elements_.from_row(sample * sample_stride_ + position * position_stride_ + output * output_stride_);
    rows.row_stride = sample_stride_;
    return rows;
  }

 private:
  const Strided elements_;
  const int64_t sample_stride_, position_stride_, output_stride_;
};

// Whether to look for the largest magnitudes of factors; by kernel also where means of other samples come beside them.
enum class Scaling { kNone, kByKernel, kBesideMeans, kByLayer };

// The layers of a batch in its order, which check_batch() checks. Unless it is said whether they are near constant,
// those over samples alone are.
std::vector<LayerFactors> layer_factors_of(const std::string& op, const KernelBatch& batch, Scaling scaling,
                                           std::optional<bool> near_constant = std::nullopt,
                                           const std::string& prefix = "");

inline int64_t kernel_count(const std::vector<LayerFactors>& layers) {
  return static_cast<int64_t>(layers.back().kernel) + 1;
}

// The scale of each kernel.
std::vector<double> kernel_scales(const std::vector<LayerFactors>& layers);

// v [n, o, columns] as numbers_of() checks it.
inline Tensor columns_of(const std::string& op, const LayerFactors& layer, const Tensor& v) {
  return numbers_of(op + ": v", v, "[n, o, columns]", {layer.n, layer.o, -1});
}

// out [count] = the sum of layer(which, to) over the layers, each of which writes `count` numbers: one after the other,
// in fp64.
template <class Layer>
void sum_over_layers(size_t layers, int64_t count, double* out, const Layer& layer) {
  layer(0, out);
  std::vector<double> next(layers > 1 ? count : 0);
  for (size_t which = 1; which < layers; ++which) {
    layer(which, next.data());
    for (int64_t i = 0; i < count; ++i) out[i] += next[i];
  }
}

}  // namespace ahkernels::cpu
