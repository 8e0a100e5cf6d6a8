// The walk over the lower triangle of K in tiles, shared by the ops that need every entry of it. Lower, so that the
// short panel at the end of the samples is a tile's rows, whose number costs no efficiency, and not its columns.
//
// Two groups of sample panels at a time are packed into a workspace of fixed size (so memory does not grow with n), and
// threads take the work items of the pair of groups: a pair of panels X >= X' and one output i of the first, hence o
// tiles of K. All work of an item is done by one thread in a fixed order, which makes every result independent of the
// number of threads.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "aligned.h"
#include "centering.h"
#include "kernel.h"
#include "parallel.h"

namespace ahkernels::cpu {

// For the packed factors of both groups; a single pair of panels is packed even where it takes more.
constexpr int64_t kWorkspaceBytes = 32 << 20;
// For each thread's forward-Gram tiles of the pairs of uses of a layer; further ones are computed anew for each tile.
constexpr int64_t kForwardTileBytes = 1 << 20;

// The rows of K at the samples [first, first + count) and one output.
struct Block {
  int64_t first, count, output;
};

// The panels [begin, end) of the samples, packed.
template <class T>
class PanelGroup {
 public:
  PanelGroup(const TileKernels<T>& tiles, const std::vector<Kernel>& kernels,
             const std::vector<Centering<T>>& centering, int64_t capacity)
      : tiles_(tiles), kernels_(kernels), centering_(centering), memory_(capacity * panel_bytes(tiles, kernels)) {
    for (const Kernel& kernel : kernels) {
      forward_offsets_.push_back(stride_);
      stride_ += bytes(tiles, kernel.d) * kernel.s;
    }
    for (size_t which = 0; which < kernels.size(); ++which) {
      const Kernel& kernel = kernels[which];
      const bool shared = kernel.backward_of != which;
      backward_offsets_.push_back(shared ? backward_offsets_[kernel.backward_of] : stride_);
      stride_ += shared ? 0 : bytes(tiles, kernel.m) * kernel.s * kernel.o;
    }
  }

  static int64_t padded(const TileKernels<T>& tiles, int64_t k) {
    return ceil_div(k, tiles.k_per_packed) * tiles.k_per_packed;
  }
  // Of kPanel rows with k numbers each.
  static int64_t bytes(const TileKernels<T>& tiles, int64_t k) {
    return padded(tiles, k) / tiles.k_per_packed * kPanel * tiles.packed_bytes;
  }
  static int64_t panel_bytes(const TileKernels<T>& tiles, const std::vector<Kernel>& kernels) {
    int64_t total = 0;
    for (size_t which = 0; which < kernels.size(); ++which) {
      const Kernel& kernel = kernels[which];
      total += bytes(tiles, kernel.d) * kernel.s;
      if (kernel.backward_of == which) total += bytes(tiles, kernel.m) * kernel.s * kernel.o;
    }
    return total;
  }

  void pack(int64_t begin, int64_t end) {
    begin_ = begin;
    for (size_t which = 0; which < kernels_.size(); ++which) {
      const Kernel& kernel = kernels_[which];
      // Blocks of a panel: a forward one for each use, then the backward ones unless they are another kernel's.
      const int64_t blocks = kernel.s * (kernel.backward_of == which ? 1 + kernel.o : 1);
      for_each_item((end - begin) * blocks, 4, [&](int64_t item, int64_t) {
        const int64_t panel = begin + item / blocks, block = item % blocks;
        const int64_t first = panel * kPanel, count = std::min(kPanel, kernel.n - first);
        if (block < kernel.s) {
          tiles_.pack(kernel.forward_rows(first, block), mean(centering_[which].forward_mean, block * kernel.d), count,
                      kernel.d, forward(which, panel, block));
        } else {
          const int64_t use = (block - kernel.s) / kernel.o, output = (block - kernel.s) % kernel.o;
          tiles_.pack(kernel.backward_rows(first, use, output), mean(centering_[which].backward_mean, use * kernel.m),
                      count, kernel.m, backward(which, panel, use, output));
        }
      });
    }
  }

  void* forward(size_t which, int64_t panel, int64_t use) const {
    return memory_.at<void>((panel - begin_) * stride_ + forward_offsets_[which] +
                            use * bytes(tiles_, kernels_[which].d));
  }
  void* backward(size_t which, int64_t panel, int64_t use, int64_t output) const {
    const Kernel& kernel = kernels_[which];
    return memory_.at<void>((panel - begin_) * stride_ + backward_offsets_[which] +
                            (use * kernel.o + output) * bytes(tiles_, kernel.m));
  }

