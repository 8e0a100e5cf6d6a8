// The numbers of an alignment: <v, C K C v>, ||C K C||_F^2, the trace and the sum of K; with centering per output, the
// same four of that beside them, all from one pass over tiles of T (centering.h, block_sums.h).
//
// They come from the tiles of K. Where those fit in a few caches' worth of memory, they are made once and kept, for the
// row sums to come from them, too: for small kernels a thin product would cost as much as the tiles, and for Jacobians,
// with few rows of very many numbers, it would have to go through those numbers again. Elsewhere row sums come first,
// and each tile is used while it is in the first-level cache. Kernels of one output, whose tiles have the means taken
// out of their factors (centering.h), take the other ops.
#include <cmath>
#include <numeric>
#include <optional>
#include <type_traits>

#include "../ops.h"
#include "block_sums.h"
#include "means.h"
#include "row_sums.h"
#include "scaled_vector.h"
#include "tile_walk.h"

namespace ahkernels::cpu {
namespace {

constexpr int64_t kSmallBytes = 1 << 20;
constexpr int64_t kSmallRows = 4096;
constexpr int64_t kStatistics = 4;  // for each centering

// Kernels that share backward factors, and so the work on their tiles.
struct Group {
  Factors factors;
  std::vector<int64_t> kernels;
};

std::vector<Group> groups_of(const Factors& factors, const std::vector<Term>& terms) {
  std::vector<Group> groups;
  std::vector<size_t> group_of_term;
  for (size_t first = 0; first < terms.size();) {
    size_t end = first, group = groups.size();
    for (; end < terms.size() && terms[end].kernel == terms[first].kernel; ++end) {
      if (terms[end].backward_of < first) group = std::min(group, group_of_term[terms[end].backward_of]);
    }
    if (group == groups.size()) groups.emplace_back();
    Factors& of_group = groups[group].factors;
    for (size_t term = first; term < end; ++term) {
      of_group.forward.push_back(factors.forward[term]);
      of_group.backward.push_back(factors.backward[term]);
      of_group.bias.push_back(factors.bias[term]);
      of_group.by_jacobian.push_back(terms[term].by_jacobian);
      group_of_term.push_back(group);
    }
    of_group.terms.push_back(static_cast<int64_t>(end - first));
    groups[group].kernels.push_back(static_cast<int64_t>(terms[first].kernel));
    first = end;
  }
  return groups;
}

// Kernels over several outputs with few tiles; those of one output have another way of centering (centering.h).
template <class T>
bool fit(const TileKernels<T>& tiles, const std::vector<Term>& terms) {
  const int64_t panels = ceil_div(terms[0].n, kPanel), o = terms[0].o;
  const int64_t most = fits_packed(tiles, terms) ? kSmallBytes : kKeptBytes;
  return o > 1 && KeptTiles<T>::bytes(terms, TileBlock{0, panels, 0, panels, 0, o}) <= most;
}

// Whether one thread does: others would wait for one another more than they would help.
template <class T>
bool small(const TileKernels<T>& tiles, const std::vector<Term>& terms) {
  return fit(tiles, terms) || (terms[0].n * terms[0].o <= kSmallRows && fits_packed(tiles, terms));
}

// to[0] += <v, (K - means) v> and to[1] += the sum of squares of K - means over a tile (i, j) of K at a pair of panels,
// and over its transpose, which is not visited.
template <class T>
void add_centered(const TileKernels<T>& tiles, const T* tile, const Means<T>& means, const ScaledVector<T>& v,
                  const PanelPair& pair, int64_t i, int64_t j, int64_t rows, int64_t cols, double* to) {
  const double weight = pair.row == pair.col && i == j ? 1 : 2;
  const auto [form, square] = tiles.centered_statistics(tile, means.row_at(i, pair.row), means.col_at(j, pair.col),
                                                        v.at(i, pair.row), v.at(j, pair.col), rows, cols);
  to[0] += weight * form;
  to[1] += weight * square;
}

template <class T>
void from_kept_tiles(const TileKernels<T>& tiles, const std::vector<Term>& terms, const double* v, double* out) {
  const int64_t n = terms[0].n, o = terms[0].o, panels = ceil_div(n, kPanel), count = kernel_count(terms);
  const TileBlock block{0, panels, 0, panels, 0, o};
  const std::vector<Centering<T>> centering = centering_of<T>(terms);
  const std::vector<double> scales = kernel_scales(terms);
  KeptTiles<T> kept(tiles, terms, centering, block);

  std::vector<T> sums(block.items() * o * count * 2 * kPanel);  // of the rows, then of the columns of each tile
  const auto sums_of = [&](int64_t index, int64_t j, int64_t k) {
    return sums.data() + ((index * o + j) * count + k) * 2 * kPanel;
  };
  kept.make([&](int64_t index, int64_t) {
    const TileBlock::Item item = block.item(index);
    for (int64_t j = first_column(item); j < o; ++j) {
      for (int64_t k = 0; k < count; ++k) {
        T* to = sums_of(index, j, k);
        tiles.sums(kept.tile(index, j, k), kept.row_count(item.pair), kept.col_count(item.pair), to, to + kPanel);
      }
    }
  });

  std::vector<Means<T>> means;
  for (int64_t k = 0; k < count; ++k) {
    std::vector<double> row_sums(n * o, 0.0);
    double trace = 0;
    for (int64_t index = 0; index < block.items(); ++index) {
      const TileBlock::Item item = block.item(index);
      const auto [pair, i] = item;
      for (int64_t j = first_column(item); j < o; ++j) {
        const T* from = sums_of(index, j, k);
        const bool symmetric = pair.row == pair.col && i == j;
        for (int64_t r = 0; r < kept.row_count(pair); ++r) row_sums[(pair.row * kPanel + r) * o + i] += from[r];
        for (int64_t c = 0; c < kept.col_count(pair) && !symmetric; ++c) {
          row_sums[(pair.col * kPanel + c) * o + j] += from[kPanel + c];
        }
        for (int64_t r = 0; r < kept.row_count(pair) && symmetric; ++r) trace += kept.tile(index, j, k)[r * kPanel + r];
      }
    }
    double total = 0;
    for (double& sum : row_sums) {
      total += sum;
      sum /= static_cast<double>(n * o) * scales[k];
    }
    out[k * kStatistics + 2] = trace / scales[k];
    out[k * kStatistics + 3] = total / scales[k];
    means.emplace_back(k, terms, centering, row_sums.data());
  }

  const ScaledVector<T> vector(v, n, o);
  std::vector<double> partials(block.items() * count * 2, 0.0);
  for_each_item(block.items(), 4, [&](int64_t index, int64_t) {
    const TileBlock::Item item = block.item(index);
    const auto [pair, i] = item;
    for (int64_t j = first_column(item); j < o; ++j) {
      for (int64_t k = 0; k < count; ++k) {
        add_centered(tiles, kept.tile(index, j, k), means[k], vector, pair, i, j, kept.row_count(pair),
                     kept.col_count(pair), &partials[(index * count + k) * 2]);
      }
    }
  });
  for (int64_t k = 0; k < count; ++k) {
    double form = 0, square = 0;
    for (int64_t index = 0; index < block.items(); ++index) {
      form += partials[(index * count + k) * 2];
      square += partials[(index * count + k) * 2 + 1];
    }
    unscale(form, square, scales[k], vector.scale, out + k * kStatistics);
  }
}

// Mean of each row of each kernel, [n, o].
std::vector<std::vector<double>> row_means_of(const std::vector<Term>& terms) {
  const int64_t size = terms[0].n * terms[0].o;
  std::vector<std::vector<double>> means(kernel_count(terms), std::vector<double>(size, 0.0));
  std::vector<double> sums(size);
  for (const Term& term : terms) {
    row_sums(term, sums.data());
    for (int64_t r = 0; r < size; ++r) means[term.kernel][r] += sums[r] / static_cast<double>(size);
  }
  return means;
}

template <class T>
void from_passing_tiles(const TileKernels<T>& tiles, const std::vector<Term>& terms, const double* v, double* out) {
  const int64_t n = terms[0].n, o = terms[0].o, count = kernel_count(terms);
  const std::vector<Centering<T>> centering = centering_of<T>(terms);
  const std::vector<double> scales = kernel_scales(terms);
  const std::vector<std::vector<double>> row_means = row_means_of(terms);
  std::vector<Means<T>> means;
  for (int64_t k = 0; k < count; ++k) means.emplace_back(k, terms, centering, row_means[k].data());
  const ScaledVector<T> vector(v, n, o);

  const TileScratch<T> scratch(count, o);
  std::vector<double> totals(count * 3, 0.0), partials;  // form, square and trace of each kernel
  const auto begin = [&](const TileBlock& part) { partials.assign(part.items() * count * 3, 0.0); };
  const auto visit = [&](const TileBlock& part, int64_t index, auto& maker, int64_t thread) {
    const TileBlock::Item item = part.item(index);
    const auto [pair, i] = item;
    const bool diagonal = pair.row == pair.col;
    // Tiles that are products need not be written, but for the trace.
    std::optional<ProductTiles<T>> products = maker.products(i, diagonal ? i + 1 : 0, o);
    const int64_t written = products ? o - products->count : o;
    scratch.for_each_tile(item, written, maker, thread, [&, pair = pair, i = i](int64_t j, const auto& tile) {
      for (int64_t k = 0; k < count; ++k) {
        double* to = &partials[(index * count + k) * 3];
        add_centered(tiles, tile(k), means[k], vector, pair, i, j, maker.row_count(), maker.col_count(), to);
        if (!diagonal || i != j) continue;
        for (int64_t r = 0; r < maker.row_count(); ++r) to[2] += tile(k)[r * kPanel + r];
      }
    });
    if (!products || products->count == 0) return;
    products->row = means[0].row_at(i, pair.row);
    products->col = means[0].col_at(written, pair.col);
    products->v_row = vector.at(i, pair.row);
    products->v_col = vector.at(written, pair.col);
    products->col_step = vector.stride;
    const auto [form, square] = tiles.product_statistics(*products, scratch.of_thread(thread));
    partials[index * 3] += 2 * form;  // their transposes are not visited
    partials[index * 3 + 1] += 2 * square;
  };
  const auto done = [&](const TileBlock& part) {
    for (int64_t p = 0; p < part.items() * count * 3; ++p) totals[p % (count * 3)] += partials[p];
  };
  walk_tiles(tiles, terms, centering, begin, visit, done);

  for (int64_t k = 0; k < count; ++k) {
    unscale(totals[k * 3], totals[k * 3 + 1], scales[k], vector.scale, out + k * kStatistics);
    out[k * kStatistics + 2] = totals[k * 3 + 2] / scales[k];
    out[k * kStatistics + 3] =
        std::accumulate(row_means[k].begin(), row_means[k].end(), 0.0) * static_cast<double>(n * o);
  }
}

// Both centerings, from tiles of T: numbers of the global one, then of the one per output.
template <class T>
void from_block_sums(const TileKernels<T>& tiles, const std::vector<Term>& terms, const double* v, double* out) {
  const int64_t n = terms[0].n, o = terms[0].o, count = kernel_count(terms);
  const std::vector<Centering<T>> centering = centering_of<T>(terms);
  const std::vector<double> scales = kernel_scales(terms);
  // v = v_o + w, where v_o is centered over the samples of each output.
  std::vector<double> w(o, 0.0), v_o(v, v + n * o);
  for (int64_t r = 0; r < n * o; ++r) w[r % o] += v[r] / static_cast<double>(n);
  for (int64_t r = 0; r < n * o; ++r) v_o[r] -= w[r % o];
  const ScaledVector<T> vector(v_o.data(), n, o);

  BlockSums<T> sums(terms);
  const TileScratch<T> scratch(count, o);
  std::vector<double> totals(count * 3, 0.0), partials;  // form, square and trace of T of each kernel
  const auto begin = [&](const TileBlock& part) {
    sums.begin(part);
    partials.assign(part.items() * count * 3, 0.0);
  };
  const auto visit = [&](const TileBlock& part, int64_t index, auto& maker, int64_t thread) {
    const TileBlock::Item item = part.item(index);
    const bool diagonal = item.pair.row == item.pair.col;
    // Tiles that are products need not be written, but for the trace.
    std::optional<CenteredTiles<T>> products = maker.centered_products(item.output, diagonal ? item.output + 1 : 0, o);
    const int64_t written = products ? o - products->count : o;
    scratch.for_each_tile(item, written, maker, thread, [&](int64_t j, const auto& tile) {
      const auto [pair, i] = item;
      const bool symmetric = diagonal && i == j;
      const double weight = symmetric ? 1 : 2;  // its transpose is not visited
      for (int64_t k = 0; k < count; ++k) {
        double* to = &partials[(index * count + k) * 3];
        T* of_rows = sums.at(index, j, k);
        const auto [form, square] = tiles.moments(tile(k), vector.at(i, pair.row), vector.at(j, pair.col),
                                                  maker.row_count(), maker.col_count(), of_rows, of_rows + kPanel);
        to[0] += weight * form;
        to[1] += weight * square;
        for (int64_t r = 0; r < maker.row_count() && symmetric; ++r) to[2] += tile(k)[r * kPanel + r];
      }
    });
    if (!products || products->count == 0) return;
    products->v_row = vector.at(item.output, item.pair.row);
    products->v_col = vector.at(written, item.pair.col);
    products->v_col_step = vector.stride;
    products->sums = sums.at(index, written, 0);
    products->sums_step = 2 * kPanel;
    const auto [form, square] = tiles.centered_product_moments(*products, scratch.of_thread(thread));
    partials[index * 3] += 2 * form;  // their transposes are not visited
    partials[index * 3 + 1] += 2 * square;
  };
  const auto done = [&](const TileBlock& part) {
    sums.done(part);
    for (int64_t p = 0; p < part.items() * count * 3; ++p) totals[p % (count * 3)] += partials[p];
  };
  walk_tiles(tiles, terms, centering, begin, visit, done, BlockSums<T>::item_bytes(terms));
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t k = 0; k < count; ++k) {
      if (sums.below_float(totals[k * 3 + 1], k)) return from_block_sums(double_kernels(), terms, v, out);
    }
  }

