// Launches the tile kernels: chooses the mainloop, and sets up what it needs.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <string>

#include "mainloop_mma.cuh"
#include "mainloop_wgmma.cuh"

namespace ahkernels::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline int attribute(cudaDeviceAttr what, const Tensor& tensor) {
  int value = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, what, tensor.get_device_index()));
  return value;
}

template <class T>
T* data(const Tensor& tensor) {
  return tensor.numel() == 0 ? nullptr : static_cast<T*>(tensor.mutable_data_ptr());
}

template <class Kernel, class... Arguments>
void launch(Kernel kernel, int64_t blocks, int threads, uint32_t shared, const Tensor& on,
            const Arguments&... arguments) {
  STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  kernel<<<static_cast<unsigned>(blocks), threads, shared, current_stream(on)>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// The parts as a matrix of rows of k numbers, which is read in boxes of box_rows x 64.
inline CUtensorMap tensor_map(const Tensor& parts, uint32_t box_rows) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    STD_CUDA_CHECK(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    STD_TORCH_CHECK(found == cudaDriverEntryPointSuccess, "the CUDA driver lacks cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  const uint64_t k = parts.size(3);
  const uint64_t sizes[2] = {k, static_cast<uint64_t>(parts.numel()) / k};
  const uint64_t row_stride[1] = {k * 2};
  const uint32_t box[2] = {wgmma::kSlice, box_rows}, steps[2] = {1, 1};
  CUtensorMap map;
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, parts.mutable_data_ptr(), sizes, row_stride,
                                 box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  STD_TORCH_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with error ", static_cast<int>(result));
  return map;
}

// Runs the tile kernel for this device and these layers. Returns the sums of the warps, or [0] where the result has
// none. With kDeviations, for entries of T, there is one layer with one position.
template <int kParts, bool kPromoted, bool kSum, Result kResult, bool kDeviations = false>
Tensor run(Problem& problem, const Tensor& parts, const Tensor& p) {
  constexpr bool kSums = kResult == Result::kSquares || kResult == Result::kProducts;
  const int64_t processors = attribute(cudaDevAttrMultiProcessorCount, parts), tiles = problem.tiles.count();
  const bool hopper = attribute(cudaDevAttrComputeCapabilityMajor, parts) == 9;
  const int64_t blocks = std::min(hopper ? processors : 2 * processors, tiles);
  const int64_t warps = blocks * (hopper ? wgmma::kWarps : mma::kWarps);
  Tensor sums = torch::stable::new_empty(p, {kSums ? warps : 0}, ScalarType::Double);
  problem.sums = data<double>(sums);
  problem.set_steps(hopper ? wgmma::kBlockRows : mma::kBlockRows);
  if (hopper) {
    using Shape = wgmma::Shape<kParts, kSum>;
    launch(wgmma::tiles<kParts, kPromoted, kSum, kResult, kDeviations>, blocks, wgmma::kThreads, Shape::kSharedBytes,
           parts, problem, tensor_map(parts, Shape::kTurnRows), tensor_map(parts, kTile));
  } else {
    launch(mma::tiles<kParts, kPromoted, kSum, kResult, kDeviations>, blocks, mma::kThreads, mma::kSharedBytes<kParts>,
           parts, problem);
  }
  return sums;
}

template <int kParts, bool kPromoted, Result kResult>
Tensor run(Problem& problem, const Tensor& parts, const Tensor& p) {
  return problem.layer_count == 0 ? run<kParts, kPromoted, false, kResult>(problem, parts, p)
                                  : run<kParts, kPromoted, true, kResult>(problem, parts, p);
}

// The same for a result by its name.
template <int kParts, bool kPromoted>
Tensor run(const std::string& result, Problem& problem, const Tensor& parts, const Tensor& p) {
  if (result == "squares") return run<kParts, kPromoted, Result::kSquares>(problem, parts, p);
  if (result == "matrix") return run<kParts, kPromoted, Result::kMatrix>(problem, parts, p);
  if (result == "rows") return run<kParts, kPromoted, Result::kRows>(problem, parts, p);
  STD_TORCH_CHECK(result == "products", "tangent_tiles: result: expected squares, matrix, rows or products, got ",
                  result);
  return run<kParts, kPromoted, Result::kProducts>(problem, parts, p);
}

}  // namespace ahkernels::cuda
