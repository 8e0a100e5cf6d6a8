// The moments of kernels that their alignment with labels is made of, and with `per_output` those of both centerings.
// All come from one pass over tiles.
//
// Where the tiles fit in a few caches' worth of memory, they are made once and kept, so that the row sums can come from
// them, too. For small kernels a thin product would cost as much as the tiles, and for Jacobians, which have few rows
// of very many numbers, it would have to go through these numbers again. Elsewhere row sums come first, and each tile
// is used while it is in the first-level cache. With both centerings the tiles are those of T
// (near_constant_centering.h), and per_output_centering.h makes moments of their sums.
#include <cmath>
#include <numeric>
#include <optional>
#include <type_traits>

#include "../tiles/per_output_centering.h"
#include "../tiles/row_mean_centering.h"
#include "../tiles/row_sums.h"
#include "../tiles/scaled_vector.h"
#include "../tiles/tile_walk.h"
#include "ops.h"

namespace ahkernels::cpu {
namespace {

constexpr MemoryLimit kSmallBytes{1 << 20};
constexpr int64_t kSmallRows = 4096;

// For centering by C and a vector v: (C v)^T K C v, ||C K C||_F^2, and trace and sum of K. Per output, the sum is that
// of the blocks of K on the diagonal.
struct Moments {
  double inner_product, squared_norm, trace, sum;
};

struct MomentsOfKernel {
  Moments global, per_output;  // the latter where it is asked for
};

// Sums over tiles of K or T.
struct TileSums {
  double form = 0, square = 0, trace = 0;

  void add(const FormAndSquare& found, double weight) {
    form += weight * found.form;
    square += weight * found.square;
  }
};

// Sums over all items of a walk, from partial sums for each item. The order of additions is that of the items.
class ItemSums {
 public:
  explicit ItemSums(int64_t kernels) : kernels_(kernels), totals_(kernels) {}

  void begin(const TileBlock& part) { partials_.assign(part.items() * kernels_, TileSums()); }
  TileSums& at(int64_t index, int64_t kernel) { return partials_[index * kernels_ + kernel]; }
  void done() {
    for (size_t p = 0; p < partials_.size(); ++p) {
      TileSums& total = totals_[p % kernels_];
      total.form += partials_[p].form;
      total.square += partials_[p].square;
      total.trace += partials_[p].trace;
    }
  }
  const TileSums& total(int64_t kernel) const { return totals_[kernel]; }

 private:
  const int64_t kernels_;
  std::vector<TileSums> totals_, partials_;
};

template <class T>
double trace_of(const T* tile, int64_t rows) {
  double trace = 0;
  for (int64_t r = 0; r < rows; ++r) trace += tile[r * kPanel + r];
  return trace;
}

// A tile (i, j) that is its own transpose counts once, any other twice, since its transpose is not visited.
bool is_symmetric(const TileBlock::Item& item, int64_t j) { return item.pair.row == item.pair.col && item.output == j; }
double weight_of(const TileBlock::Item& item, int64_t j) { return is_symmetric(item, j) ? 1 : 2; }

// Form and square of a tile of K less its means.
template <class T>
FormAndSquare centered_form_and_square(const TileKernels<T>& tiles, const T* tile, const RowMeanCentering<T>& means,
                                       const ScaledVector<T>& v, const TileBlock::Item& item, int64_t j, int64_t rows,
                                       int64_t cols) {
  const auto [pair, i] = item;
  return tiles.centered_form_and_square(tile, means.row_at(i, pair.row), means.col_at(j, pair.col), v.at(i, pair.row),
                                        v.at(j, pair.col), rows, cols);
}

// ---- global centering of tiles in memory

// The sums of the rows and of the columns of each tile in memory.
template <class T>
class SumsInMemory {
 public:
  SumsInMemory(const TileKernels<T>& tiles, const TilesInMemory<T>& kept, int64_t n, int64_t o, int64_t kernels)
      : tiles_(tiles),
        kept_(kept),
        n_(n),
        o_(o),
        kernels_(kernels),
        sums_(kept.block().items() * o * kernels * 2 * kPanel) {}

  // Takes the sums of an item whose tiles are made.
  void take(int64_t index) {
    const TileBlock::Item item = kept_.block().item(index);
    for (int64_t j = first_column(item); j < o_; ++j) {
      for (int64_t kernel = 0; kernel < kernels_; ++kernel) {
        T* to = sums_.data() + offset(index, j, kernel);
        tiles_.sums(kept_.tile(index, j, kernel), kept_.row_count(item.pair), kept_.col_count(item.pair), to,
                    to + kPanel);
      }
    }
  }

