// Tiles of a block of K kept in memory, to which one term after the other is added: for terms whose rows have so many
// numbers (Jacobians, and sums over many layers) that packing all of them would take more than the workspace.
//
// A term of one use is taken in slices along its numbers, and so is the Jacobian of a layer with many positions, which
// exists only a slice at a time. A term that goes by pairs of uses takes a walk of its own.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "folded_pairs.h"
#include "gathered_rows.h"
#include "jacobian.h"
#include "packed_walk.h"

namespace ahkernels::cpu {

// Whether the rows of a Jacobian at all outputs are taken together: there are too few samples to fill a panel. Means
// are taken out as Jacobians are formed, and elsewhere as rows of one output are packed.
inline bool gathers(const Term& term) { return term.n < kPanel && term.o > 1 && (term.by_jacobian || !term.means_out); }

// K is the backward Gram itself where there is no forward factor beside a bias of 1: any Jacobian.
inline bool is_jacobian(const Term& term) { return term.s == 1 && term.d == 0 && term.bias == 1; }

// Whether the rows of the backward factor are evenly spaced, output by output or sample by sample.
inline bool output_major(const Term& term) { return term.backward.stride(2) == term.n * term.backward.stride(0); }
inline bool evenly_spaced(const Term& term) {
  return output_major(term) || term.backward.stride(0) == term.o * term.backward.stride(2);
}

// Whether the walk over packed panels serves: all terms go by pairs of uses that are not folded, and fit the workspace.
template <class T>
bool fits_packed(const TileKernels<T>& tiles, const std::vector<Term>& terms) {
  const auto otherwise = [](const Term& term) {
    return term.by_jacobian || folds(term) || (is_jacobian(term) && gathers(term));
  };
  const int64_t bytes = 2 * PanelGroup<T>::panel_bytes(tiles, terms);
  // The pairs of a single term of several uses have no other way.
  const bool lone_pairs = terms.size() == 1 && terms[0].s > 1;
  return std::none_of(terms.begin(), terms.end(), otherwise) && (bytes <= kWorkspaceBytes || lone_pairs);
}

template <class T>
class KeptTiles {
 public:
  KeptTiles(const TileKernels<T>& tiles, const std::vector<Term>& terms, const std::vector<Centering<T>>& centering,
            const TileBlock& block)
      : tiles_(tiles),
        terms_(terms),
        centering_(centering),
        block_(block),
        kernels_(kernel_count(terms)),
        o_(terms[0].o),
        memory_(bytes(terms, block)) {}

  static int64_t bytes(const std::vector<Term>& terms, const TileBlock& block) {
    return block.items() * terms[0].o * kernel_count(terms) * kTileBytes;
  }

  const TileBlock& block() const { return block_; }

  // Makes the tiles (i, j) with j >= first_column(item); after(index, thread) once all of an item are there.
  template <class After>
  void make(const After& after) {
    if (fits_packed(tiles_, terms_)) {
      walk(terms_, centering_, /*accumulate=*/false, after);
      return;
    }
    for_each_item(block_.items(), 1,
                  [&](int64_t index, int64_t) { std::memset(tile(index, 0, 0), 0, o_ * kernels_ * kTileBytes); });
    for (size_t owner = 0; owner < terms_.size(); ++owner) {
      if (terms_[owner].backward_of != owner) continue;
      if (terms_[owner].by_jacobian) {
        add_jacobian(owner);
      } else if (terms_[owner].s == 1) {
        add_single_use(owner);
      } else if (folds(terms_[owner])) {
        add_folded(owner);
      } else {
        add_pairs(owner);
      }
    }
    for_each_item(block_.items(), 4, [&](int64_t index, int64_t thread) { after(index, thread); });
  }

  // Tile (item, j) of a kernel.
  T* tile(int64_t index, int64_t j, int64_t kernel) const {
    return memory_.at<T>(((index * o_ + j) * kernels_ + kernel) * kTileBytes);
  }

  int64_t row_count(const PanelPair& pair) const { return count(pair.row); }
  int64_t col_count(const PanelPair& pair) const { return count(pair.col); }

 private:
  static constexpr int64_t kTileBytes = kTileSize * static_cast<int64_t>(sizeof(T));

