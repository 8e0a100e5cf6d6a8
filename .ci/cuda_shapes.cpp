// What csrc/cuda/mainloop_wgmma.cuh sets at compile time, as JSON, for .ci/check_cuda.py to compare machine code with.
// The emulator's headers stand for CUDA's.
#include <cstdio>

#include "emulator.h"
#include "mainloop_wgmma.cuh"

namespace {

using namespace ahkernels;
using namespace ahkernels::cuda;

template <int kParts>
int64_t multiply_adds_of_a_slice() {
  int64_t products = 0;
  for_each_product<kParts>([&](int, int) { ++products; });
  return products * wgmma::Shape<kParts>::kTurnRows * kTile * wgmma::kSlice;
}

}  // namespace

int main() {
  std::printf("{\"multiply_adds_of_a_slice\": [%lld, %lld, %lld], \"register_limits\": [%d, %d]}\n",
              static_cast<long long>(multiply_adds_of_a_slice<1>()),
              static_cast<long long>(multiply_adds_of_a_slice<2>()),
              static_cast<long long>(multiply_adds_of_a_slice<3>()), wgmma::kProducerRegisters, wgmma::kGroupRegisters);
}