  struct Total {
    std::vector<double> row_sums;  // [n, o]
    double trace;
  };

  Total total(int64_t kernel) const {
    Total found{std::vector<double>(n_ * o_, 0.0), 0};
    for (int64_t index = 0; index < kept_.block().items(); ++index) {
      const TileBlock::Item item = kept_.block().item(index);
      const auto [pair, i] = item;
      for (int64_t j = first_column(item); j < o_; ++j) {
        const T* from = sums_.data() + offset(index, j, kernel);
        for (int64_t r = 0; r < kept_.row_count(pair); ++r) {
          found.row_sums[(pair.row * kPanel + r) * o_ + i] += from[r];
        }
        if (is_symmetric(item, j)) {
          const T* tile = kept_.tile(index, j, kernel);
          for (int64_t r = 0; r < kept_.row_count(pair); ++r) found.trace += tile[r * kPanel + r];
          continue;
        }
        for (int64_t c = 0; c < kept_.col_count(pair); ++c) {
          found.row_sums[(pair.col * kPanel + c) * o_ + j] += from[kPanel + c];
        }
      }
    }
    return found;
  }

 private:
  int64_t offset(int64_t index, int64_t j, int64_t kernel) const {
    return ((index * o_ + j) * kernels_ + kernel) * 2 * kPanel;
  }

  const TileKernels<T>& tiles_;
  const TilesInMemory<T>& kept_;
  const int64_t n_, o_, kernels_;
  std::vector<T> sums_;  // [item][j][kernel][2][kPanel]
};

template <class T>
std::vector<MomentsOfKernel> from_tiles_in_memory(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers,
                                                  const double* v) {
  const int64_t n = layers[0].n, o = layers[0].o, panels = ceil_div(n, kPanel), count = kernel_count(layers);
  const TileBlock block{0, panels, 0, panels, 0, o};
  const std::vector<NearConstantCentering<T>> centering = near_constant_centering_of<T>(layers);
  const std::vector<double> scales = kernel_scales(layers);
  TilesInMemory<T> kept(tiles, layers, centering, block);
  SumsInMemory<T> sums(tiles, kept, n, o, count);
  kept.make([&](int64_t index, int64_t) { sums.take(index); });

  std::vector<MomentsOfKernel> found(count);
  std::vector<RowMeanCentering<T>> means;
  for (int64_t k = 0; k < count; ++k) {
    auto [row_sums, trace] = sums.total(k);
    double total = 0;
    for (double& sum : row_sums) {
      total += sum;
      sum /= static_cast<double>(n * o) * scales[k];
    }
    found[k].global.trace = trace / scales[k];
    found[k].global.sum = total / scales[k];
    means.emplace_back(k, layers, centering, row_sums.data());
  }

  const ScaledVector<T> vector(v, n, o);
  ItemSums item_sums(count);
  item_sums.begin(block);
  for_each_item(block.items(), 4, [&](int64_t index, int64_t) {
    const TileBlock::Item item = block.item(index);
    for (int64_t j = first_column(item); j < o; ++j) {
      for (int64_t k = 0; k < count; ++k) {
        item_sums.at(index, k).add(centered_form_and_square(tiles, kept.tile(index, j, k), means[k], vector, item, j,
                                                            kept.row_count(item.pair), kept.col_count(item.pair)),
                                   weight_of(item, j));
      }
    }
  });
  item_sums.done();
  for (int64_t k = 0; k < count; ++k) {
    const TileSums& total = item_sums.total(k);
    const auto [form, square] = unscaled(total.form, total.square, scales[k], vector.scale);
    found[k].global.inner_product = form;
    found[k].global.squared_norm = square;
  }
  return found;
}

// ---- global centering of tiles as they are made

// The mean of each row of each kernel, [n, o].
std::vector<std::vector<double>> row_means_of(const std::vector<LayerFactors>& layers) {
  const int64_t size = layers[0].n * layers[0].o;
  std::vector<std::vector<double>> means(kernel_count(layers), std::vector<double>(size, 0.0));
  std::vector<double> sums(size);
  for (const LayerFactors& layer : layers) {
    row_sums(layer, sums.data());
    for (int64_t r = 0; r < size; ++r) means[layer.kernel][r] += sums[r] / static_cast<double>(size);
  }
  return means;
}

template <class T>
std::vector<MomentsOfKernel> from_passing_tiles(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers,
                                                const double* v) {
  const int64_t n = layers[0].n, o = layers[0].o, count = kernel_count(layers);
  const std::vector<NearConstantCentering<T>> centering = near_constant_centering_of<T>(layers);
  const std::vector<double> scales = kernel_scales(layers);
  const std::vector<std::vector<double>> row_means = row_means_of(layers);
  std::vector<RowMeanCentering<T>> means;
  for (int64_t k = 0; k < count; ++k) means.emplace_back(k, layers, centering, row_means[k].data());
  const ScaledVector<T> vector(v, n, o);

  const TileScratch<T> scratch(count, o);
  ItemSums item_sums(count);
  const auto begin = [&](const TileBlock& part) { item_sums.begin(part); };
  const auto visit = [&](const TileBlock& part, int64_t index, auto& maker, int64_t thread) {
    const TileBlock::Item item = part.item(index);
    const auto [pair, i] = item;
    // Tiles that are products need not be written, but for the trace.
    std::optional<ProductTiles<T>> products = maker.products(i, pair.row == pair.col ? i + 1 : 0, o);
    const int64_t written = products ? o - products->count : o;
    scratch.for_each_tile(item, written, maker, thread, [&](int64_t j, const auto& tile) {
      for (int64_t k = 0; k < count; ++k) {
        TileSums& to = item_sums.at(index, k);
        to.add(
            centered_form_and_square(tiles, tile(k), means[k], vector, item, j, maker.row_count(), maker.col_count()),
            weight_of(item, j));
        if (is_symmetric(item, j)) to.trace += trace_of(tile(k), maker.row_count());
      }
    });
    if (!products || products->count == 0) return;
    products->row = means[0].row_at(i, pair.row);
    products->col = means[0].col_at(written, pair.col);
    products->v_row = vector.at(i, pair.row);
    products->v_col = vector.at(written, pair.col);
    products->col_step = vector.stride;
    item_sums.at(index, 0).add(tiles.product_form_and_square(*products, scratch.of_thread(thread)), /*weight=*/2);
  };
  const auto done = [&](const TileBlock&) { item_sums.done(); };
  walk_tiles(tiles, layers, centering, all_tiles(layers), begin, visit, done);

  std::vector<MomentsOfKernel> found(count);
  for (int64_t k = 0; k < count; ++k) {
    const TileSums& total = item_sums.total(k);
    const auto [form, square] = unscaled(total.form, total.square, scales[k], vector.scale);
    const double sum = std::accumulate(row_means[k].begin(), row_means[k].end(), 0.0) * static_cast<double>(n * o);
    found[k].global = {form, square, total.trace / scales[k], sum};
  }
  return found;
}

// ---- both centerings

// v = v_o + w, where v_o [n, o] is centered over the samples of each output and w [o] is the same for each sample.
struct SplitVector {
  std::vector<double> v_o, w;

