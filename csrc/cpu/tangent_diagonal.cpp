// The diagonal of K in fp64: K[(x, i), (x, i)] = sum_{s, s'} (<a_s(x), a_s'(x)> + b) <g_s^i(x), g_s'^i(x)>.
#include "../ops.h"
#include "kernel.h"
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

}  // namespace

Tensor tangent_diagonal(const Tensor& forward, const Tensor& backward, double bias) {
  const Kernel kernel = make_kernels("tangent_diagonal", {forward}, {backward}, {bias}, /*scaled=*/false)[0];
  const TileKernels<double>& tiles = double_kernels();
  Tensor out = torch::stable::new_empty(forward, {kernel.n, kernel.o}, torch::headeronly::ScalarType::Double);
  double* diagonal = static_cast<double*>(out.mutable_data_ptr());
  const int64_t longest = std::max(kernel.d, kernel.m), pairs = kernel.s * kernel.s;
  std::vector<double> scratch(thread_count() * (longest + 2 * pairs));
  for_each_item(kernel.n, 32, [&](int64_t x, int64_t thread) {
    double* p = scratch.data() + thread * (longest + 2 * pairs);
    double* q = p + pairs;
    double* copy = q + pairs;
    inner_products(tiles, kernel.s, kernel.d, [&](int64_t use) { return kernel.forward_rows(x, use); }, copy, p);
    for (int64_t i = 0; i < kernel.o; ++i) {
      inner_products(tiles, kernel.s, kernel.m, [&](int64_t use) { return kernel.backward_rows(x, use, i); }, copy, q);
      double sum = 0;
      for (int64_t pair = 0; pair < pairs; ++pair) sum += (p[pair] + kernel.bias) * q[pair];
      diagonal[x * kernel.o + i] = sum;
    }
  });
  return out;
}

}  // namespace ahkernels::cpu
