// Checks of what the ops are given. For other devices, and for shapes alone, ahkernels/ops/arguments.py makes the same
// ones in the same words.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "../../kernel_batch.h"
#include "../isa/kernel_table.h"
#include "../require.h"

namespace ahkernels::cpu {

using torch::stable::Tensor;

// Checks the lists and the factors of a batch; errors call them `prefix` forward, `prefix` backward and so on.
void check_batch(const std::string& op, const KernelBatch& batch, const std::string& prefix = "");

// Checks that there is one kernel in the batch.
void require_one_kernel(const std::string& op, const KernelBatch& batch, const std::string& prefix = "");

// Checks that the entries of the kernels can be counted, for the ops that visit all of them.
void check_entries(const std::string& op, const KernelBatch& batch);

void check_precision(const std::string& op, const std::string& precision);

// The numbers of a tensor in contiguous memory, where it has float64 numbers and these sizes, which errors call
// `shape`. What is -1 may have any size of at least 1.
Tensor numbers_of(const std::string& what, const Tensor& tensor, const std::string& shape,
                  const std::vector<int64_t>& sizes);

// As many such tensors as there are `sizes`; errors call them `what` and the sizes of one `shape`.
std::vector<Tensor> all_numbers_of(const std::string& what, const std::vector<Tensor>& tensors,
                                   const std::string& shape, const std::vector<std::vector<int64_t>>& sizes);

// Checks that K [size, size] can be written to a tensor: in float64, or in float32 for factors below float64.
void check_out(const std::string& what, const Tensor& out, int64_t size, bool float64_factors);

// Whether some number of one tensor may lie in the memory between the first and the last number of the other.
bool share_memory(const Tensor& a, const Tensor& b);

// The type of the numbers of a factor that check_batch() has seen.
Element element_of(const Tensor& factor);

}  // namespace ahkernels::cpu
