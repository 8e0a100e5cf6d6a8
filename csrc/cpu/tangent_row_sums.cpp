// Row sums K 1, as exact as centering asks for.
//
// Centered sums of squares depend on an error of the row sums in second order alone, so that for kernels over several
// outputs the precision of the tiles is enough. Kernels over samples alone can be so close to constant that even that
// error shows: for them, fp64.
#include "../ops.h"
#include "thin.h"

namespace ahkernels::cpu {
namespace {

template <class T>
void row_sums(const TileKernels<T>& tiles, const Kernel& kernel, double* out) {
  const std::vector<double> ones(kernel.n * kernel.o, 1.0);
  ThinProduct<T>(tiles, kernel, ones.data(), 1).product(out);
  for (int64_t row = 0; row < kernel.n * kernel.o; ++row) out[row] /= kernel.scale();
}

}  // namespace

Tensor tangent_row_sums(const Tensor& forward, const Tensor& backward, double bias) {
  const Kernel kernel = make_thin_kernel("tangent_row_sums", forward, backward, bias, /*scaled=*/true);
  Tensor out = torch::stable::new_empty(forward, {kernel.n, kernel.o}, torch::headeronly::ScalarType::Double);
  double* sums = static_cast<double*>(out.mutable_data_ptr());
  if (kernel.o == 1 || kernel.element == Element::kDouble) {
    row_sums(double_kernels(), kernel, sums);
  } else {
    row_sums(float_kernels("highest"), kernel, sums);
  }
  return out;
}

}  // namespace ahkernels::cpu
