// Quadratic forms v^T K v in fp64.
#include "../ops.h"
#include "thin.h"

namespace ahkernels::cpu {

Tensor tangent_quadratic(const Tensor& forward, const Tensor& backward, double bias, const Tensor& v) {
  const Term term = make_thin_term("tangent_quadratic", forward, backward, bias, /*scaled=*/false);
  check_columns("tangent_quadratic", term, v);
  Tensor out = torch::stable::new_empty(v, {v.size(2)});
  ThinProduct<double>(double_kernels(), term, static_cast<const double*>(v.const_data_ptr()), v.size(2))
      .quadratic(static_cast<double*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace ahkernels::cpu