 private:
  static const T* mean(const std::vector<T>& means, int64_t offset) {
    return means.empty() ? nullptr : means.data() + offset;
  }

  const TileKernels<T>& tiles_;
  const std::vector<Kernel>& kernels_;
  const std::vector<Centering<T>>& centering_;
  int64_t stride_ = 0, begin_ = 0;
  std::vector<int64_t> forward_offsets_, backward_offsets_;
  AlignedBuffer memory_;
};

// One thread's tiles at a pair of panels: of K, or of what is left of it with the means taken out (see centering.h),
// times the kernel's scale.
template <class T>
class TileMaker {
 public:
  TileMaker(const TileKernels<T>& tiles, const std::vector<Kernel>& kernels, const std::vector<Centering<T>>& centering)
      : tiles_(tiles), kernels_(kernels), centering_(centering), memory_(scratch_bytes(kernels)) {
    int64_t slot = 0;
    for (const Kernel& kernel : kernels) {
      first_slot_.push_back(slot);
      slot += cached(kernel) ? kernel.s * kernel.s : 0;
    }
  }

  // Turns to a pair of panels.
  void turn_to(const PanelGroup<T>& rows, int64_t row_panel, const PanelGroup<T>& cols, int64_t col_panel) {
    rows_ = &rows;
    cols_ = &cols;
    if (row_panel_ == row_panel && col_panel_ == col_panel) return;
    row_panel_ = row_panel;
    col_panel_ = col_panel;
    row_count_ = std::min(kPanel, kernels_[0].n - row_panel * kPanel);
    col_count_ = std::min(kPanel, kernels_[0].n - col_panel * kPanel);
    for (size_t which = 0; which < kernels_.size(); ++which) {
      if (!cached(kernels_[which])) continue;
      for (int64_t use = 0; use < kernels_[which].s * kernels_[which].s; ++use) {
        forward_tile(which, use, cached_tile(first_slot_[which] + use));
      }
    }
  }

  int64_t row_count() const { return row_count_; }
  int64_t col_count() const { return col_count_; }

  // out(which) [row_count, kPanel] = the tile [(X, i), (X', j)] of each kernel.
  template <class Out>
  void make(int64_t i, int64_t j, const Out& out) {
    T* q = memory_.at<T>(0);
    for (size_t owner = 0; owner < kernels_.size(); ++owner) {
      const Kernel& kernel = kernels_[owner];
      if (kernel.backward_of != owner) continue;
      for (int64_t use = 0; use < kernel.s * kernel.s; ++use) {
        tiles_.gemm(PanelGroup<T>::padded(tiles_, kernel.m), rows_->backward(owner, row_panel_, use / kernel.s, i),
                    cols_->backward(owner, col_panel_, use % kernel.s, j), row_count_, col_count_, /*accumulate=*/false,
                    q);
        for (size_t which = owner; which < kernels_.size(); ++which) {
          if (kernels_[which].backward_of == owner) multiply(which, use, q, out(which));
        }
      }
    }
  }

 private:
  static constexpr int64_t kTileBytes = kTileSize * static_cast<int64_t>(sizeof(T));

  static bool cached(const Kernel& kernel) { return kernel.s * kernel.s * kTileBytes <= kForwardTileBytes; }
  static int64_t scratch_bytes(const std::vector<Kernel>& kernels) {
    int64_t tiles = 2;
    for (const Kernel& kernel : kernels) tiles += cached(kernel) ? kernel.s * kernel.s : 0;
    return tiles * kTileBytes;
  }
  T* cached_tile(int64_t slot) const { return memory_.at<T>((2 + slot) * kTileBytes); }

