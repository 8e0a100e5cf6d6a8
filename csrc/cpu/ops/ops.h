// The CPU ops as ops.cpp registers them. The functions of ahkernels/ops say what each of them computes.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

#include "../../kernel_batch.h"

namespace ahkernels::cpu {

using torch::stable::Tensor;

// ---- of several kernels, which share n, o and dtype

Tensor centered_inner_products(const KernelBatch& batch, const std::vector<Tensor>& row_means,
                               const std::string& precision);

Tensor pair_inner_products(const KernelBatch& batch, const std::vector<Tensor>& means, const std::string& precision,
                           int64_t first_end, int64_t second_begin, const std::vector<Tensor>& forward_means,
                           const std::vector<Tensor>& backward_means);

Tensor per_output_inner_products(const KernelBatch& batch, const std::string& precision);

Tensor tangent_moments(const KernelBatch& batch, const Tensor& v, const std::string& precision, bool per_output);

// ---- of one kernel

Tensor tangent_cross_product(const KernelBatch& rows, const KernelBatch& columns, const Tensor& v);

Tensor tangent_diagonal(const KernelBatch& batch);

Tensor tangent_gram(const KernelBatch& batch, const std::string& precision);

void tangent_gram_out(const KernelBatch& batch, const std::string& precision, const Tensor& out);

Tensor tangent_product(const KernelBatch& batch, const Tensor& v, bool fp32);

Tensor tangent_quadratic(const KernelBatch& batch, const Tensor& v);

Tensor tangent_row_sums(const KernelBatch& batch);

}  // namespace ahkernels::cpu
