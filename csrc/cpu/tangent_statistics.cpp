// The numbers of an alignment: <v, C K C v>, ||C K C||_F^2, the trace and the sum of K.
//
// Where the tiles of K fit in a few caches' worth of memory, they are made once and kept, and everything comes from
// them: for small kernels the thin products would cost as much as the tiles. So are those of few rows with very many
// numbers each (Jacobians), slice by slice along k, which needs no packed copy of all of them. Elsewhere, from the
// other ops.
#include <cmath>
#include <numeric>

#include "../ops.h"
#include "means.h"
#include "tile_walk.h"

namespace ahkernels::cpu {
namespace {

constexpr int64_t kKeptBytes = 8 << 20;
constexpr int64_t kKeptBytesOfSlices = 256 << 20;
constexpr int64_t kStatistics = 4;

int64_t tile_slots(const Kernel& kernel) {
  const int64_t panels = ceil_div(kernel.n, kPanel);
  return panels * (panels + 1) / 2 * kernel.o * kernel.o;
}

// Whether a pair of panels, packed, takes more than the workspace of the walk.
bool in_slices(const std::vector<Kernel>& kernels, int64_t number_bytes) {
  int64_t numbers = 0;
  for (const Kernel& kernel : kernels) {
    if (kernel.s != 1) return false;
    numbers += kernel.d + kernel.o * kernel.m;
  }
  return 2 * kPanel * numbers * number_bytes > kWorkspaceBytes;
}

// Kernels over several outputs with few tiles; those of one output have another way of centering (centering.h).
bool fit(const std::vector<Kernel>& kernels, int64_t number_bytes) {
  const int64_t most = in_slices(kernels, number_bytes) ? kKeptBytesOfSlices : kKeptBytes;
  return kernels[0].o > 1 &&
         tile_slots(kernels[0]) * static_cast<int64_t>(kernels.size()) * kTileSize * number_bytes <= most;
}

// Rows of `blocks` panels, packed for the numbers [begin, begin + width) along k.
template <class T, class Rows>
void pack_slice(const TileKernels<T>& tiles, int64_t blocks, int64_t begin, int64_t width, const Rows& rows_of,
                const AlignedBuffer& to) {
  const int64_t bytes = PanelGroup<T>::bytes(tiles, width);
  for_each_item(blocks, 1, [&](int64_t block, int64_t) {
    int64_t count = 0;
    const Strided rows = rows_of(block, &count);
    tiles.pack(rows.from_k(begin), nullptr, count, width, to.at<void>(block * bytes));
  });
}

// The tiles tile_at(pair, i, j) of a kernel of one use, in slices along k.
template <class T, class Tile>
void make_in_slices(const TileKernels<T>& tiles, const Kernel& kernel, const Tile& tile_at) {
  const int64_t panels = ceil_div(kernel.n, kPanel), o = kernel.o, pairs = panels * (panels + 1) / 2;
  const auto count_of = [&](int64_t panel) { return std::min(kPanel, kernel.n - panel * kPanel); };
  const auto multiply = [&](const AlignedBuffer& packed, int64_t outputs, int64_t width, bool accumulate,
                            const PanelPair& pair, int64_t i, int64_t j, T* tile) {
    const int64_t bytes = PanelGroup<T>::bytes(tiles, width);
    tiles.gemm(PanelGroup<T>::padded(tiles, width), packed.at<void>((pair.row * outputs + i) * bytes),
               packed.at<void>((pair.col * outputs + j) * bytes), count_of(pair.row), count_of(pair.col), accumulate,
               tile);
  };
  // So wide that the packed slices fit the workspace, in steps of what is packed at a time.
  const auto width_of = [&](int64_t blocks, int64_t k) {
    const int64_t fitting = kWorkspaceBytes / (blocks * kPanel * static_cast<int64_t>(sizeof(T))) / 16 * 16;
    return std::clamp<int64_t>(fitting, 16, std::max<int64_t>(k, 1));
  };

  const int64_t width = width_of(panels * o, kernel.m);
  const AlignedBuffer backward(panels * o * PanelGroup<T>::bytes(tiles, width));
  for (int64_t begin = 0; begin == 0 || begin < kernel.m; begin += width) {
    const int64_t now = std::min(width, kernel.m - begin);
    pack_slice(
        tiles, panels * o, begin, now,
        [&](int64_t block, int64_t* count) {
          *count = count_of(block / o);
          return kernel.backward_rows(block / o * kPanel, 0, block % o);
        },
        backward);
    for_each_item(pairs * o, 1, [&](int64_t item, int64_t) {
      const PanelPair pair = triangle_pair(item / o);
      const int64_t i = item % o;
      for (int64_t j = pair.row == pair.col ? i : 0; j < o; ++j) {
        multiply(backward, o, now, begin > 0, pair, i, j, tile_at(pair, i, j));
      }
    });
  }

  const int64_t forward_width = width_of(panels, kernel.d);
  const AlignedBuffer forward(panels * PanelGroup<T>::bytes(tiles, forward_width));
  constexpr int64_t kTileBytes = kTileSize * static_cast<int64_t>(sizeof(T));
  const AlignedBuffer grams(pairs * kTileBytes);
  for (int64_t begin = 0; begin == 0 || begin < kernel.d; begin += forward_width) {
    const int64_t now = std::min(forward_width, kernel.d - begin);
    pack_slice(
        tiles, panels, begin, now,
        [&](int64_t panel, int64_t* count) {
          *count = count_of(panel);
          return kernel.forward_rows(panel * kPanel, 0);
        },
        forward);
    for_each_item(pairs, 1, [&](int64_t item, int64_t) {
      multiply(forward, 1, now, begin > 0, triangle_pair(item), 0, 0, grams.at<T>(item * kTileBytes));
    });
  }
  for_each_item(pairs * o, 1, [&](int64_t item, int64_t) {
    const PanelPair pair = triangle_pair(item / o);
    const int64_t i = item % o;
    for (int64_t j = pair.row == pair.col ? i : 0; j < o; ++j) {
      T* tile = tile_at(pair, i, j);
      tiles.hadamard(grams.at<T>(item / o * kTileBytes), static_cast<T>(kernel.scaled_bias()), tile, count_of(pair.row),
                     count_of(pair.col), /*accumulate=*/false, tile);
    }
  });
}

// v [n, o] as [o][n rounded up to whole panels], times the power of two that brings its largest magnitude to [1, 2).
template <class T>
struct ScaledVector {
  std::vector<T> numbers;
  int64_t stride;
  double scale = 1;

