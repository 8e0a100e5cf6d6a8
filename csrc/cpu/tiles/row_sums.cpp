#include "row_sums.h"

#include "thin_products.h"

namespace ahkernels::cpu {
namespace {

template <class T>
void row_sums(const TileKernels<T>& tiles, const LayerFactors& layer, double* out) {
  const std::vector<double> ones(layer.n * layer.o, 1.0);
  ThinProduct<T>(tiles, layer, ones.data(), 1).product(out);
  for (int64_t row = 0; row < layer.n * layer.o; ++row) out[row] /= layer.scale;
}

}  // namespace

void row_sums(const LayerFactors& layer, double* out) {
  if (layer.near_constant || layer.element == Element::kDouble) {
    row_sums(double_kernels(), thin_layer(layer), out);
  } else {
    row_sums(float_kernels("highest"), thin_layer(layer), out);
  }
}

}  // namespace ahkernels::cpu
