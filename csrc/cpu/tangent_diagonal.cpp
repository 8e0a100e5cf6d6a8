// The diagonal of K in fp64: K[(x, i), (x, i)] = sum_{s, s'} (<a_s(x), a_s'(x)> + b) <g_s^i(x), g_s'^i(x)>.
#include "../ops.h"
#include "jacobian.h"
#include "parallel.h"

namespace ahkernels::cpu {
namespace {

// out [s, s] = inner products of the s rows of k numbers that row(0), ..., row(s - 1) are; `copy` has room for k.
template <class Row>
void inner_products(const TileKernels<double>& tiles, int64_t s, int64_t k, const Row& row, double* copy, double* out) {
  for (int64_t use = 0; use < s; ++use) {
    std::fill(copy, copy + k, 0.0);
    tiles.axpy(1.0, row(use), k, copy);
    for (int64_t other = 0; other <= use; ++other) {
      out[use * s + other] = out[other * s + use] = tiles.dot(row(other), k, copy);
    }
  }
}

// out [n, o] = sum of the squares of each row of the Jacobian.
void squares_of_jacobian(const Term& term, double* out) {
  constexpr int64_t kBytes = 8 << 20;
  const int64_t fitting = std::max<int64_t>(1, kBytes / (term.o * kTileSize * 8));  // tiles of all outputs
  const JacobianSlices<double> jacobian(double_kernels(), term, /*mean=*/nullptr, ceil_div(fitting, term.n));
  const int64_t stride = jacobian.row_numbers();
  const int64_t samples = std::clamp<int64_t>(kBytes / (term.o * stride * 8), 1, term.n);
  const AlignedBuffer memory(samples * term.o * stride * 8);
  std::fill(out, out + term.n * term.o, 0.0);
  for (int64_t first = 0; first < term.n; first += samples) {
    const int64_t count = std::min(samples, term.n - first);
    for (int64_t slice = 0; slice < jacobian.slices(); ++slice) {
      jacobian.fill(slice, first, count, memory.at<double>(0));
      for_each_item(count * term.o, 4, [&](int64_t row, int64_t) {
        const double* numbers = memory.at<double>(row * stride * 8);
        const Strided view{numbers, Element::kDouble, stride, 1, 1.0};
        out[first * term.o + row] += double_kernels().dot(view, jacobian.numbers(slice), numbers);
      });
    }
  }
}

}  // namespace

Tensor tangent_diagonal(const Tensor& forward, const Tensor& backward, double bias, bool by_jacobian) {
  const Term term =
      make_terms("tangent_diagonal", {{forward}, {backward}, {bias}, {by_jacobian}, {}}, /*scaled=*/false)[0];
  const TileKernels<double>& tiles = double_kernels();
  Tensor out = torch::stable::new_empty(forward, {term.n, term.o}, torch::headeronly::ScalarType::Double);
  double* diagonal = static_cast<double*>(out.mutable_data_ptr());
  if (term.by_jacobian) {
    squares_of_jacobian(term, diagonal);
    return out;
  }
  const int64_t longest = std::max(term.d, term.m), pairs = term.s * term.s;
  std::vector<double> scratch(thread_count() * (longest + 2 * pairs));
  for_each_item(term.n, 32, [&](int64_t x, int64_t thread) {
    double* p = scratch.data() + thread * (longest + 2 * pairs);
    double* q = p + pairs;
    double* copy = q + pairs;
    inner_products(tiles, term.s, term.d, [&](int64_t use) { return term.forward_rows(x, use); }, copy, p);
    for (int64_t i = 0; i < term.o; ++i) {
      inner_products(tiles, term.s, term.m, [&](int64_t use) { return term.backward_rows(x, use, i); }, copy, q);
      double sum = 0;
      for (int64_t pair = 0; pair < pairs; ++pair) sum += (p[pair] + term.bias) * q[pair];
      diagonal[x * term.o + i] = sum;
    }
  });
  return out;
}

}  // namespace ahkernels::cpu