  SplitVector(const double* v, int64_t n, int64_t o) : v_o(v, v + n * o), w(o, 0.0) {
    for (int64_t r = 0; r < n * o; ++r) w[r % o] += v[r] / static_cast<double>(n);
    for (int64_t r = 0; r < n * o; ++r) v_o[r] -= w[r % o];
  }
};

// Takes the sums of all tiles of T, with the form of v_o.
template <class T>
void sum_blocks(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers,
                const std::vector<NearConstantCentering<T>>& centering, const ScaledVector<T>& vector,
                BlockSums<T>& sums, ItemSums& item_sums) {
  const int64_t o = layers[0].o, count = kernel_count(layers);
  const TileScratch<T> scratch(count, o);
  const auto begin = [&](const TileBlock& part) {
    sums.begin(part);
    item_sums.begin(part);
  };
  const auto visit = [&](const TileBlock& part, int64_t index, auto& maker, int64_t thread) {
    const TileBlock::Item item = part.item(index);
    const auto [pair, i] = item;
    // Tiles that are products need not be written, but for the trace.
    std::optional<CenteredTiles<T>> products = maker.centered_products(i, pair.row == pair.col ? i + 1 : 0, o);
    const int64_t written = products ? o - products->count : o;
    scratch.for_each_tile(item, written, maker, thread, [&](int64_t j, const auto& tile) {
      for (int64_t k = 0; k < count; ++k) {
        TileSums& to = item_sums.at(index, k);
        T* of_rows = sums.at(index, j, k);
        to.add(tiles.form_square_and_sums(tile(k), vector.at(item.output, item.pair.row), vector.at(j, item.pair.col),
                                          maker.row_count(), maker.col_count(), of_rows, of_rows + kPanel),
               weight_of(item, j));
        if (is_symmetric(item, j)) to.trace += trace_of(tile(k), maker.row_count());
      }
    });
    if (!products || products->count == 0) return;
    products->v_row = vector.at(i, pair.row);
    products->v_col = vector.at(written, pair.col);
    products->v_col_step = vector.stride;
    products->sums = sums.at(index, written, 0);
    products->sums_step = 2 * kPanel;
    item_sums.at(index, 0).add(tiles.product_form_square_and_sums(*products, scratch.of_thread(thread)), /*weight=*/2);
  };
  const auto done = [&](const TileBlock& part) {
    sums.done(part);
    item_sums.done();
  };
  walk_tiles(tiles, layers, centering, all_tiles(layers), begin, visit, done, BlockSums<T>::item_bytes(layers));
}

template <class T>
std::vector<MomentsOfKernel> from_block_sums(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers,
                                             const double* v) {
  const int64_t n = layers[0].n, o = layers[0].o, count = kernel_count(layers);
  const std::vector<NearConstantCentering<T>> centering = near_constant_centering_of<T>(layers);
  const std::vector<double> scales = kernel_scales(layers);
  const SplitVector split(v, n, o);
  const ScaledVector<T> vector(split.v_o.data(), n, o);
  BlockSums<T> sums(layers);
  ItemSums item_sums(count);
  sum_blocks(tiles, layers, centering, vector, sums, item_sums);
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t k = 0; k < count; ++k) {
      if (sums.below_float(item_sums.total(k).square, k)) return from_block_sums(double_kernels(), layers, v);
    }
  }

