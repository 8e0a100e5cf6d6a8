#include "centering.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"
#include "thin.h"

namespace ahkernels::cpu {
namespace {

// Mean over samples of each row of k numbers, [s][k], rounded to T; rows_of(x, use) is a factor's row.
template <class T, class Rows>
std::vector<T> mean(const TileKernels<double>& tiles, const Term& term, int64_t k, const Rows& rows_of) {
  constexpr int64_t kSlice = 256;
  const int64_t slices = ceil_div(k, kSlice);
  std::vector<double> sums(term.s * k, 0.0);
  for_each_item(term.s * slices, 1, [&](int64_t item, int64_t) {
    const int64_t use = item / slices, begin = item % slices * kSlice;
    for (int64_t x = 0; x < term.n; ++x) {
      tiles.axpy(1.0, rows_of(x, use).from_k(begin), std::min(kSlice, k - begin), sums.data() + use * k + begin);
    }
  });
  std::vector<T> means(term.s * k);
  for (size_t i = 0; i < means.size(); ++i) means[i] = static_cast<T>(sums[i] / static_cast<double>(term.n));
  return means;
}

// Products of a factor with its means: constant [s][s'] = <mean_s, mean_s'> and, for each sample,
// linear [s][s'][n] = <row_s(x) - mean_s, mean_s'>.
template <class T, class Rows>
void products(const TileKernels<double>& tiles, const Term& term, int64_t k, const std::vector<T>& mean,
              const Rows& rows_of, std::vector<double>& constant, std::vector<double>& linear) {
  const int64_t s = term.s, n = term.n;
  const std::vector<double> means(mean.begin(), mean.end());
  constant.assign(s * s, 0.0);
  linear.assign(s * s * n, 0.0);
  for (int64_t pair = 0; pair < s * s; ++pair) {
    for (int64_t i = 0; i < k; ++i) constant[pair] += means[pair / s * k + i] * means[pair % s * k + i];
  }
  for_each_item(n, 16, [&](int64_t x, int64_t) {
    for (int64_t pair = 0; pair < s * s; ++pair) {
      linear[pair * n + x] = tiles.dot(rows_of(x, pair / s), k, means.data() + pair % s * k) - constant[pair];
    }
  });
}

}  // namespace

template <class T>
Centering<T>::Centering(const TileKernels<double>& tiles, const Term& term) {
  if (term.o != 1) return;
  if (term.by_jacobian) {
    of_jacobian(tiles, term);
    return;
  }
  // Of the numbers as they are: scales come in below.
  Term unscaled = term;
  unscaled.forward_scale = unscaled.backward_scale = 1;
  const auto forward_rows = [&](int64_t x, int64_t use) { return unscaled.forward_rows(x, use); };
  const auto backward_rows = [&](int64_t x, int64_t use) { return unscaled.backward_rows(x, use, 0); };
  forward_mean = mean<T>(tiles, unscaled, term.d, forward_rows);
  backward_mean = mean<T>(tiles, unscaled, term.m, backward_rows);
  std::vector<double> forward_constant, forward_linear, backward_constant, backward_linear;
  products(tiles, unscaled, term.d, forward_mean, forward_rows, forward_constant, forward_linear);
  products(tiles, unscaled, term.m, backward_mean, backward_rows, backward_constant, backward_linear);

  const int64_t n = term.n, pairs = term.s * term.s;
  const double forward_scale = term.forward_scale * term.forward_scale;
  const double backward_scale = term.backward_scale * term.backward_scale;
  stride = ceil_div(n, kPanel) * kPanel;
  p.assign(pairs * stride, T{0});
  q.assign(pairs * stride, T{0});
  h.assign(n, 0.0);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const double p0_pair = (forward_constant[pair] + term.bias) * forward_scale;
    const double q0_pair = backward_constant[pair] * backward_scale;
    p0.push_back(static_cast<T>(p0_pair));
    q0.push_back(static_cast<T>(q0_pair));
    constant += p0_pair * q0_pair;
    for (int64_t x = 0; x < n; ++x) {
      const double p_x = forward_linear[pair * n + x] * forward_scale;
      const double q_x = backward_linear[pair * n + x] * backward_scale;
      p[pair * stride + x] = static_cast<T>(p_x);
      q[pair * stride + x] = static_cast<T>(q_x);
      h[x] += p0_pair * q_x + q0_pair * p_x + p_x * q_x;
    }
  }
}

template <class T>
void Centering<T>::of_jacobian(const TileKernels<double>& tiles, const Term& term) {
  const Term rows = thin_term(term);
  const std::vector<double> weights(rows.n, 1.0 / static_cast<double>(rows.n));
  const ThinProduct<double> thin(tiles, rows, weights.data(), 1);
  std::vector<double> of_bias;
  const int64_t slice =
      std::clamp<int64_t>(kSliceBytes / (8 * std::max<int64_t>(rows.d, 1)), 1, std::max<int64_t>(rows.m, 1));
  for (int64_t begin = 0; begin < rows.m; begin += slice) {
    const auto [matrix, sums] = thin.sum_weights(begin, std::min(slice, rows.m - begin));
    jacobian_mean.insert(jacobian_mean.end(), matrix.begin(), matrix.end());
    of_bias.insert(of_bias.end(), sums.begin(), sums.end());
  }
  for (const double sum : of_bias) jacobian_mean.push_back(sum * std::sqrt(rows.scaled_bias()));
  h.resize(rows.n);
  thin.product(h.data());  // row means
  for (const double row_mean : h) constant += row_mean / static_cast<double>(rows.n);
  for (double& row_mean : h) row_mean -= constant;
}

template struct Centering<float>;
template struct Centering<double>;

}  // namespace ahkernels::cpu
