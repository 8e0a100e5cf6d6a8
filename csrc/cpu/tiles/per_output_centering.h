// Centering per output: row sums by output of the tiles of T (near_constant_centering.h), from which the inner products
// of kernels follow, both with each block of two outputs centered and with the whole kernel centered.
//
// With S_i,j(x) = sum_s T_xi,sj from the tiles and h, c from the factors, the row means of K by output are
//
//     M_xi,j = (S_i,j(x) + sum_s h_s,ji) / n + h_x,ij + c_ij          m_ij = mean_x M_xi,j
//
// and with C_o = (I_n - 11^T/n) (x) I_o, C = I - 11^T/(no), B = I_o - 11^T/o and Z = M less its mean over x
//
//     <C_o K C_o, C_o K' C_o> = <T, T'> - 2/n <S, S'> + 1/n^2 sum_ij (sum_x S_ij) (sum_x S'_ij)
//     <C K C, C K' C> = <C_o K C_o, C_o K' C_o> + 2n <Z B, Z' B> + n^2 <B m B, B m' B>.
//
// Nothing cancels in the latter. The former loses few digits, since T has no constant part.
#pragma once

#include <algorithm>
#include <vector>

#include "../chained_sums.h"
#include "near_constant_centering.h"
#include "tile_walk.h"

namespace ahkernels::cpu {

// Adds up the sums S of some kernels while their tiles are visited: see walk_tiles().
template <class T>
class BlockSums {
 public:
  explicit BlockSums(const std::vector<LayerFactors>& layers)
      : kernels_(kernel_count(layers)),
        n_(layers[0].n),
        o_(layers[0].o),
        stride_(ceil_div(n_, kPanel) * kPanel),
        sums_(kernels_ * o_ * o_ * stride_, 0.0) {}

  // Bytes that it holds for each item of a part.
  static int64_t item_bytes(const std::vector<LayerFactors>& layers) {
    return layers[0].o * kernel_count(layers) * 2 * kPanel * static_cast<int64_t>(sizeof(T));
  }

  void begin(const TileBlock& part) { of_tiles_.assign(part.items() * o_ * kernels_ * 2 * kPanel, T{0}); }

  // Where the visitor writes the row sums of tile (item, j) of a kernel; the column sums follow kPanel numbers later.
  T* at(int64_t index, int64_t j, int64_t kernel) {
    return of_tiles_.data() + ((index * o_ + j) * kernels_ + kernel) * 2 * kPanel;
  }

  void done(const TileBlock& part) {
    for_each_item(kernels_ * o_ * o_, 1, [&](int64_t item, int64_t) {
      const int64_t kernel = item / (o_ * o_), i = item / o_ % o_, j = item % o_;
      double* to = sums_.data() + item * stride_;
      for (int64_t index = 0; index < part.pairs(); ++index) {
        const PanelPair pair = part.pair(index);
        // Samples of the row panel have S_ij from the rows of tile (i, j), those of the column panel from the columns
        // of tile (j, i). On the diagonal only one of the two tiles is visited.
        if (pair.row != pair.col || j >= i) add(part, pair, i, j, kernel, 0, to + pair.row * kPanel);
        if (pair.row != pair.col || j < i) add(part, pair, j, i, kernel, kPanel, to + pair.col * kPanel);
      }
    });
  }

  // Whether the squares of a kernel's T, which add up to `squares`, may have left the range of fp32. That happens where
  // a bias is much larger than the inputs, so that T is tiny at the scale of the bias. It does not where T is zero.
  bool below_float(double squares, int64_t kernel) const {
    const int64_t size = o_ * o_ * stride_, count = n_ * o_ * n_ * o_;
    const double* of_kernel = sums_.data() + kernel * size;
    const bool zero = squares == 0 && std::all_of(of_kernel, of_kernel + size, [](double sum) { return sum == 0; });
    return !zero && squares < 1e-26 * static_cast<double>(count);
  }

  // S [n] of a kernel at outputs i and j.
  const double* of(int64_t kernel, int64_t i, int64_t j) const {
    return sums_.data() + ((kernel * o_ + i) * o_ + j) * stride_;
  }

 private:
  void add(const TileBlock& part, const PanelPair& pair, int64_t i, int64_t j, int64_t kernel, int64_t offset,
           double* to) {
    if (i < part.output_begin || i >= part.output_end) return;
    const T* from = at(part.index({pair, i}), j, kernel) + offset;
    for (int64_t x = 0; x < kPanel; ++x) to[x] += static_cast<double>(from[x]);
  }

