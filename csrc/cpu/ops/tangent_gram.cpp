// The tangent kernel itself, K [n*o, n*o]. Each entry on and below the diagonal is computed once, and mirrored.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <atomic>
#include <cmath>

#include "../tiles/tile_walk.h"
#include "ops.h"

namespace ahkernels::cpu {
namespace {

using torch::headeronly::ScalarType;

// Tiles (i, j) of a pair of panels are made for this many j before they are written, so that rows of K are written in
// runs.
constexpr int64_t kOutputs = 16;

// The rows of this many samples are filled in together on the diagonal. A panel has a multiple of them.
constexpr int64_t kSamples = 4;

// to [cols, rows] = the transpose of from [rows, cols], where change(numbers) has been called for a vector or a number.
// Four rows and columns at a time, since single numbers would be written to as many cache lines; the last four again
// take some of those before, so that none are left.
template <class T, class Change>
void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t cols, T* to, int64_t to_stride,
               const Change& change) {
  typedef T Quarter __attribute__((vector_size(4 * sizeof(T))));
  typedef T Unaligned __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
  if (rows < 4 || cols < 4) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        T number = from[r * from_stride + c];
        change(number);
        to[c * to_stride + r] = number;
      }
    }
    return;
  }
  for (int64_t left = 0; left < cols; left += 4) {
    const int64_t c = std::min(left, cols - 4);
    for (int64_t top = 0; top < rows; top += 4) {
      const int64_t r = std::min(top, rows - 4);
      Quarter row[4];
      for (int64_t i = 0; i < 4; ++i) {
        row[i] = *reinterpret_cast<const Unaligned*>(from + (r + i) * from_stride + c);
        change(row[i]);
      }
      const Quarter low01 = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5),
                    high01 = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7),
                    low23 = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5),
                    high23 = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
      const Quarter column[4] = {
          __builtin_shufflevector(low01, low23, 0, 1, 4, 5), __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
          __builtin_shufflevector(high01, high23, 0, 1, 4, 5), __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
      for (int64_t i = 0; i < 4; ++i) *reinterpret_cast<Unaligned*>(to + (c + i) * to_stride + r) = column[i];
    }
  }
}

// Mirrors the block of K of two different panels, in squares whose cache lines are read and written as a whole.
template <class T>
void mirror(const PanelPair& pair, int64_t block, int64_t size, T* out) {
  constexpr int64_t kStep = 16;
  const int64_t row_end = std::min((pair.row + 1) * block, size), col_end = std::min((pair.col + 1) * block, size);
  for (int64_t col = pair.col * block; col < col_end; col += kStep) {
    for (int64_t row = pair.row * block; row < row_end; row += kStep) {
      transpose(out + row * size + col, size, std::min(kStep, row_end - row), std::min(kStep, col_end - col),
                out + col * size + row, size, [](auto&) {});
    }
  }
}

// Fills in the part of a diagonal block of K that no tile has written, for the rows of a few samples: of the tiles (i,
// j) of a panel with itself only those with j >= i are made, and for i = j the numbers below the diagonal count. With a
// few samples at a time, the mirror images are read in runs.
template <class T>
void mirror_diagonal(int64_t first, int64_t samples, int64_t n, int64_t o, T* out) {
  const int64_t size = n * o, begin = first / kPanel * kPanel, end = std::min(begin + kPanel, n);
  for (int64_t col = begin; col < end; ++col) {
    for (int64_t row = first; row < first + samples; ++row) {
      for (int64_t i = 0; i < o; ++i) {
        T* to = out + (row * o + i) * size + col * o;
        const T* from = out + col * o * size + row * o + i;
        for (int64_t j = 0; j < (col > row ? i + 1 : i); ++j) to[j] = from[j * size];
      }
    }
  }
}

// Asks for large pages where the system gives them on request, since touching small pages for the first time takes
// longer than computing K.
void prefer_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kLargePage = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kLargePage * kLargePage;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a refusal does no harm
#else
  (void)memory, (void)bytes;
#endif
}

