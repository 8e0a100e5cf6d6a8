// Thin products K V, and those of the kernel between two sample sets.
#include "../ops.h"
#include "thin.h"

namespace ahkernels::cpu {
namespace {

Tensor empty_product(const Tensor& v, const Term& rows) {
  return torch::stable::new_empty(v, {rows.n, rows.o, v.size(2)});
}

template <class T>
void product(const TileKernels<T>& tiles, const Term& term, const Tensor& v, Tensor& out) {
  double* numbers = static_cast<double*>(out.mutable_data_ptr());
  ThinProduct<T>(tiles, term, static_cast<const double*>(v.const_data_ptr()), v.size(2)).product(numbers);
  if (term.scale() != 1) {
    for (int64_t i = 0; i < out.numel(); ++i) numbers[i] /= term.scale();
  }
}

}  // namespace

Tensor tangent_product(const Tensor& forward, const Tensor& backward, double bias, const Tensor& v, bool fp32) {
  const Term term = make_thin_term("tangent_product", forward, backward, bias, /*scaled=*/fp32);
  check_columns("tangent_product", term, v);
  Tensor out = empty_product(v, term);
  if (fp32 && term.element != Element::kDouble) {
    product(float_kernels("highest"), term, v, out);
  } else {
    product(double_kernels(), term, v, out);
  }
  return out;
}

Tensor tangent_cross_product(const Tensor& forward, const Tensor& backward, const Tensor& other_forward,
                             const Tensor& other_backward, double bias, const Tensor& v) {
  const std::string op = "tangent_cross_product";
  const Term rows = make_thin_term(op, forward, backward, bias, /*scaled=*/false);
  const Term columns = make_thin_term(op, other_forward, other_backward, bias, /*scaled=*/false);
  STD_TORCH_CHECK(columns.d == rows.d && columns.m == rows.m, op, ": other_forward: expected d and m of the factors (",
                  rows.d, ", ", rows.m, "), got (", columns.d, ", ", columns.m, ")");
  check_columns(op, columns, v);
  Tensor out = empty_product(v, rows);
  ThinProduct<double>(double_kernels(), columns, static_cast<const double*>(v.const_data_ptr()), v.size(2))
      .product(rows, static_cast<double*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace ahkernels::cpu
