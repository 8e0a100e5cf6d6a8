// The inner kernels of the CPU ops: a table of functions for each instruction set, one of which is chosen at run time
// (dispatch.cpp).
//
// A packed panel holds kPanel rows of a factor as [k][kPanel], with zeros up to the next 16 where the rows end. A tile
// is kPanel x kPanel, row-major, in the first-level cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../../tiling.h"

namespace ahkernels::cpu {

constexpr int64_t kTileSize = kPanel * kPanel;

// IEEE half precision. In C++, gcc 12 has no _Float16 on Arm, but the older name for it.
#if defined(__aarch64__)
using Half = __fp16;
#else
using Half = _Float16;
#endif

enum class Element { kFloat, kDouble, kHalf, kBFloat16 };

// A view of rows x k numbers with any strides, counted in elements. A kernel that reads them multiplies by `scale`.
struct Strided {
  const void* data;
  Element element;
  int64_t row_stride, k_stride;
  double scale;

  Strided from_row(int64_t row) const { return moved(row * row_stride); }
  Strided from_k(int64_t k) const { return moved(k * k_stride); }

 private:
  Strided moved(int64_t elements) const {
    const int64_t bytes = element == Element::kDouble ? 8 : element == Element::kFloat ? 4 : 2;
    return {static_cast<const std::byte*>(data) + elements * bytes, element, row_stride, k_stride, scale};
  }
};

// How a panel of kPanel rows is packed.
struct Packing {
  int64_t k_per_packed;  // numbers along k in one packed element; k is padded with zeros to a multiple of it
  int64_t packed_bytes;  // size of one packed element
  int64_t row_bytes;     // size of what is stored once for each row

