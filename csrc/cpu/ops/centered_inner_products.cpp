// Inner products of centered tangent kernels, <C K_a C, C K_b C>, in one pass over their tiles and with no K in memory.
#include "../tiles/row_mean_centering.h"
#include "../tiles/tile_walk.h"
#include "ops.h"

namespace ahkernels::cpu {
namespace {

// out [kernels, kernels]
template <class T>
void inner_products(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers,
                    const std::vector<Tensor>& row_means, double* out) {
  const int64_t count = kernel_count(layers), o = layers[0].o;
  const int64_t products = count * (count + 1) / 2;
  const std::vector<NearConstantCentering<T>> centering = near_constant_centering_of<T>(layers);
  std::vector<RowMeanCentering<T>> means;
  for (int64_t k = 0; k < count; ++k) {
    means.emplace_back(k, layers, centering, static_cast<const double*>(row_means[k].const_data_ptr()));
  }

  std::vector<double> totals(products, 0.0), partials;
  const TileScratch<T> scratch(count, o);

  const auto begin = [&](const TileBlock& part) { partials.assign(part.items() * products, 0.0); };
  const auto visit = [&](const TileBlock& part, int64_t index, auto& maker, int64_t thread) {
    const TileBlock::Item item = part.item(index);
    scratch.for_each_tile(item, o, maker, thread, [&](int64_t j, const auto& tile) {
      const auto [pair, i] = item;
      const auto row_mean = [&, i = i, pair = pair](int64_t k) { return means[k].row_at(i, pair.row); };
      const auto col_mean = [&, pair = pair](int64_t k) { return means[k].col_at(j, pair.col); };
      const double weight = pair.row == pair.col && i == j ? 1 : 2;  // the transpose of a tile is not visited
      int64_t product = 0;
      for (int64_t a = 0; a < count; ++a) {
        for (int64_t b = 0; b <= a; ++b, ++product) {
          partials[index * products + product] +=
              weight * tiles.centered_product(tile(a), row_mean(a), col_mean(a), tile(b), row_mean(b), col_mean(b),
                                              maker.row_count(), maker.col_count());
        }
      }
    });
  };
  const auto done = [&](const TileBlock& part) {
    for (int64_t p = 0; p < part.items() * products; ++p) totals[p % products] += partials[p];
  };
  walk_tiles(tiles, layers, centering, all_tiles(layers), begin, visit, done);

  const std::vector<double> scales = kernel_scales(layers);
  int64_t product = 0;
  for (int64_t a = 0; a < count; ++a) {
    for (int64_t b = 0; b <= a; ++b, ++product) {
      // One after the other: the product of two extreme scales can leave the range of fp64.
      out[a * count + b] = out[b * count + a] = totals[product] / scales[a] / scales[b];
    }
  }
}

}  // namespace

Tensor centered_inner_products(const KernelBatch& batch, const std::vector<Tensor>& row_means,
                               const std::string& precision) {
  const std::string op = "centered_inner_products";
  const std::vector<LayerFactors> layers = layer_factors_of(op, batch, Scaling::kByKernel);
  check_entries(op, batch);
  check_precision(op, precision);
  const int64_t count = kernel_count(layers);
  const std::vector<std::vector<int64_t>> shapes(count, {layers[0].n, layers[0].o});
  const std::vector<Tensor> means = all_numbers_of(op + ": row_means", row_means, "[n, o]", shapes);
  Tensor out = torch::stable::new_empty(row_means[0], {count, count});
  double* result = static_cast<double*>(out.mutable_data_ptr());
  if (layers[0].element == Element::kDouble) {
    inner_products(double_kernels(), layers, means, result);
  } else {
    inner_products(float_kernels(precision), layers, means, result);
  }
  return out;
}

}  // namespace ahkernels::cpu