  for (int64_t k = 0; k < count; ++k) {
    const BlockMeans means(sums, k, terms, centering);
    const CenteredProducts squares = centered_products(totals[k * 3 + 1], means, means);
    double *global = out + k * 2 * kStatistics, *per_output = global + kStatistics;
    unscale(totals[k * 3], squares.per_output, scales[k], vector.scale, per_output);
    global[1] = squares.global / scales[k] / scales[k];
    global[0] = per_output[0] + means.form(v_o.data(), w) / scales[k];
    global[2] = per_output[2] = (totals[k * 3 + 2] + means.trace) / scales[k];
    global[3] = means.sum / scales[k];
    per_output[3] = means.diagonal_sum / scales[k];
  }
}

void from_other_ops(const Factors& factors, const std::vector<Term>& terms, const Tensor& v,
                    const std::string& precision, double* out) {
  const auto numbers_of = [](const Tensor& tensor) { return static_cast<double*>(tensor.mutable_data_ptr()); };
  const auto sum_of = [&](const Tensor& tensor) {
    return std::accumulate(numbers_of(tensor), numbers_of(tensor) + tensor.numel(), 0.0);
  };
  const int64_t size = v.numel(), count = kernel_count(terms);
  std::fill(out, out + count * kStatistics, 0.0);
  std::vector<Tensor> row_means;
  for (size_t t = 0; t < terms.size(); ++t) {
    const Tensor &a = factors.forward[t], &g = factors.backward[t];
    const double bias = factors.bias[t];
    double* of_kernel = out + static_cast<int64_t>(terms[t].kernel) * kStatistics;
    const Tensor sums = tangent_row_sums(a, g, bias);
    of_kernel[0] += sum_of(tangent_quadratic(a, g, bias, v));
    of_kernel[2] += sum_of(tangent_diagonal(a, g, bias, terms[t].by_jacobian));
    of_kernel[3] += sum_of(sums);
    const bool begins = row_means.size() == terms[t].kernel;
    if (begins) row_means.push_back(sums);
    double* means = numbers_of(row_means.back());
    for (int64_t r = 0; r < size; ++r) {
      const double mean = numbers_of(sums)[r] / static_cast<double>(size);
      means[r] = begins ? mean : means[r] + mean;
    }
  }
  const Tensor moments = centered_moments(factors, row_means, precision);
  for (int64_t k = 0; k < count; ++k) out[k * kStatistics + 1] = numbers_of(moments)[k * count + k];
}

