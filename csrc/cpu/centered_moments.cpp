// Inner products of centered tangent kernels, <C K_a C, C K_b C>, in one pass over their tiles and with no K in memory.
#include "../ops.h"
#include "means.h"
#include "tile_walk.h"

namespace ahkernels::cpu {
namespace {

template <class T>
void moments(const TileKernels<T>& tiles, const std::vector<Term>& terms, const std::vector<Tensor>& row_means,
             double* out) {
  const int64_t count = kernel_count(terms), o = terms[0].o;
  const int64_t products = count * (count + 1) / 2;
  const std::vector<Centering<T>> centering = centering_of<T>(terms);
  std::vector<Means<T>> means;
  for (int64_t k = 0; k < count; ++k) {
    means.emplace_back(k, terms, centering, static_cast<const double*>(row_means[k].const_data_ptr()));
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
      const double weight = pair.row == pair.col && i == j ? 1 : 2;  // its transpose is not visited
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
  walk_tiles(tiles, terms, centering, begin, visit, done);

  const std::vector<double> scales = kernel_scales(terms);
  int64_t product = 0;
  for (int64_t a = 0; a < count; ++a) {
    for (int64_t b = 0; b <= a; ++b, ++product) {
      // One after the other: the product of two extreme scales can leave the range of fp64.
      out[a * count + b] = out[b * count + a] = totals[product] / scales[a] / scales[b];
    }
  }
}

}  // namespace

Tensor centered_moments(const Factors& factors, const std::vector<Tensor>& row_means, const std::string& precision) {
  const std::vector<Term> terms = make_terms("centered_moments", factors, /*scaled=*/true);
  check_precision("centered_moments", precision);
  const int64_t count = kernel_count(terms);
  STD_TORCH_CHECK(static_cast<int64_t>(row_means.size()) == count, "centered_moments: row_means: expected ", count,
                  " tensors, got ", row_means.size());
  for (const Tensor& means : row_means) {
    STD_TORCH_CHECK(means.dim() == 2 && means.size(0) == terms[0].n && means.size(1) == terms[0].o &&
                        means.is_contiguous() && means.scalar_type() == torch::headeronly::ScalarType::Double,
                    "centered_moments: row_means: expected contiguous float64 tensors of shape [n, o] = [", terms[0].n,
                    ", ", terms[0].o, "]");
  }
  Tensor out = torch::stable::new_empty(row_means[0], {count, count});
  double* result = static_cast<double*>(out.mutable_data_ptr());
  if (terms[0].element == Element::kDouble) {
    moments(double_kernels(), terms, row_means, result);
  } else {
    moments(float_kernels(precision), terms, row_means, result);
  }
  return out;
}

}  // namespace ahkernels::cpu
