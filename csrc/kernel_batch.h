// What the ops take: the layer factors of several kernels.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace ahkernels {

// One entry for each layer, all layers of the first kernel first, then those of the second and so on.
struct KernelBatch {
  std::vector<torch::stable::Tensor> forward;   // [n, s, d] inputs of the layer at each of its s positions
  std::vector<torch::stable::Tensor> backward;  // [n, s, o, m] gradients of the outputs by its pre-activations there
  std::vector<double> bias;                     // 1 for a layer with a bias, else 0
  std::vector<bool> by_jacobian;                // contract through sum_s g_s a_s^T, not by pairs of positions
  std::vector<int64_t> layers;                  // one entry for each kernel: how many layers it is the sum of
};

}  // namespace ahkernels
