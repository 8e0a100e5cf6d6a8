// The CUDA op on tiles of near-constant kernels (near_constant.cuh).
#include <torch/csrc/stable/accelerator.h>

#include "arguments.cuh"

namespace ahkernels::cuda {
namespace {

void check_numbers(const char* name, const Tensor& numbers, const std::vector<int64_t>& shape) {
  bool fits = numbers.is_contiguous() && numbers.scalar_type() == ScalarType::Float &&
              numbers.dim() == static_cast<int64_t>(shape.size());
  std::string expected;
  for (size_t dim = 0; dim < shape.size(); ++dim) {
    fits = fits && numbers.size(static_cast<int64_t>(dim)) == shape[dim];
    expected += (dim > 0 ? ", " : "") + std::to_string(shape[dim]);
  }
  STD_TORCH_CHECK(fits, "deviation_tiles: ", name, ": expected a contiguous float32 tensor [", expected, "]");
}

template <int kParts, bool kPromoted>
Tensor run_deviations(const std::string& result, Problem& problem, const Tensor& parts, const Tensor& p) {
  if (result == "squares") return run<kParts, kPromoted, false, Result::kSquares, true>(problem, parts, p);
  if (result == "rows") return run<kParts, kPromoted, false, Result::kRows, true>(problem, parts, p);
  STD_TORCH_CHECK(result == "products", "deviation_tiles: result: expected squares, rows or products, got ", result);
  return run<kParts, kPromoted, false, Result::kProducts, true>(problem, parts, p);
}

Tensor deviation_tiles(Tensor parts, Tensor gram, Tensor p, Tensor pairs, Tensor factors, int64_t n, int64_t o,
                       int64_t sample, int64_t straight, std::string result, Tensor entries) {
  check_factors("deviation_tiles", parts, gram, n, o, sample, {});
  const int64_t rows = parts.size(2);
  STD_TORCH_CHECK(o * rows < (int64_t{1} << 29), "deviation_tiles: pairs: expected fewer than 2^29 pairs, got ",
                  o * rows);
  check_numbers("p", p, {rows});
  check_numbers("pairs", pairs, {o, rows, 2});
  check_numbers("factors", factors, {3});
  if (result != "squares") check_entries("deviation_tiles", entries, rows_of_tiles(gram, n, o, sample), n * o);
  const torch::stable::accelerator::DeviceGuard guard(parts.get_device_index());
  Problem problem = problem_of(parts, gram, n, o, sample, straight, {}, entries);
  problem.row_means = problem.col_means = data<float>(p);
  problem.offsets = {data<float>(pairs), data<float>(factors)};
  return visit_kernel(problem, parts.size(0), [&]<int kParts, bool kPromoted>() {
    return run_deviations<kParts, kPromoted>(result, problem, parts, gram);
  });
}

}  // namespace
}  // namespace ahkernels::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(ahkernels, m) {
  m.def(
      "deviation_tiles(Tensor parts, Tensor gram, Tensor p, Tensor pairs, Tensor factors, int n, int o, int sample, "
      "int straight, str result, Tensor(a!) entries) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ahkernels, CUDA, m) {
  m.impl("deviation_tiles", TORCH_BOX(&ahkernels::cuda::deviation_tiles));
}
