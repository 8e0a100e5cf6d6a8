// Row sums K 1, as exact as centering asks for.
//
// Centered sums of squares depend on an error of the row sums in second order alone, so that for kernels over several
// outputs the precision of the tiles is enough. Kernels over samples alone can be so close to constant that even that
// error shows: for them, fp64.
#include "../ops.h"
#include "row_sums.h"
#include "thin.h"

namespace ahkernels::cpu {
namespace {

template <class T>
void row_sums(const TileKernels<T>& tiles, const Term& term, double* out) {
  const std::vector<double> ones(term.n * term.o, 1.0);
  ThinProduct<T>(tiles, term, ones.data(), 1).product(out);
  for (int64_t row = 0; row < term.n * term.o; ++row) out[row] /= term.scale();
}

}  // namespace

void row_sums(const Term& term, double* out) {
  if (term.o == 1 || term.element == Element::kDouble) {
    row_sums(double_kernels(), thin_term(term), out);
  } else {
    row_sums(float_kernels("highest"), thin_term(term), out);
  }
}

Tensor tangent_row_sums(const Tensor& forward, const Tensor& backward, double bias) {
  const Term term = make_thin_term("tangent_row_sums", forward, backward, bias, /*scaled=*/true);
  Tensor out = torch::stable::new_empty(forward, {term.n, term.o}, torch::headeronly::ScalarType::Double);
  row_sums(term, static_cast<double*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace ahkernels::cpu
