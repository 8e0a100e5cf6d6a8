// Products K V with few vectors.
#include "../tiles/thin_products.h"
#include "ops.h"

namespace ahkernels::cpu {
namespace {

template <class T>
void product(const TileKernels<T>& tiles, const LayerFactors& layer, const Tensor& v, double* out) {
  ThinProduct<T>(tiles, layer, static_cast<const double*>(v.const_data_ptr()), v.size(2)).product(out);
  if (layer.scale == 1) return;
  for (int64_t i = 0; i < v.numel(); ++i) out[i] /= layer.scale;
}

}  // namespace

Tensor tangent_product(const KernelBatch& batch, const Tensor& v, bool fp32) {
  const std::vector<LayerFactors> layers = thin_layers_of("tangent_product", batch, /*scaled=*/fp32);
  const Tensor vectors = columns_of("tangent_product", layers[0], v);
  Tensor out = torch::stable::new_empty(v, {layers[0].n, layers[0].o, v.size(2)});
  sum_over_layers(layers.size(), out.numel(), static_cast<double*>(out.mutable_data_ptr()),
                  [&](size_t which, double* to) {
                    if (fp32 && layers[which].element != Element::kDouble) {
                      product(float_kernels("highest"), layers[which], vectors, to);
                    } else {
                      product(double_kernels(), layers[which], vectors, to);
                    }
                  });
  return out;
}

}  // namespace ahkernels::cpu
