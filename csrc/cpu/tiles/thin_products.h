// Products of K with few vectors, from the factors alone, in numbers of type T.
//
// With h_v(x', s) = sum_i V[(x', i), v] g_s^i(x') and t_v(x, s) = sum_{x', s'} (<a_s(x), a_s'(x')> + b) h_v(x', s'),
//
//     (K V)[(x, i), v] = sum_s <g_s^i(x), t_v(x, s)>      and      v^T K v = sum_{x, s} <h_v(x, s), t_v(x, s)>,
//
// where the x of K V may be other samples than the x' of V. There are two routes to t_v: through the parameters, as
// t_v = M_v a + b sum h_v with M_v = sum h_v a^T, or through the forward Gram. The one with fewer flops is taken.
// Through the parameters, v^T K v = ||M_v||^2 + b ||sum h_v||^2 needs no t_v.
#pragma once

#include <algorithm>
#include <vector>

#include "../aligned_buffer.h"
#include "../parallel.h"
#include "layer_factors.h"

namespace ahkernels::cpu {

// Samples and pre-activations are taken in slices, so that no matrix that is held is much larger than this.
constexpr MemoryLimit kSliceBytes{4 << 20};
// So many vectors are multiplied at a time: with more of them the slices of pre-activations become too thin.
constexpr int64_t kColumnsAtOnce = 16;
// The route through the forward Gram holds all of it, and is therefore for no more rows than this.
constexpr int64_t kMaxForwardGram = 2048;

// A matrix [rows, k] packed in panels.
template <class T>
class PackedMatrix {
 public:
  PackedMatrix(const TileKernels<T>& tiles, const Strided& view, int64_t rows, int64_t k)
      : rows(rows),
        k(k),
        panels(ceil_div(rows, kPanel)),
        panel_bytes_(tiles.panel_bytes(k)),
        memory_(panels * panel_bytes_) {
    for_each_item(panels, 4, [&](int64_t panel, int64_t) {
      tiles.pack(view.from_row(panel * kPanel), nullptr, std::min(kPanel, rows - panel * kPanel), k, at(panel));
    });
  }
  void* at(int64_t panel) const { return memory_.at<void>(panel * panel_bytes_); }

  const int64_t rows, k, panels;

 private:
  const int64_t panel_bytes_;
  const AlignedBuffer memory_;
};

// out [a.rows, b.rows] += a b^T + constant. Of a matrix with itself, tiles below the diagonal are mirrored.
template <class T>
void add_product(const TileKernels<T>& tiles, const PackedMatrix<T>& a, const PackedMatrix<T>& b, T constant,
                 std::vector<T>& out) {
  constexpr int64_t kTileBytes = kTileSize * static_cast<int64_t>(sizeof(T));
  AlignedBuffer scratch(thread_count() * kTileBytes);
  const bool symmetric = &a == &b;
  const int64_t pairs = symmetric ? a.panels * (a.panels + 1) / 2 : a.panels * b.panels;
  for_each_item(pairs, 1, [&](int64_t item, int64_t thread) {
    const PanelPair pair = symmetric ? triangle_pair(item) : rectangle_pair(item, b.panels);
    const int64_t row = pair.row * kPanel, col = pair.col * kPanel;
    const int64_t rows = std::min(kPanel, a.rows - row), cols = std::min(kPanel, b.rows - col);
    T* tile = scratch.at<T>(thread * kTileBytes);
    tiles.gemm(tiles.padded(a.k), a.at(pair.row), b.at(pair.col), rows, cols, /*accumulate=*/false, tile);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) out[(row + r) * b.rows + col + c] += tile[r * kPanel + c] + constant;
    }
    if (!symmetric || pair.row == pair.col) return;
    for (int64_t c = 0; c < cols; ++c) {
      for (int64_t r = 0; r < rows; ++r) out[(col + c) * b.rows + row + r] += tile[r * kPanel + c] + constant;
    }
  });
}

// Products of one layer's K, times the layer's scale, with v [n, o, columns].
template <class T>
class ThinProduct {
 public:
  ThinProduct(const TileKernels<T>& tiles, const LayerFactors& layer, const double* v, int64_t columns)
      : tiles_(tiles), layer_(layer), v_(v), columns_(columns) {}

  // out [n, o, columns] = K v
  void product(double* out) const { product(layer_, out); }

  // out [rows.n, rows.o, columns] = K(rows, layer) v, for the samples of `rows`: factors of the same layer and scale
  void product(const LayerFactors& rows, double* out) const {
    if (columns_ > kColumnsAtOnce) return product_of_groups(rows, out);
    std::fill(out, out + rows.n * rows.o * columns_, 0.0);
    for_each_slice(
        rows, 2,
        [&](const PackedMatrix<T>& p, int64_t begin, int64_t width) {
          const std::vector<T> h = contract(0, layer_.n, begin, width);
          expand(rows, through_gram(p, h, columns_ * width), 0, rows.n, begin, width, out);
        },
        [&](int64_t begin, int64_t width) { product_through_parameters(rows, begin, width, out); });
  }