  std::vector<MomentsOfKernel> found(count);
  for (int64_t k = 0; k < count; ++k) {
    const BlockMeans means(sums, k, layers, centering);
    const TileSums& total = item_sums.total(k);
    const CenteredProducts squares = centered_products(total.square, means, means);
    const auto [form, square] = unscaled(total.form, squares.per_output, scales[k], vector.scale);
    const double trace = (total.trace + means.trace) / scales[k];
    found[k].per_output = {form, square, trace, means.diagonal_sum / scales[k]};
    found[k].global = {form + means.form(split.v_o.data(), split.w) / scales[k], squares.global / scales[k] / scales[k],
                       trace, means.sum / scales[k]};
  }
  return found;
}

// ---- groups of kernels

// Kernels that share backward factors, and so the work on their tiles.
struct Group {
  KernelBatch batch;
  std::vector<int64_t> kernels;
};

std::vector<Group> groups_of(const KernelBatch& batch, const std::vector<LayerFactors>& layers) {
  std::vector<Group> groups;
  std::vector<size_t> group_of_layer;
  for (size_t first = 0; first < layers.size();) {
    size_t end = first, group = groups.size();
    for (; end < layers.size() && layers[end].kernel == layers[first].kernel; ++end) {
      if (layers[end].backward_of < first) group = std::min(group, group_of_layer[layers[end].backward_of]);
    }
    if (group == groups.size()) groups.emplace_back();
    KernelBatch& of_group = groups[group].batch;
    for (size_t layer = first; layer < end; ++layer) {
      of_group.forward.push_back(batch.forward[layer]);
      of_group.backward.push_back(batch.backward[layer]);
      of_group.bias.push_back(batch.bias[layer]);
      of_group.by_jacobian.push_back(layers[layer].by_jacobian);
      group_of_layer.push_back(group);
    }
    of_group.layers.push_back(static_cast<int64_t>(end - first));
    groups[group].kernels.push_back(static_cast<int64_t>(layers[first].kernel));
    first = end;
  }
  return groups;
}

// Whether the tiles are few enough to be kept in memory.
template <class T>
bool fit_memory(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers) {
  const int64_t panels = ceil_div(layers[0].n, kPanel), o = layers[0].o;
  const int64_t most = fits_packed(tiles, layers) ? kSmallBytes : kTilesInMemoryBytes;
  return TilesInMemory<T>::bytes(layers, TileBlock{0, panels, 0, panels, 0, o}) <= static_cast<double>(most);
}

// About how many multiply-adds the tiles of a layer take.
inline double multiply_adds(const LayerFactors& layer) {
  const double n = layer.n, o = layer.o, s = layer.s, d = layer.d, m = layer.m;
  if (layer.by_jacobian) return n * o * (s + n * o / 2) * m * d;
  return n * s * n * s * (d + o * o * m) / 2;
}