  int64_t padded(int64_t k) const { return ceil_div(k, k_per_packed) * k_per_packed; }
  // Bytes of a panel with k numbers in each row.
  int64_t panel_bytes(int64_t k) const { return kPanel * (ceil_div(k, k_per_packed) * packed_bytes + row_bytes); }
};

// Sums over a tile: the quadratic form v_row^T tile v_col, and the sum of squares.
struct FormAndSquare {
  double form, square;
};

// The tiles (p + bias) o a b^T of one panel a and `count` panels b, with the vectors that product_form_and_square
// takes.
template <class T>
struct ProductTiles {
  int64_t k, rows, cols, count;  // k padded
  const void* a;                 // [k][kPanel], packed
  const void* b;                 // [count][k][kPanel], packed, b_bytes apart
  const T* p;                    // [rows][kPanel]
  T bias;
  const T *row, *v_row;       // [rows]
  const T *col, *v_col;       // [count][cols], col_step apart
  int64_t b_bytes, col_step;  // from one tile to the next
};

// The mean-free tiles T (near_constant_centering.h) of one panel a, at one output, and the panels b of `count` outputs,
// with the vectors that product_form_square_and_sums takes. What depends on the output of b lies `*_step` further on
// for the next output.
template <class T>
struct CenteredTiles {
  int64_t k, rows, cols, count;  // k padded
  const void* a;                 // [k][kPanel], packed
  const void* b;                 // [count][k][kPanel], packed
  const T* p;                    // [rows][kPanel]
  T p0;
  const T *p_row, *p_col;  // [rows], [cols]
  const T* q0;             // [count]
  const T *q_row, *q_col;  // [count][rows], [count][cols]
  const T *v_row, *v_col;  // [rows], [count][cols]
  T* sums;                 // [count][2][kPanel]: sums of the rows, then of the columns
  int64_t b_bytes, q0_step, q_row_step, q_col_step, v_col_step, sums_step;
};

// T is the type of tiles and of sums within one. Vectors indexed by column are read up to the next 16 columns.
template <class T>
struct TileKernels : Packing {
  // dst [k][kPanel] = source [rows, k], less mean [k] unless that is null; k needs no padding here
  void (*pack)(const Strided& source, const T* mean, int64_t rows, int64_t k, void* dst);
  // tile [rows, cols] (+)= a [k][rows]^T b [k][cols]; k padded
  void (*gemm)(int64_t k, const void* a, const void* b, int64_t rows, int64_t cols, bool accumulate, T* tile);
  // Set up the processor's state that gemm needs, and restore the earlier one; null where there is none. See GemmScope.
  void (*enter)(std::byte* before);
  void (*leave)(const std::byte* before);
  // tile [rows, cols] (+)= (p + bias) o q
  void (*hadamard)(const T* p, T bias, const T* q, int64_t rows, int64_t cols, bool accumulate, T* tile);
  // sums [cols] = the sums over rows of (p + bias) o q
  void (*hadamard_sums)(const T* p, T bias, const T* q, int64_t rows, int64_t cols, T* sums);
  // tile [rows, cols] (+)= (p0 + p_row + p_col + p) o q + p o (q0 + q_row + q_col) + p_row q_col + q_row p_col: see
  // near_constant_centering.h
  void (*centered_hadamard)(const T* p, T p0, const T* p_row, const T* p_col, const T* q, T q0, const T* q_row,
                            const T* q_col, int64_t rows, int64_t cols, bool accumulate, T* tile);
  // the sum over [rows, cols] of (a - row_a - col_a) o (b - row_b - col_b)
  double (*centered_product)(const T* a, const T* row_a, const T* col_a, const T* b, const T* row_b, const T* col_b,
                             int64_t rows, int64_t cols);
  // form and square of tile [rows, cols], and the sums of its rows and of its columns
  FormAndSquare (*form_square_and_sums)(const T* tile, const T* v_row, const T* v_col, int64_t rows, int64_t cols,
                                        T* row_sums, T* col_sums);
  // the sums of the rows and of the columns of tile [rows, cols]
  void (*sums)(const T* tile, int64_t rows, int64_t cols, T* row_sums, T* col_sums);
  // form and square of tile - row - col
  FormAndSquare (*centered_form_and_square)(const T* tile, const T* row, const T* col, const T* v_row, const T* v_col,
                                            int64_t rows, int64_t cols);
  // centered_form_and_square, summed over tiles that are made and not kept; `tile` has room for one
  FormAndSquare (*product_form_and_square)(const ProductTiles<T>& of, T* tile);
  // form_square_and_sums, the former two summed over tiles that are made and not kept; `tile` has room for one
  FormAndSquare (*product_form_square_and_sums)(const CenteredTiles<T>& of, T* tile);
  // to [k] = the sums of the columns of x [rows, k]
  void (*column_sums)(const Strided& x, int64_t rows, int64_t k, T* to);
  // to [count] = y [count][k] (x - mean), where x [k] is the first row of a view
  void (*dots)(const Strided& x, const T* mean, int64_t k, const T* y, int64_t count, T* to);
  // y [k] += alpha x, where x [k] is the first row of a view
  void (*axpy)(T alpha, const Strided& x, int64_t k, T* y);
  // <x, y>, where x [k] is the first row of a view
  T (*dot)(const Strided& x, int64_t k, const T* y);
  // The largest magnitude in rows [count, k] without their scale, nan if there is one.
  double (*largest)(const Strided& rows, int64_t count, int64_t k);
};

// While it lives, a thread's gemms find the processor set up, so that not each of them has to do it.
template <class T>
class GemmScope {
 public:
  explicit GemmScope(const TileKernels<T>& tiles) : GemmScope(tiles.enter, tiles.leave) {}
  GemmScope(decltype(TileKernels<T>::enter) enter, decltype(TileKernels<T>::leave) leave) : leave_(leave) {
    if (enter) enter(before_);
  }
  ~GemmScope() {
    if (leave_) leave_(before_);
  }
  GemmScope(const GemmScope&) = delete;
  GemmScope& operator=(const GemmScope&) = delete;

 private:
  const decltype(TileKernels<T>::leave) leave_;
  alignas(64) std::byte before_[64];
};

// The instruction sets of this processor, best first. The environment variable AHKERNELS_CPU_CAPABILITY (amx,
// avx512bf16, avx512, avx2 or portable) names the best one that is used.
const std::vector<std::string>& capabilities();

const TileKernels<double>& double_kernels();
// For fp32 or 16-bit factors. With AMX, "medium" takes bf16 products, "high" int8 products of two digits of each number
// and "highest" int8 products of three digits, which have the quality of fp32. Without AMX, "medium" takes bf16
// products where the processor has them, and everything else fp32.
const TileKernels<float>& float_kernels(const std::string& precision);

namespace portable {
extern const TileKernels<float> float_tile;
extern const TileKernels<double> double_tile;
}  // namespace portable

#if defined(__x86_64__)
namespace avx2 {
extern const TileKernels<float> float_tile;
extern const TileKernels<double> double_tile;
}  // namespace avx2
namespace avx512 {
extern const TileKernels<float> float_tile;
extern const TileKernels<double> double_tile;
}  // namespace avx512
namespace avx512bf16 {
extern const TileKernels<float> bfloat16_tile;
}
#endif
#if defined(__x86_64__) && defined(__linux__)
namespace amx {
extern const TileKernels<float> bfloat16_tile, two_digits_tile, three_digits_tile;
}
#endif

}  // namespace ahkernels::cpu