  // out [columns] = v^T K v of each column
  void quadratic(double* out) const {
    std::fill(out, out + columns_, 0.0);
    for_each_slice(
        layer_, 1,
        [&](const PackedMatrix<T>& p, int64_t begin, int64_t width) {
          const std::vector<T> h = contract(0, layer_.n, begin, width);
          const std::vector<T> t = through_gram(p, h, columns_ * width);
          for (size_t i = 0; i < h.size(); ++i) {
            out[static_cast<int64_t>(i) / width % columns_] += static_cast<double>(h[i]) * static_cast<double>(t[i]);
          }
        },
        [&](int64_t begin, int64_t width) {
          const Weights weights = sum_weights(begin, width);
          const int64_t d = layer_.d;
          for (int64_t c = 0; c < columns_ * width; ++c) {
            double square =
                layer_.scaled_bias() * static_cast<double>(weights.sums[c]) * static_cast<double>(weights.sums[c]);
            for (int64_t i = 0; i < d; ++i) {
              square += static_cast<double>(weights.matrix[c * d + i]) * static_cast<double>(weights.matrix[c * d + i]);
            }
            out[c / width] += square;
          }
        });
  }

  struct Weights {
    std::vector<T> matrix;  // M_v, [columns * width, d]
    std::vector<T> sums;    // sum h_v, [columns * width]
  };

