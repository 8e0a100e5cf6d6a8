// ahkernels._C: importing it registers the ops; build_facts() says how they were built and what they run on.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/headeronly/version.h>

#include <map>
#include <string>

#include "cpu/tile.h"

#define AHK_STRING(x) AHK_STRING_(x)
#define AHK_STRING_(x) #x

namespace {

std::string compiler() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#else
  return "gcc " __VERSION__;
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

}  // namespace

PYBIND11_MODULE(_C, m) { m.def("build_facts", &build_facts); }
