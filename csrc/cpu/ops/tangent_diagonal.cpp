// The diagonal of K in fp64: K[(x, i), (x, i)] = sum_{s, s'} (<a_s(x), a_s'(x)> + b) <g_s^i(x), g_s'^i(x)>.
#include "../parallel.h"
#include "../tiles/jacobian_slices.h"
#include "ops.h"

namespace ahkernels::cpu {
namespace {

// out [s, s] = inner products of row(0), ..., row(s - 1), which have k numbers each; `copy` has room for k numbers.
template <class Row>
void inner_products(const TileKernels<double>& tiles, int64_t s, int64_t k, const Row& row, double* copy, double* out) {
  for (int64_t position = 0; position < s; ++position) {
    std::fill(copy, copy + k, 0.0);
    tiles.axpy(1.0, row(position), k, copy);
    for (int64_t other = 0; other <= position; ++other) {
      out[position * s + other] = out[other * s + position] = tiles.dot(row(other), k, copy);
    }
  }
}

// out [n, o] = the sums of squares of the rows of the Jacobian.
void squares_of_jacobian(const LayerFactors& layer, double* out) {
  constexpr MemoryLimit kBytes{8 << 20};
  const int64_t fitting = std::max<int64_t>(1, kBytes / (layer.o * kTileSize * 8));  // tiles of all outputs
  const JacobianSlices<double> jacobian(double_kernels(), layer, /*mean=*/nullptr, ceil_div(fitting, layer.n));
  const int64_t stride = jacobian.row_numbers();
  const int64_t samples = std::clamp<int64_t>(kBytes / (layer.o * stride * 8), 1, layer.n);
  const AlignedBuffer memory(samples * layer.o * stride * 8);
  std::fill(out, out + layer.n * layer.o, 0.0);
  for (int64_t first = 0; first < layer.n; first += samples) {
    const int64_t count = std::min(samples, layer.n - first);
    for (int64_t slice = 0; slice < jacobian.slices(); ++slice) {
      jacobian.fill(slice, first, count, memory.at<double>(0));
      for_each_item(count * layer.o, 4, [&](int64_t row, int64_t) {
        const double* numbers = memory.at<double>(row * stride * 8);
        const Strided view{numbers, Element::kDouble, stride, 1, 1.0};
        out[first * layer.o + row] += double_kernels().dot(view, jacobian.numbers(slice), numbers);
      });
    }
  }
}

// out [n, o] from pairs of positions.
void diagonal_of_pairs(const LayerFactors& layer, double* out) {
  const TileKernels<double>& tiles = double_kernels();
  const int64_t longest = std::max(layer.d, layer.m), pairs = layer.s * layer.s;
  std::vector<double> scratch(thread_count() * (longest + 2 * pairs));
  const BackwardRows backward(layer);
  for_each_item(layer.n, 32, [&](int64_t x, int64_t thread) {
    double* p = scratch.data() + thread * (longest + 2 * pairs);
    double* q = p + pairs;
    double* copy = q + pairs;
    inner_products(tiles, layer.s, layer.d, [&](int64_t position) { return layer.forward_rows(x, position); }, copy, p);
    for (int64_t i = 0; i < layer.o; ++i) {
      inner_products(tiles, layer.s, layer.m, [&](int64_t position) { return backward.at(x, position, i); }, copy, q);
      double sum = 0;
      for (int64_t pair = 0; pair < pairs; ++pair) sum += (p[pair] + layer.bias) * q[pair];
      out[x * layer.o + i] = sum;
    }
  });
}

}  // namespace

Tensor tangent_diagonal(const KernelBatch& batch) {
  const std::vector<LayerFactors> layers = layer_factors_of("tangent_diagonal", batch, Scaling::kNone);
  require_one_kernel("tangent_diagonal", batch);
  Tensor out =
      torch::stable::new_empty(batch.forward[0], {layers[0].n, layers[0].o}, torch::headeronly::ScalarType::Double);
  sum_over_layers(layers.size(), out.numel(), static_cast<double*>(out.mutable_data_ptr()),
                  [&](size_t which, double* to) {
                    if (layers[which].by_jacobian) {
                      squares_of_jacobian(layers[which], to);
                    } else {
                      diagonal_of_pairs(layers[which], to);
                    }
                  });
  return out;
}

}  // namespace ahkernels::cpu
