// Products on the matrix units of AMX, of 16 x 16 sums an instruction.
//
// int8 products are exact, and give the quality of fp32 as follows. A row of a factor becomes integers times a unit,
// which is the row's largest magnitude over 2^23, and each integer becomes three signed digits of 8 bits. There are
// nine products of digits. The six with the greatest weights are summed, in one register for each weight:
//
//     <a, b> = unit_a unit_b (2^32 a0.b0 + 2^24 (a0.b1 + a1.b0) + 2^16 (a0.b2 + a1.b1 + a2.b0) + ...)
//
// The other three are about 2^-24 of a product of largest numbers, like fp32's rounding: errors are small beside the
// norms of the two rows. Unlike in fp32 they are not small beside each single product, where a row has a few very large
// numbers. Two digits and three products give half the bits. Where bf16 is enough, the same units sum bf16 products.
//
// A panel is packed twice, in steps of 64 bytes along k and digit by digit: as [row][64 bytes] for a left factor, then
// as [16 columns at a time][4 bytes along k][column] for a right factor. The two lie apart, since a product reads only
// one of them.
#include "kernel_table.h"

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "target.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's bug 105593, in its own header
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

AHK_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma,f16c,amx-tile,amx-bf16,amx-int8")
namespace ahkernels::cpu::amx {
#include "tile_kernels.inl"

constexpr int64_t kSide = 16;                       // rows and columns of a tile register
constexpr int64_t kLine = 64;                       // bytes of its rows
constexpr int64_t kRegister = kSide * kLine;        // bytes
constexpr int64_t kPart = kPanel * kLine;           // bytes of one step of a panel, of one digit
constexpr int64_t kUnits = kPanel * sizeof(float);  // bytes of the units of a panel's rows, which come first

// Numbers in a line, for int8 and for bf16.
constexpr int64_t kBytes = 64, kBFloat16s = 32;

// Bytes from one step to the next.
constexpr int64_t step_bytes(int digits) { return digits * kPart; }

// ---- pack

// Writes the transpose of 16 rows of 16 numbers of 4 bytes to 16 lines.
inline void transpose(const __m512i* rows, std::byte* to) {
  __m512i pairs[16], quads[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  // quads[4 q + j] has, in its lane of 128 bits v, column 4 v + j of the rows 4 q to 4 q + 3.
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i low01 = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0x44);
    const __m512i low23 = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0xee);
    const __m512i high23 = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0xee);
    _mm512_store_si512(to + j * kLine, _mm512_shuffle_i32x4(low01, low23, 0x88));
    _mm512_store_si512(to + (4 + j) * kLine, _mm512_shuffle_i32x4(low01, low23, 0xdd));
    _mm512_store_si512(to + (8 + j) * kLine, _mm512_shuffle_i32x4(high01, high23, 0x88));
    _mm512_store_si512(to + (12 + j) * kLine, _mm512_shuffle_i32x4(high01, high23, 0xdd));
  }
}

// Writes the left factor's rows of one step and digit as a right factor, too.
inline void transpose(const std::byte* left, std::byte* right) {
  __m512i rows[kSide];
#pragma GCC unroll 16
  for (int64_t r = 0; r < kSide; ++r) rows[r] = _mm512_load_si512(left + r * kLine);
  transpose(rows, right);
}

inline void pack_bfloat16(const Strided& source, const float* mean, int64_t rows, int64_t k, void* dst) {
  with_element(source.element, [&](auto number) {
    const int64_t to_right = ceil_div(k, kBFloat16s) * step_bytes(1);
    std::byte* step = static_cast<std::byte*>(dst);
    for (int64_t begin = 0; begin < k; begin += kBFloat16s, step += step_bytes(1)) {
      for (int64_t first = 0; first < rows; first += kSide) {  // a ragged panel is never read beyond
        std::byte* to = step + first * kLine;
        for (int64_t r = 0; r < kSide; ++r) {
          alignas(64) float values[kBFloat16s];
          read<kBFloat16s, decltype(number)>(source, mean, rows, k, first + r, begin, values);
          _mm512_store_si512(to + r * kLine, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_load_ps(values + 16),
                                                                                           _mm512_load_ps(values))));
        }
        transpose(to, to + to_right);
      }
    }
  });
}

// The greatest integer with so many digits, with room for what rounding may add.
constexpr float greatest(int digits) { return digits == 2 ? 32600.0f : 8355000.0f; }

// The integers of a row are its numbers times `factor`, and stand for multiples of `unit`; unit is nan for a row with
// nan or inf.
struct Unit {
  float factor, unit;