  // M_v and sum h_v for `width` pre-activations from `begin` on.
  Weights sum_weights(int64_t begin, int64_t width) const {
    const int64_t cols = columns_ * width, d = layer_.d, samples = samples_at_once(layer_, cols);
    Weights weights{std::vector<T>(cols * d, T{0}), std::vector<T>(cols, T{0})};
    for (int64_t x = 0; x < layer_.n; x += samples) {
      const int64_t count = std::min(samples, layer_.n - x), rows = count * layer_.s;
      const std::vector<T> h = contract(x, count, begin, width);
      Strided a = forward_rows(layer_, x);
      std::swap(a.row_stride, a.k_stride);
      add_product(tiles_, PackedMatrix<T>(tiles_, column_major(h, cols), cols, rows),
                  PackedMatrix<T>(tiles_, a, d, rows), T{0}, weights.matrix);
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t c = 0; c < cols; ++c) weights.sums[c] += h[row * cols + c];
      }
    }
    return weights;
  }

 private:
  // The product with groups of the columns.
  void product_of_groups(const LayerFactors& rows, double* out) const {
    const int64_t count = layer_.n * layer_.o, out_count = rows.n * rows.o;
    std::vector<double> v(count * kColumnsAtOnce), of_group(out_count * kColumnsAtOnce);
    for (int64_t first = 0; first < columns_; first += kColumnsAtOnce) {
      const int64_t columns = std::min(kColumnsAtOnce, columns_ - first);
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t c = 0; c < columns; ++c) v[i * columns + c] = v_[i * columns_ + first + c];
      }
      ThinProduct(tiles_, layer_, v.data(), columns).product(rows, of_group.data());
      for (int64_t i = 0; i < out_count; ++i) {
        for (int64_t c = 0; c < columns; ++c) out[i * columns_ + first + c] = of_group[i * columns + c];
      }
    }
  }

  // Calls gram(p, begin, width), with the forward Gram p of `others` and the layer, or parameters(begin, width), for
  // slices of the pre-activations. The route through the parameters takes a pass over them for the layer and, with two
  // `passes`, one for the others.
  template <class Gram, class Parameters>
  void for_each_slice(const LayerFactors& others, int64_t passes, const Gram& gram,
                      const Parameters& parameters) const {
    const int64_t columns = layer_.n * layer_.s, rows = others.n * others.s, d = layer_.d, m = layer_.m * columns_;
    const int64_t passed = columns + (passes - 1) * rows;  // samples and positions, in all passes
    const bool by_gram = std::max(rows, columns) <= kMaxForwardGram && rows * columns * (d + m) <= passed * m * d;
    const int64_t across = by_gram ? std::max(rows, columns) : std::max<int64_t>(d, 1);
    const int64_t bytes = static_cast<int64_t>(sizeof(T)) * columns_ * across;
    const int64_t slice = std::clamp<int64_t>(kSliceBytes / bytes, 1, std::max<int64_t>(layer_.m, 1));
    if (by_gram) {
      const PackedMatrix<T> a(tiles_, forward_rows(layer_, 0), columns, d);
      std::vector<T> forward_gram(rows * columns, T{0});
      if (&others == &layer_) {
        add_product(tiles_, a, a, static_cast<T>(layer_.scaled_bias()), forward_gram);
      } else {
        const PackedMatrix<T> b(tiles_, forward_rows(others, 0), rows, d);
        add_product(tiles_, b, a, static_cast<T>(layer_.scaled_bias()), forward_gram);
      }
      const PackedMatrix<T> p(tiles_, row_major(forward_gram, columns), rows, columns);
      for (int64_t begin = 0; begin < layer_.m; begin += slice) gram(p, begin, std::min(slice, layer_.m - begin));
    } else {
      for (int64_t begin = 0; begin < layer_.m; begin += slice) parameters(begin, std::min(slice, layer_.m - begin));
    }
  }

  std::vector<T> through_gram(const PackedMatrix<T>& p, const std::vector<T>& h, int64_t cols) const {
    std::vector<T> t(p.rows * cols, T{0});
    add_product(tiles_, p, PackedMatrix<T>(tiles_, column_major(h, cols), cols, p.k), T{0}, t);
    return t;
  }

  // Number of samples whose inputs take no more than kSliceBytes, nor their h.
  static int64_t samples_at_once(const LayerFactors& layer, int64_t cols) {
    const int64_t bytes = static_cast<int64_t>(sizeof(T)) * layer.s * std::max(layer.d, cols);
    return std::clamp<int64_t>(kSliceBytes / bytes, std::min(kPanel, layer.n), layer.n);
  }

  void product_through_parameters(const LayerFactors& others, int64_t begin, int64_t width, double* out) const {
    const int64_t cols = columns_ * width, d = layer_.d, samples = samples_at_once(others, cols);
    Weights weights = sum_weights(begin, width);
    for (T& sum : weights.sums) sum *= static_cast<T>(layer_.scaled_bias());
    const PackedMatrix<T> m(tiles_, row_major(weights.matrix, d), cols, d);
    for (int64_t x = 0; x < others.n; x += samples) {
      const int64_t count = std::min(samples, others.n - x), rows = count * others.s;
      std::vector<T> t(rows * cols);
      for (int64_t row = 0; row < rows; ++row) {
        std::copy(weights.sums.begin(), weights.sums.end(), t.begin() + row * cols);
      }
      add_product(tiles_, PackedMatrix<T>(tiles_, forward_rows(others, x), rows, d), m, T{0}, t);
      expand(others, t, x, count, begin, width, out);
    }
  }

  static constexpr Element kElement = sizeof(T) == 8 ? Element::kDouble : Element::kFloat;
  static Strided row_major(const std::vector<T>& matrix, int64_t k) { return {matrix.data(), kElement, k, 1, 1.0}; }
  static Strided column_major(const std::vector<T>& matrix, int64_t rows) {
    return {matrix.data(), kElement, 1, rows, 1.0};
  }

  // The forward factor from `sample` on as rows (x, s), which have one stride: see thin_layer().
  static Strided forward_rows(const LayerFactors& layer, int64_t sample) {
    Strided rows = layer.forward_rows(sample, 0);
    if (layer.s > 1) rows.row_stride = layer.forward.stride(1);
    return rows;
  }

  // h_v as [(x, s), v, width] for the samples [first, first + count)
  std::vector<T> contract(int64_t first, int64_t count, int64_t begin, int64_t width) const {
    std::vector<T> h(count * layer_.s * columns_ * width, T{0});
    const BackwardRows backward(layer_);
    for_each_item(count, 32, [&](int64_t x, int64_t) {
      for (int64_t position = 0; position < layer_.s; ++position) {
        for (int64_t i = 0; i < layer_.o; ++i) {
          const Strided g = backward.at(first + x, position, i).from_k(begin);
          for (int64_t v = 0; v < columns_; ++v) {
            tiles_.axpy(static_cast<T>(v_[((first + x) * layer_.o + i) * columns_ + v]), g, width,
                        h.data() + ((x * layer_.s + position) * columns_ + v) * width);
          }
        }
      }
    });
    return h;
  }

  // out += sum_s <g_s, t> for the samples [first, first + count) of `others`
  void expand(const LayerFactors& others, const std::vector<T>& t, int64_t first, int64_t count, int64_t begin,
              int64_t width, double* out) const {
    const BackwardRows backward(others);
    for_each_item(count, 32, [&](int64_t x, int64_t) {
      for (int64_t position = 0; position < others.s; ++position) {
        for (int64_t i = 0; i < others.o; ++i) {
          const Strided g = backward.at(first + x, position, i).from_k(begin);
          for (int64_t v = 0; v < columns_; ++v) {
            out[((first + x) * others.o + i) * columns_ + v] += static_cast<double>(
                tiles_.dot(g, width, t.data() + ((x * others.s + position) * columns_ + v) * width));
          }
        }
      }
    });
  }

  const TileKernels<T>& tiles_;
  const LayerFactors& layer_;
  const double* v_;  // [n, o, columns]
  const int64_t columns_;
};

// The layer with a forward factor that has one stride over rows (x, s), which it can lack with several positions.
inline LayerFactors thin_layer(LayerFactors layer) {
  if (layer.s > 1) layer.forward = torch::stable::contiguous(layer.forward);
  return layer;
}

// The layers of the only kernel in a batch, as thin_layer() makes them. With `scaled`, each layer has its own scale.
inline std::vector<LayerFactors> thin_layers_of(const std::string& op, const KernelBatch& batch, bool scaled,
                                                const std::string& prefix = "") {
  std::vector<LayerFactors> layers =
      layer_factors_of(op, batch, scaled ? Scaling::kByLayer : Scaling::kNone, std::nullopt, prefix);
  require_one_kernel(op, batch, prefix);
  for (LayerFactors& layer : layers) layer = thin_layer(layer);
  return layers;
}

}  // namespace ahkernels::cpu
