// Products of the kernel between two sample sets with few vectors, in fp64.
#include "../tiles/thin_products.h"
#include "ops.h"

namespace ahkernels::cpu {
namespace {

// Checks that rows and columns are factors of the same layers.
void check_same_layers(const std::string& op, const std::vector<LayerFactors>& rows,
                       const std::vector<LayerFactors>& columns) {
  AHK_REQUIRE(columns.size() == rows.size(), op, ": column_layers: expected the ", rows.size(),
              " layers of the rows, got ", columns.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    AHK_REQUIRE(columns[i].d == rows[i].d && columns[i].m == rows[i].m, op, ": column_forward[", i,
                "]: expected d and m of the rows, [", rows[i].d, ", ", rows[i].m, "], got [", columns[i].d, ", ",
                columns[i].m, "]");
    AHK_REQUIRE(columns[i].bias == rows[i].bias, op, ": column_bias[", i, "]: expected the bias of the rows, ",
                rows[i].bias, ", got ", columns[i].bias);
  }
}

}  // namespace

Tensor tangent_cross_product(const KernelBatch& rows, const KernelBatch& columns, const Tensor& v) {
  const std::string op = "tangent_cross_product";
  const std::vector<LayerFactors> row_layers = thin_layers_of(op, rows, /*scaled=*/false);
  const std::vector<LayerFactors> column_layers = thin_layers_of(op, columns, /*scaled=*/false, "column_");
  check_same_layers(op, row_layers, column_layers);
  const Tensor vectors = columns_of(op, column_layers[0], v);
  Tensor out = torch::stable::new_empty(v, {row_layers[0].n, row_layers[0].o, v.size(2)});
  const double* numbers = static_cast<const double*>(vectors.const_data_ptr());
  sum_over_layers(
      row_layers.size(), out.numel(), static_cast<double*>(out.mutable_data_ptr()), [&](size_t which, double* to) {
        ThinProduct<double>(double_kernels(), column_layers[which], numbers, v.size(2)).product(row_layers[which], to);
      });
  return out;
}

}  // namespace ahkernels::cpu