// Whether one thread takes the whole group: several would wait for one another more than they would help.
template <class T>
bool is_small(const TileKernels<T>& tiles, const std::vector<LayerFactors>& layers) {
  return fit_memory(tiles, layers) || (layers[0].n * layers[0].o <= kSmallRows && fits_packed(tiles, layers));
}

template <class T>
std::vector<MomentsOfKernel> moments_of_batch(const TileKernels<T>& tiles, const KernelBatch& batch,
                                              const std::vector<LayerFactors>& layers, const double* v,
                                              bool per_output) {
  const auto layers_of = [per_output](const Group& group, Scaling scaling) {
    return layer_factors_of("tangent_moments", group.batch, scaling, per_output);
  };
  std::vector<MomentsOfKernel> found(kernel_count(layers));
  const auto measure = [&](const Group& group) {
    const std::vector<LayerFactors> scaled = layers_of(group, Scaling::kByKernel);
    const std::vector<MomentsOfKernel> of_group = per_output                  ? from_block_sums(tiles, scaled, v)
                                                  : fit_memory(tiles, scaled) ? from_tiles_in_memory(tiles, scaled, v)
                                                                              : from_passing_tiles(tiles, scaled, v);
    for (size_t k = 0; k < group.kernels.size(); ++k) found[group.kernels[k]] = of_group[k];
  };
  std::vector<Group> groups = groups_of(batch, layers);
  double all = 0;
  for (const LayerFactors& layer : layers) all += multiply_adds(layer);
  const double share = all / static_cast<double>(thread_count());
  const auto others = std::stable_partition(groups.begin(), groups.end(), [&](const Group& group) {
    const std::vector<LayerFactors> of_group = layers_of(group, Scaling::kNone);
    double work = 0;
    for (const LayerFactors& layer : of_group) work += multiply_adds(layer);
    return work <= share && is_small(tiles, of_group);
  });
  // Small groups are taken side by side, where there are enough of them for all threads. One that is more than a
  // thread's share of the work would keep the other threads waiting.
  const int64_t small = others - groups.begin(), side_by_side = small < thread_count() ? 0 : small;
  for_each_item(side_by_side, 1, [&](int64_t item, int64_t) { measure(groups[item]); });
  for (size_t group = side_by_side; group < groups.size(); ++group) measure(groups[group]);
  return found;
}

// C v.
std::vector<double> less_their_mean(const double* v, int64_t count) {
  const double mean = sum_of(v, count) / static_cast<double>(count);
  std::vector<double> centered(v, v + count);
  for (double& number : centered) number -= mean;
  return centered;
}

double* write(const Moments& moments, double* to) {
  *to++ = moments.inner_product;
  *to++ = moments.squared_norm;
  *to++ = moments.trace;
  *to++ = moments.sum;
  return to;
}

}  // namespace

Tensor tangent_moments(const KernelBatch& batch, const Tensor& v, const std::string& precision, bool per_output) {
  const std::string op = "tangent_moments";
  const std::vector<LayerFactors> layers = layer_factors_of(op, batch, Scaling::kNone);
  check_entries(op, batch);
  check_precision(op, precision);
  const Tensor labels = numbers_of(op + ": v", v, "[n, o, 1]", {layers[0].n, layers[0].o, 1});
  AHK_REQUIRE(layers[0].o > 1, op,
              ": backward: expected at least 2 outputs, got 1; for kernels over samples alone take "
              "centered_inner_products with the kernel of the labels, tangent_diagonal and tangent_row_sums");
  const std::vector<double> centered =
      less_their_mean(static_cast<const double*>(labels.const_data_ptr()), labels.numel());
  const std::vector<MomentsOfKernel> found =
      layers[0].element == Element::kDouble
          ? moments_of_batch(double_kernels(), batch, layers, centered.data(), per_output)
          : moments_of_batch(float_kernels(precision), batch, layers, centered.data(), per_output);
  Tensor out = torch::stable::new_empty(v, {kernel_count(layers), per_output ? 8 : 4});
  double* to = static_cast<double*>(out.mutable_data_ptr());
  for (const MomentsOfKernel& of_kernel : found) {
    to = write(of_kernel.global, to);
    if (per_output) to = write(of_kernel.per_output, to);
  }
  return out;
}

}  // namespace ahkernels::cpu
