// Row sums K 1.
#include "../tiles/row_sums.h"
#include "../tiles/thin_products.h"
#include "ops.h"

namespace ahkernels::cpu {

Tensor tangent_row_sums(const KernelBatch& batch) {
  const std::vector<LayerFactors> layers = thin_layers_of("tangent_row_sums", batch, /*scaled=*/true);
  Tensor out =
      torch::stable::new_empty(batch.forward[0], {layers[0].n, layers[0].o}, torch::headeronly::ScalarType::Double);
  sum_over_layers(layers.size(), out.numel(), static_cast<double*>(out.mutable_data_ptr()),
                  [&](size_t which, double* to) { row_sums(layers[which], to); });
  return out;
}

}  // namespace ahkernels::cpu