template <class T>
void statistics(const TileKernels<T>& tiles, const Factors& factors, const std::vector<Term>& terms, const Tensor& v,
                const std::string& precision, bool per_output, double* out) {
  if (terms[0].o == 1) {
    from_other_ops(factors, terms, v, precision, out);
    return;
  }
  const auto terms_of = [per_output](const Group& group, bool scaled) {
    return make_terms("tangent_statistics", group.factors, scaled, per_output);
  };
  const int64_t numbers_of_each = per_output ? 2 * kStatistics : kStatistics;
  const auto measure = [&](const Group& group) {
    const std::vector<Term> scaled = terms_of(group, /*scaled=*/true);
    const double* numbers = static_cast<const double*>(v.const_data_ptr());
    std::vector<double> found(group.kernels.size() * numbers_of_each);
    if (per_output) {
      from_block_sums(tiles, scaled, numbers, found.data());
    } else if (fit(tiles, scaled)) {
      from_kept_tiles(tiles, scaled, numbers, found.data());
    } else {
      from_passing_tiles(tiles, scaled, numbers, found.data());
    }
    for (size_t k = 0; k < group.kernels.size(); ++k) {
      std::copy_n(found.data() + k * numbers_of_each, numbers_of_each, out + group.kernels[k] * numbers_of_each);
    }
  };
  std::vector<Group> groups = groups_of(factors, terms);
  const auto others = std::stable_partition(groups.begin(), groups.end(), [&](const Group& group) {
    return small(tiles, terms_of(group, /*scaled=*/false));
  });
  const int64_t small_groups = others - groups.begin(), alone = small_groups < thread_count() ? 0 : small_groups;
  for_each_item(alone, 1, [&](int64_t item, int64_t) { measure(groups[item]); });
  for (size_t group = alone; group < groups.size(); ++group) measure(groups[group]);
}

}  // namespace

Tensor tangent_statistics(const Factors& factors, const Tensor& v, const std::string& precision, bool per_output) {
  const std::vector<Term> terms = make_terms("tangent_statistics", factors, /*scaled=*/false);
  check_precision("tangent_statistics", precision);
  check_columns("tangent_statistics", terms[0], v);
  STD_TORCH_CHECK(v.size(2) == 1, "tangent_statistics: v: expected one column, got ", v.size(2));
  STD_TORCH_CHECK(
      !per_output || terms[0].o > 1,
      "tangent_statistics: per_output: expected kernels over several outputs; with one it is the global one");
  Tensor out = torch::stable::new_empty(v, {kernel_count(terms), per_output ? 2 * kStatistics : kStatistics});
  double* result = static_cast<double*>(out.mutable_data_ptr());
  if (terms[0].element == Element::kDouble) {
    statistics(double_kernels(), factors, terms, v, precision, per_output, result);
  } else {
    statistics(float_kernels(precision), factors, terms, v, precision, per_output, result);
  }
  return out;
}

}  // namespace ahkernels::cpu
