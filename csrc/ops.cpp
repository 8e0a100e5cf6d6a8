// Schemas of the ops and their CPU implementations, registered with torch's dispatcher through its stable ABI.
#include "cpu/ops/ops.h"

#include <torch/csrc/stable/library.h>

#include <type_traits>
#include <utility>

namespace {

using ahkernels::KernelBatch;
using torch::stable::Tensor;

// The dispatcher hands over a kernel batch as five arguments, and every argument by value. Flat<implementation>::call
// puts the batch together; it is the one place that knows their order, beside KernelBatch itself.
template <auto implementation, class Signature = decltype(implementation)>
struct Flat;

template <auto implementation, class Result, class... Rest>
struct Flat<implementation, Result (*)(const KernelBatch&, Rest...)> {
  static Result call(std::vector<Tensor> forward, std::vector<Tensor> backward, std::vector<double> bias,
                     std::vector<bool> by_jacobian, std::vector<int64_t> layers, std::decay_t<Rest>... rest) {
    const KernelBatch batch{std::move(forward), std::move(backward), std::move(bias), std::move(by_jacobian),
                            std::move(layers)};
    return implementation(batch, rest...);
  }
};

// For an op about the rows of one kernel and the columns of another.
template <auto implementation, class... Rest>
struct Flat<implementation, Tensor (*)(const KernelBatch&, const KernelBatch&, Rest...)> {
  static Tensor call(std::vector<Tensor> forward, std::vector<Tensor> backward, std::vector<double> bias,
                     std::vector<bool> by_jacobian, std::vector<int64_t> layers, std::vector<Tensor> column_forward,
                     std::vector<Tensor> column_backward, std::vector<double> column_bias,
                     std::vector<bool> column_by_jacobian, std::vector<int64_t> column_layers,
                     std::decay_t<Rest>... rest) {
    const KernelBatch rows{std::move(forward), std::move(backward), std::move(bias), std::move(by_jacobian),
                           std::move(layers)};
    const KernelBatch columns{std::move(column_forward), std::move(column_backward), std::move(column_bias),
                              std::move(column_by_jacobian), std::move(column_layers)};
    return implementation(rows, columns, rest...);
  }
};

}  // namespace

#define AHK_BATCH "Tensor[] forward, Tensor[] backward, float[] bias, bool[] by_jacobian, int[] layers"
#define AHK_COLUMN_BATCH                                                                                \
  "Tensor[] column_forward, Tensor[] column_backward, float[] column_bias, bool[] column_by_jacobian, " \
  "int[] column_layers"

STABLE_TORCH_LIBRARY(ahkernels, m) {
  m.def("centered_inner_products(" AHK_BATCH ", Tensor[] row_means, str precision) -> Tensor");
  m.def("pair_inner_products(" AHK_BATCH
        ", Tensor[] means, str precision, int first_end, int second_begin, Tensor[] forward_means, "
        "Tensor[] backward_means) -> Tensor");
  m.def("per_output_inner_products(" AHK_BATCH ", str precision) -> Tensor");
  m.def("tangent_cross_product(" AHK_BATCH ", " AHK_COLUMN_BATCH ", Tensor v) -> Tensor");
  m.def("tangent_diagonal(" AHK_BATCH ") -> Tensor");
  m.def("tangent_gram(" AHK_BATCH ", str precision) -> Tensor");
  m.def("tangent_gram_out(" AHK_BATCH ", str precision, Tensor(a!) out) -> ()");
  m.def("tangent_moments(" AHK_BATCH ", Tensor v, str precision, bool per_output=False) -> Tensor");
  m.def("tangent_product(" AHK_BATCH ", Tensor v, bool fp32=False) -> Tensor");
  m.def("tangent_quadratic(" AHK_BATCH ", Tensor v) -> Tensor");
  m.def("tangent_row_sums(" AHK_BATCH ") -> Tensor");
}

#define AHK_IMPL(name) m.impl(#name, TORCH_BOX((&Flat<&ahkernels::cpu::name>::call)))

STABLE_TORCH_LIBRARY_IMPL(ahkernels, CPU, m) {
  AHK_IMPL(centered_inner_products);
  AHK_IMPL(pair_inner_products);
  AHK_IMPL(per_output_inner_products);
  AHK_IMPL(tangent_cross_product);
  AHK_IMPL(tangent_diagonal);
  AHK_IMPL(tangent_gram);
  AHK_IMPL(tangent_gram_out);
  AHK_IMPL(tangent_moments);
  AHK_IMPL(tangent_product);
  AHK_IMPL(tangent_quadratic);
  AHK_IMPL(tangent_row_sums);
}