  int64_t count(int64_t panel) const { return std::min(kPanel, terms_[0].n - panel * kPanel); }
  int64_t row_blocks() const { return (block_.row_end - block_.row_begin) * block_.outputs(); }
  int64_t col_blocks() const { return (block_.col_end - block_.col_begin) * o_; }
  // Whether the columns' rows of a factor are those of the rows.
  bool shared() const { return block_.diagonal() && block_.outputs() == o_; }

  template <class After>
  void walk(const std::vector<Term>& terms, const std::vector<Centering<T>>& centering, bool accumulate,
            const After& after) {
    const auto visit = [&](const TileBlock& part, int64_t in_part, TileMaker<T>& maker, int64_t thread) {
      const TileBlock::Item item = part.item(in_part);
      const int64_t index = block_.index(item);
      const auto kept = [&](size_t kernel, int64_t j) { return tile(index, j, kernel); };
      maker.make(item.output, first_column(item), o_, kept, accumulate);
      after(index, thread);
    };
    const auto nothing = [](const TileBlock&) {};
    walk_packed(tiles_, terms, centering, block_, nothing, visit, nothing);
  }

  // The terms with the backward factor of `owner`.
  std::vector<size_t> sharing(size_t owner) const {
    std::vector<size_t> found;
    for (size_t which = owner; which < terms_.size(); ++which) {
      if (terms_[which].backward_of == owner) found.push_back(which);
    }
    return found;
  }

  void add_pairs(size_t owner) {
    std::vector<Term> terms;
    std::vector<Centering<T>> centering;
    for (const size_t which : sharing(owner)) {
      terms.push_back(terms_[which]);
      terms.back().backward_of = 0;
      centering.push_back(centering_[which]);
    }
    walk(terms, centering, /*accumulate=*/true, [](int64_t, int64_t) {});
  }

  void add_folded(size_t owner) {
    const std::vector<size_t> sharing_it = sharing(owner);
    std::vector<Term> terms;
    for (const size_t which : sharing_it) terms.push_back(terms_[which]);
    add_folded_pairs(tiles_, terms, block_, [&](int64_t index, int64_t j, int64_t which, int64_t x, int64_t y) {
      return tile(index, j, terms[which].kernel) + x * kPanel + y;
    });
  }

  void add_single_use(size_t owner) {
    const Term& term = terms_[owner];
    const std::vector<size_t> terms = sharing(owner);
    const auto backward = [&](int64_t begin) {
      return [&term, begin](int64_t panel, int64_t output) {
        return term.backward_rows(panel * kPanel, 0, output).from_k(begin);
      };
    };
    if (terms.size() == 1 && is_jacobian(term) && gathers(term) && evenly_spaced(term) && block_.outputs() == o_) {
      const int64_t width = width_of(GatheredRows<T>::panels(term.n, o_), term.m);
      GatheredRows<T> gathered(tiles_, term.n, o_, output_major(term), width);
      Strided rows = term.backward_rows(0, 0, 0);
      rows.row_stride = std::min(term.backward.stride(0), term.backward.stride(2));
      for (int64_t begin = 0; begin < term.m; begin += width) {
        gathered.add_products(rows.from_k(begin), std::min(width, term.m - begin), entry_of(term.kernel));
      }
      return;
    }
    const auto add_slices = [&](const auto& tile_at) {
      const int64_t width = width_of(row_blocks() + (shared() ? 0 : col_blocks()), term.m);
      Packed packed(*this, block_.outputs(), o_, width);
      for (int64_t begin = 0; begin < term.m; begin += width) {
        packed.pack(
            backward(begin), [&](int64_t output) { return centering_[owner].backward_mean_at(output, term.m, begin); },
            std::min(width, term.m - begin));
        add_products(packed, tile_at);
      }
    };
    if (terms.size() == 1 && is_jacobian(term)) {
      add_slices([&](int64_t index, int64_t j) { return tile(index, j, term.kernel); });
      return;
    }
    const AlignedBuffer q(block_.items() * o_ * kTileBytes);
    std::memset(q.at<void>(0), 0, block_.items() * o_ * kTileBytes);
    const auto q_at = [&](int64_t index, int64_t j) { return q.at<T>((index * o_ + j) * kTileBytes); };
    add_slices(q_at);
    for (const size_t which : terms) multiply(which, q_at);
  }

