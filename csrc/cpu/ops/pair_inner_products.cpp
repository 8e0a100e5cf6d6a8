// Inner products of tangent kernels less given means, over all pairs of samples or over those of two groups: the part
// of the inner products of centered kernels that these pairs have. Where means of the factors are given, too, the tiles
// are those of T (near_constant_centering.h), and so are the means.
#include <algorithm>
#include <type_traits>

#include "../tiles/given_means.h"
#include "../tiles/near_constant_centering.h"
#include "../tiles/tile_walk.h"
#include "ops.h"

namespace ahkernels::cpu {
namespace {

// Sums of squares below this, for each entry, may have left the range of fp32.
constexpr double kLeastSquare = 1e-26;

// out [kernels, kernels]
template <class T>
void inner_products(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers,
                    const std::vector<FactorMeans>& factor_means, const std::vector<Tensor>& means, int64_t first_end,
                    int64_t second_begin, double* out) {
  const int64_t count = kernel_count(layers), o = layers[0].o, n = layers[0].n;
  const int64_t products = count * (count + 1) / 2;
  std::vector<NearConstantCentering<T>> centering;
  for (size_t i = 0; i < layers.size(); ++i) centering.emplace_back(double_kernels(), layers[i], factor_means[i]);
  const std::vector<double> scales = kernel_scales(layers);
  std::vector<GivenMeans<T>> given;
  for (int64_t k = 0; k < count; ++k) {
    given.emplace_back(n, o, means[k].size(2), static_cast<const double*>(means[k].const_data_ptr()), scales[k]);
  }

  std::vector<double> totals(products, 0.0), partials;
  const TileScratch<T> scratch(count, o);
  const auto begin = [&](const TileBlock& part) { partials.assign(part.items() * products, 0.0); };
  const auto visit = [&](const TileBlock& part, int64_t index, auto& maker, int64_t thread) {
    const TileBlock::Item item = part.item(index);
    // Behind the first group there may be other samples in its last panel.
    const int64_t cols = std::min(maker.col_count(), first_end - item.pair.col * kPanel);
    scratch.for_each_tile(item, o, maker, thread, [&](int64_t j, const auto& tile) {
      const auto [pair, i] = item;
      const double weight = pair.row == pair.col && i == j ? 1 : 2;  // the transpose of a tile is not visited
      int64_t product = 0;
      for (int64_t a = 0; a < count; ++a) {
        for (int64_t b = 0; b <= a; ++b, ++product) {
          partials[index * products + product] +=
              weight * tiles.centered_product(tile(a), given[a].at(i, j, pair.row), given[a].at(j, i, pair.col),
                                              tile(b), given[b].at(i, j, pair.row), given[b].at(j, i, pair.col),
                                              maker.row_count(), cols);
        }
      }
    });
  };
  const auto done = [&](const TileBlock& part) {
    for (int64_t p = 0; p < part.items() * products; ++p) totals[p % products] += partials[p];
  };
  const TileBlock block{second_begin / kPanel, ceil_div(n, kPanel), 0, ceil_div(first_end, kPanel), 0, o};
  walk_tiles(tiles, layers, centering, block, begin, visit, done);

  if constexpr (std::is_same_v<T, float>) {
    const double entries = static_cast<double>(first_end * o) * static_cast<double>((n - second_begin) * o);
    for (int64_t a = 0; a < count; ++a) {
      if (layers[0].near_constant && totals[a * (a + 1) / 2 + a] < kLeastSquare * entries) {
        return inner_products(double_kernels(), layers, factor_means, means, first_end, second_begin, out);
      }
    }
  }

  int64_t product = 0;
  for (int64_t a = 0; a < count; ++a) {
    for (int64_t b = 0; b <= a; ++b, ++product) {
      // One after the other: the product of two extreme scales can leave the range of fp64.
      out[a * count + b] = out[b * count + a] = totals[product] / scales[a] / scales[b];
    }
  }
}

}  // namespace

Tensor pair_inner_products(const KernelBatch& batch, const std::vector<Tensor>& means, const std::string& precision,
                           int64_t first_end, int64_t second_begin, const std::vector<Tensor>& forward_means,
                           const std::vector<Tensor>& backward_means) {
  const std::string op = "pair_inner_products";
  const bool near_constant = !forward_means.empty() || !backward_means.empty();
  const std::vector<LayerFactors> layers =
      layer_factors_of(op, batch, near_constant ? Scaling::kBesideMeans : Scaling::kByKernel, near_constant);
  check_entries(op, batch);
  check_precision(op, precision);
  const int64_t n = layers[0].n, o = layers[0].o, count = kernel_count(layers);
  const std::vector<std::vector<int64_t>> shapes(count, {n, o, near_constant ? o : 1});
  const std::vector<Tensor> of_rows =
      all_numbers_of(op + ": means", means, near_constant ? "[n, o, o]" : "[n, o, 1]", shapes);
  std::vector<std::vector<int64_t>> forward_shapes, backward_shapes;
  for (const LayerFactors& layer : layers) {
    if (near_constant) forward_shapes.push_back({layer.s, layer.d});
    if (near_constant) backward_shapes.push_back({layer.s, o, layer.m});
  }
  const std::vector<Tensor> of_forward =
      all_numbers_of(op + ": forward_means", forward_means, "[s, d]", forward_shapes);
  const std::vector<Tensor> of_backward =
      all_numbers_of(op + ": backward_means", backward_means, "[s, o, m]", backward_shapes);
  std::vector<FactorMeans> factor_means(layers.size());
  for (size_t i = 0; i < of_forward.size(); ++i) {
    factor_means[i] = {/*given=*/true, static_cast<const double*>(of_forward[i].const_data_ptr()),
                       static_cast<const double*>(of_backward[i].const_data_ptr())};
  }
  AHK_REQUIRE(second_begin >= 0 && second_begin < n && second_begin % kPanel == 0, op,
              ": second_begin: expected 0 or a multiple of ", kPanel, " below n = ", n, ", got ", second_begin);
  if (second_begin == 0) {
    AHK_REQUIRE(first_end == n, op, ": first_end: expected n = ", n,
                " for all pairs, which second_begin = 0 asks for, got ", first_end);
  } else {
    AHK_REQUIRE(first_end > 0 && first_end <= second_begin, op,
                ": first_end: expected a number from 1 to second_begin = ", second_begin, ", got ", first_end);
  }
  Tensor out = torch::stable::new_empty(of_rows[0], {count, count});
  double* result = static_cast<double*>(out.mutable_data_ptr());
  if (layers[0].element == Element::kDouble) {
    inner_products(double_kernels(), layers, factor_means, of_rows, first_end, second_begin, result);
  } else {
    inner_products(float_kernels(precision), layers, factor_means, of_rows, first_end, second_begin, result);
  }
  return out;
}

}  // namespace ahkernels::cpu
