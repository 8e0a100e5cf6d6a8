// The tangent kernel itself: K [n*o, n*o], each entry on and below the diagonal computed once and mirrored.
#include "../ops.h"
#include "tile_walk.h"

namespace ahkernels::cpu {
namespace {

// Tiles (i, j) of a pair of panels are gathered for this many j, so that rows of K are written in runs.
constexpr int64_t kOutputs = 16;

template <class T>
void gram(const TileKernels<T>& tiles, const std::vector<Term>& terms, T* out) {
  const int64_t n = terms[0].n, o = terms[0].o, size = n * o;
  const double unscale = 1.0 / terms[0].scale();
  const int64_t tile_bytes = kTileSize * static_cast<int64_t>(sizeof(T));
  AlignedBuffer scratch(thread_count() * kOutputs * tile_bytes);

  const auto visit = [&](const TileBlock& part, int64_t index, auto& maker, int64_t thread) {
    const auto [pair, i] = part.item(index);
    for (int64_t begin = first_column({pair, i}); begin < o; begin += kOutputs) {
      const int64_t outputs = std::min(kOutputs, o - begin);
      T* gathered = scratch.at<T>(thread * kOutputs * tile_bytes);
      maker.make(i, begin, begin + outputs, [&](size_t, int64_t j) { return gathered + (j - begin) * kTileSize; });
      for (int64_t r = 0; r < maker.row_count(); ++r) {
        const int64_t row = (pair.row * kPanel + r) * o + i;
        const int64_t col = pair.col * kPanel * o + begin;
        for (int64_t c = 0; c < maker.col_count(); ++c) {
          for (int64_t j = 0; j < outputs; ++j) {
            const T entry = static_cast<T>(static_cast<double>(gathered[j * kTileSize + r * kPanel + c]) * unscale);
            out[row * size + col + c * o + j] = entry;
            // On the diagonal nobody makes the tile that is this one's transpose.
            if (pair.row == pair.col && i < begin + j) out[(col + c * o + j) * size + row] = entry;
          }
        }
      }
    }
  };
  const auto nothing = [](const TileBlock&) {};
  const std::vector<Centering<T>> not_centered(terms.size());
  walk_tiles(tiles, terms, not_centered, nothing, visit, nothing);

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

Tensor tangent_gram(const Factors& factors, const std::string& precision) {
  const std::vector<Term> terms = make_terms("tangent_gram", factors, /*scaled=*/true);
  check_precision("tangent_gram", precision);
  const Tensor& like = factors.forward[0];
  const int64_t size = terms[0].n * terms[0].o;
  if (terms[0].element == Element::kDouble) {
    Tensor out = torch::stable::new_empty(like, {size, size});
    gram(double_kernels(), terms, static_cast<double*>(out.mutable_data_ptr()));
    return out;
  }
  Tensor out = torch::stable::new_empty(like, {size, size}, torch::headeronly::ScalarType::Float);
  gram(float_kernels(precision), terms, static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace ahkernels::cpu
