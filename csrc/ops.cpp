// Schemas of the ops and their CPU implementations, registered with torch's dispatcher through its stable ABI.
#include "ops.h"

#include <torch/csrc/stable/library.h>

namespace {

using torch::stable::Tensor;

// The dispatcher hands arguments over by value.
Tensor centered_moments(std::vector<Tensor> forward, std::vector<Tensor> backward, std::vector<double> bias,
                        std::vector<Tensor> row_means, std::string precision, std::vector<bool> by_jacobian,
                        std::vector<int64_t> terms) {
  return ahkernels::cpu::centered_moments({forward, backward, bias, by_jacobian, terms}, row_means, precision);
}

Tensor tangent_gram(std::vector<Tensor> forward, std::vector<Tensor> backward, std::vector<double> bias,
                    std::string precision, std::vector<bool> by_jacobian) {
  const std::vector<int64_t> all{static_cast<int64_t>(forward.size())};
  return ahkernels::cpu::tangent_gram({forward, backward, bias, by_jacobian, all}, precision);
}

Tensor tangent_diagonal(Tensor forward, Tensor backward, double bias, bool by_jacobian) {
  return ahkernels::cpu::tangent_diagonal(forward, backward, bias, by_jacobian);
}

Tensor tangent_row_sums(Tensor forward, Tensor backward, double bias) {
  return ahkernels::cpu::tangent_row_sums(forward, backward, bias);
}

Tensor tangent_quadratic(Tensor forward, Tensor backward, double bias, Tensor v) {
  return ahkernels::cpu::tangent_quadratic(forward, backward, bias, v);
}

Tensor tangent_product(Tensor forward, Tensor backward, double bias, Tensor v, bool fp32) {
  return ahkernels::cpu::tangent_product(forward, backward, bias, v, fp32);
}

Tensor tangent_cross_product(Tensor forward, Tensor backward, Tensor other_forward, Tensor other_backward, double bias,
                             Tensor v) {
  return ahkernels::cpu::tangent_cross_product(forward, backward, other_forward, other_backward, bias, v);
}

Tensor tangent_statistics(std::vector<Tensor> forward, std::vector<Tensor> backward, std::vector<double> bias, Tensor v,
                          std::string precision, std::vector<bool> by_jacobian, std::vector<int64_t> terms,
                          bool per_output) {
  return ahkernels::cpu::tangent_statistics({forward, backward, bias, by_jacobian, terms}, v, precision, per_output);
}

Tensor per_output_moments(std::vector<Tensor> forward, std::vector<Tensor> backward, std::vector<double> bias,
                          std::string precision, std::vector<bool> by_jacobian, std::vector<int64_t> terms) {
  return ahkernels::cpu::per_output_moments({forward, backward, bias, by_jacobian, terms}, precision);
}

}  // namespace

STABLE_TORCH_LIBRARY(ahkernels, m) {
  m.def(
      "centered_moments(Tensor[] forward, Tensor[] backward, float[] bias, Tensor[] row_means, str precision, "
      "bool[] by_jacobian=[], int[] terms=[]) -> Tensor");
  m.def(
      "tangent_gram(Tensor[] forward, Tensor[] backward, float[] bias, str precision, bool[] by_jacobian=[]) -> "
      "Tensor");
  m.def("tangent_diagonal(Tensor forward, Tensor backward, float bias, bool by_jacobian=False) -> Tensor");
  m.def("tangent_row_sums(Tensor forward, Tensor backward, float bias) -> Tensor");
  m.def("tangent_quadratic(Tensor forward, Tensor backward, float bias, Tensor v) -> Tensor");
  m.def("tangent_product(Tensor forward, Tensor backward, float bias, Tensor v, bool fp32=False) -> Tensor");
  m.def(
      "tangent_cross_product(Tensor forward, Tensor backward, Tensor other_forward, Tensor other_backward, float bias, "
      "Tensor v) -> Tensor");
  m.def(
      "tangent_statistics(Tensor[] forward, Tensor[] backward, float[] bias, Tensor v, str precision, "
      "bool[] by_jacobian=[], int[] terms=[], bool per_output=False) -> Tensor");
  m.def(
      "per_output_moments(Tensor[] forward, Tensor[] backward, float[] bias, str precision, bool[] by_jacobian=[], "
      "int[] terms=[]) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ahkernels, CPU, m) {
  m.impl("centered_moments", TORCH_BOX(&centered_moments));
  m.impl("tangent_gram", TORCH_BOX(&tangent_gram));
  m.impl("tangent_diagonal", TORCH_BOX(&tangent_diagonal));
  m.impl("tangent_row_sums", TORCH_BOX(&tangent_row_sums));
  m.impl("tangent_quadratic", TORCH_BOX(&tangent_quadratic));
  m.impl("tangent_product", TORCH_BOX(&tangent_product));
  m.impl("tangent_cross_product", TORCH_BOX(&tangent_cross_product));
  m.impl("tangent_statistics", TORCH_BOX(&tangent_statistics));
  m.impl("per_output_moments", TORCH_BOX(&per_output_moments));
}
