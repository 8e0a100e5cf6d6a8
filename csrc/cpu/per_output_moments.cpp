// Inner products of kernels with each block of two outputs centered, and of the same kernels centered as a whole, in
// one pass over tiles of T (centering.h, block_sums.h).
#include <type_traits>

#include "../ops.h"
#include "block_sums.h"

namespace ahkernels::cpu {
namespace {

// out [2, kernels, kernels]
template <class T>
void moments(const TileKernels<T>& tiles, const std::vector<Term>& terms, double* out) {
  const int64_t o = terms[0].o, count = kernel_count(terms), products = count * (count + 1) / 2;
  const std::vector<Centering<T>> centering = centering_of<T>(terms);
  const std::vector<T> zeros(kPanel, T{0});  // T has its means taken out
  BlockSums<T> sums(terms);
  std::vector<double> totals(products, 0.0), partials;
  const TileScratch<T> scratch(count, o);
  const auto begin = [&](const TileBlock& part) {
    sums.begin(part);
    partials.assign(part.items() * products, 0.0);
  };
  const auto visit = [&](const TileBlock& part, int64_t index, auto& maker, int64_t thread) {
    const TileBlock::Item item = part.item(index);
    scratch.for_each_tile(item, o, maker, thread, [&](int64_t j, const auto& tile) {
      const double weight = item.pair.row == item.pair.col && item.output == j ? 1 : 2;  // its transpose is not visited
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
  walk_tiles(tiles, terms, centering, begin, visit, done, BlockSums<T>::item_bytes(terms));

  if constexpr (std::is_same_v<T, float>) {
    for (int64_t a = 0; a < count; ++a) {
      if (sums.below_float(totals[a * (a + 1) / 2 + a], a)) return moments(double_kernels(), terms, out);
    }
  }

  const std::vector<double> scales = kernel_scales(terms);
  std::vector<BlockMeans> means;
  for (int64_t k = 0; k < count; ++k) means.emplace_back(sums, k, terms, centering);
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

Tensor per_output_moments(const Factors& factors, const std::string& precision) {
  const std::vector<Term> terms = make_terms("per_output_moments", factors, /*scaled=*/true, /*per_output=*/true);
  check_precision("per_output_moments", precision);
  const int64_t count = kernel_count(terms);
  Tensor out = torch::stable::new_empty(factors.forward[0], {2, count, count}, torch::headeronly::ScalarType::Double);
  double* result = static_cast<double*>(out.mutable_data_ptr());
  if (terms[0].element == Element::kDouble) {
    moments(double_kernels(), terms, result);
  } else {
    moments(float_kernels(precision), terms, result);
  }
  return out;
}

}  // namespace ahkernels::cpu
