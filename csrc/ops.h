// The CPU ops as ops.cpp registers them. What each computes is stated where Python calls it, in ahkernels/ops.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

namespace ahkernels::cpu {

using torch::stable::Tensor;

Tensor centered_moments(const std::vector<Tensor>& forward, const std::vector<Tensor>& backward,
                        const std::vector<double>& bias, const std::vector<Tensor>& row_means,
                        const std::string& precision);

Tensor tangent_gram(const Tensor& forward, const Tensor& backward, double bias, const std::string& precision);

Tensor tangent_diagonal(const Tensor& forward, const Tensor& backward, double bias);

Tensor tangent_row_sums(const Tensor& forward, const Tensor& backward, double bias);

Tensor tangent_product(const Tensor& forward, const Tensor& backward, double bias, const Tensor& v);

Tensor tangent_quadratic(const Tensor& forward, const Tensor& backward, double bias, const Tensor& v);

Tensor tangent_statistics(const std::vector<Tensor>& forward, const std::vector<Tensor>& backward,
                          const std::vector<double>& bias, const Tensor& v, const std::string& precision);

}  // namespace ahkernels::cpu