  ScaledVector(const double* v, int64_t n, int64_t o)
      : numbers(ceil_div(n, kPanel) * kPanel * o, T{0}), stride(ceil_div(n, kPanel) * kPanel) {
    double largest = 0;
    for (int64_t r = 0; r < n * o; ++r) largest = std::max(largest, std::abs(v[r]));
    if (largest > 0 && std::isfinite(largest)) scale = std::ldexp(1.0, -std::clamp(std::ilogb(largest), -1000, 1000));
    for (int64_t x = 0; x < n; ++x) {
      for (int64_t i = 0; i < o; ++i) numbers[i * stride + x] = static_cast<T>(v[x * o + i] * scale);
    }
  }
  const T* at(int64_t output, int64_t panel) const { return numbers.data() + output * stride + panel * kPanel; }
};

template <class T>
void from_kept_tiles(const TileKernels<T>& tiles, const std::vector<Kernel>& kernels, const double* v, double* out) {
  const int64_t count = static_cast<int64_t>(kernels.size());
  const int64_t n = kernels[0].n, o = kernels[0].o, panels = ceil_div(n, kPanel), slots = tile_slots(kernels[0]);
  constexpr int64_t kTileBytes = kTileSize * static_cast<int64_t>(sizeof(T));
  const AlignedBuffer memory(slots * count * kTileBytes);
  const auto slot_of = [&](const PanelPair& pair, int64_t i, int64_t j) {
    return (triangle_index(pair) * o + i) * o + j;
  };
  const auto tile = [&](int64_t slot, int64_t k) { return memory.at<T>((slot * count + k) * kTileBytes); };
  // On the diagonal, tile (j, i) is the transpose of (i, j) and is not made.
  const auto first_column = [](const PanelPair& pair, int64_t i) { return pair.row == pair.col ? i : 0; };
  const auto rows_of = [&](int64_t panel) { return std::min(kPanel, n - panel * kPanel); };

  std::vector<Centering<T>> centering;
  for (const Kernel& kernel : kernels) centering.emplace_back(double_kernels(), kernel);
  std::vector<T> sums(slots * count * 2 * kPanel);  // of the rows, then of the columns of each tile
  const auto sums_of = [&](int64_t slot, int64_t k) { return sums.data() + (slot * count + k) * 2 * kPanel; };
  const auto add_up = [&](const PanelPair& pair, int64_t i) {
    for (int64_t j = first_column(pair, i); j < o; ++j) {
      const int64_t slot = slot_of(pair, i, j);
      for (int64_t k = 0; k < count; ++k) {
        T* to = sums_of(slot, k);
        tiles.sums(tile(slot, k), rows_of(pair.row), rows_of(pair.col), to, to + kPanel);
      }
    }
  };
  if (in_slices(kernels, sizeof(T))) {
    for (int64_t k = 0; k < count; ++k) {
      make_in_slices(tiles, kernels[k],
                     [&](const PanelPair& pair, int64_t i, int64_t j) { return tile(slot_of(pair, i, j), k); });
    }
    for_each_item(panels * (panels + 1) / 2 * o, 4,
                  [&](int64_t item, int64_t) { add_up(triangle_pair(item / o), item % o); });
  } else {
    const auto visit = [&](int64_t, const PanelPair& pair, int64_t i, TileMaker<T>& maker, int64_t) {
      for (int64_t j = first_column(pair, i); j < o; ++j) {
        maker.make(i, j, [&](int64_t k) { return tile(slot_of(pair, i, j), k); });
      }
      add_up(pair, i);
    };
    const auto nothing = [](const GroupPair&) {};
    walk_tiles(tiles, kernels, centering, nothing, visit, nothing);
  }

  std::vector<Means<T>> means;
  for (int64_t k = 0; k < count; ++k) {
    std::vector<double> row_sums(n * o, 0.0);
    double trace = 0;
    for (int64_t t = 0; t < panels * (panels + 1) / 2; ++t) {
      const PanelPair pair = triangle_pair(t);
      for (int64_t i = 0; i < o; ++i) {
        for (int64_t j = first_column(pair, i); j < o; ++j) {
          const int64_t slot = slot_of(pair, i, j);
          const T* from = sums_of(slot, k);
          const bool symmetric = pair.row == pair.col && i == j;
          for (int64_t r = 0; r < rows_of(pair.row); ++r) row_sums[(pair.row * kPanel + r) * o + i] += from[r];
          for (int64_t c = 0; c < rows_of(pair.col) && !symmetric; ++c) {
            row_sums[(pair.col * kPanel + c) * o + j] += from[kPanel + c];
          }
          for (int64_t r = 0; r < rows_of(pair.row) && symmetric; ++r) trace += tile(slot, k)[r * kPanel + r];
        }
      }
    }
    double total = 0;
    for (double& sum : row_sums) {
      total += sum;
      sum /= static_cast<double>(n * o) * kernels[k].scale();
    }
    out[k * kStatistics + 2] = trace / kernels[k].scale();
    out[k * kStatistics + 3] = total / kernels[k].scale();
    means.emplace_back(kernels[k], centering[k], row_sums.data());
  }

  const ScaledVector<T> vector(v, n, o);
  std::vector<double> partials(panels * (panels + 1) / 2 * o * count * 2, 0.0);
  for_each_item(panels * (panels + 1) / 2 * o, 4, [&](int64_t item, int64_t) {
    const PanelPair pair = triangle_pair(item / o);
    const int64_t i = item % o, rows = rows_of(pair.row), cols = rows_of(pair.col);
    for (int64_t j = first_column(pair, i); j < o; ++j) {
      const double weight = pair.row == pair.col && i == j ? 1 : 2;
      for (int64_t k = 0; k < count; ++k) {
        const T* entries = tile(slot_of(pair, i, j), k);
        const T* row_mean = means[k].row.data() + i * means[k].stride + pair.row * kPanel;
        const T* col_mean = means[k].col.data() + j * means[k].stride + pair.col * kPanel;
        double* to = &partials[(item * count + k) * 2];
        to[0] += weight * tiles.centered_form(entries, row_mean, col_mean, vector.at(i, pair.row),
                                              vector.at(j, pair.col), rows, cols);
        to[1] += weight * tiles.centered_product(entries, row_mean, col_mean, entries, row_mean, col_mean, rows, cols);
      }
    }
  });
  for (int64_t k = 0; k < count; ++k) {
    double form = 0, square = 0;
    for (int64_t item = 0; item < panels * (panels + 1) / 2 * o; ++item) {
      form += partials[(item * count + k) * 2];
      square += partials[(item * count + k) * 2 + 1];
    }
    // One after the other: the product of two extreme scales can leave the range of fp64.
    out[k * kStatistics] = form / kernels[k].scale() / vector.scale / vector.scale;
    out[k * kStatistics + 1] = square / kernels[k].scale() / kernels[k].scale();
  }
}

void from_other_ops(const std::vector<Tensor>& forward, const std::vector<Tensor>& backward,
                    const std::vector<double>& bias, const Tensor& v, const std::string& precision, double* out) {
  const auto sum_of = [](const Tensor& numbers) {
    const double* from = static_cast<const double*>(numbers.const_data_ptr());
    return std::accumulate(from, from + numbers.numel(), 0.0);
  };
  const int64_t size = v.numel(), count = static_cast<int64_t>(forward.size());
  std::vector<Tensor> row_means;
  for (int64_t k = 0; k < count; ++k) {
    Tensor means = tangent_row_sums(forward[k], backward[k], bias[k]);
    out[k * kStatistics + 3] = sum_of(means);
    double* numbers = static_cast<double*>(means.mutable_data_ptr());
    for (int64_t r = 0; r < size; ++r) numbers[r] /= static_cast<double>(size);
    row_means.push_back(means);
    out[k * kStatistics] = sum_of(tangent_quadratic(forward[k], backward[k], bias[k], v));
    out[k * kStatistics + 2] = sum_of(tangent_diagonal(forward[k], backward[k], bias[k]));
  }
  const Tensor moments = centered_moments(forward, backward, bias, row_means, precision);
  for (int64_t k = 0; k < count; ++k) {
    out[k * kStatistics + 1] = static_cast<const double*>(moments.const_data_ptr())[k * count + k];
  }
}

}  // namespace

Tensor tangent_statistics(const std::vector<Tensor>& forward, const std::vector<Tensor>& backward,
                          const std::vector<double>& bias, const Tensor& v, const std::string& precision) {
  const std::vector<Kernel> kernels = make_kernels("tangent_statistics", forward, backward, bias, /*scaled=*/false);
  check_precision("tangent_statistics", precision);
  check_columns("tangent_statistics", kernels[0], v);
  STD_TORCH_CHECK(v.size(2) == 1, "tangent_statistics: v: expected one column, got ", v.size(2));
  Tensor out = torch::stable::new_empty(v, {static_cast<int64_t>(kernels.size()), kStatistics});
  double* result = static_cast<double*>(out.mutable_data_ptr());
  const bool wide = kernels[0].element == Element::kDouble;
  if (!fit(kernels, wide ? 8 : 4)) {
    from_other_ops(forward, backward, bias, v, precision, result);
    return out;
  }
  const std::vector<Kernel> scaled = make_kernels("tangent_statistics", forward, backward, bias, /*scaled=*/true);
  const double* vector = static_cast<const double*>(v.const_data_ptr());
  if (wide) {
    from_kept_tiles(double_kernels(), scaled, vector, result);
  } else {
    from_kept_tiles(float_kernels(precision), scaled, vector, result);
  }
  return out;
}

}  // namespace ahkernels::cpu
