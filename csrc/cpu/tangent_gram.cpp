// The tangent kernel itself: K [n*o, n*o], each entry below the diagonal computed once and mirrored.
#include "../ops.h"
#include "tile_walk.h"

namespace ahkernels::cpu {
namespace {

// Tiles (i, j) of a pair of panels are gathered for this many j, so that rows of K are written in runs.
constexpr int64_t kOutputs = 16;

template <class T>
void gram(const TileKernels<T>& tiles, const std::vector<Kernel>& kernels, T* out) {
  const Kernel& kernel = kernels[0];
  const int64_t o = kernel.o, size = kernel.n * o;
  const double unscale = 1.0 / kernel.scale();
  const int64_t tile_bytes = kTileSize * static_cast<int64_t>(sizeof(T));
  AlignedBuffer scratch(thread_count() * kOutputs * tile_bytes);

  const auto visit = [&](int64_t, const PanelPair& pair, int64_t i, TileMaker<T>& maker, int64_t thread) {
    for (int64_t begin = 0; begin < o; begin += kOutputs) {
      const int64_t outputs = std::min(kOutputs, o - begin);
      T* gathered = scratch.at<T>(thread * kOutputs * tile_bytes);
      for (int64_t j = 0; j < outputs; ++j) {
        maker.make(i, begin + j, [&](size_t) { return gathered + j * kTileSize; });
      }
      for (int64_t r = 0; r < maker.row_count(); ++r) {
        const int64_t row = (pair.row * kPanel + r) * o + i;
        T* to = out + row * size + pair.col * kPanel * o + begin;
        for (int64_t c = 0; c < maker.col_count(); ++c) {
          for (int64_t j = 0; j < outputs; ++j) {
            to[c * o + j] = static_cast<T>(static_cast<double>(gathered[j * kTileSize + r * kPanel + c]) * unscale);
          }
        }
      }
    }
  };
  const std::vector<Centering<T>> not_centered(1);
  walk_tiles(tiles, kernels, not_centered, [](const GroupPair&) {}, visit, [](const GroupPair&) {});

  // The walk has filled the pairs of panels on and below the diagonal; mirror what is below it, in square steps.
  const int64_t block = kPanel * o, blocks = ceil_div(size, block);
  constexpr int64_t kStep = 32;
  for_each_item(blocks * (blocks + 1) / 2, 1, [&](int64_t item, int64_t) {
    const PanelPair pair = triangle_pair(item);
    const int64_t row_end = std::min((pair.row + 1) * block, size), col_end = std::min((pair.col + 1) * block, size);
    for (int64_t col = pair.col * block; col < col_end; col += kStep) {
      for (int64_t row = pair.row * block; row < row_end; row += kStep) {
        for (int64_t c = col; c < std::min(col + kStep, col_end); ++c) {
          const int64_t end = std::min(row + kStep, row_end);
          for (int64_t r = std::max(row, c + 1); r < end; ++r) out[c * size + r] = out[r * size + c];
        }
      }
    }
  });
}

}  // namespace

Tensor tangent_gram(const Tensor& forward, const Tensor& backward, double bias, const std::string& precision) {
  const std::vector<Kernel> kernels = make_kernels("tangent_gram", {forward}, {backward}, {bias}, /*scaled=*/true);
  check_precision("tangent_gram", precision);
  const int64_t size = kernels[0].n * kernels[0].o;
  if (forward.scalar_type() == torch::headeronly::ScalarType::Double) {
    Tensor out = torch::stable::new_empty(forward, {size, size});
    gram(double_kernels(), kernels, static_cast<double*>(out.mutable_data_ptr()));
    return out;
  }
  Tensor out = torch::stable::new_empty(forward, {size, size}, torch::headeronly::ScalarType::Float);
  gram(float_kernels(precision), kernels, static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace ahkernels::cpu
