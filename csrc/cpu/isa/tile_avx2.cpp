// AVX2, with 16 registers of 32 bytes: 6 x 2 vectors of sums, 2 of columns and 1 of a row.
#include "kernel_table.h"

#if defined(__x86_64__)
#include "target.h"

AHK_TARGET_BEGIN("avx2,fma,f16c")
namespace ahkernels::cpu::avx2 {
#include "tile_kernels.inl"

const TileKernels<float> float_tile = tile_kernels<MultiplyAdd<float, 32>, 6, 2>();
const TileKernels<double> double_tile = tile_kernels<MultiplyAdd<double, 32>, 6, 2>();
}  // namespace ahkernels::cpu::avx2
AHK_TARGET_END
#endif
