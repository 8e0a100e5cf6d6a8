// The CUDA ops: the bf16 parts of a factor, and all that is done tile by tile. ahkernels/ops/cuda.py puts them
// together.
#include <torch/csrc/stable/accelerator.h>

#include "arguments.cuh"
#include "pack.cuh"

namespace ahkernels::cuda {
namespace {

void check_float64(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double && tensor.is_contiguous(), op, ": ", name,
                  ": expected a contiguous float64 tensor");
}

Tensor pack_parts(Tensor factor, Tensor scale, int64_t count) {
  STD_TORCH_CHECK(factor.dim() == 4, "pack_parts: factor: expected shape [n, s, o, m], got ", factor.dim(),
                  " dimensions");
  STD_TORCH_CHECK(count >= 1 && count <= 3, "pack_parts: count: expected 1, 2 or 3, got ", count);
  check_float64("pack_parts", "scale", scale);
  Packing packing{};
  switch (factor.scalar_type()) {
    case ScalarType::Float:
      packing.element = Element::kFloat;
      break;
    case ScalarType::Half:
      packing.element = Element::kHalf;
      break;
    case ScalarType::BFloat16:
      packing.element = Element::kBFloat16;
      break;
    default:
      STD_TORCH_CHECK(false, "pack_parts: factor: expected float32, float16 or bfloat16 numbers");
  }
  const int64_t n = factor.size(0), positions = factor.size(1), o = factor.size(2), m = factor.size(3);
  const int64_t rows = ceil_div(n * o, kTile) * kTile;
  const int64_t k = std::max<int64_t>(1, ceil_div(m, kKAlignment)) * kKAlignment;
  STD_TORCH_CHECK(rows * positions > 0, "pack_parts: factor: expected at least one row n * s * o, got shape [", n, ", ",
                  positions, ", ", o, ", ", m, "]");
  // Rows of all parts are counted in 32 bits by the tensor copies.
  STD_TORCH_CHECK(rows * positions * count < (int64_t{1} << 31) && k < (int64_t{1} << 31),
                  "pack_parts: factor: expected fewer than 2^31 rows n * s * o * count and numbers m, got shape [", n,
                  ", ", positions, ", ", o, ", ", m, "] and count ", count);
  const torch::stable::accelerator::DeviceGuard guard(factor.get_device_index());
  Tensor parts = torch::stable::new_empty(factor, {count, positions, rows, k}, ScalarType::BFloat16);
  packing.factor = factor.const_data_ptr();
  for (int dim = 0; dim < 4; ++dim) packing.strides[dim] = factor.stride(dim);
  packing.n = static_cast<int32_t>(n);
  packing.positions = static_cast<int32_t>(positions);
  packing.o = static_cast<int32_t>(o);
  packing.m = static_cast<int32_t>(m);
  packing.scale = static_cast<const double*>(scale.const_data_ptr());
  packing.parts = static_cast<uint16_t*>(parts.mutable_data_ptr());
  packing.count = static_cast<int32_t>(count);
  packing.padded_rows = rows;
  packing.k = static_cast<int32_t>(k);
  constexpr int64_t kThreads = 256;
  const int64_t blocks = ceil_div(positions * rows * k / 2, kThreads);
  const int64_t most = 32 * attribute(cudaDevAttrMultiProcessorCount, factor);
  pack<<<static_cast<unsigned>(std::min(blocks, most)), kThreads, 0, current_stream(factor)>>>(packing);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return parts;
}

// How the library was built, as "name=value" with blanks between them: for ahkernels/ops/build.py.
std::string cuda_build() {
  std::string facts = "cuda=" + std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__);
  facts += " architectures=";
  constexpr int kArchitectures[] = {__CUDA_ARCH_LIST__};
  for (const int architecture : kArchitectures) facts += std::to_string(architecture / 10) + ",";
  facts.back() = ' ';
#if defined(AHK_WATCHDOG)
  return facts + "watchdog=yes";
#else
  return facts + "watchdog=no";
#endif
}

// ---- tiles

void check_tiles(const Tensor& parts, const Tensor& p, const Tensor& means, const Tensor& unscale, int64_t n, int64_t o,
                 int64_t sample, const std::string& result, const Tensor& entries) {
  check_factors("tangent_tiles", parts, p, n, o, sample);
  if (result == "matrix") {
    STD_TORCH_CHECK(unscale.numel() == 2 && unscale.scalar_type() == ScalarType::Double && unscale.is_contiguous(),
                    "tangent_tiles: unscale: expected two float64 numbers");
  } else {
    STD_TORCH_CHECK(means.dim() == 2 && means.size(0) == 2 && means.size(1) == parts.size(2) && means.is_contiguous() &&
                        means.scalar_type() == ScalarType::Float,
                    "tangent_tiles: means: expected a contiguous float32 tensor [2, ", parts.size(2), "]");
  }
  if (result == "squares") return;
  check_entries("tangent_tiles", entries, result == "matrix" ? n * o : rows_of_tiles(p, n, o, sample), n * o);
}

Tensor tangent_tiles(Tensor parts, Tensor p, Tensor means, Tensor unscale, int64_t n, int64_t o, int64_t sample,
                     std::string result, Tensor entries) {
  check_tiles(parts, p, means, unscale, n, o, sample, result, entries);
  const torch::stable::accelerator::DeviceGuard guard(parts.get_device_index());
  Problem problem = problem_of(parts, p, n, o, sample, entries);
  problem.row_means = data<float>(means);
  problem.col_means = problem.row_means == nullptr ? nullptr : problem.row_means + parts.size(2);
  if (result == "matrix") problem.first_row = 0;
  problem.unscale = data<double>(unscale);
  switch (parts.size(0)) {
    case 1:
      return run<1>(result, problem, parts, p);
    case 2:
      return run<2>(result, problem, parts, p);
    default:
      return run<3>(result, problem, parts, p);
  }
}

}  // namespace
}  // namespace ahkernels::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(ahkernels, m) {
  m.def("cuda_build() -> str");
  m.def("pack_parts(Tensor factor, Tensor scale, int count) -> Tensor");
  m.def(
      "tangent_tiles(Tensor parts, Tensor p, Tensor means, Tensor unscale, int n, int o, int sample, str result, "
      "Tensor(a!) entries) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ahkernels, CompositeExplicitAutograd, m) {
  m.impl("cuda_build", TORCH_BOX(&ahkernels::cuda::cuda_build));
}

STABLE_TORCH_LIBRARY_IMPL(ahkernels, CUDA, m) {
  m.impl("pack_parts", TORCH_BOX(&ahkernels::cuda::pack_parts));
  m.impl("tangent_tiles", TORCH_BOX(&ahkernels::cuda::tangent_tiles));
}