  const int64_t kernels_, n_, o_, stride_;
  std::vector<double> sums_;  // [kernel][i][j][stride]
  std::vector<T> of_tiles_;
};

// The quantities of the formulas above for one kernel times its scale.
struct BlockMeans {
  int64_t n, o;
  std::vector<double> s, zb;  // [i][j][n] S and Z B
  std::vector<double> total;  // [i][j] the sum of S over x
  std::vector<double> bmb;    // [i][j]
  double trace;               // of K - T
  double sum, diagonal_sum;   // of all entries of K, and of the entries of its blocks on the diagonal

  template <class T>
  BlockMeans(const BlockSums<T>& sums, int64_t kernel, const std::vector<LayerFactors>& layers,
             const std::vector<NearConstantCentering<T>>& centering)
      : n(layers[0].n), o(layers[0].o), s(o * o * n), zb(o * o * n, 0.0), total(o * o, 0.0), bmb(o * o) {
    const double count = static_cast<double>(n), outputs = static_cast<double>(o);
    std::vector<double> h_mean(o * o), constant(o * o, 0.0);
    for_each_item(o, 1, [&](int64_t i, int64_t) {
      std::vector<double> row_mean(n, 0.0);
      for (int64_t ij = i * o; ij < (i + 1) * o; ++ij) {
        double *of_s = s.data() + ij * n, *z = zb.data() + ij * n;  // z holds h, then M, then Z, and in the end Z B
        for (size_t t = 0; t < layers.size(); ++t) {
          if (static_cast<int64_t>(layers[t].kernel) != kernel) continue;
          constant[ij] += centering[t].constant[ij];
          const double* h = centering[t].h.data() + ij * n;
          for (int64_t x = 0; x < n; ++x) z[x] += h[x];
        }
        std::copy_n(sums.of(kernel, i, ij % o), n, of_s);
        total[ij] = sum_of(of_s, n);
        h_mean[ij] = sum_of(z, n) / count;
        const double mean = total[ij] / (count * count) + h_mean[ij];
        for (int64_t x = 0; x < n; ++x) {
          z[x] += of_s[x] / count - mean;
          row_mean[x] += z[x] / outputs;
        }
      }
      for (int64_t ij = i * o; ij < (i + 1) * o; ++ij) {
        for (int64_t x = 0; x < n; ++x) zb[ij * n + x] -= row_mean[x];
      }
    });
    trace = sum = diagonal_sum = 0;
    std::vector<double> row(o, 0.0), col(o, 0.0);
    double all = 0;
    for (int64_t ij = 0; ij < o * o; ++ij) {
      const int64_t i = ij / o, j = ij % o;
      const double m = total[ij] / (count * count) + h_mean[ij] + h_mean[j * o + i] + constant[ij];
      bmb[ij] = m;
      row[i] += m / outputs;
      col[j] += m / outputs;
      all += m / (outputs * outputs);
      sum += m * count * count;
      if (i == j) diagonal_sum += m * count * count;
      if (i == j) trace += count * (constant[ij] + 2 * h_mean[ij]);
    }
    for (int64_t ij = 0; ij < o * o; ++ij) bmb[ij] += all - row[ij / o] - col[ij % o];
  }

  // v^T K v - v_o^T K v_o = 2n <v_o, Z w> + n^2 <w, m w> for v = v_o + w, where v_o [n, o] is centered over the samples
  // of each output, and w [o], of zero sum, is the same for each sample. B may stand beside w, as B w = w.
  double form(const double* v_o, const std::vector<double>& w) const {
    double linear = 0, square = 0;
    for (int64_t ij = 0; ij < o * o; ++ij) {
      const int64_t i = ij / o, j = ij % o;
      square += w[i] * bmb[ij] * w[j];
      double sum = 0;
      for (int64_t x = 0; x < n; ++x) sum += v_o[x * o + i] * zb[ij * n + x];
      linear += sum * w[j];
    }
    return 2 * static_cast<double>(n) * linear + static_cast<double>(n * n) * square;
  }
};

struct CenteredProducts {
  double per_output, global;
};

// Inner products of two kernels, both with each block centered and with the whole kernels centered, from the inner
// product <T, T'>.
inline CenteredProducts centered_products(double of_tiles, const BlockMeans& a, const BlockMeans& b) {
  const auto dot = [](const std::vector<double>& x, const std::vector<double>& y) {
    return cpu::dot(x.data(), y.data(), static_cast<int64_t>(x.size()));
  };
  const double n = static_cast<double>(a.n);
  const double per_output = of_tiles - 2 / n * dot(a.s, b.s) + dot(a.total, b.total) / (n * n);
  return {per_output, per_output + 2 * n * dot(a.zb, b.zb) + n * n * dot(a.bmb, b.bmb)};
}

}  // namespace ahkernels::cpu
