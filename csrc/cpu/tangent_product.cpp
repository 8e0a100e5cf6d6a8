// Thin products K V in fp64, from the factors alone.
//
// With h_v(x, s) = sum_i V[(x, i), v] g_s^i(x) and t_v(x, s) = sum_{x', s'} (<a_s(x), a_s'(x')> + b) h_v(x', s'),
//
//     (K V)[(x, i), v] = sum_s <g_s^i(x), t_v(x, s)>,
//
// and t_v comes either through the parameters, t_v = M_v a + b sum h_v with M_v = sum h_v a^T, or through the forward
// Gram, whichever takes fewer flops.
#include "../ops.h"
#include "tile_walk.h"

namespace ahkernels::cpu {
namespace {

constexpr int64_t kDouble = static_cast<int64_t>(sizeof(double));
// The samples and the pre-activations are taken in slices such that none of the matrices held is much larger than this.
constexpr int64_t kSliceBytes = 8 << 20;
// The route through the forward Gram holds it whole, so it is for this many rows at most.
constexpr int64_t kMaxForwardGram = 2048;

using Tiles = TileKernels<double>;

// rows x k numbers packed in panels.
class PackedMatrix {
 public:
  PackedMatrix(const Tiles& tiles, const Strided& view, int64_t rows, int64_t k)
      : rows(rows), k(k), panels(ceil_div(rows, kPanel)), memory_(panels * k * kPanel * kDouble) {
    for_each_item(panels, 1, [&](int64_t panel, int64_t) {
      tiles.pack(view.from_row(panel * kPanel), nullptr, std::min(kPanel, rows - panel * kPanel), k, at(panel));
    });
  }
  double* at(int64_t panel) const { return memory_.at<double>(panel * k * kPanel * kDouble); }

  const int64_t rows, k, panels;

 private:
  AlignedBuffer memory_;
};

// out [a.rows, b.rows] += a b^T + constant
void add_product(const Tiles& tiles, const PackedMatrix& a, const PackedMatrix& b, double constant,
                 std::vector<double>& out) {
  AlignedBuffer scratch(thread_count() * kTileSize * kDouble);
  for_each_item(a.panels * b.panels, 1, [&](int64_t item, int64_t thread) {
    const int64_t row = item / b.panels * kPanel, col = item % b.panels * kPanel;
    const int64_t rows = std::min(kPanel, a.rows - row), cols = std::min(kPanel, b.rows - col);
    double* tile = scratch.at<double>(thread * kTileSize * kDouble);
    tiles.gemm(a.k, a.at(row / kPanel), b.at(col / kPanel), rows, cols, tile);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) out[(row + r) * b.rows + col + c] += tile[r * kPanel + c] + constant;
    }
  });
}

Strided row_major(const std::vector<double>& matrix, int64_t k) { return {matrix.data(), Element::kDouble, k, 1, 1.0}; }
Strided column_major(const std::vector<double>& matrix, int64_t rows) {
  return {matrix.data(), Element::kDouble, 1, rows, 1.0};
}

class Product {
 public:
  Product(const Tiles& tiles, const Kernel& kernel, const double* v, int64_t columns, double* out)
      : tiles_(tiles), kernel_(kernel), v_(v), columns_(columns), out_(out) {}

  void run() const {
    const int64_t rows = kernel_.n * kernel_.s, d = kernel_.d, m = kernel_.m * columns_;
    const bool through_gram = rows <= kMaxForwardGram && rows * (d + m) < 2 * m * d;
    const int64_t across = through_gram ? rows : std::max(d, rows < kMaxForwardGram ? rows : 1);
    const int64_t width = std::clamp<int64_t>(kSliceBytes / (kDouble * columns_ * across), 1, kernel_.m);
    if (through_gram) {
      const PackedMatrix a(tiles_, forward_rows(0), rows, d);
      std::vector<double> gram(rows * rows, 0.0);
      add_product(tiles_, a, a, kernel_.bias, gram);
      const PackedMatrix p(tiles_, row_major(gram, rows), rows, rows);
      for (int64_t begin = 0; begin < kernel_.m; begin += width) {
        slice_through_gram(p, begin, std::min(width, kernel_.m - begin));
      }
    } else {
      for (int64_t begin = 0; begin < kernel_.m; begin += width) {
        slice_through_parameters(begin, std::min(width, kernel_.m - begin));
      }
    }
  }

 private:
  void slice_through_gram(const PackedMatrix& p, int64_t begin, int64_t width) const {
    const int64_t cols = columns_ * width;
    const std::vector<double> h = contract(0, kernel_.n, begin, width);
    std::vector<double> t(p.rows * cols, 0.0);
    add_product(tiles_, p, PackedMatrix(tiles_, column_major(h, cols), cols, p.rows), 0.0, t);
    expand(t, 0, kernel_.n, begin, width);
  }

