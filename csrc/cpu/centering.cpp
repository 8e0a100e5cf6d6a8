#include "centering.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"
#include "thin.h"

namespace ahkernels::cpu {
namespace {

// Mean over samples of each of `rows` rows of k numbers, [rows][k], rounded to T; row_of(x, row) is a factor's row.
template <class T, class Row>
std::vector<T> mean(const TileKernels<double>& tiles, int64_t n, int64_t rows, int64_t k, const Row& row_of) {
  constexpr int64_t kSlice = 256;
  const int64_t slices = ceil_div(k, kSlice);
  std::vector<double> sums(rows * k, 0.0);
  for_each_item(rows * slices, 1, [&](int64_t item, int64_t) {
    const int64_t row = item / slices, begin = item % slices * kSlice;
    for (int64_t x = 0; x < n; ++x) {
      tiles.axpy(1.0, row_of(x, row).from_k(begin), std::min(kSlice, k - begin), sums.data() + row * k + begin);
    }
  });
  std::vector<T> means(rows * k);
  for (size_t i = 0; i < means.size(); ++i) means[i] = static_cast<T>(sums[i] / static_cast<double>(n));
  return means;
}

// Products of a factor's rows with their means: constant [rows][rows'] = <mean_row, mean_row'> and, for each sample,
// linear [rows][rows'][n] = <row(x) - mean_row, mean_row'>.
template <class T, class Row>
void products(const TileKernels<double>& tiles, int64_t n, int64_t rows, int64_t k, const std::vector<T>& mean,
              const Row& row_of, std::vector<double>& constant, std::vector<double>& linear) {
  const std::vector<double> means(mean.begin(), mean.end());
  constant.assign(rows * rows, 0.0);
  linear.assign(rows * rows * n, 0.0);
  for_each_item(rows * rows, 16, [&](int64_t pair, int64_t) {
    for (int64_t i = 0; i < k; ++i) constant[pair] += means[pair / rows * k + i] * means[pair % rows * k + i];
  });
  for_each_item(n, 16, [&](int64_t x, int64_t) {
    for (int64_t pair = 0; pair < rows * rows; ++pair) {
      linear[pair * n + x] = tiles.dot(row_of(x, pair / rows), k, means.data() + pair % rows * k) - constant[pair];
    }
  });
}

}  // namespace

template <class T>
Centering<T>::Centering(const TileKernels<double>& tiles, const Term& term) : o(term.o) {
  if (!term.means_out) return;
  if (term.by_jacobian) {
    of_jacobian(tiles, term);
    return;
  }
  // Of the numbers as they are: scales come in below.
  Term unscaled = term;
  unscaled.forward_scale = unscaled.backward_scale = 1;
  const auto forward_row = [&](int64_t x, int64_t use) { return unscaled.forward_rows(x, use); };
  const auto backward_row = [&](int64_t x, int64_t row) { return unscaled.backward_rows(x, row / o, row % o); };
  const int64_t n = term.n, s = term.s;
  forward_mean = mean<T>(tiles, n, s, term.d, forward_row);
  backward_mean = mean<T>(tiles, n, s * o, term.m, backward_row);
  std::vector<double> forward_constant, forward_linear, backward_constant, backward_linear;
  products(tiles, n, s, term.d, forward_mean, forward_row, forward_constant, forward_linear);
  products(tiles, n, s * o, term.m, backward_mean, backward_row, backward_constant, backward_linear);

  const double forward_scale = term.forward_scale * term.forward_scale;
  const double backward_scale = term.backward_scale * term.backward_scale;
  stride = ceil_div(n, kPanel) * kPanel;
  p0.resize(s * s);
  p.assign(s * s * stride, T{0});
  q0.resize(s * s * o * o);
  q.assign(s * s * o * o * stride, T{0});
  h.assign(o * o * n, 0.0);
  constant.assign(o * o, 0.0);
  for (int64_t use = 0; use < s * s; ++use) {
    p0[use] = static_cast<T>((forward_constant[use] + term.bias) * forward_scale);
    for (int64_t x = 0; x < n; ++x) p[use * stride + x] = static_cast<T>(forward_linear[use * n + x] * forward_scale);
  }
  for_each_item(o * o, 4, [&](int64_t ij, int64_t) {
    const int64_t i = ij / o, j = ij % o;
    for (int64_t use = 0; use < s * s; ++use) {
      // Among the pairs of rows (use, output).
      const int64_t pair = (use / s * o + i) * s * o + use % s * o + j, at = use * o * o + ij;
      const double p0_use = (forward_constant[use] + term.bias) * forward_scale;
      const double q0_pair = backward_constant[pair] * backward_scale;
      q0[at] = static_cast<T>(q0_pair);
      constant[ij] += p0_use * q0_pair;
      for (int64_t x = 0; x < n; ++x) {
        const double p_x = forward_linear[use * n + x] * forward_scale;
        const double q_x = backward_linear[pair * n + x] * backward_scale;
        q[at * stride + x] = static_cast<T>(q_x);
        h[ij * n + x] += p0_use * q_x + q0_pair * p_x + p_x * q_x;
      }
    }
  });
}

template <class T>
void Centering<T>::of_jacobian(const TileKernels<double>& tiles, const Term& term) {
  const Term rows = thin_term(term);
  const int64_t n = rows.n, m = rows.m, d = rows.d;
  std::vector<double> weights(n * o * o, 0.0);  // column j: the mean over the samples of output j
  for (int64_t x = 0; x < n; ++x) {
    for (int64_t j = 0; j < o; ++j) weights[(x * o + j) * o + j] = 1 / static_cast<double>(n);
  }
  const ThinProduct<double> thin(tiles, rows, weights.data(), o);
  jacobian_mean.resize(o * m * (d + 1));
  const int64_t slice =
      std::clamp<int64_t>(kSliceBytes / (8 * o * std::max<int64_t>(d, 1)), 1, std::max<int64_t>(m, 1));
  for (int64_t begin = 0; begin < m; begin += slice) {
    const int64_t width = std::min(slice, m - begin);
    const auto [matrix, sums] = thin.sum_weights(begin, width);  // [o, width, d] and [o, width]
    for (int64_t j = 0; j < o; ++j) {
      double* to = jacobian_mean.data() + j * m * (d + 1);
      std::copy_n(matrix.data() + j * width * d, width * d, to + begin * d);
      for (int64_t c = 0; c < width; ++c) to[m * d + begin + c] = sums[j * width + c] * std::sqrt(rows.scaled_bias());
    }
  }
  std::vector<double> products(n * o * o);  // <J^i(x), J0^j>
  thin.product(products.data());
  h.resize(o * o * n);
  constant.assign(o * o, 0.0);
  for (int64_t ij = 0; ij < o * o; ++ij) {
    for (int64_t x = 0; x < n; ++x) constant[ij] += products[x * o * o + ij] / static_cast<double>(n);
    for (int64_t x = 0; x < n; ++x) h[ij * n + x] = products[x * o * o + ij] - constant[ij];
  }
}

template struct Centering<float>;
template struct Centering<double>;

}  // namespace ahkernels::cpu