  // tile += forward Gram o q
  template <class Tile>
  void multiply(size_t which, const Tile& q_at) {
    const Term& term = terms_[which];
    const Centering<T>& c = centering_[which];
    const AlignedBuffer p(block_.pairs() * kTileBytes);
    std::memset(p.at<void>(0), 0, block_.pairs() * kTileBytes);
    const int64_t width = width_of(
        block_.row_end - block_.row_begin + (block_.diagonal() ? 0 : block_.col_end - block_.col_begin), term.d);
    Packed packed(*this, 1, 1, width);
    for (int64_t begin = 0; begin < term.d; begin += width) {
      const auto forward = [&](int64_t panel, int64_t) { return term.forward_rows(panel * kPanel, 0).from_k(begin); };
      const T* mean = c.forward_mean.empty() ? nullptr : c.forward_mean.data() + begin;
      packed.pack(forward, [&](int64_t) { return mean; }, std::min(width, term.d - begin));
      for_each_item(block_.pairs(), 1, [&](int64_t index, int64_t) {
        packed.multiply(block_.pair(index), 0, 0, p.at<T>(index * kTileBytes));
      });
    }
    for_each_item(block_.items(), 1, [&](int64_t index, int64_t) {
      const TileBlock::Item item = block_.item(index);
      const T* forward = p.at<T>(index / block_.outputs() * kTileBytes);
      const int64_t row = item.pair.row * kPanel, col = item.pair.col * kPanel;
      for (int64_t j = first_column(item); j < o_; ++j) {
        T* to = tile(index, j, term.kernel);
        if (c.active()) {
          c.add_tile(tiles_, /*use=*/0, /*turned=*/0, item.output, j, row, col, forward, q_at(index, j),
                     row_count(item.pair), col_count(item.pair), /*accumulate=*/true, to);
        } else {
          tiles_.hadamard(forward, static_cast<T>(term.scaled_bias()), q_at(index, j), row_count(item.pair),
                          col_count(item.pair), /*accumulate=*/true, to);
        }
      }
    });
  }

  void add_jacobian(size_t owner) {
    // Means are taken out in fp64: J is near its mean where K is near constant.
    if (centering_[owner].active() || std::is_same_v<T, double>) {
      add_jacobian<double>(owner, double_kernels(), Element::kDouble);
    } else {
      add_jacobian<float>(owner, float_kernels("highest"), Element::kFloat);
    }
  }

  template <class F>
  void add_jacobian(size_t owner, const TileKernels<F>& forming, Element element) {
    const Term& term = terms_[owner];
    const double* mean = centering_[owner].active() ? centering_[owner].jacobian_mean.data() : nullptr;
    const int64_t rows = samples(block_.row_begin, block_.row_end), cols = samples(block_.col_begin, block_.col_end);
    const int64_t formed = (rows + (block_.diagonal() ? 0 : cols)) * o_;
    const JacobianSlices<F> jacobian(forming, term, mean,
                                     kWorkspaceBytes / (formed * kTileSize * static_cast<int64_t>(sizeof(F))));
    const int64_t stride = jacobian.row_numbers();
    const AlignedBuffer memory(formed * stride * static_cast<int64_t>(sizeof(F)));
    F* of_cols =
        block_.diagonal() ? memory.at<F>(0) : memory.at<F>(rows * o_ * stride * static_cast<int64_t>(sizeof(F)));
    if (gathers(term) && block_.outputs() == o_) {
      GatheredRows<T> gathered(tiles_, term.n, o_, /*output_major=*/false, stride);
      for (int64_t slice = 0; slice < jacobian.slices(); ++slice) {
        jacobian.fill(slice, 0, rows, memory.at<F>(0));
        const Strided of_slice{memory.at<F>(0), element, stride, 1, 1.0};
        gathered.add_products(of_slice, jacobian.numbers(slice), entry_of(term.kernel));
      }
      return;
    }
    Packed packed(*this, block_.outputs(), o_, stride);
    for (int64_t slice = 0; slice < jacobian.slices(); ++slice) {
      jacobian.fill(slice, block_.row_begin * kPanel, rows, memory.at<F>(0));
      if (!block_.diagonal()) jacobian.fill(slice, block_.col_begin * kPanel, cols, of_cols);
      packed.pack(
          [&](int64_t panel, int64_t output) {
            const bool in_rows = panel >= block_.row_begin && panel < block_.row_end;
            const F* from = in_rows ? memory.at<F>(0) : of_cols;
            const int64_t sample = (panel - (in_rows ? block_.row_begin : block_.col_begin)) * kPanel;
            return Strided{from + (sample * o_ + output) * stride, element, o_ * stride, 1, 1.0};
          },
          [](int64_t) { return nullptr; }, jacobian.numbers(slice));
      add_products(packed, [&](int64_t index, int64_t j) { return tile(index, j, term.kernel); });
    }
  }

