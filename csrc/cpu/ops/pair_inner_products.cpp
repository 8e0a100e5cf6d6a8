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

// The numbers of one of a list of tensors, which must have a shape of these sizes.
const double* numbers_of(const std::string& what, const Tensor& tensor, const std::vector<int64_t>& sizes) {
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size()) && tensor.is_contiguous() &&
              tensor.scalar_type() == torch::headeronly::ScalarType::Double;
  std::string shape;
  for (size_t i = 0; i < sizes.size(); ++i) {
    fits = fits && tensor.size(static_cast<int64_t>(i)) == sizes[i];
    shape += (i ? ", " : "") + std::to_string(sizes[i]);
  }
  STD_TORCH_CHECK(fits, what, ": expected contiguous float64 tensors, here one of shape [", shape, "]");
  return static_cast<const double*>(tensor.const_data_ptr());
}

}  // namespace

Tensor pair_inner_products(const KernelBatch& batch, const std::vector<Tensor>& means, const std::string& precision,
                           int64_t first_end, int64_t second_begin, const std::vector<Tensor>& forward_means,
                           const std::vector<Tensor>& backward_means) {
  const std::string op = "pair_inner_products";
  const int64_t count = static_cast<int64_t>(batch.layers.size());
  STD_TORCH_CHECK(count > 0 && static_cast<int64_t>(means.size()) == count, op, ": means: expected ", count,
                  " tensors, got ", means.size());
  const bool near_constant = !forward_means.empty();
  const std::vector<LayerFactors> layers = layer_factors_of(op, batch, Scaling::kByKernel, near_constant);
  check_precision(op, precision);
  const int64_t n = layers[0].n, o = layers[0].o;
  for (const Tensor& one : means) numbers_of(op + ": means", one, {n, o, near_constant ? o : int64_t{1}});
  std::vector<FactorMeans> factor_means(layers.size());
  STD_TORCH_CHECK(!near_constant || forward_means.size() == layers.size(), op, ": forward_means: expected ",
                  layers.size(), " tensors, got ", forward_means.size());
  STD_TORCH_CHECK(backward_means.size() == forward_means.size(), op, ": backward_means: expected ",
                  forward_means.size(), " tensors, got ", backward_means.size());
  for (size_t i = 0; i < forward_means.size(); ++i) {
    const LayerFactors& layer = layers[i];
    factor_means[i] = {/*given=*/true, numbers_of(op + ": forward_means", forward_means[i], {layer.s, layer.d}),
                       numbers_of(op + ": backward_means", backward_means[i], {layer.s, o, layer.m})};
  }
  STD_TORCH_CHECK(second_begin >= 0 && second_begin < n && second_begin % kPanel == 0, op,
                  ": second_begin: expected a multiple of ", kPanel, " below ", n, ", got ", second_begin);
  if (second_begin == 0) {
    STD_TORCH_CHECK(first_end == n, op, ": first_end: expected ", n, " for all pairs, got ", first_end);
  } else {
    STD_TORCH_CHECK(first_end > 0 && first_end <= second_begin, op, ": first_end: expected a number from 1 to ",
                    second_begin, ", got ", first_end);
  }
  Tensor out = torch::stable::new_empty(means[0], {count, count});
  double* result = static_cast<double*>(out.mutable_data_ptr());
  if (layers[0].element == Element::kDouble) {
    inner_products(double_kernels(), layers, factor_means, means, first_end, second_begin, result);
  } else {
    inner_products(float_kernels(precision), layers, factor_means, means, first_end, second_begin, result);
  }
  return out;
}

}  // namespace ahkernels::cpu