  // tile (+)= the forward tile of a pair of uses o q
  void multiply(size_t which, int64_t use, const T* q, T* tile) {
    const Kernel& kernel = kernels_[which];
    const Centering<T>& c = centering_[which];
    const T* p = cached(kernel) ? cached_tile(first_slot_[which] + use) : memory_.at<T>(kTileBytes);
    if (!cached(kernel)) forward_tile(which, use, memory_.at<T>(kTileBytes));
    if (c.active()) {
      const int64_t turned = use % kernel.s * kernel.s + use / kernel.s;
      const int64_t row = use * c.stride + row_panel_ * kPanel, col = turned * c.stride + col_panel_ * kPanel;
      tiles_.centered_hadamard(p, c.p0[use], &c.p[row], &c.p[col], q, c.q0[use], &c.q[row], &c.q[col], row_count_,
                               col_count_, use > 0, tile);
    } else {
      tiles_.hadamard(p, static_cast<T>(kernel.scaled_bias()), q, row_count_, col_count_, use > 0, tile);
    }
  }

  void forward_tile(size_t which, int64_t use, T* tile) {
    const Kernel& kernel = kernels_[which];
    tiles_.gemm(PanelGroup<T>::padded(tiles_, kernel.d), rows_->forward(which, row_panel_, use / kernel.s),
                cols_->forward(which, col_panel_, use % kernel.s), row_count_, col_count_, /*accumulate=*/false, tile);
  }

  const TileKernels<T>& tiles_;
  const std::vector<Kernel>& kernels_;
  const std::vector<Centering<T>>& centering_;
  AlignedBuffer memory_;             // q, a spare p, the cached p
  std::vector<int64_t> first_slot_;  // of each kernel's cached p
  const PanelGroup<T>* rows_ = nullptr;
  const PanelGroup<T>* cols_ = nullptr;
  int64_t row_panel_ = -1, col_panel_ = -1, row_count_ = 0, col_count_ = 0;
};

// A pair of panel groups: how many pairs of panels (row panel >= column panel) it has, and the t-th of them.
struct GroupPair {
  int64_t row_begin, row_end, col_begin, col_end;

  bool diagonal() const { return row_begin == col_begin; }
  int64_t pairs() const {
    const int64_t rows = row_end - row_begin;
    return diagonal() ? rows * (rows + 1) / 2 : rows * (col_end - col_begin);
  }
  PanelPair pair(int64_t t) const {
    const PanelPair local = diagonal() ? triangle_pair(t) : rectangle_pair(t, col_end - col_begin);
    return {row_begin + local.row, col_begin + local.col};
  }
};

// visit(item, pair, i, maker, thread) once for every pair of panels and output i of the first, where item counts them
// within a pair of groups; begin(groups) before and done(groups) after each pair of groups.
template <class T, class Begin, class Visit, class Done>
void walk_tiles(const TileKernels<T>& tiles, const std::vector<Kernel>& kernels,
                const std::vector<Centering<T>>& centering, const Begin& begin, const Visit& visit, const Done& done) {
  const int64_t o = kernels[0].o;
  const int64_t panels = ceil_div(kernels[0].n, kPanel);
  const int64_t per_panel = std::max<int64_t>(1, PanelGroup<T>::panel_bytes(tiles, kernels));
  const bool one_group = panels * per_panel <= kWorkspaceBytes;
  const int64_t capacity = one_group ? panels : std::clamp<int64_t>(kWorkspaceBytes / 2 / per_panel, 1, panels);

  PanelGroup<T> first(tiles, kernels, centering, capacity);
  PanelGroup<T> second(tiles, kernels, centering, one_group ? 0 : capacity);
  std::vector<TileMaker<T>> makers;
  for (int64_t thread = 0; thread < thread_count(); ++thread) makers.emplace_back(tiles, kernels, centering);

  for (int64_t row = 0; row < panels; row += capacity) {
    first.pack(row, std::min(row + capacity, panels));
    for (int64_t col = 0; col <= row; col += capacity) {
      const GroupPair groups{row, std::min(row + capacity, panels), col, std::min(col + capacity, panels)};
      if (!groups.diagonal()) second.pack(groups.col_begin, groups.col_end);
      const PanelGroup<T>& columns = groups.diagonal() ? first : second;
      begin(groups);
      // Neighbouring items share their forward-Gram tiles: take them together while there are enough for all.
      const int64_t items = groups.pairs() * o;
      const int64_t chunk = std::clamp<int64_t>(items / (16 * thread_count()), 1, o);
      for_each_item(items, chunk, [&](int64_t item, int64_t thread) {
        const PanelPair pair = groups.pair(item / o);
        makers[thread].turn_to(first, pair.row, columns, pair.col);
        visit(item, pair, item % o, makers[thread], thread);
      });
      done(groups);
    }
  }
}

}  // namespace ahkernels::cpu
