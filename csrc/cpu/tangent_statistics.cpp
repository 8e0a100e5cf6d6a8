// The numbers of an alignment: <v, C K C v>, ||C K C||_F^2, the trace and the sum of K.
//
// Where the tiles of K fit in a few caches' worth of memory, they are made once and kept, and everything comes from
// them: for small kernels the thin products would cost as much as the tiles, and for Jacobians, with few rows of very
// many numbers, they would have to go through those numbers again. Elsewhere, from the other ops.
#include <cmath>
#include <numeric>

#include "../ops.h"
#include "means.h"
#include "tile_walk.h"

namespace ahkernels::cpu {
namespace {

constexpr int64_t kSmallBytes = 8 << 20;
constexpr int64_t kStatistics = 4;

// Kernels over several outputs with few tiles; those of one output have another way of centering (centering.h).
template <class T>
bool fit(const TileKernels<T>& tiles, const std::vector<Term>& terms) {
  const int64_t panels = ceil_div(terms[0].n, kPanel), o = terms[0].o;
  const int64_t most = fits_packed(tiles, terms) ? kSmallBytes : kKeptBytes;
  return o > 1 && KeptTiles<T>::bytes(terms, TileBlock{0, panels, 0, panels, 0, o}) <= most;
}

// v [n, o] as [o][n rounded up to whole panels], times the power of two that brings its largest magnitude to [1, 2).
template <class T>
struct ScaledVector {
  std::vector<T> numbers;
  int64_t stride;
  double scale = 1;

