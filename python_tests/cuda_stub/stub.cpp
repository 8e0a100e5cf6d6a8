// The calls of cuda_runtime.h, for test_cuda_launches.py.
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <sstream>

namespace {

struct Device {
  int major, processors, shared_memory;  // bytes of shared memory that a block may ask for
  std::string failing;                   // the call that fails, with error 719; "old": the driver is
} device;

constexpr int kLaunchFailure = 719, kDefaultSharedMemory = 48 << 10;
std::map<const void*, int> shared_memory_of;
std::ostringstream calls;
cudaError_t last_error = cudaSuccess;

cudaError_t check(const char* call, bool allowed) {
  if (device.failing == call) return static_cast<cudaError_t>(kLaunchFailure);
  return allowed ? cudaSuccess : cudaErrorInvalidValue;
}

std::string name_of(const void* kernel) {
  Dl_info found{};
  return dladdr(kernel, &found) != 0 && found.dli_sname != nullptr ? found.dli_sname : "unknown";
}

}  // namespace

extern "C" {

void stub_set_device(int major, int processors, int shared_memory, const char* failing) {
  device = {major, processors, shared_memory, failing};
  shared_memory_of.clear();
  calls.str("");
  last_error = cudaSuccess;
}

// What was asked for since, in lines of "name number ...".
const char* stub_calls() {
  static std::string text;
  text = calls.str();
  return text.c_str();
}

// ---- what libtorch_cuda has

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = &device;
  return 0;
}
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return 0;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return 0; }
AOTITorchError torch_c10_cuda_check_msg(int32_t error, const char*, const char* function, uint32_t, bool,
                                        char** message) {
  if (error != 0) *message = strdup(("CUDA error " + std::to_string(error) + " in " + function).c_str());
  return 0;
}
void torch_c10_cuda_free_error_msg(char* message) { free(message); }
}

// ---- CUDA

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  *value = what == cudaDevAttrMultiProcessorCount ? device.processors : device.major;
  return check("cudaDeviceGetAttribute", true);
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version, unsigned flags,
                                             cudaDriverEntryPointQueryResult* found) {
  const bool known = std::strcmp(name, "cuTensorMapEncodeTiled") == 0 && version >= 12000 && device.failing != "old";
  *function = known ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
  *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return check("cudaGetDriverEntryPointByVersion", flags == cudaEnableDefault);
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

extern "C" int stub_encode(CUtensorMap* map, void* address, const uint64_t* sizes, const uint64_t* strides,
                           const uint32_t* box, const uint32_t* steps, int swizzle) {
  return cuTensorMapEncodeTiled(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, address, sizes, strides, box, steps,
                                CU_TENSOR_MAP_INTERLEAVE_NONE, static_cast<CUtensorMapSwizzle>(swizzle),
                                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

// The rules are those of the driver's manual.
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, uint32_t rank, void* address,
                                const uint64_t* sizes, const uint64_t* strides, const uint32_t* box,
                                const uint32_t* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  constexpr uint64_t kNumberBytes = 2, kSwizzleBytes = 128;
  calls << "map " << sizes[0] << " " << sizes[1] << " " << box[0] << " " << box[1] << "\n";
  bool allowed = type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 && rank >= 1 && rank <= 5 &&
                 interleave == CU_TENSOR_MAP_INTERLEAVE_NONE && swizzle == CU_TENSOR_MAP_SWIZZLE_128B &&
                 promotion == CU_TENSOR_MAP_L2_PROMOTION_L2_256B && fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE &&
                 reinterpret_cast<uintptr_t>(map) % 64 == 0 && reinterpret_cast<uintptr_t>(address) % 16 == 0 &&
                 box[0] * kNumberBytes % 16 == 0 && box[0] * kNumberBytes <= kSwizzleBytes;
  uint64_t least_stride = sizes[0] * kNumberBytes;
  for (uint32_t dim = 0; dim < rank; ++dim) {
    allowed = allowed && sizes[dim] >= 1 && sizes[dim] <= uint64_t{1} << 32 && box[dim] >= 1 && box[dim] <= 256 &&
              steps[dim] >= 1 && steps[dim] <= 8;
    if (dim + 1 == rank) continue;
    allowed = allowed && strides[dim] % 16 == 0 && strides[dim] < uint64_t{1} << 40 && strides[dim] >= least_stride;
    least_stride = strides[dim] * sizes[dim + 1];
  }
  return static_cast<CUresult>(check("cuTensorMapEncodeTiled", allowed));
}

cudaError_t stub::set_shared_memory(const void* kernel, int bytes) {
  if (bytes >= 0 && bytes <= device.shared_memory) shared_memory_of[kernel] = bytes;
  return check("cudaFuncSetAttribute", bytes >= 0 && bytes <= device.shared_memory);
}

void stub::record_launch(const void* kernel, uint64_t blocks, uint64_t threads, uint64_t shared, cudaStream_t stream) {
  const std::string name = name_of(kernel);
  calls << "launch " << name << " " << blocks << " " << threads << " " << shared << "\n";
  const auto set = shared_memory_of.find(kernel);
  const uint64_t most =
      set == shared_memory_of.end() ? kDefaultSharedMemory : std::max(set->second, kDefaultSharedMemory);
  const bool allowed = blocks >= 1 && blocks < uint64_t{1} << 31 && threads >= 1 && threads <= 1024 && shared <= most &&
                       stream == &device;
  last_error = check("launch", allowed);
  if (last_error == cudaErrorInvalidValue) last_error = cudaErrorInvalidConfiguration;
}
