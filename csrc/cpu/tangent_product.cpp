// Thin products K V in fp64.
#include "../ops.h"
#include "thin.h"

namespace ahkernels::cpu {

Tensor tangent_product(const Tensor& forward, const Tensor& backward, double bias, const Tensor& v) {
  const Term term = make_thin_term("tangent_product", forward, backward, bias, /*scaled=*/false);
  check_columns("tangent_product", term, v);
  Tensor out = torch::stable::new_empty(v, {term.n, term.o, v.size(2)});
  ThinProduct<double>(double_kernels(), term, static_cast<const double*>(v.const_data_ptr()), v.size(2))
      .product(static_cast<double*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace ahkernels::cpu
