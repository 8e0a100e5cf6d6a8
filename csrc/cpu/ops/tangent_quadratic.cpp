// Quadratic forms v^T K v in fp64.
#include "../tiles/thin_products.h"
#include "ops.h"

namespace ahkernels::cpu {

Tensor tangent_quadratic(const KernelBatch& batch, const Tensor& v) {
  const std::vector<LayerFactors> layers = thin_layers_of("tangent_quadratic", batch, /*scaled=*/false);
  const Tensor vectors = columns_of("tangent_quadratic", layers[0], v);
  Tensor out = torch::stable::new_empty(v, {v.size(2)});
  const double* columns = static_cast<const double*>(vectors.const_data_ptr());
  sum_over_layers(layers.size(), v.size(2), static_cast<double*>(out.mutable_data_ptr()),
                  [&](size_t which, double* to) {
                    ThinProduct<double>(double_kernels(), layers[which], columns, v.size(2)).quadratic(to);
                  });
  return out;
}

}  // namespace ahkernels::cpu
