// AVX-512 with bf16 products: an instruction takes pairs of bf16 along k and adds two products to a sum in fp32.
#include "kernel_table.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "target.h"

AHK_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma,f16c")
namespace ahkernels::cpu::avx512bf16 {
#include "tile_kernels.inl"

struct BFloat16Dot {
  using Sum = float;
  using Packed = uint32_t;
  static constexpr int kBytes = 64;
  static constexpr int64_t kPerPacked = 2;

  static __m512i load(const Packed* from) { return _mm512_load_si512(from); }
  static __m512i broadcast(const Packed* from) { return _mm512_set1_epi32(static_cast<int>(*from)); }
  static __m512 accumulate(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  static uint32_t round_to_bfloat16(float value) {  // to the nearest, ties to even; nan stays nan
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof(bits));
    if (value != value) return (bits >> 16) | 0x40u;
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  }
  static Packed convert(const float* pair) { return round_to_bfloat16(pair[0]) | round_to_bfloat16(pair[1]) << 16; }
};

const TileKernels<float> bfloat16_tile = tile_kernels<BFloat16Dot, 8, 3>();
}  // namespace ahkernels::cpu::avx512bf16
AHK_TARGET_END
#endif