  Unit(float largest, float greatest) {
    // Beyond fp32's range both would be infinite or zero.
    factor = largest > 0 ? std::fmin(greatest / largest, 1e37f) : 0.0f;
    unit = largest > 0 ? 1 / factor : largest;
  }
};

// values = numbers [begin, begin + kBytes) of 16 rows, scaled and less their mean.
template <class Source>
void read_rows(const Strided& source, const float* mean, int64_t rows, int64_t k, int64_t first, int64_t begin,
               float (&values)[kSide][kBytes]) {
  if (source.row_stride != 1 || first + kSide > rows || begin + kBytes > k || mean != nullptr) {
    for (int64_t r = 0; r < kSide; ++r) read<kBytes, Source>(source, mean, rows, k, first + r, begin, values[r]);
    return;
  }
  // In a transposed matrix a single row would be read from as many cache lines as it has numbers.
  const Source* from = static_cast<const Source*>(source.data) + first + begin * source.k_stride;
  const float scale = static_cast<float>(source.scale);
  for (int64_t i = 0; i < kBytes; ++i) {
    for (int64_t r = 0; r < kSide; ++r) {
      values[r][i] = static_cast<float>(to_float(from[i * source.k_stride + r])) * scale;
    }
  }
}

template <class Source>
void largest_magnitudes(const Strided& source, const float* mean, int64_t rows, int64_t k, int64_t first,
                        float (&magnitudes)[kSide]) {
  __m512 largest[kSide], invalid[kSide];
  for (int64_t r = 0; r < kSide; ++r) largest[r] = invalid[r] = _mm512_setzero_ps();
  for (int64_t begin = 0; begin < k; begin += kBytes) {
    alignas(64) float values[kSide][kBytes];
    read_rows<Source>(source, mean, rows, k, first, begin, values);
    for (int64_t r = 0; r < kSide; ++r) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < kBytes; i += 16) {
        const __m512 numbers = _mm512_load_ps(values[r] + i);
        largest[r] = _mm512_max_ps(largest[r], _mm512_abs_ps(numbers));
        invalid[r] += numbers - numbers;
      }
    }
  }
  for (int64_t r = 0; r < kSide; ++r) {
    magnitudes[r] = _mm512_reduce_max_ps(largest[r]) + _mm512_reduce_add_ps(invalid[r]);
  }
}

