// ahkernels._C: importing it registers the ops. It says how they were built, what they run on and how they cut K.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/headeronly/version.h>

#include <string>

#include "cpu/isa/kernel_table.h"
#include "tiling.h"

#define AHK_STRING(x) AHK_STRING_(x)
#define AHK_STRING_(x) #x

namespace {

// Name and version. Some makers of Python build all extensions with a stack protector, which costs a few percent more
// instructions, so that instruction counts of the two kinds of build are not compared.
std::string compiler() {
#if defined(__clang__)
  const std::string name = std::string("clang ") + __clang_version__;
#else
  const std::string name = "gcc " __VERSION__;
#endif
#if defined(__SSP__) || defined(__SSP_ALL__) || defined(__SSP_STRONG__)
  return name + " with stack protector";
#else
  return name;
#endif
}

pybind11::dict build_facts() {
  pybind11::dict facts;
  facts["compiler"] = compiler();
  facts["built_with_torch"] = TORCH_VERSION;
  facts["stable_abi_target"] = AHK_STRING(AHK_TORCH_TARGET);
  facts["cuda"] = AHK_STRING(AHK_CUDA);
  facts["cpu_capability"] = ahkernels::cpu::capabilities();
  return facts;
}

// The constants of tiling.h that Python needs, too.
pybind11::dict tiling() {
  constexpr int64_t kOutputs = 10;  // the rows of a block depend little on the outputs
  pybind11::dict sizes;
  sizes["panel"] = ahkernels::kPanel;
  sizes["cuda_tile"] = ahkernels::kTile;
  sizes["cuda_layers"] = ahkernels::kMostLayers;
  sizes["block_rows_in_memory"] =
      ahkernels::block_side_in_memory(kOutputs, /*kernels=*/1, sizeof(float)) * ahkernels::kPanel * kOutputs;
  return sizes;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_facts", &build_facts);
  m.def("tiling", &tiling);
}
