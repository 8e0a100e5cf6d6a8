#include "near_constant_centering.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "../chained_sums.h"
#include "../parallel.h"
#include "thin_products.h"

namespace ahkernels::cpu {
namespace {

// The means [rows][k] over n samples, rounded to T. `samples` [rows] has a view [n, k] of a factor for each row, that
// is for each position and output.
template <class T>
std::vector<T> mean(const TileKernels<double>& tiles, int64_t n, int64_t k, const std::vector<Strided>& samples) {
  constexpr int64_t kSlice = 256;
  const int64_t slices = ceil_div(k, kSlice), rows = static_cast<int64_t>(samples.size());
  std::vector<double> sums(rows * k);
  for_each_item(rows * slices, 1, [&](int64_t item, int64_t) {
    const int64_t row = item / slices, begin = item % slices * kSlice;
    tiles.column_sums(samples[row].from_k(begin), n, std::min(kSlice, k - begin), sums.data() + row * k + begin);
  });
  std::vector<T> means(rows * k);
  for (size_t i = 0; i < means.size(); ++i) means[i] = static_cast<T>(sums[i] / static_cast<double>(n));
  return means;
}

// Products of a factor's rows with their means, times the square of the rows' scale: constant [rows][rows'] =
// <mean_row, mean_row'> in fp64 and, for each sample x, linear [rows][rows'][n] = <row(x) - mean_row, mean_row'> in
// numbers of type C. `mean` [rows][k] comes without the scale; products of extreme factors without it would leave the
// range of fp32.
template <class C, class T>
void products(const TileKernels<C>& tiles, int64_t n, int64_t k, const std::vector<T>& mean,
              const std::vector<Strided>& samples, std::vector<double>& constant, std::vector<C>& linear) {
  const int64_t rows = static_cast<int64_t>(samples.size());
  const double scale = samples[0].scale;
  std::vector<C> means(mean.size());
  for (size_t i = 0; i < mean.size(); ++i) means[i] = static_cast<C>(static_cast<double>(mean[i]) * scale);
  constant.assign(rows * rows, 0.0);
  linear.resize(rows * rows * n);
  for_each_item(rows * rows, 16, [&](int64_t pair, int64_t) {
    const T *row = mean.data() + pair / rows * k, *other = mean.data() + pair % rows * k;
    const auto product = [&](int64_t i) { return static_cast<double>(row[i]) * static_cast<double>(other[i]); };
    constant[pair] = sum_in_chains(k, product) * scale * scale;
  });
  for_each_item(n, 16, [&](int64_t x, int64_t) {
    std::vector<C> of_row(rows);
    for (int64_t row = 0; row < rows; ++row) {
      tiles.dots(samples[row].from_row(x), means.data() + row * k, k, means.data(), rows, of_row.data());
      for (int64_t other = 0; other < rows; ++other) linear[(row * rows + other) * n + x] = of_row[other];
    }
  });
}

// h [n] += p0 q + q0 p + p q.
template <class C>
void add_offsets(const C* __restrict p, const C* __restrict q, double p0, double q0, int64_t n, double* __restrict h) {
  for (int64_t x = 0; x < n; ++x) {
    const double p_x = static_cast<double>(p[x]), q_x = static_cast<double>(q[x]);
    h[x] += p0 * q_x + q0 * p_x + p_x * q_x;
  }
}

}  // namespace

template <class T>
NearConstantCentering<T>::NearConstantCentering(const TileKernels<double>& tiles, const LayerFactors& layer,
                                                const FactorMeans& means)
    : o(layer.o), active_(layer.near_constant) {
  if (!active_) return;
  if (layer.by_jacobian && means.given) {
    of_jacobian(layer, means);
  } else if (layer.by_jacobian) {
    of_jacobian(tiles, layer);
  } else if (layer.o == 1) {
    of_factors<double>(tiles, double_kernels(), layer, means);
  } else if constexpr (std::is_same_v<T, double>) {
    of_factors<double>(tiles, double_kernels(), layer, means);
  } else {
    of_factors<float>(tiles, float_kernels("highest"), layer, means);
  }
}

template <class T>
template <class C>
void NearConstantCentering<T>::of_factors(const TileKernels<double>& tiles, const TileKernels<C>& dots,
                                          const LayerFactors& layer, const FactorMeans& means) {
  const int64_t n = layer.n, s = layer.s;
  std::vector<Strided> forward, backward;
  for (int64_t position = 0; position < s; ++position) forward.push_back(layer.forward_rows(0, position));
  for (int64_t row = 0; row < s * o; ++row) backward.push_back(layer.backward_rows(0, row / o, row % o));
  const auto unscaled = [](std::vector<Strided> samples) {
    for (Strided& of_row : samples) of_row.scale = 1;
    return samples;
  };
  if (means.given) {
    forward_mean.assign(means.forward, means.forward + s * layer.d);
    backward_mean.assign(means.backward, means.backward + s * o * layer.m);
  } else {
    forward_mean = mean<T>(tiles, n, layer.d, unscaled(forward));
    backward_mean = mean<T>(tiles, n, layer.m, unscaled(backward));
  }
  std::vector<double> forward_constant, backward_constant;
  std::vector<C> forward_linear, backward_linear;
  products(dots, n, layer.d, forward_mean, forward, forward_constant, forward_linear);
  products(dots, n, layer.m, backward_mean, backward, backward_constant, backward_linear);

  stride = ceil_div(n, kPanel) * kPanel;
  p0.resize(s * s);
  p.assign(s * s * stride, T{0});
  q0.resize(s * s * o * o);
  q.assign(s * s * o * o * stride, T{0});
  if (!means.given) {
    h.assign(o * o * n, 0.0);
    constant.assign(o * o, 0.0);
  }
  for (int64_t pair = 0; pair < s * s; ++pair) {
    p0[pair] = static_cast<T>(forward_constant[pair] + layer.scaled_bias());
    for (int64_t x = 0; x < n; ++x) p[pair * stride + x] = static_cast<T>(forward_linear[pair * n + x]);
  }
  for_each_item(o * o, 4, [&](int64_t ij, int64_t) {
    const int64_t i = ij / o, j = ij % o;
    for (int64_t pair = 0; pair < s * s; ++pair) {
      // Index among the pairs of rows (position, output).
      const int64_t row_pair = (pair / s * o + i) * s * o + pair % s * o + j, at = pair * o * o + ij;
      const double p0_pair = forward_constant[pair] + layer.scaled_bias(), q0_pair = backward_constant[row_pair];
      const C* of_pair = backward_linear.data() + row_pair * n;
      q0[at] = static_cast<T>(q0_pair);
      std::transform(of_pair, of_pair + n, q.data() + at * stride, [](C q_x) { return static_cast<T>(q_x); });
      if (means.given) continue;
      constant[ij] += p0_pair * q0_pair;
      add_offsets(forward_linear.data() + pair * n, of_pair, p0_pair, q0_pair, n, h.data() + ij * n);
    }
  });
}

template <class T>
void NearConstantCentering<T>::of_jacobian(const TileKernels<double>& tiles, const LayerFactors& layer) {
  const LayerFactors rows = thin_layer(layer);
  const int64_t n = rows.n, m = rows.m, d = rows.d;
  std::vector<double> weights(n * o * o, 0.0);  // column j takes the mean over the samples of output j
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

template <class T>
void NearConstantCentering<T>::of_jacobian(const LayerFactors& layer, const FactorMeans& means) {
  const int64_t s = layer.s, m = layer.m, d = layer.d;
  const double scale = layer.forward_scale * layer.backward_scale;
  jacobian_mean.assign(o * m * (d + 1), 0.0);
  for_each_item(o * m, 16, [&](int64_t item, int64_t) {
    const int64_t j = item / m, c = item % m;
    double* to = jacobian_mean.data() + j * m * (d + 1);
    for (int64_t position = 0; position < s; ++position) {
      const double g = means.backward[(position * o + j) * m + c] * scale;
      for (int64_t k = 0; k < d; ++k) to[c * d + k] += g * means.forward[position * d + k];
      to[m * d + c] += g * std::sqrt(layer.bias);
    }
  });
}

template struct NearConstantCentering<float>;
template struct NearConstantCentering<double>;

}  // namespace ahkernels::cpu
