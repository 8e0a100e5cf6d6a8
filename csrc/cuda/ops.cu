// The CUDA ops: the bf16 parts of a factor, and all that is done tile by tile. ahkernels/ops/cuda puts them together.
#include <torch/csrc/stable/accelerator.h>

#include "arguments.cuh"
#include "pack.cuh"

namespace ahkernels::cuda {
namespace {

void check_float64(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double && tensor.is_contiguous(), op, ": ", name,
                  ": expected a contiguous float64 tensor");
}

constexpr int64_t kRowsLimit = int64_t{1} << 31;  // the tensor copies count rows in 32 bits

// Packs a factor [n, s, o, m] into parts [count, s * blocks or more, rows, k] from block `first` on.
void pack_into(const char* op, const Tensor& factor, const Tensor& scale, Tensor& parts, int64_t first,
               int64_t blocks) {
  check_float64(op, "scale", scale);
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
      STD_TORCH_CHECK(false, op, ": factor: expected float32, float16 or bfloat16 numbers");
  }
  packing.factor = factor.const_data_ptr();
  for (int dim = 0; dim < 4; ++dim) packing.strides[dim] = factor.stride(dim);
  packing.n = static_cast<int32_t>(factor.size(0));
  packing.positions = static_cast<int32_t>(factor.size(1));
  packing.o = static_cast<int32_t>(factor.size(2));
  packing.m = static_cast<int32_t>(factor.size(3));
  packing.scale = static_cast<const double*>(scale.const_data_ptr());
  packing.count = static_cast<int32_t>(parts.size(0));
  packing.part_size = parts.size(1) * parts.size(2) * parts.size(3);
  packing.blocks = static_cast<int32_t>(blocks);
  packing.padded_rows = parts.size(2);
  packing.k = static_cast<int32_t>(parts.size(3));
  packing.parts = static_cast<uint16_t*>(parts.mutable_data_ptr()) + first * parts.size(2) * parts.size(3);
  constexpr int64_t kThreads = 256;
  const int64_t threads = ceil_div(packing.positions * blocks * packing.padded_rows * packing.k / 2, kThreads);
  const int64_t most = 32 * attribute(cudaDevAttrMultiProcessorCount, factor);
  pack<<<static_cast<unsigned>(std::min(threads, most)), kThreads, 0, current_stream(factor)>>>(packing);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor pack_parts(Tensor factor, Tensor scale, int64_t count) {
  STD_TORCH_CHECK(factor.dim() == 4, "pack_parts: factor: expected shape [n, s, o, m], got ", factor.dim(),
                  " dimensions");
  STD_TORCH_CHECK(count >= 1 && count <= 3, "pack_parts: count: expected 1, 2 or 3, got ", count);
  const int64_t n = factor.size(0), positions = factor.size(1), o = factor.size(2), m = factor.size(3);
  const int64_t rows = ceil_div(n * o, kTile) * kTile;
  const int64_t k = std::max<int64_t>(1, ceil_div(m, kKAlignment)) * kKAlignment;
  STD_TORCH_CHECK(rows * positions > 0, "pack_parts: factor: expected at least one row n * s * o, got shape [", n, ", ",
                  positions, ", ", o, ", ", m, "]");
  STD_TORCH_CHECK(rows * positions * count < kRowsLimit && k < kRowsLimit,
                  "pack_parts: factor: expected fewer than 2^31 rows n * s * o * count and numbers m, got shape [", n,
                  ", ", positions, ", ", o, ", ", m, "] and count ", count);
  const torch::stable::accelerator::DeviceGuard guard(factor.get_device_index());
  Tensor parts = torch::stable::new_empty(factor, {count, positions, rows, k}, ScalarType::BFloat16);
  pack_into("pack_parts", factor, scale, parts, 0, 1);
  return parts;
}

void pack_slices(Tensor factor, Tensor scale, Tensor parts, int64_t first) {
  STD_TORCH_CHECK(factor.dim() == 4, "pack_slices: factor: expected shape [n, s, o, m], got ", factor.dim(),
                  " dimensions");
  const int64_t rows = ceil_div(factor.size(0) * factor.size(2), kTile) * kTile;
  const int64_t slices = std::max<int64_t>(1, ceil_div(factor.size(3), kKAlignment));
  STD_TORCH_CHECK(parts.dim() == 4 && parts.is_contiguous() && parts.scalar_type() == ScalarType::BFloat16 &&
                      parts.size(0) >= 1 && parts.size(0) <= 3 && parts.size(2) == rows && parts.size(3) == kKAlignment,
                  "pack_slices: parts: expected a contiguous bfloat16 tensor [1 to 3, slices, ", rows, ", ",
                  kKAlignment, "]");
  STD_TORCH_CHECK(rows * parts.size(1) * parts.size(0) < kRowsLimit,
                  "pack_slices: parts: expected fewer than 2^31 rows in all slices, got ",
                  rows * parts.size(1) * parts.size(0));
  STD_TORCH_CHECK(first >= 0 && first + factor.size(1) * slices <= parts.size(1),
                  "pack_slices: first: expected room for ", factor.size(1) * slices, " slices, got ", first, " of ",
                  parts.size(1));
  const torch::stable::accelerator::DeviceGuard guard(factor.get_device_index());
  pack_into("pack_slices", factor, scale, parts, first, slices);
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
                 int64_t sample, const std::vector<int64_t>& layers, const std::string& result, const Tensor& entries) {
  check_factors("tangent_tiles", parts, p, n, o, sample, layers);
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
                     int64_t straight, std::vector<int64_t> layers, std::string result, Tensor entries) {
  check_tiles(parts, p, means, unscale, n, o, sample, layers, result, entries);
  const torch::stable::accelerator::DeviceGuard guard(parts.get_device_index());
  Problem problem = problem_of(parts, p, n, o, sample, straight, layers, entries);
  problem.row_means = data<float>(means);
  problem.col_means = problem.row_means == nullptr ? nullptr : problem.row_means + parts.size(2);
  if (result == "matrix") problem.first_row = 0;
  problem.unscale = data<double>(unscale);
  return visit_kernel(problem, parts.size(0),
                      [&]<int kParts, bool kPromoted>() { return run<kParts, kPromoted>(result, problem, parts, p); });
}

}  // namespace
}  // namespace ahkernels::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(ahkernels, m) {
  m.def("cuda_build() -> str");
  m.def("pack_parts(Tensor factor, Tensor scale, int count) -> Tensor");
  m.def("pack_slices(Tensor factor, Tensor scale, Tensor(a!) parts, int first) -> ()");
  m.def(
      "tangent_tiles(Tensor parts, Tensor p, Tensor means, Tensor unscale, int n, int o, int sample, int straight, "
      "int[] layers, str result, Tensor(a!) entries) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ahkernels, CompositeExplicitAutograd, m) {
  m.impl("cuda_build", TORCH_BOX(&ahkernels::cuda::cuda_build));
}

STABLE_TORCH_LIBRARY_IMPL(ahkernels, CUDA, m) {
  m.impl("pack_parts", TORCH_BOX(&ahkernels::cuda::pack_parts));
  m.impl("pack_slices", TORCH_BOX(&ahkernels::cuda::pack_slices));
  m.impl("tangent_tiles", TORCH_BOX(&ahkernels::cuda::tangent_tiles));
}
