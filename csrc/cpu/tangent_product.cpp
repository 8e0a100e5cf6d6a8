// Thin products K V in fp64.
#include "../ops.h"
#include "thin.h"

namespace ahkernels::cpu {

Tensor tangent_product(const Tensor& forward, const Tensor& backward, double bias, const Tensor& v) {
  const Kernel kernel = make_thin_kernel("tangent_product", forward, backward, bias, /*scaled=*/false);
  check_columns("tangent_product", kernel, v);
  Tensor out = torch::stable::new_empty(v, {kernel.n, kernel.o, v.size(2)});
  ThinProduct<double>(double_kernels(), kernel, static_cast<const double*>(v.const_data_ptr()), v.size(2))
      .product(static_cast<double*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace ahkernels::cpu
