// The inner kernels of the CPU ops, one set for each instruction set, chosen at run time.
//
// A packed panel holds kPanel rows of a factor as [k][kPanel], zero up to the next 16 where the rows end; a tile is
// kPanel x kPanel, row-major, in the first-level cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../schedule.h"

namespace ahkernels::cpu {

constexpr int64_t kTileSize = kPanel * kPanel;

enum class Element { kFloat, kDouble, kHalf, kBFloat16 };

// rows x k numbers with any strides (counted in elements), read as they are and multiplied by `scale`.
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
  int64_t row_bytes;     // and of what there is once for each row

  int64_t padded(int64_t k) const { return ceil_div(k, k_per_packed) * k_per_packed; }
  // Of a panel with k numbers in each of its rows.
  int64_t panel_bytes(int64_t k) const { return kPanel * (ceil_div(k, k_per_packed) * packed_bytes + row_bytes); }
};

struct FormAndSquare {
  double form, square;
};

// The tiles (p + bias) o a b^T of one panel a and `count` panels b, with what centered_statistics takes beside them.
template <class T>
struct ProductTiles {
  int64_t k, rows, cols, count;  // k padded
  const void *a, *b;
  const T* p;
  T bias;
  const T *row, *v_row, *col, *v_col;
  int64_t b_bytes, col_step;  // from one tile to the next
};

// The tiles of T (centering.h) of one panel a of an output and panels b of `count` outputs, with what moments takes
// beside them; whatever depends on the output of b lies `*_step` further for the next.
template <class T>
struct CenteredTiles {
  int64_t k, rows, cols, count;  // k padded
  const void *a, *b;
  const T* p;
  T p0;
  const T *p_row, *p_col, *q0, *q_row, *q_col, *v_row, *v_col;
  T* sums;  // of rows, and kPanel further of columns
  int64_t b_bytes, q0_step, q_row_step, q_col_step, v_col_step, sums_step;
};

// T is the type of tiles and of sums within one.
template <class T>
struct TileKernels : Packing {
  // dst [k][kPanel] = source [rows, k], less mean [k] unless that is null; k as it is, padding is done here
  void (*pack)(const Strided& source, const T* mean, int64_t rows, int64_t k, void* dst);
  // tile [rows, cols] (+)= a [k][rows]^T b [k][cols]; k padded
  void (*gemm)(int64_t k, const void* a, const void* b, int64_t rows, int64_t cols, bool accumulate, T* tile);
  // Sets up what gemm needs of the processor and restores what was; null where it needs nothing. See GemmScope.
  void (*enter)(std::byte* before);
  void (*leave)(const std::byte* before);
  // tile [rows, cols] (+)= (p + bias) o q
  void (*hadamard)(const T* p, T bias, const T* q, int64_t rows, int64_t cols, bool accumulate, T* tile);
  // sums [cols] over rows of (p + bias) o q
  void (*hadamard_sums)(const T* p, T bias, const T* q, int64_t rows, int64_t cols, T* sums);
  // tile [rows, cols] (+)= (p0 + p_row + p_col + p) o q + p o (q0 + q_row + q_col) + p_row q_col + q_row p_col: see
  // centering.h
  void (*centered_hadamard)(const T* p, T p0, const T* p_row, const T* p_col, const T* q, T q0, const T* q_row,
                            const T* q_col, int64_t rows, int64_t cols, bool accumulate, T* tile);
  // sum over [rows, cols] of (a - row_a - col_a) o (b - row_b - col_b)
  double (*centered_product)(const T* a, const T* row_a, const T* col_a, const T* b, const T* row_b, const T* col_b,
                             int64_t rows, int64_t cols);
  // sums over [rows, cols] of v_row tile v_col and of tile^2, and those of each row and of each column; what `tile` and
  // `v_col` point to goes on to the next 16 columns
  FormAndSquare (*moments)(const T* tile, const T* v_row, const T* v_col, int64_t rows, int64_t cols, T* row_sums,
                           T* col_sums);
  // sums of each row and of each column of tile [rows, cols]
  void (*sums)(const T* tile, int64_t rows, int64_t cols, T* row_sums, T* col_sums);
  // sums over [rows, cols] of v_row (tile - row - col) v_col and of (tile - row - col)^2; what `tile`, `col` and
  // `v_col` point to goes on to the next 16 columns
  FormAndSquare (*centered_statistics)(const T* tile, const T* row, const T* col, const T* v_row, const T* v_col,
                                       int64_t rows, int64_t cols);
  // The same of all these tiles together, of which none is kept; `tile` is for one of them.
  FormAndSquare (*product_statistics)(const ProductTiles<T>& of, T* tile);
  // moments of all these tiles together, of which none is kept; `tile` is for one of them.
  FormAndSquare (*centered_product_moments)(const CenteredTiles<T>& of, T* tile);
  // to [k] = the sums over x [rows, k] of each column
  void (*column_sums)(const Strided& x, int64_t rows, int64_t k, T* to);
  // to [count] = the sums of (x - mean) o y over y [count][k], where x is the first row of a view
  void (*dots)(const Strided& x, const T* mean, int64_t k, const T* y, int64_t count, T* to);
  // y [k] += alpha * x [k], and the sum of x o y, where x is the first row of a view
  void (*axpy)(T alpha, const Strided& x, int64_t k, T* y);
  T (*dot)(const Strided& x, int64_t k, const T* y);
  // Largest magnitude of rows [count, k] without their scale, nan if there is one; 1 for 16-bit numbers.
  double (*largest)(const Strided& rows, int64_t count, int64_t k);
};

// For several gemms of a thread: what one of them needs is set up once, while this lives, and not by each.
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

// The instruction sets that this processor has, best first; the environment variable AHKERNELS_CPU_CAPABILITY
// (amx, avx512bf16, avx512, avx2, portable) leaves out those above it.
const std::vector<std::string>& capabilities();

const TileKernels<double>& double_kernels();
// For fp32 or 16-bit factors. With AMX bf16 products at "medium", int8 products of two digits of each number at "high"
// and of three at "highest", which is fp32 quality; else bf16 products at "medium" where the processor has them, and
// fp32.
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
