// Inner products of kernels with each block of two outputs centered, and of the same kernels centered as a whole, in
// one pass over tiles of T (near_constant_centering.h, per_output_centering.h).
#include <type_traits>

#include "../tiles/per_output_centering.h"
#include "ops.h"

namespace ahkernels::cpu {
namespace {

// out [2, kernels, kernels]: centered as a whole, then per output
template <class T>
void inner_products(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers, double* out) {
  const int64_t o = layers[0].o, count = kernel_count(layers), products = count * (count + 1) / 2;
  const std::vector<NearConstantCentering<T>> centering = near_constant_centering_of<T>(layers);
  const std::vector<T> zeros(kPanel, T{0});  // there are no means in T
  BlockSums<T> sums(layers);
  std::vector<double> totals(products, 0.0), partials;
  const TileScratch<T> scratch(count, o);
  const auto begin = [&](const TileBlock& part) {
    sums.begin(part);
    partials.assign(part.items() * products, 0.0);
  };
  const auto visit = [&](const TileBlock& part, int64_t index, auto& maker, int64_t thread) {
    const TileBlock::Item item = part.item(index);
    scratch.for_each_tile(item, o, maker, thread, [&](int64_t j, const auto& tile) {
      // The transpose of a tile is not visited.
      const double weight = item.pair.row == item.pair.col && item.output == j ? 1 : 2;
      int64_t product = 0;
      for (int64_t a = 0; a < count; ++a) {
        T* of_rows = sums.at(index, j, a);
        tiles.sums(tile(a), maker.row_count(), maker.col_count(), of_rows, of_rows + kPanel);
        for (int64_t b = 0; b <= a; ++b, ++product) {
          partials[index * products + product] +=
              weight * tiles.centered_product(tile(a), zeros.data(), zeros.data(), tile(b), zeros.data(), zeros.data(),
                                              maker.row_count(), maker.col_count());
        }
      }
    });
  };
  const auto done = [&](const TileBlock& part) {
    sums.done(part);
    for (int64_t p = 0; p < part.items() * products; ++p) totals[p % products] += partials[p];
  };
  walk_tiles(tiles, layers, centering, all_tiles(layers), begin, visit, done, BlockSums<T>::item_bytes(layers));

  if constexpr (std::is_same_v<T, float>) {
    for (int64_t a = 0; a < count; ++a) {
      if (sums.below_float(totals[a * (a + 1) / 2 + a], a)) return inner_products(double_kernels(), layers, out);
    }
  }

  const std::vector<double> scales = kernel_scales(layers);
  std::vector<BlockMeans> means;
  for (int64_t k = 0; k < count; ++k) means.emplace_back(sums, k, layers, centering);
  int64_t product = 0;
  for (int64_t a = 0; a < count; ++a) {
    for (int64_t b = 0; b <= a; ++b, ++product) {
      const CenteredProducts found = centered_products(totals[product], means[a], means[b]);
      // One after the other: the product of two extreme scales can leave the range of fp64.
      out[a * count + b] = out[b * count + a] = found.global / scales[a] / scales[b];
      out[(count + a) * count + b] = out[(count + b) * count + a] = found.per_output / scales[a] / scales[b];
    }
  }
}

}  // namespace

Tensor per_output_inner_products(const KernelBatch& batch, const std::string& precision) {
  const std::string op = "per_output_inner_products";
  const std::vector<LayerFactors> layers = layer_factors_of(op, batch, Scaling::kByKernel, /*per_output=*/true);
  check_entries(op, batch);
  check_precision(op, precision);
  const int64_t count = kernel_count(layers);
  Tensor out = torch::stable::new_empty(batch.forward[0], {2, count, count}, torch::headeronly::ScalarType::Double);
  double* result = static_cast<double*>(out.mutable_data_ptr());
  if (layers[0].element == Element::kDouble) {
    inner_products(double_kernels(), layers, result);
  } else {
    inner_products(float_kernels(precision), layers, result);
  }
  return out;
}

}  // namespace ahkernels::cpu