  void slice_through_parameters(int64_t begin, int64_t width) const {
    const int64_t cols = columns_ * width, d = kernel_.d;
    const int64_t samples = std::clamp<int64_t>(kSliceBytes / (kDouble * kernel_.s * std::max(d, cols)),
                                                std::min(kPanel, kernel_.n), kernel_.n);
    std::vector<double> weights(cols * d, 0.0), sums(cols, 0.0);  // M_v and sum h_v
    for (int64_t x = 0; x < kernel_.n; x += samples) {
      const int64_t count = std::min(samples, kernel_.n - x), rows = count * kernel_.s;
      const std::vector<double> h = contract(x, count, begin, width);
      Strided a = forward_rows(x);
      std::swap(a.row_stride, a.k_stride);
      add_product(tiles_, PackedMatrix(tiles_, column_major(h, cols), cols, rows), PackedMatrix(tiles_, a, d, rows),
                  0.0, weights);
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t c = 0; c < cols; ++c) sums[c] += kernel_.bias * h[row * cols + c];
      }
    }
    const PackedMatrix m(tiles_, row_major(weights, d), cols, d);
    for (int64_t x = 0; x < kernel_.n; x += samples) {
      const int64_t count = std::min(samples, kernel_.n - x), rows = count * kernel_.s;
      std::vector<double> t(rows * cols);
      for (int64_t row = 0; row < rows; ++row) std::copy(sums.begin(), sums.end(), t.begin() + row * cols);
      add_product(tiles_, PackedMatrix(tiles_, forward_rows(x), rows, d), m, 0.0, t);
      expand(t, x, count, begin, width);
    }
  }

  // The forward factor from `sample` on as rows (x, s); tangent_product() has seen to it that they have one stride.
  Strided forward_rows(int64_t sample) const {
    Strided rows = kernel_.forward_rows(sample, 0);
    if (kernel_.s > 1) rows.row_stride = kernel_.forward.stride(1);
    return rows;
  }
  Strided backward_row(int64_t x, int64_t use, int64_t output, int64_t begin) const {
    return kernel_.backward_rows(x, use, output).from_k(begin);
  }

  // h [(x, s), v, width] for the samples [first, first + count).
  std::vector<double> contract(int64_t first, int64_t count, int64_t begin, int64_t width) const {
    std::vector<double> h(count * kernel_.s * columns_ * width, 0.0);
    for_each_item(count, 8, [&](int64_t x, int64_t) {
      for (int64_t use = 0; use < kernel_.s; ++use) {
        for (int64_t i = 0; i < kernel_.o; ++i) {
          const Strided g = backward_row(first + x, use, i, begin);
          for (int64_t v = 0; v < columns_; ++v) {
            tiles_.axpy(v_[((first + x) * kernel_.o + i) * columns_ + v], g, width,
                        h.data() + ((x * kernel_.s + use) * columns_ + v) * width);
          }
        }
      }
    });
    return h;
  }

  // out += sum_s <g_s, t> for the samples [first, first + count).
  void expand(const std::vector<double>& t, int64_t first, int64_t count, int64_t begin, int64_t width) const {
    for_each_item(count, 8, [&](int64_t x, int64_t) {
      for (int64_t use = 0; use < kernel_.s; ++use) {
        for (int64_t i = 0; i < kernel_.o; ++i) {
          const Strided g = backward_row(first + x, use, i, begin);
          for (int64_t v = 0; v < columns_; ++v) {
            out_[((first + x) * kernel_.o + i) * columns_ + v] +=
                tiles_.dot(g, width, t.data() + ((x * kernel_.s + use) * columns_ + v) * width);
          }
        }
      }
    });
  }

  const Tiles& tiles_;
  const Kernel& kernel_;
  const double* v_;
  const int64_t columns_;
  double* out_;
};

}  // namespace

Tensor tangent_product(const Tensor& forward, const Tensor& backward, double bias, const Tensor& v) {
  // Rows (x, s) of the forward factor need one stride; only a layer used more than once can lack it.
  const bool gather = forward.dim() == 3 && forward.size(1) > 1;
  const Kernel kernel = make_kernels("tangent_product", {gather ? torch::stable::contiguous(forward) : forward},
                                     {backward}, {bias}, /*scaled=*/false)[0];
  STD_TORCH_CHECK(v.dim() == 3 && v.size(0) == kernel.n && v.size(1) == kernel.o && v.size(2) > 0 &&
                      v.is_contiguous() && v.scalar_type() == torch::headeronly::ScalarType::Double,
                  "tangent_product: v: expected a contiguous float64 tensor of shape [n, o, columns] = [", kernel.n,
                  ", ", kernel.o, ", columns]");
  Tensor out = torch::stable::new_zeros(v, {kernel.n, kernel.o, v.size(2)});
  Product(double_kernels(), kernel, static_cast<const double*>(v.const_data_ptr()), v.size(2),
          static_cast<double*>(out.mutable_data_ptr()))
      .run();
  return out;
}

}  // namespace ahkernels::cpu