template <class T>
void gram(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers, T* out) {
  const int64_t n = layers[0].n, o = layers[0].o, size = n * o, panels = ceil_div(n, kPanel);
  prefer_large_pages(out, size * size * static_cast<int64_t>(sizeof(T)));
  const int64_t tile_bytes = kTileSize * static_cast<int64_t>(sizeof(T));
  AlignedBuffer scratch(thread_count() * kOutputs * tile_bytes);
  // The scale is undone by two powers of two, since their product may be out of the range of T.
  const int exponent = -std::ilogb(layers[0].scale);
  const T unscale = static_cast<T>(std::ldexp(1.0, exponent / 2)),
          unscale_again = static_cast<T>(std::ldexp(1.0, exponent - exponent / 2));
  // Counts the outputs that a pair of panels still lacks, so that its block is mirrored while it is in a cache.
  std::vector<std::atomic<int64_t>> left(panels * (panels + 1) / 2);
  for (std::atomic<int64_t>& outputs : left) outputs = o;

  const auto visit = [&](const TileBlock& part, int64_t index, auto& maker, int64_t thread) {
    const auto [pair, i] = part.item(index);
    for (int64_t begin = first_column({pair, i}); begin < o; begin += kOutputs) {
      const int64_t outputs = std::min(kOutputs, o - begin);
      T* gathered = scratch.at<T>(thread * kOutputs * tile_bytes);
      maker.make(i, begin, begin + outputs, [&](size_t, int64_t j) { return gathered + (j - begin) * kTileSize; });
      for (int64_t r = 0; r < maker.row_count(); ++r) {
        transpose(gathered + r * kPanel, kTileSize, outputs, maker.col_count(),
                  out + ((pair.row * kPanel + r) * o + i) * size + pair.col * kPanel * o + begin, o,
                  [&](auto& numbers) { numbers = numbers * unscale * unscale_again; });
      }
    }
    const bool last = left[triangle_index(pair)].fetch_sub(1) == 1;
    if (last && pair.row != pair.col) mirror(pair, kPanel * o, size, out);
  };
  const auto nothing = [](const TileBlock&) {};
  const std::vector<NearConstantCentering<T>> not_centered(layers.size());
  walk_tiles(tiles, layers, not_centered, all_tiles(layers), nothing, visit, nothing);
  for_each_item(ceil_div(n, kSamples), 1, [&](int64_t item, int64_t) {
    mirror_diagonal(item * kSamples, std::min(kSamples, n - item * kSamples), n, o, out);
  });
}

std::vector<LayerFactors> layers_of(const std::string& op, const KernelBatch& batch, const std::string& precision) {
  const std::vector<LayerFactors> layers = layer_factors_of(op, batch, Scaling::kByKernel);
  require_one_kernel(op, batch);
  check_entries(op, batch);
  check_precision(op, precision);
  return layers;
}

// In the numbers of `out`; in fp64 the products of factors of any type are exact up to its rounding.
void gram(const std::vector<LayerFactors>& layers, const std::string& precision, const Tensor& out) {
  if (out.scalar_type() == ScalarType::Double) {
    gram(double_kernels(), layers, static_cast<double*>(out.mutable_data_ptr()));
  } else {
    gram(float_kernels(precision), layers, static_cast<float*>(out.mutable_data_ptr()));
  }
}

}  // namespace

Tensor tangent_gram(const KernelBatch& batch, const std::string& precision) {
  const std::vector<LayerFactors> layers = layers_of("tangent_gram", batch, precision);
  const int64_t size = layers[0].n * layers[0].o;
  const bool in_double = layers[0].element == Element::kDouble;
  Tensor out =
      torch::stable::new_empty(batch.forward[0], {size, size}, in_double ? ScalarType::Double : ScalarType::Float);
  gram(layers, precision, out);
  return out;
}

void tangent_gram_out(const KernelBatch& batch, const std::string& precision, const Tensor& out) {
  const std::vector<LayerFactors> layers = layers_of("tangent_gram_out", batch, precision);
  const int64_t size = layers[0].n * layers[0].o;
  check_out("tangent_gram_out: out", out, size, layers[0].element == Element::kDouble);
  for (const LayerFactors& layer : layers) {
    for (const Tensor& factor : {layer.forward, layer.backward}) {
      AHK_REQUIRE(!share_memory(out, factor),
                  "tangent_gram_out: out: expected memory of its own, got some that a factor shares");
    }
  }
  gram(layers, precision, out);
}

}  // namespace ahkernels::cpu
