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

// With the option of it that the makers of some Pythons set for all extensions, which costs a few percent more code.
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

}  // namespace

PYBIND11_MODULE(_C, m) { m.def("build_facts", &build_facts); }
