// Inner products of centered tangent kernels, <C K_a C, C K_b C>, in one pass over their tiles and with no K in memory.
#include "../ops.h"
#include "means.h"
#include "tile_walk.h"

namespace ahkernels::cpu {
namespace {

template <class T>
void moments(const TileKernels<T>& tiles, const std::vector<Kernel>& kernels, const std::vector<Tensor>& row_means,
             double* out) {
  const int64_t count = static_cast<int64_t>(kernels.size());
  const int64_t products = count * (count + 1) / 2;
  const int64_t o = kernels[0].o;
  std::vector<Centering<T>> centering;
  std::vector<Means<T>> means;
  for (int64_t k = 0; k < count; ++k) {
    centering.emplace_back(double_kernels(), kernels[k]);
    means.emplace_back(kernels[k], centering[k], static_cast<const double*>(row_means[k].const_data_ptr()));
  }

  std::vector<double> totals(products, 0.0), partials;
  const int64_t tile_bytes = kTileSize * static_cast<int64_t>(sizeof(T));
  AlignedBuffer scratch(thread_count() * count * tile_bytes);

  const auto begin = [&](const GroupPair& groups) { partials.assign(groups.pairs() * o * products, 0.0); };
  const auto visit = [&](int64_t item, const PanelPair& pair, int64_t i, TileMaker<T>& maker, int64_t thread) {
    const auto tile = [&](int64_t k) { return scratch.at<T>((thread * count + k) * tile_bytes); };
    const auto row_mean = [&](int64_t k) { return means[k].row.data() + i * means[k].stride + pair.row * kPanel; };
    // On the diagonal, tile (j, i) is the transpose of (i, j): take the upper ones, twice.
    const bool diagonal = pair.row == pair.col;
    for (int64_t j = diagonal ? i : 0; j < o; ++j) {
      const auto col_mean = [&](int64_t k) { return means[k].col.data() + j * means[k].stride + pair.col * kPanel; };
      const double weight = diagonal && i == j ? 1 : 2;
      maker.make(i, j, tile);
      int64_t product = 0;
      for (int64_t a = 0; a < count; ++a) {
        for (int64_t b = 0; b <= a; ++b, ++product) {
          partials[item * products + product] +=
              weight * tiles.centered_product(tile(a), row_mean(a), col_mean(a), tile(b), row_mean(b), col_mean(b),
                                              maker.row_count(), maker.col_count());
        }
      }
    }
  };
  const auto done = [&](const GroupPair& groups) {
    for (int64_t p = 0; p < groups.pairs() * o * products; ++p) totals[p % products] += partials[p];
  };
  walk_tiles(tiles, kernels, centering, begin, visit, done);

  int64_t product = 0;
  for (int64_t a = 0; a < count; ++a) {
    for (int64_t b = 0; b <= a; ++b, ++product) {
      // One after the other: the product of two extreme scales can leave the range of fp64.
      out[a * count + b] = out[b * count + a] = totals[product] / kernels[a].scale() / kernels[b].scale();
    }
  }
}

}  // namespace

Tensor centered_moments(const std::vector<Tensor>& forward, const std::vector<Tensor>& backward,
                        const std::vector<double>& bias, const std::vector<Tensor>& row_means,
                        const std::string& precision) {
  const std::vector<Kernel> kernels = make_kernels("centered_moments", forward, backward, bias, /*scaled=*/true);
  check_precision("centered_moments", precision);
  STD_TORCH_CHECK(row_means.size() == kernels.size(), "centered_moments: row_means: expected ", kernels.size(),
                  " tensors, got ", row_means.size());
  for (const Tensor& means : row_means) {
    STD_TORCH_CHECK(means.dim() == 2 && means.size(0) == kernels[0].n && means.size(1) == kernels[0].o &&
                        means.is_contiguous() && means.scalar_type() == torch::headeronly::ScalarType::Double,
                    "centered_moments: row_means: expected contiguous float64 tensors of shape [n, o] = [",
                    kernels[0].n, ", ", kernels[0].o, "]");
  }
  const int64_t count = static_cast<int64_t>(kernels.size());
  Tensor out = torch::stable::new_empty(row_means[0], {count, count});
  double* result = static_cast<double*>(out.mutable_data_ptr());
  if (forward[0].scalar_type() == torch::headeronly::ScalarType::Double) {
    moments(double_kernels(), kernels, row_means, result);
  } else {
    moments(float_kernels(precision), kernels, row_means, result);
  }
  return out;
}

}  // namespace ahkernels::cpu