  ScaledVector(const double* v, int64_t n, int64_t o)
      : numbers(ceil_div(n, kPanel) * kPanel * o, T{0}), stride(ceil_div(n, kPanel) * kPanel) {
    double largest = 0;
    for (int64_t r = 0; r < n * o; ++r) largest = std::max(largest, std::abs(v[r]));
    if (largest > 0 && std::isfinite(largest)) scale = std::ldexp(1.0, -std::clamp(std::ilogb(largest), -1000, 1000));
    for (int64_t x = 0; x < n; ++x) {
      for (int64_t i = 0; i < o; ++i) numbers[i * stride + x] = static_cast<T>(v[x * o + i] * scale);
    }
  }
  const T* at(int64_t output, int64_t panel) const { return numbers.data() + output * stride + panel * kPanel; }
};

template <class T>
void from_kept_tiles(const TileKernels<T>& tiles, const std::vector<Term>& terms, const double* v, double* out) {
  const int64_t n = terms[0].n, o = terms[0].o, panels = ceil_div(n, kPanel), count = kernel_count(terms);
  const TileBlock block{0, panels, 0, panels, 0, o};
  const std::vector<Centering<T>> centering = centering_of<T>(terms);
  const std::vector<double> scales = kernel_scales(terms);
  KeptTiles<T> kept(tiles, terms, centering, block);

  std::vector<T> sums(block.items() * o * count * 2 * kPanel);  // of the rows, then of the columns of each tile
  const auto sums_of = [&](int64_t index, int64_t j, int64_t k) {
    return sums.data() + ((index * o + j) * count + k) * 2 * kPanel;
  };
  kept.make([&](int64_t index, int64_t) {
    const TileBlock::Item item = block.item(index);
    for (int64_t j = first_column(item); j < o; ++j) {
      for (int64_t k = 0; k < count; ++k) {
        T* to = sums_of(index, j, k);
        tiles.sums(kept.tile(index, j, k), kept.row_count(item.pair), kept.col_count(item.pair), to, to + kPanel);
      }
    }
  });

  std::vector<Means<T>> means;
  for (int64_t k = 0; k < count; ++k) {
    std::vector<double> row_sums(n * o, 0.0);
    double trace = 0;
    for (int64_t index = 0; index < block.items(); ++index) {
      const TileBlock::Item item = block.item(index);
      const auto [pair, i] = item;
      for (int64_t j = first_column(item); j < o; ++j) {
        const T* from = sums_of(index, j, k);
        const bool symmetric = pair.row == pair.col && i == j;
        for (int64_t r = 0; r < kept.row_count(pair); ++r) row_sums[(pair.row * kPanel + r) * o + i] += from[r];
        for (int64_t c = 0; c < kept.col_count(pair) && !symmetric; ++c) {
          row_sums[(pair.col * kPanel + c) * o + j] += from[kPanel + c];
        }
        for (int64_t r = 0; r < kept.row_count(pair) && symmetric; ++r) trace += kept.tile(index, j, k)[r * kPanel + r];
      }
    }
    double total = 0;
    for (double& sum : row_sums) {
      total += sum;
      sum /= static_cast<double>(n * o) * scales[k];
    }
    out[k * kStatistics + 2] = trace / scales[k];
    out[k * kStatistics + 3] = total / scales[k];
    means.emplace_back(k, terms, centering, row_sums.data());
  }

  const ScaledVector<T> vector(v, n, o);
  std::vector<double> partials(block.items() * count * 2, 0.0);
  for_each_item(block.items(), 4, [&](int64_t index, int64_t) {
    const TileBlock::Item item = block.item(index);
    const auto [pair, i] = item;
    const int64_t rows = kept.row_count(pair), cols = kept.col_count(pair);
    for (int64_t j = first_column(item); j < o; ++j) {
      const double weight = pair.row == pair.col && i == j ? 1 : 2;
      for (int64_t k = 0; k < count; ++k) {
        const T* entries = kept.tile(index, j, k);
        const T* row_mean = means[k].row.data() + i * means[k].stride + pair.row * kPanel;
        const T* col_mean = means[k].col.data() + j * means[k].stride + pair.col * kPanel;
        double* to = &partials[(index * count + k) * 2];
        to[0] += weight * tiles.centered_form(entries, row_mean, col_mean, vector.at(i, pair.row),
                                              vector.at(j, pair.col), rows, cols);
        to[1] += weight * tiles.centered_product(entries, row_mean, col_mean, entries, row_mean, col_mean, rows, cols);
      }
    }
  });
  for (int64_t k = 0; k < count; ++k) {
    double form = 0, square = 0;
    for (int64_t index = 0; index < block.items(); ++index) {
      form += partials[(index * count + k) * 2];
      square += partials[(index * count + k) * 2 + 1];
    }
    // One after the other: the product of two extreme scales can leave the range of fp64.
    out[k * kStatistics] = form / scales[k] / vector.scale / vector.scale;
    out[k * kStatistics + 1] = square / scales[k] / scales[k];
  }
}

void from_other_ops(const Factors& factors, const std::vector<Term>& terms, const Tensor& v,
                    const std::string& precision, double* out) {
  const auto numbers_of = [](const Tensor& tensor) { return static_cast<double*>(tensor.mutable_data_ptr()); };
  const auto sum_of = [&](const Tensor& tensor) {
    return std::accumulate(numbers_of(tensor), numbers_of(tensor) + tensor.numel(), 0.0);
  };
  const int64_t size = v.numel(), count = kernel_count(terms);
  std::fill(out, out + count * kStatistics, 0.0);
  std::vector<Tensor> row_means;
  for (size_t t = 0; t < terms.size(); ++t) {
    const Tensor &a = factors.forward[t], &g = factors.backward[t];
    const double bias = factors.bias[t];
    double* of_kernel = out + static_cast<int64_t>(terms[t].kernel) * kStatistics;
    const Tensor sums = tangent_row_sums(a, g, bias);
    of_kernel[0] += sum_of(tangent_quadratic(a, g, bias, v));
    of_kernel[2] += sum_of(tangent_diagonal(a, g, bias, terms[t].by_jacobian));
    of_kernel[3] += sum_of(sums);
    const bool begins = row_means.size() == terms[t].kernel;
    if (begins) row_means.push_back(sums);
    double* means = numbers_of(row_means.back());
    for (int64_t r = 0; r < size; ++r) {
      const double mean = numbers_of(sums)[r] / static_cast<double>(size);
      means[r] = begins ? mean : means[r] + mean;
    }
  }
  const Tensor moments = centered_moments(factors, row_means, precision);
  for (int64_t k = 0; k < count; ++k) out[k * kStatistics + 1] = numbers_of(moments)[k * count + k];
}

template <class T>
void statistics(const TileKernels<T>& tiles, const Factors& factors, const std::vector<Term>& terms, const Tensor& v,
                const std::string& precision, double* out) {
  if (fit(tiles, terms)) {
    const std::vector<Term> scaled = make_terms("tangent_statistics", factors, /*scaled=*/true);
    from_kept_tiles(tiles, scaled, static_cast<const double*>(v.const_data_ptr()), out);
  } else {
    from_other_ops(factors, terms, v, precision, out);
  }
}

}  // namespace

Tensor tangent_statistics(const Factors& factors, const Tensor& v, const std::string& precision) {
  const std::vector<Term> terms = make_terms("tangent_statistics", factors, /*scaled=*/false);
  check_precision("tangent_statistics", precision);
  check_columns("tangent_statistics", terms[0], v);
  STD_TORCH_CHECK(v.size(2) == 1, "tangent_statistics: v: expected one column, got ", v.size(2));
  Tensor out = torch::stable::new_empty(v, {kernel_count(terms), kStatistics});
  double* result = static_cast<double*>(out.mutable_data_ptr());
  if (terms[0].element == Element::kDouble) {
    statistics(double_kernels(), factors, terms, v, precision, result);
  } else {
    statistics(float_kernels(precision), factors, terms, v, precision, result);
  }
  return out;
}

}  // namespace ahkernels::cpu
