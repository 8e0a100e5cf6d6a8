// A tangent kernel as the CPU ops read it: the forward and backward factors of one layer, checked and scaled.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tile.h"

namespace ahkernels::cpu {

using torch::stable::Tensor;

struct Kernel {
  Tensor forward;   // [n, s, d] inputs of the layer at each of its s uses
  Tensor backward;  // [n, s, o, m] gradients of the outputs with respect to its pre-activations
  Element element;
  double bias;
  int64_t n, s, d, o, m;
  // Powers of two that bring the largest magnitude of each factor to [1, 2), so that fp32 tiles neither overflow nor
  // vanish; K is computed times scale().
  double forward_scale = 1, backward_scale = 1;

  // The first kernel of the list with the very same backward factor, whose tiles this one shares.
  size_t backward_of = 0;

  double scale() const { return forward_scale * forward_scale * backward_scale * backward_scale; }
  double scaled_bias() const { return bias * forward_scale * forward_scale; }

  // Rows of the forward factor at `use`, from `sample` on: [*, d].
  Strided forward_rows(int64_t sample, int64_t use) const;
  // Rows of the backward factor at `use` and `output`, from `sample` on: [*, m].
  Strided backward_rows(int64_t sample, int64_t use, int64_t output) const;
};

// Checked arguments of an op (`op` names it in errors); `scaled` looks for the largest magnitudes.
std::vector<Kernel> make_kernels(const std::string& op, const std::vector<Tensor>& forward,
                                 const std::vector<Tensor>& backward, const std::vector<double>& bias, bool scaled);

// v is [n, o, columns] in float64.
void check_columns(const std::string& op, const Kernel& kernel, const Tensor& v);

void check_precision(const std::string& op, const std::string& precision);

}  // namespace ahkernels::cpu
