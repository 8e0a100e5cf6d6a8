// Products of bf16 parts on the matrix units of AMX, 16 x 16 sums of 32 products each an instruction.
//
// A number is split into Parts bf16 numbers, each the rounded rest of those before; with three of them, and the six
// products that fp32 can tell from rounding, a product has the quality of fp32 and takes a third of its time or less.
//
// A panel is packed in steps of 32 numbers along k: for each part, once as [row][32] for the left factor and once as
// [16 columns at a time][pair along k][column] for the right one.
#include "tile.h"

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>

#include "target.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's bug 105593, in its own header
#endif

AHK_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma,f16c,amx-tile,amx-bf16")
namespace ahkernels::cpu::amx {
#include "tile_kernels.inl"

constexpr int64_t kSide = 16;                     // rows and columns of a tile register
constexpr int64_t kStep = 32;                     // numbers along k
constexpr int64_t kRegister = kSide * kStep * 2;  // bytes
constexpr int64_t kLayout = kPanel * kStep * 2;   // bytes of one part of a panel in one layout
constexpr int64_t kSummed = 2048;                 // numbers along k that are summed by themselves, as in gemm()

template <int Parts>
constexpr int64_t step_bytes() {
  return 2 * Parts * kLayout;
}

// ---- pack

inline __m512i unpack_pairs(__m512i a, __m512i b, bool high) {
  return high ? _mm512_unpackhi_epi32(a, b) : _mm512_unpacklo_epi32(a, b);
}

// The transpose of 16 rows of 16 pairs, to 16 lines of 64 bytes.
inline void transpose(const __m512i* rows, std::byte* to) {
  __m512i pairs[16], quads[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) pairs[i] = unpack_pairs(rows[i / 2 * 2], rows[i / 2 * 2 + 1], i % 2 == 1);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    const __m512i a = pairs[i / 4 * 4 + i % 4 / 2], b = pairs[i / 4 * 4 + 2 + i % 4 / 2];
    quads[i] = i % 2 == 0 ? _mm512_unpacklo_epi64(a, b) : _mm512_unpackhi_epi64(a, b);
  }
  // quads[4 q + j] has, in its lane of 128 bits v, column 4 v + j of the rows 4 q to 4 q + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i low01 = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0x44);
    const __m512i low23 = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0xee);
    const __m512i high23 = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0xee);
    _mm512_store_si512(to + j * 64, _mm512_shuffle_i32x4(low01, low23, 0x88));
    _mm512_store_si512(to + (4 + j) * 64, _mm512_shuffle_i32x4(low01, low23, 0xdd));
    _mm512_store_si512(to + (8 + j) * 64, _mm512_shuffle_i32x4(high01, high23, 0x88));
    _mm512_store_si512(to + (12 + j) * 64, _mm512_shuffle_i32x4(high01, high23, 0xdd));
  }
}

inline __m512 widened(__m256i bfloat16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16), 16));
}

template <int Parts>
void pack_parts(const Strided& source, const float* mean, int64_t rows, int64_t k, void* dst) {
  with_element(source.element, [&](auto number) {
    alignas(64) float values[kSide][kStep];
    std::byte* step = static_cast<std::byte*>(dst);
    for (int64_t begin = 0; begin < k; begin += kStep, step += step_bytes<Parts>()) {
      for (int64_t first = 0; first < rows; first += kSide) {  // a ragged panel is never read beyond
        for (int64_t r = 0; r < kSide; ++r) {
          read<kStep, decltype(number)>(source, mean, rows, k, first + r, begin, values[r]);
        }
        for (int64_t part = 0; part < Parts; ++part) {
          std::byte* to = step + 2 * part * kLayout + first / kSide * kRegister;
          __m512i packed[kSide];
#pragma GCC unroll 16
          for (int64_t r = 0; r < kSide; ++r) {
            const __m512 low = _mm512_load_ps(values[r]), high = _mm512_load_ps(values[r] + 16);
            packed[r] = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_store_si512(to + r * kStep * 2, packed[r]);
            _mm512_store_ps(values[r], low - widened(_mm512_castsi512_si256(packed[r])));
            _mm512_store_ps(values[r] + 16, high - widened(_mm512_extracti64x4_epi64(packed[r], 1)));
          }
          transpose(packed, to + kLayout);
        }
      }
    }
  });
}

// ---- gemm

struct Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Of the tile registers of this thread, which others (oneDNN) may have set up for themselves.
class Configured {
 public:
  Configured() {
    _tile_storeconfig(&before_);
    _tile_loadconfig(&kOurs);
  }
  ~Configured() {
    if (before_.palette == 0) {
      _tile_release();
    } else {
      _tile_loadconfig(&before_);
    }
  }
  Configured(const Configured&) = delete;
  Configured& operator=(const Configured&) = delete;

 private:
  alignas(64) static constexpr Configuration kOurs{};
  alignas(64) Configuration before_;
};