  // Of the block's only pair of panels.
  auto entry_of(size_t kernel) const {
    return [this, kernel](int64_t i, int64_t j, int64_t x, int64_t y) -> T& {
      return tile(block_.index({{block_.row_begin, block_.col_begin}, i}), j, kernel)[x * kPanel + y];
    };
  }

  int64_t samples(int64_t begin, int64_t end) const { return std::min(end * kPanel, terms_[0].n) - begin * kPanel; }

  // So wide that as many panels fit the workspace, in steps of what is packed at a time.
  static int64_t width_of(int64_t panels, int64_t k) {
    const int64_t fitting = kWorkspaceBytes / (panels * kPanel * static_cast<int64_t>(sizeof(T))) / 16 * 16;
    return std::clamp<int64_t>(fitting, 16, std::max<int64_t>(k, 16));
  }

  // A slice of a factor at the panels of the block's rows and columns, with so many blocks for each panel.
  class Packed {
   public:
    Packed(const KeptTiles& kept, int64_t row_outputs, int64_t col_outputs, int64_t width)
        : kept_(kept),
          row_outputs_(row_outputs),
          col_outputs_(col_outputs),
          shared_(kept.block_.diagonal() && row_outputs == col_outputs),
          bytes_(kept.tiles_.panel_bytes(width)),
          row_blocks_((kept.block_.row_end - kept.block_.row_begin) * row_outputs),
          col_blocks_(shared_ ? 0 : (kept.block_.col_end - kept.block_.col_begin) * col_outputs),
          memory_((row_blocks_ + col_blocks_) * bytes_) {}

    // mean_of(output) is taken out of the rows of an output unless it is null.
    template <class Rows, class Mean>
    void pack(const Rows& rows_of, const Mean& mean_of, int64_t k) {
      k_ = kept_.tiles_.padded(k);
      for_each_item(row_blocks_ + col_blocks_, 1, [&](int64_t index, int64_t) {
        const bool row = index < row_blocks_;
        const int64_t local = row ? index : index - row_blocks_, outputs = row ? row_outputs_ : col_outputs_;
        const int64_t panel = (row ? kept_.block_.row_begin : kept_.block_.col_begin) + local / outputs;
        const int64_t output = local % outputs + (row ? kept_.block_.output_begin : 0);
        kept_.tiles_.pack(rows_of(panel, output), mean_of(output), kept_.count(panel), k,
                          memory_.template at<void>(index * bytes_));
      });
    }

    // tile += the product of two blocks
    void multiply(const PanelPair& pair, int64_t row_output, int64_t col_output, T* tile) const {
      const int64_t row = (pair.row - kept_.block_.row_begin) * row_outputs_ + row_output;
      const int64_t col = (pair.col - kept_.block_.col_begin) * col_outputs_ + col_output;
      kept_.tiles_.gemm(k_, memory_.template at<void>(row * bytes_),
                        memory_.template at<void>(((shared_ ? 0 : row_blocks_) + col) * bytes_), kept_.count(pair.row),
                        kept_.count(pair.col), /*accumulate=*/true, tile);
    }

   private:
    const KeptTiles& kept_;
    const int64_t row_outputs_, col_outputs_;
    const bool shared_;
    const int64_t bytes_, row_blocks_, col_blocks_;
    int64_t k_ = 0;
    AlignedBuffer memory_;
  };

  // tile_at(index, j) += the product of the slices of each item and output.
  template <class Tile>
  void add_products(const Packed& packed, const Tile& tile_at) {
    for_each_item(block_.items(), 1, [&](int64_t index, int64_t) {
      const TileBlock::Item item = block_.item(index);
      const GemmScope<T> gemms(tiles_);
      for (int64_t j = first_column(item); j < o_; ++j) {
        packed.multiply(item.pair, item.output - block_.output_begin, j, tile_at(index, j));
      }
    });
  }

  const TileKernels<T>& tiles_;
  const std::vector<Term>& terms_;
  const std::vector<Centering<T>>& centering_;
  const TileBlock block_;
  const int64_t kernels_, o_;
  AlignedBuffer memory_;
};

}  // namespace ahkernels::cpu