template <int Digits>
void pack_digits(const Strided& source, const float* mean, int64_t rows, int64_t k, void* dst) {
  with_element(source.element, [&](auto number) {
    using Source = decltype(number);
    float* units = static_cast<float*>(dst);
    std::byte* panel = static_cast<std::byte*>(dst) + kUnits;
    const int64_t to_right = ceil_div(k, kBytes) * step_bytes(Digits);
    for (int64_t first = 0; first < rows; first += kSide) {
      float factors[kSide];
      largest_magnitudes<Source>(source, mean, rows, k, first, factors);
      for (int64_t r = 0; r < kSide; ++r) {
        const Unit unit(factors[r], greatest(Digits));
        factors[r] = unit.factor;
        units[first + r] = unit.unit;
      }
      std::byte* to = panel + first * kLine;
      for (int64_t begin = 0; begin < k; begin += kBytes, to += step_bytes(Digits)) {
        alignas(64) float values[kSide][kBytes];
        read_rows<Source>(source, mean, rows, k, first, begin, values);
        for (int64_t r = 0; r < kSide; ++r) {
#pragma GCC unroll 4
          for (int64_t i = 0; i < kBytes; i += 16) {
            __m512i integers = _mm512_cvtps_epi32(_mm512_load_ps(values[r] + i) * factors[r]);
            // Signed digits, the last one first; what exceeds its range is carried to the next.
#pragma GCC unroll 3
            for (int digit = Digits - 1; digit >= 0; --digit) {
              _mm_store_si128(reinterpret_cast<__m128i*>(to + digit * kPart + r * kLine + i),
                              _mm512_cvtepi32_epi8(integers));
              integers = _mm512_srai_epi32(_mm512_add_epi32(integers, _mm512_set1_epi32(128)), 8);
            }
          }
        }
        for (int digit = 0; digit < Digits; ++digit) transpose(to + digit * kPart, to + to_right + digit * kPart);
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

constexpr Configuration kOurs alignas(64){};

// Set up this thread's tile registers and restore them. Others (oneDNN) may have set them up for themselves, and
// loading a configuration takes as long as ten products.
void configure(std::byte* before) {
  _tile_storeconfig(before);
  if (std::memcmp(before, &kOurs, sizeof(kOurs)) != 0) _tile_loadconfig(&kOurs);
}
void restore(const std::byte* before) {
  if (std::memcmp(before, &kOurs, sizeof(kOurs)) == 0) return;
  if (before[0] == std::byte{0}) {  // palette 0: none were set up
    _tile_release();
  } else {
    _tile_loadconfig(before);
  }
}

constexpr int kTileRow = kPanel * sizeof(float);

// 16 rows and Columns registers of columns: the sums are in registers 0 to 2, the left factor in 3, the right factor in
// 5 to 7.
template <int Columns>
void bfloat16_strip(int64_t steps, const std::byte* a, const std::byte* b, bool accumulate, float* tile) {
  if (accumulate) {
    _tile_loadd(0, tile, kTileRow);
    if constexpr (Columns > 1) _tile_loadd(1, tile + kSide, kTileRow);
    if constexpr (Columns > 2) _tile_loadd(2, tile + 2 * kSide, kTileRow);
  } else {
    _tile_zero(0);
    if constexpr (Columns > 1) _tile_zero(1);
    if constexpr (Columns > 2) _tile_zero(2);
  }
  for (int64_t step = 0; step < steps; ++step, a += step_bytes(1), b += step_bytes(1)) {
    _tile_loadd(3, a, kLine);
    _tile_loadd(5, b, kLine);
    _tile_dpbf16ps(0, 3, 5);
    if constexpr (Columns > 1) {
      _tile_loadd(6, b + kRegister, kLine);
      _tile_dpbf16ps(1, 3, 6);
    }
    if constexpr (Columns > 2) {
      _tile_loadd(7, b + 2 * kRegister, kLine);
      _tile_dpbf16ps(2, 3, 7);
    }
  }
  _tile_stored(0, tile, kTileRow);
  if constexpr (Columns > 1) _tile_stored(1, tile + kSide, kTileRow);
  if constexpr (Columns > 2) _tile_stored(2, tile + 2 * kSide, kTileRow);
}

inline void gemm_bfloat16(int64_t k, const void* a, const void* b, int64_t rows, int64_t cols, bool accumulate,
                          float* tile) {
  const GemmScope<float> registers(configure, restore);
  constexpr int64_t kSteps = 12;  // as much of the right factor as fits the first-level cache
  const int64_t steps = k / kBFloat16s;
  const std::byte* left = static_cast<const std::byte*>(a);
  const std::byte* right = static_cast<const std::byte*>(b) + steps * step_bytes(1);
  int64_t begin = 0;
  do {
    const int64_t count = steps - begin < kSteps ? steps - begin : kSteps, offset = begin * step_bytes(1);
    for (int64_t r = 0; r < rows; r += kSide) {
      const auto strip = cols > 2 * kSide ? &bfloat16_strip<3> : cols > kSide ? &bfloat16_strip<2> : &bfloat16_strip<1>;
      strip(count, left + offset + r * kLine, right + offset, accumulate || begin > 0, tile + r * kPanel);
    }
    begin += kSteps;
  } while (begin < steps);
}

// Sums of products of digits by their weight, for one register of rows and one of columns.
template <int Digits>
using Sums = int32_t[Digits][kSide][kSide];

// Sums that `use` has not used yet.
template <int Digits, class Use>
struct Pending {
  alignas(64) Sums<Digits> sums;
  const float *row_units, *col_units;
  Use use;

  // Uses the rows [first, end) of 16.
  void rows(int64_t first, int64_t end) const {
    const __m512 units = _mm512_loadu_ps(col_units) * (Digits == 2 ? 0x1p8f : 0x1p24f);
    use(first, end, [&](int64_t r) {
      const auto weighted = [&](int weight) { return _mm512_cvtepi32_ps(_mm512_load_si512(sums[weight][r])); };
      __m512 numbers = weighted(0) * 256.0f + weighted(1);
      if constexpr (Digits > 2) numbers += weighted(2) * (1 / 256.0f);
      return numbers * units * row_units[r];
    });
  }
};

// tile [16, 16] (+)= numbers
struct ToTile {
  float* tile;
  bool accumulate;

  template <class Numbers>
  void operator()(int64_t first, int64_t end, const Numbers& numbers) const {
    for (int64_t r = first; r < end; ++r) {
      float* to = tile + r * kPanel;
      _mm512_store_ps(to, accumulate ? _mm512_load_ps(to) + numbers(r) : numbers(r));
    }
  }
};

// forms [16] += v_row (tile - row - col) and squares [16] += (tile - row - col)^2 for each of 16 columns, where tile is
// (p + bias) o numbers.
struct ToFormAndSquare {
  const float *p, *row, *v_row, *col;
  float bias;
  int64_t count;  // rows of the tile from here on
  float *forms, *squares;

  template <class Numbers>
  void operator()(int64_t first, int64_t end, const Numbers& numbers) const {
    const __m512 col_means = _mm512_loadu_ps(col);
    __m512 form = _mm512_load_ps(forms), square = _mm512_load_ps(squares);
    for (int64_t r = first; r < end && r < count; ++r) {
      const __m512 centered = (_mm512_load_ps(p + r * kPanel) + bias) * numbers(r) - col_means - row[r];
      form += centered * v_row[r];
      square += centered * centered;
    }
    _mm512_store_ps(forms, form);
    _mm512_store_ps(squares, square);
  }
};

// Sums products for one register of rows and one of columns by their weight, in tile registers 0 to 2. The left factor
// is in registers 3 to 5, the right one in 6 and 7. The processor looks only a few tile instructions ahead, so that the
// matrix unit would wait for any work between two such calls. The sums of the call before, if there was one, are
// therefore stored only where their registers are needed again, and used between the products.
template <int Digits, class Use>
void sum_products(int64_t steps, const std::byte* a, const std::byte* b, Pending<Digits, Use>* before) {
  const int64_t rows = ceil_div(kSide, steps);  // of the sums before, used in each step
  for (int64_t step = 0; step < steps; ++step, a += step_bytes(Digits), b += step_bytes(Digits)) {
    const bool first = step == 0, store = first && before;
    if (store) _tile_stored(0, before->sums[0], kLine);
    if (first) _tile_zero(0);
    _tile_loadd(3, a, kLine);
    _tile_loadd(6, b, kLine);
    _tile_dpbssd(0, 3, 6);
    if (store) _tile_stored(1, before->sums[1], kLine);
    if (first) _tile_zero(1);
    _tile_loadd(4, a + kPart, kLine);
    _tile_dpbssd(1, 4, 6);
    _tile_loadd(7, b + kPart, kLine);
    _tile_dpbssd(1, 3, 7);
    if constexpr (Digits > 2) {
      if (store) _tile_stored(2, before->sums[2], kLine);
      if (first) _tile_zero(2);
      _tile_loadd(5, a + 2 * kPart, kLine);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(2, 4, 7);
    }
    if (before) before->rows(step * rows, (step + 1) * rows < kSide ? (step + 1) * rows : kSide);
    if constexpr (Digits > 2) {
      _tile_loadd(6, b + 2 * kPart, kLine);
      _tile_dpbssd(2, 3, 6);
    }
  }
}

// Calls sum_products again and again, each time with the sums of the call before.
template <int Digits, class Use>
class Pipeline {
 public:
  void add(int64_t steps, const std::byte* a, const std::byte* b, const float* row_units, const float* col_units,
           const Use& use) {
    Pending<Digits, Use>& next = pending_[count_ % 2];
    next.row_units = row_units;
    next.col_units = col_units;
    next.use = use;
    sum_products<Digits>(steps, a, b, before());
    ++count_;
  }

  void finish() {
    Pending<Digits, Use>* last = before();
    if (!last) return;
    _tile_stored(0, last->sums[0], kLine);
    _tile_stored(1, last->sums[1], kLine);
    if constexpr (Digits > 2) _tile_stored(2, last->sums[2], kLine);
    last->rows(0, kSide);
  }

 private:
  Pending<Digits, Use>* before() { return count_ == 0 ? nullptr : &pending_[(count_ + 1) % 2]; }

  Pending<Digits, Use> pending_[2];
  int64_t count_ = 0;
};

// The parts of a packed panel.
struct Panel {
  const float* units;
  const std::byte *left, *right;

  Panel(const void* panel, int64_t steps, int digits)
      : units(static_cast<const float*>(panel)),
        left(static_cast<const std::byte*>(panel) + kUnits),
        right(left + steps * step_bytes(digits)) {}
};

// Calls visit(row, col) for the registers of a tile, down one column and up the next, so that the rows at the turn are
// still in the first-level cache.
template <class Visit>
void for_each_register(int64_t rows, int64_t cols, const Visit& visit) {
  const int64_t down = ceil_div(rows, kSide), across = ceil_div(cols, kSide);
  for (int64_t c = 0; c < across; ++c) {
    for (int64_t r = 0; r < down; ++r) visit((c % 2 ? down - 1 - r : r) * kSide, c * kSide);
  }
}

constexpr int64_t kSteps = 6;  // their numbers stay in the first-level cache, and sums over them fit 32 bits by far

template <int Digits>
void gemm_digits(int64_t k, const void* a, const void* b, int64_t rows, int64_t cols, bool accumulate, float* tile) {
  const GemmScope<float> registers(configure, restore);
  const int64_t steps = k / kBytes;
  const Panel left(a, steps, Digits), right(b, steps, Digits);
  if (steps == 0 && !accumulate) std::memset(tile, 0, static_cast<size_t>(rows) * kTileRow);
  Pipeline<Digits, ToTile> pipeline;
  for (int64_t begin = 0; begin < steps; begin += kSteps) {
    const int64_t count = steps - begin < kSteps ? steps - begin : kSteps, offset = begin * step_bytes(Digits);
    for_each_register(rows, cols, [&](int64_t r, int64_t c) {
      pipeline.add(count, left.left + offset + r * kLine, right.right + offset + c * kLine, left.units + r,
                   right.units + c, {tile + r * kPanel + c, accumulate || begin > 0});
    });
  }
  pipeline.finish();
}

// Sums over the rows of a tile for each of its columns.
struct Columns {
  alignas(64) float forms[kPanel] = {}, squares[kPanel] = {};

  // Adds the sums of the first `cols` columns to form and square, and starts again from zero.
  void move_to(const float* v_col, int64_t cols, __m512d& form, __m512d& square) {
    for (int64_t c = 0; c < cols; c += 8) {
      const __mmask8 there = static_cast<__mmask8>(cols - c < 8 ? (1 << (cols - c)) - 1 : 0xff);
      const __m512d v = _mm512_cvtps_pd(_mm256_loadu_ps(v_col + c));
      form += _mm512_maskz_cvtps_pd(there, _mm256_load_ps(forms + c)) * v;
      square += _mm512_maskz_cvtps_pd(there, _mm256_load_ps(squares + c));
    }
    *this = Columns();
  }
};

// product_form_and_square without writing the tiles: their numbers are used while the matrix unit makes the next ones.
template <int Digits>
FormAndSquare form_and_square_digits(const ProductTiles<float>& of, float* tile) {
  const int64_t steps = of.k / kBytes;
  if (steps == 0 || steps > kSteps) return product_form_and_square<float, 64, &gemm_digits<Digits>>(of, tile);
  const GemmScope<float> registers(configure, restore);
  const Panel left(of.a, steps, Digits);
  Pipeline<Digits, ToFormAndSquare> pipeline;
  Columns columns[2];
  __m512d form = _mm512_setzero_pd(), square = _mm512_setzero_pd();
  const auto done = [&](int64_t j) { columns[j % 2].move_to(of.v_col + j * of.col_step, of.cols, form, square); };
  for (int64_t j = 0; j < of.count; ++j) {
    const Panel right(static_cast<const std::byte*>(of.b) + j * of.b_bytes, steps, Digits);
    for_each_register(of.rows, of.cols, [&](int64_t r, int64_t c) {
      pipeline.add(steps, left.left + r * kLine, right.right + c * kLine, left.units + r, right.units + c,
                   {of.p + r * kPanel + c, of.row + r, of.v_row + r, of.col + j * of.col_step + c, of.bias, of.rows - r,
                    columns[j % 2].forms + c, columns[j % 2].squares + c});
      if (r == 0 && c == 0 && j > 0) done(j - 1);
    });
  }
  pipeline.finish();
  if (of.count > 0) done(of.count - 1);
  return {_mm512_reduce_add_pd(form), _mm512_reduce_add_pd(square)};
}

template <auto Gemm>
constexpr TileKernels<float> matrix_kernels(const Packing& packing, decltype(TileKernels<float>::pack) pack) {
  TileKernels<float> kernels = tile_kernels<float, 64, Gemm>(packing, pack);
  kernels.enter = &configure;
  kernels.leave = &restore;
  return kernels;
}

template <int Digits>
constexpr TileKernels<float> digit_kernels() {
  TileKernels<float> kernels = matrix_kernels<&gemm_digits<Digits>>(
      {kBytes, 2 * step_bytes(Digits) / kPanel, sizeof(float)}, &pack_digits<Digits>);
  kernels.product_form_and_square = &form_and_square_digits<Digits>;
  return kernels;
}

const TileKernels<float> bfloat16_tile =
    matrix_kernels<&gemm_bfloat16>({kBFloat16s, 2 * step_bytes(1) / kPanel, 0}, &pack_bfloat16);
const TileKernels<float> two_digits_tile = digit_kernels<2>();
const TileKernels<float> three_digits_tile = digit_kernels<3>();
}  // namespace ahkernels::cpu::amx
AHK_TARGET_END
#endif