// 16 rows and Columns registers of columns: sums 0 to 2, left factor 3 and 4, right factor 5 to 7.
template <int Parts, int Columns>
void strip(int64_t steps, const std::byte* a, const std::byte* b, bool accumulate, float* tile) {
  constexpr int kRow = kPanel * sizeof(float);
  if (accumulate) {
    _tile_loadd(0, tile, kRow);
    if constexpr (Columns > 1) _tile_loadd(1, tile + kSide, kRow);
    if constexpr (Columns > 2) _tile_loadd(2, tile + 2 * kSide, kRow);
  } else {
    _tile_zero(0);
    if constexpr (Columns > 1) _tile_zero(1);
    if constexpr (Columns > 2) _tile_zero(2);
  }
  for (int64_t step = 0; step < steps; ++step, a += step_bytes<Parts>(), b += step_bytes<Parts>()) {
#define AHK_RIGHT(part)                                                              \
  _tile_loadd(5, b + 2 * part * kLayout, 64);                                        \
  if constexpr (Columns > 1) _tile_loadd(6, b + 2 * part * kLayout + kRegister, 64); \
  if constexpr (Columns > 2) _tile_loadd(7, b + 2 * part * kLayout + 2 * kRegister, 64)
#define AHK_MULTIPLY(left)                               \
  _tile_dpbf16ps(0, left, 5);                            \
  if constexpr (Columns > 1) _tile_dpbf16ps(1, left, 6); \
  if constexpr (Columns > 2) _tile_dpbf16ps(2, left, 7)
    AHK_RIGHT(0);
    if constexpr (Parts > 2) {
      _tile_loadd(3, a + 4 * kLayout, 64);
      AHK_MULTIPLY(3);
    }
    if constexpr (Parts > 1) {
      _tile_loadd(4, a + 2 * kLayout, 64);
      AHK_MULTIPLY(4);
    }
    _tile_loadd(3, a, 64);
    AHK_MULTIPLY(3);
    if constexpr (Parts > 1) {
      AHK_RIGHT(1);
      if constexpr (Parts > 2) {
        AHK_MULTIPLY(4);
      }
      AHK_MULTIPLY(3);
    }
    if constexpr (Parts > 2) {
      AHK_RIGHT(2);
      AHK_MULTIPLY(3);
    }
#undef AHK_RIGHT
#undef AHK_MULTIPLY
  }
  _tile_stored(0, tile, kRow);
  if constexpr (Columns > 1) _tile_stored(1, tile + kSide, kRow);
  if constexpr (Columns > 2) _tile_stored(2, tile + 2 * kSide, kRow);
}

// tile [rows, cols] = the product over so many steps, as many of them at a time as fit the first-level cache.
template <int Parts, int Columns>
void product(int64_t steps, const std::byte* a, const std::byte* b, int64_t rows, float* tile) {
  constexpr int64_t kSteps = 12 / Parts;
  int64_t begin = 0;
  do {
    const int64_t count = steps - begin < kSteps ? steps - begin : kSteps, offset = begin * step_bytes<Parts>();
    for (int64_t r = 0; r < rows; r += kSide) {
      strip<Parts, Columns>(count, a + offset + r / kSide * kRegister, b + offset + kLayout, begin > 0,
                            tile + r * kPanel);
    }
    begin += kSteps;
  } while (begin < steps);
}

template <int Parts>
void gemm_parts(int64_t k, const void* a, const void* b, int64_t rows, int64_t cols, bool accumulate, float* tile) {
  const Configured registers;
  alignas(64) float summed[kTileSize];
  const int64_t steps = k / kStep;
  int64_t begin = 0;
  do {
    const int64_t left = steps - begin, count = left < kSummed / kStep ? left : kSummed / kStep;
    const std::byte* left_factor = static_cast<const std::byte*>(a) + begin * step_bytes<Parts>();
    const std::byte* right_factor = static_cast<const std::byte*>(b) + begin * step_bytes<Parts>();
    float* to = accumulate ? summed : tile;
    if (cols > 2 * kSide) {
      product<Parts, 3>(count, left_factor, right_factor, rows, to);
    } else if (cols > kSide) {
      product<Parts, 2>(count, left_factor, right_factor, rows, to);
    } else {
      product<Parts, 1>(count, left_factor, right_factor, rows, to);
    }
    if (accumulate) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = r * kPanel; c < r * kPanel + cols; c += 16) {
          _mm512_store_ps(tile + c, _mm512_load_ps(tile + c) + _mm512_load_ps(summed + c));
        }
      }
    }
    accumulate = true;
    begin += count;
  } while (begin < steps);
}

template <int Parts>
constexpr TileKernels<float> parts_kernels() {
  return tile_kernels<float, 64>(kStep, step_bytes<Parts>() / kPanel, &pack_parts<Parts>, &gemm_parts<Parts>);
}

const TileKernels<float> one_part_tile = parts_kernels<1>();
const TileKernels<float> two_part_tile = parts_kernels<2>();
const TileKernels<float> three_part_tile = parts_kernels<3>();
}  // namespace ahkernels::cpu::amx
AHK_TARGET_END
#endif
