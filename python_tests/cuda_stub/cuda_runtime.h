// What csrc/cuda uses of CUDA's runtime and driver, for a host without them: a device that keeps to the documented
// rules, does nothing, and remembers what it was asked for. See stub.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "emulator.h"

// ---- runtime

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrComputeCapabilityMajor = 75 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0, cudaDriverEntryPointSymbolNotFound = 1 };
enum { cudaEnableDefault = 0 };
using cudaStream_t = void*;

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int device);
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version, unsigned flags,
                                             cudaDriverEntryPointQueryResult* found);
cudaError_t cudaGetLastError();

// ---- driver: the numbers are those of cuda.h

enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE = 0 };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_NONE = 0, CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0 };
struct alignas(64) CUtensorMap : emulator::Tensor {};

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, uint32_t rank, void* address,
                                const uint64_t* sizes, const uint64_t* strides, const uint32_t* box,
                                const uint32_t* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill);

// ---- kernels

namespace stub {

cudaError_t set_shared_memory(const void* kernel, int bytes);
void record_launch(const void* kernel, uint64_t blocks, uint64_t threads, uint64_t shared, cudaStream_t stream);

// Stands for kernel<<<blocks, threads, shared, stream>>>(arguments...), which a host's compiler cannot read.
template <class Kernel, class... Arguments>
auto launch(Kernel* kernel, uint64_t blocks, uint64_t threads, uint64_t shared, cudaStream_t stream) {
  return [=](const auto&... arguments) {
    static_assert(std::is_invocable_v<Kernel*, decltype(arguments)...>);
    record_launch(reinterpret_cast<const void*>(kernel), blocks, threads, shared, stream);
  };
}

}  // namespace stub

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int value) {
  return stub::set_shared_memory(reinterpret_cast<const void*>(kernel), value);
}
