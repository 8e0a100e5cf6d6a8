// AVX-512, with 32 registers of 64 bytes: 8 x 3 vectors of sums, 3 of columns and 1 of a row.
#include "kernel_table.h"

#if defined(__x86_64__)
#include "target.h"

AHK_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,fma,f16c")
namespace ahkernels::cpu::avx512 {
#include "tile_kernels.inl"

const TileKernels<float> float_tile = tile_kernels<MultiplyAdd<float, 64>, 8, 3>();
const TileKernels<double> double_tile = tile_kernels<MultiplyAdd<double, 64>, 8, 3>();
}  // namespace ahkernels::cpu::avx512
AHK_TARGET_END
#endif
