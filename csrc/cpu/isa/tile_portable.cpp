// The compiler's default target: 16 registers of 16 bytes are enough for 4 x 2 vectors of sums.
#include "kernel_table.h"

namespace ahkernels::cpu::portable {
#include "tile_kernels.inl"

const TileKernels<float> float_tile = tile_kernels<MultiplyAdd<float, 16>, 4, 2>();
const TileKernels<double> double_tile = tile_kernels<MultiplyAdd<double, 16>, 4, 2>();
}  // namespace ahkernels::cpu::portable
