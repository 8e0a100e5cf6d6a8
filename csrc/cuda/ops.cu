// The CUDA ops: the bf16 parts of a factor, and all that is done tile by tile. ahkernels/ops/cuda.py puts them
// together.
#include <torch/csrc/stable/accelerator.h>

#include "launch.cuh"
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
  const int64_t size = n * o;
  STD_TORCH_CHECK(parts.dim() == 4 && parts.is_contiguous() && parts.scalar_type() == ScalarType::BFloat16 &&
                      parts.size(0) >= 1 && parts.size(0) <= 3 && parts.size(2) == ceil_div(size, kTile) * kTile &&
                      parts.size(3) % kKAlignment == 0,
                  "tangent_tiles: parts: expected what pack_parts makes of a factor of n * o = ", size, " rows");
  const int64_t positions = parts.size(1);
  STD_TORCH_CHECK(p.dim() == 4 && p.is_contiguous() && p.scalar_type() == ScalarType::Float && p.size(0) == positions &&
                      p.size(1) == positions && p.size(3) == n - sample && sample * o % kTile == 0 &&
                      (p.size(2) * o % kTile == 0 || sample + p.size(2) == n),
                  "tangent_tiles: p: expected a contiguous float32 tensor [s, s, rows, n - sample] about whole tiles");
  STD_TORCH_CHECK(p.size(2) > 0, "tangent_tiles: p: expected at least one row, got shape [", positions, ", ", positions,
                  ", 0, ", p.size(3), "]");
  STD_TORCH_CHECK(parts.size(2) < (int64_t{1} << 31), "tangent_tiles: n: expected n * o below 2^31, got ", n, " * ", o);
  STD_TORCH_CHECK(p.numel() < (int64_t{1} << 30), "tangent_tiles: p: expected fewer than 2^30 numbers, got ",
                  p.numel());
  if (result == "matrix") {
    STD_TORCH_CHECK(unscale.numel() == 2 && unscale.scalar_type() == ScalarType::Double && unscale.is_contiguous(),
                    "tangent_tiles: unscale: expected two float64 numbers");
  } else {
    STD_TORCH_CHECK(means.dim() == 2 && means.size(0) == 2 && means.size(1) == parts.size(2) && means.is_contiguous() &&
                        means.scalar_type() == ScalarType::Float,
                    "tangent_tiles: means: expected a contiguous float32 tensor [2, ", parts.size(2), "]");
  }
  if (result == "squares") return;
  const int64_t end = ceil_div((sample + p.size(2)) * o, kTile) * kTile;
  const int64_t rows = result == "matrix" ? size : std::min(end, size) - sample * o;
  STD_TORCH_CHECK(entries.dim() == 2 && entries.size(0) == rows && entries.size(1) == size && entries.is_contiguous() &&
                      entries.scalar_type() == ScalarType::Float,
                  "tangent_tiles: entries: expected a contiguous float32 tensor [", rows, ", ", size, "]");
}

Tensor tangent_tiles(Tensor parts, Tensor p, Tensor means, Tensor unscale, int64_t n, int64_t o, int64_t sample,
                     std::string result, Tensor entries) {
  check_tiles(parts, p, means, unscale, n, o, sample, result, entries);
  const torch::stable::accelerator::DeviceGuard guard(parts.get_device_index());
  const int64_t size = n * o;
  Problem problem{};
  problem.tiles = {static_cast<int32_t>(sample * o / kTile),
                   static_cast<int32_t>(ceil_div((sample + p.size(2)) * o, kTile)),
                   static_cast<int32_t>(ceil_div(size, kTile))};
  problem.size = static_cast<int32_t>(size);
  problem.n = static_cast<int32_t>(n);
  problem.o = static_cast<int32_t>(o);
  problem.parts = static_cast<const uint16_t*>(parts.const_data_ptr());
  problem.padded_rows = parts.size(2);
  problem.k = static_cast<int32_t>(parts.size(3));
  problem.positions = static_cast<int32_t>(parts.size(1));
  problem.p = data<float>(p);
  problem.sample = static_cast<int32_t>(sample);
  problem.p_rows = p.size(2);
  problem.p_cols = p.size(3);
  problem.row_means = data<float>(means);
  problem.col_means = problem.row_means == nullptr ? nullptr : problem.row_means + parts.size(2);
  problem.entries = data<float>(entries);
  problem.first_row = result == "matrix" ? 0 : static_cast<int32_t>(sample * o);
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
