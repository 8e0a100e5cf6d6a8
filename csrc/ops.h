// The CPU ops as ops.cpp registers them. What each computes is stated where Python calls it, in ahkernels/ops.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

namespace ahkernels::cpu {

using torch::stable::Tensor;

// The terms of one kernel or of several, in the order of the kernels.
struct Factors {
  std::vector<Tensor> forward, backward;
  std::vector<double> bias;
  std::vector<bool> by_jacobian;  // of each term; empty for none of them
  std::vector<int64_t> terms;     // how many of them each kernel is the sum of; empty for one each
};

Tensor centered_moments(const Factors& factors, const std::vector<Tensor>& row_means, const std::string& precision);

// Of one kernel.
Tensor tangent_gram(const Factors& factors, const std::string& precision);

Tensor tangent_diagonal(const Tensor& forward, const Tensor& backward, double bias, bool by_jacobian);

Tensor tangent_row_sums(const Tensor& forward, const Tensor& backward, double bias);

Tensor tangent_product(const Tensor& forward, const Tensor& backward, double bias, const Tensor& v, bool fp32);

Tensor tangent_cross_product(const Tensor& forward, const Tensor& backward, const Tensor& other_forward,
                             const Tensor& other_backward, double bias, const Tensor& v);

Tensor tangent_quadratic(const Tensor& forward, const Tensor& backward, double bias, const Tensor& v);

Tensor tangent_statistics(const Factors& factors, const Tensor& v, const std::string& precision, bool per_output);

Tensor per_output_moments(const Factors& factors, const std::string& precision);

}  // namespace ahkernels::cpu
