// The inner kernels of csrc/cpu/isa against plain double loops, without torch: for machines that have none, such as an
// emulated aarch64. Prints the instruction sets of this processor, then each disagreement, and fails if there is one.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "cpu/aligned_buffer.h"
#include "cpu/isa/kernel_table.h"

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>

#include "cpu/isa/target.h"
#endif

using namespace ahkernels;
using namespace ahkernels::cpu;

namespace {

int disagreements = 0, comparisons = 0;
double roundings = 1;  // of fp32 that count as one, for kernels of lower precision
std::mt19937 random_bits(0);

// Odd multiples of 1/64 up to 2: fp16 and bf16 hold them exactly, and none is zero.
double some_number() {
  const int magnitude = 2 * static_cast<int>(random_bits() % 64) + 1;
  return (random_bits() % 2 ? 1 : -1) * magnitude / 64.0;
}

// Numbers on a cache line's boundary, as the ops have them, with a few more than asked for: vectors are read up to the
// next 16 columns.
template <class T>
class Numbers {
 public:
  explicit Numbers(int64_t count) : memory_((count + 16) * static_cast<int64_t>(sizeof(T))) {
    for (int64_t i = 0; i < count + 16; ++i) data()[i] = static_cast<T>(some_number());
  }
  T* data() const { return memory_.at<T>(0); }
  double operator[](int64_t i) const { return static_cast<double>(data()[i]); }
  void set(int64_t i, T number) { data()[i] = number; }

 private:
  AlignedBuffer memory_;
};

// A sum as it should be, and the sum of the magnitudes of its terms, which rounding is measured by.
struct Expected {
  double value = 0, magnitude = 0;
  void add(double term) { value += term, magnitude += std::fabs(term); }
};

// T is the type that the kernel sums in.
template <class T>
void compare(const char* what, double got, const Expected& expected) {
  ++comparisons;
  const double bound = roundings * 64 * static_cast<double>(std::numeric_limits<T>::epsilon()) * expected.magnitude;
  if (std::fabs(got - expected.value) <= bound) return;  // not so for nan
  ++disagreements;
  if (disagreements <= 20) std::printf("%s: expected %.17g, got %.17g\n", what, expected.value, got);
}

// ---- factors

Element element_of(float) { return Element::kFloat; }
Element element_of(double) { return Element::kDouble; }
Element element_of(Half) { return Element::kHalf; }
Element element_of(uint16_t) { return Element::kBFloat16; }

// bf16 is stored as the upper half of a float.
template <class Stored>
Stored stored(double number) {
  if constexpr (std::is_same_v<Stored, uint16_t>) {
    return static_cast<uint16_t>(__builtin_bit_cast(uint32_t, static_cast<float>(number)) >> 16);
  } else {
    return static_cast<Stored>(number);
  }
}

// A factor [rows, k] in memory, with its numbers once more in double, scale included.
struct Factor {
  int64_t rows, k;
  std::vector<double> numbers;  // [rows][k], times scale
  std::vector<std::byte> memory;
  Strided view;

  double at(int64_t row, int64_t i) const { return numbers[row * k + i]; }
};

template <class Stored>
Factor factor_of(int64_t rows, int64_t k, bool transposed, double scale) {
  Factor factor{rows, k, {}, std::vector<std::byte>(std::max<int64_t>(1, rows * k) * sizeof(Stored)), {}};
  factor.view = {factor.memory.data(), element_of(Stored{}), transposed ? 1 : k, transposed ? rows : 1, scale};
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < k; ++i) {
      const double number = some_number();
      factor.numbers.push_back(number * scale);
      reinterpret_cast<Stored*>(factor.memory.data())[row * factor.view.row_stride + i * factor.view.k_stride] =
          stored<Stored>(number);
    }
  }
  return factor;
}

Factor factor_of(Element element, int64_t rows, int64_t k, bool transposed, double scale = 1) {
  switch (element) {
    case Element::kFloat:
      return factor_of<float>(rows, k, transposed, scale);
    case Element::kHalf:
      return factor_of<Half>(rows, k, transposed, scale);
    case Element::kBFloat16:
      return factor_of<uint16_t>(rows, k, transposed, scale);
    default:
      return factor_of<double>(rows, k, transposed, scale);
  }
}

// ---- products of panels

template <class T>
struct Panel {
  AlignedBuffer memory;
  int64_t bytes;

  Panel(const TileKernels<T>& tiles, int64_t k, int64_t count = 1)
      : memory(std::max<int64_t>(64, count * size(tiles, k))), bytes(size(tiles, k)) {}
  void* at(int64_t panel = 0) const { return memory.at<void>(panel * bytes); }

  static int64_t size(const TileKernels<T>& tiles, int64_t k) { return ceil_div(tiles.panel_bytes(k), 64) * 64; }
};

// The scalar product of a row of a and one of b.
Expected product(const Factor& a, int64_t row, const Factor& b, int64_t col) {
  Expected sum;
  for (int64_t i = 0; i < a.k; ++i) sum.add(a.at(row, i) * b.at(col, i));
  return sum;
}

template <class T>
void test_products(const TileKernels<T>& tiles, Element element, int64_t rows, int64_t cols, int64_t k,
                   bool transposed) {
  const Factor a = factor_of(element, rows, k, transposed, 0.5), b = factor_of(element, cols, k, !transposed, 2);
  const Panel<T> packed_a(tiles, k), packed_b(tiles, k);
  tiles.pack(a.view, nullptr, rows, k, packed_a.at());
  tiles.pack(b.view, nullptr, cols, k, packed_b.at());
  Numbers<T> tile(kTileSize);
  const GemmScope<T> scope(tiles);
  tiles.gemm(tiles.padded(k), packed_a.at(), packed_b.at(), rows, cols, false, tile.data());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) compare<T>("gemm", tile[r * kPanel + c], product(a, r, b, c));
  }
  tiles.gemm(tiles.padded(k), packed_a.at(), packed_b.at(), rows, cols, true, tile.data());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const Expected once = product(a, r, b, c);
      compare<T>("gemm that accumulates", tile[r * kPanel + c], {2 * once.value, 2 * once.magnitude});
    }
  }
}

// Products of rows less their mean, which packing subtracts.
template <class T>
void test_means(const TileKernels<T>& tiles, Element element, int64_t rows, int64_t k, bool transposed) {
  const Factor a = factor_of(element, rows, k, transposed, 0.5);
  Numbers<T> mean(k);  // of the numbers without their scale
  Factor less = a;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < k; ++i) less.numbers[row * k + i] -= mean[i] * a.view.scale;
  }
  const Panel<T> packed(tiles, k);
  tiles.pack(a.view, mean.data(), rows, k, packed.at());
  Numbers<T> tile(kTileSize);
  const GemmScope<T> scope(tiles);
  tiles.gemm(tiles.padded(k), packed.at(), packed.at(), rows, rows, false, tile.data());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < rows; ++c) compare<T>("gemm less means", tile[r * kPanel + c], product(less, r, less, c));
  }
}

// ---- epilogues

template <class T>
struct Epilogue {
  const TileKernels<T>& tiles;
  int64_t rows, cols;
  Numbers<T> p{kTileSize}, q{kTileSize}, p_row{rows}, p_col{cols}, q_row{rows}, q_col{cols}, v_row{rows}, v_col{cols};
  T p0 = T{0.25}, q0 = T{-1.5};

  int64_t at(int64_t r, int64_t c) const { return r * kPanel + c; }

  void over_tile(const std::function<void(int64_t, int64_t)>& visit) const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) visit(r, c);
    }
  }

  void test_hadamard() {
    Numbers<T> tile(kTileSize);
    const auto expected = [&](int64_t r, int64_t c, int times) {
      const double factors[] = {p[at(r, c)], q[at(r, c)]};
      Expected sum;
      sum.add(times * factors[0] * factors[1]), sum.add(times * static_cast<double>(p0) * factors[1]);
      return sum;
    };
    for (const int times : {1, 2}) {
      tiles.hadamard(p.data(), p0, q.data(), rows, cols, times == 2, tile.data());
      over_tile([&](int64_t r, int64_t c) { compare<T>("hadamard", tile[at(r, c)], expected(r, c, times)); });
    }
    Numbers<T> sums(cols);
    tiles.hadamard_sums(p.data(), p0, q.data(), rows, cols, sums.data());
    for (int64_t c = 0; c < cols; ++c) {
      Expected sum;
      for (int64_t r = 0; r < rows; ++r) sum.add((p[at(r, c)] + static_cast<double>(p0)) * q[at(r, c)]);
      compare<T>("hadamard_sums", sums[c], sum);
    }
  }

  // An entry of a mean-free tile with the products q: see near_constant_centering.h.
  Expected mean_free(const Numbers<T>& products, int64_t r, int64_t c) const {
    Expected sum;
    const double pp = p[at(r, c)], qq = products[at(r, c)];
    for (const double factor : {static_cast<double>(p0), p_row[r], p_col[c], pp}) sum.add(factor * qq);
    for (const double factor : {static_cast<double>(q0), q_row[r], q_col[c]}) sum.add(pp * factor);
    sum.add(p_row[r] * q_col[c]), sum.add(q_row[r] * p_col[c]);
    return sum;
  }

  void test_mean_free() {
    Numbers<T> tile(kTileSize);
    for (const int times : {1, 2}) {
      tiles.centered_hadamard(p.data(), p0, p_row.data(), p_col.data(), q.data(), q0, q_row.data(), q_col.data(), rows,
                              cols, times == 2, tile.data());
      over_tile([&](int64_t r, int64_t c) {
        const Expected once = mean_free(q, r, c);
        compare<T>("centered_hadamard", tile[at(r, c)], {times * once.value, times * once.magnitude});
      });
    }
  }

  void test_centered_product() {
    Expected sum;
    over_tile([&](int64_t r, int64_t c) {
      const double a = p[at(r, c)] - p_row[r] - p_col[c], b = q[at(r, c)] - q_row[r] - q_col[c];
      sum.add(a * b);
    });
    const double got =
        tiles.centered_product(p.data(), p_row.data(), p_col.data(), q.data(), q_row.data(), q_col.data(), rows, cols);
    compare<T>("centered_product", got, sum);
  }

  // The numbers of a tile, one row and column after the other.
  using Entry = std::function<double(int64_t, int64_t)>;

  void compare_form_and_square(const char* what, const FormAndSquare& got, const Entry& entry) const {
    Expected form, square;
    over_tile([&](int64_t r, int64_t c) {
      form.add(v_row[r] * entry(r, c) * v_col[c]);
      square.add(entry(r, c) * entry(r, c));
    });
    compare<T>(what, got.form, form);
    compare<T>(what, got.square, square);
  }

  void compare_sums(const char* what, const Numbers<T>& row_sums, const Numbers<T>& col_sums,
                    const Entry& entry) const {
    for (int64_t r = 0; r < rows; ++r) {
      Expected sum;
      for (int64_t c = 0; c < cols; ++c) sum.add(entry(r, c));
      compare<T>(what, row_sums[r], sum);
    }
    for (int64_t c = 0; c < cols; ++c) {
      Expected sum;
      for (int64_t r = 0; r < rows; ++r) sum.add(entry(r, c));
      compare<T>(what, col_sums[c], sum);
    }
  }

  void test_sums() {
    Numbers<T> tile(kTileSize), row_sums(rows), col_sums(cols);
    for (int64_t r = 0; r < kPanel; ++r) {  // as a product of packed panels has it, past the columns
      for (int64_t c = cols; c < ceil_div(cols, 16) * 16; ++c) tile.set(at(r, c), 0);
    }
    const Entry entry = [&](int64_t r, int64_t c) { return tile[at(r, c)]; };
    tiles.sums(tile.data(), rows, cols, row_sums.data(), col_sums.data());
    compare_sums("sums", row_sums, col_sums, entry);
    const FormAndSquare got = tiles.form_square_and_sums(tile.data(), v_row.data(), v_col.data(), rows, cols,
                                                         row_sums.data(), col_sums.data());
    compare_form_and_square("form_square_and_sums", got, entry);
    compare_sums("form_square_and_sums", row_sums, col_sums, entry);
    const FormAndSquare centered =
        tiles.centered_form_and_square(tile.data(), p_row.data(), p_col.data(), v_row.data(), v_col.data(), rows, cols);
    compare_form_and_square("centered_form_and_square", centered,
                            [&](int64_t r, int64_t c) { return tile[at(r, c)] - p_row[r] - p_col[c]; });
  }
};

// ---- rows

template <class T>
void test_rows(const TileKernels<T>& tiles, Element element, int64_t rows, int64_t k, bool transposed) {
  const Factor x = factor_of(element, rows, k, transposed, 0.5);
  const Strided row = x.view.from_row(rows - 1);
  Numbers<T> y(11 * k), mean(k), sums(k), dots(11);

  tiles.column_sums(x.view, rows, k, sums.data());
  for (int64_t i = 0; i < k; ++i) {
    Expected sum;
    for (int64_t r = 0; r < rows; ++r) sum.add(x.at(r, i));
    compare<T>("column_sums", sums[i], sum);
  }

  tiles.dots(row, mean.data(), k, y.data(), 11, dots.data());
  for (int64_t j = 0; j < 11; ++j) {
    Expected sum;
    for (int64_t i = 0; i < k; ++i) sum.add(y[j * k + i] * (x.at(rows - 1, i) - mean[i]));
    compare<T>("dots", dots[j], sum);
  }

  Expected dot;
  for (int64_t i = 0; i < k; ++i) dot.add(x.at(rows - 1, i) * y[i]);
  compare<T>("dot", static_cast<double>(tiles.dot(row, k, y.data())), dot);

  std::vector<Expected> moved(k);
  for (int64_t i = 0; i < k; ++i) moved[i].add(y[i]), moved[i].add(-3 * x.at(rows - 1, i));
  tiles.axpy(T{-3}, row, k, y.data());
  for (int64_t i = 0; i < k; ++i) compare<T>("axpy", y[i], moved[i]);

  double largest = 0;  // without the scale
  for (const double number : x.numbers) largest = std::max(largest, std::fabs(number) / x.view.scale);
  compare<double>("largest", tiles.largest(x.view, rows, k), {largest, 0});
}

// ---- tiles that are made and not kept

template <class T>
void test_made_tiles(const TileKernels<T>& tiles, Element element, int64_t rows, int64_t cols, int64_t k) {
  constexpr int64_t kCount = 3;
  Epilogue<T> with{tiles, rows, cols};
  const Factor a = factor_of(element, rows, k, false);
  const Panel<T> packed_a(tiles, k), packed_b(tiles, k, kCount);
  tiles.pack(a.view, nullptr, rows, k, packed_a.at());
  std::vector<Factor> b;
  for (int64_t j = 0; j < kCount; ++j) {
    b.push_back(factor_of(element, cols, k, false));
    tiles.pack(b[j].view, nullptr, cols, k, packed_b.at(j));
  }
  Numbers<T> tile(kTileSize), col(kCount * kPanel), v_col(kCount * kPanel), sums(kCount * 2 * kPanel);
  Numbers<T> q0(kCount), q_row(kCount * kPanel), q_col(kCount * kPanel);
  for (int64_t c = cols; c < ceil_div(cols, 16) * 16; ++c) {  // zeros past the columns, as the ops have them
    with.p_col.set(c, 0);
    for (int64_t r = 0; r < rows; ++r) with.p.set(r * kPanel + c, 0);
    for (int64_t j = 0; j < kCount; ++j) q_col.set(j * kPanel + c, 0);
  }
  const GemmScope<T> scope(tiles);

  const ProductTiles<T> of_products = {.k = tiles.padded(k),
                                       .rows = rows,
                                       .cols = cols,
                                       .count = kCount,
                                       .a = packed_a.at(),
                                       .b = packed_b.at(),
                                       .p = with.p.data(),
                                       .bias = with.p0,
                                       .row = with.p_row.data(),
                                       .v_row = with.v_row.data(),
                                       .col = col.data(),
                                       .v_col = v_col.data(),
                                       .b_bytes = packed_b.bytes,
                                       .col_step = kPanel};
  const FormAndSquare products = tiles.product_form_and_square(of_products, tile.data());
  const CenteredTiles<T> of_mean_free = {.k = tiles.padded(k),
                                         .rows = rows,
                                         .cols = cols,
                                         .count = kCount,
                                         .a = packed_a.at(),
                                         .b = packed_b.at(),
                                         .p = with.p.data(),
                                         .p0 = with.p0,
                                         .p_row = with.p_row.data(),
                                         .p_col = with.p_col.data(),
                                         .q0 = q0.data(),
                                         .q_row = q_row.data(),
                                         .q_col = q_col.data(),
                                         .v_row = with.v_row.data(),
                                         .v_col = v_col.data(),
                                         .sums = sums.data(),
                                         .b_bytes = packed_b.bytes,
                                         .q0_step = 1,
                                         .q_row_step = kPanel,
                                         .q_col_step = kPanel,
                                         .v_col_step = kPanel,
                                         .sums_step = 2 * kPanel};
  const FormAndSquare mean_free = tiles.product_form_square_and_sums(of_mean_free, tile.data());

  Expected form, square, free_form, free_square;
  std::vector<Expected> free_sums(kCount * 2 * kPanel);
  for (int64_t j = 0; j < kCount; ++j) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        const Expected q = product(a, r, b[j], c);
        const double p = with.p[r * kPanel + c], v = with.v_row[r] * v_col[j * kPanel + c];
        const double entry = (p + static_cast<double>(with.p0)) * q.value - with.p_row[r] - col[j * kPanel + c];
        const double reach = 4 * q.magnitude + 4;  // of an entry's terms: no |p + p0| is above 4, nor a mean above 2
        form.add(v * entry), form.magnitude += std::fabs(v) * reach;
        square.add(entry * entry), square.magnitude += 2 * std::fabs(entry) * reach;

        const double left = static_cast<double>(with.p0) + with.p_row[r] + with.p_col[c] + p;
        const double right = q0[j] + q_row[j * kPanel + r] + q_col[j * kPanel + c];
        const double crossed = with.p_row[r] * q_col[j * kPanel + c] + q_row[j * kPanel + r] * with.p_col[c];
        const double free = left * q.value + p * right + crossed;
        const double free_reach = 8 * q.magnitude + 20;
        free_form.add(v * free), free_form.magnitude += std::fabs(v) * free_reach;
        free_square.add(free * free), free_square.magnitude += 2 * std::fabs(free) * free_reach;
        for (const int64_t at : {j * 2 * kPanel + r, (j * 2 + 1) * kPanel + c}) {
          free_sums[at].add(free), free_sums[at].magnitude += free_reach;
        }
      }
    }
  }
  compare<T>("product_form_and_square", products.form, form);
  compare<T>("product_form_and_square", products.square, square);
  compare<T>("product_form_square_and_sums", mean_free.form, free_form);
  compare<T>("product_form_square_and_sums", mean_free.square, free_square);
  for (int64_t j = 0; j < kCount; ++j) {
    for (int64_t r = 0; r < rows; ++r)
      compare<T>("sums of rows", sums[j * 2 * kPanel + r], free_sums[j * 2 * kPanel + r]);
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t at = (j * 2 + 1) * kPanel + c;
      compare<T>("sums of columns", sums[at], free_sums[at]);
    }
  }
}

// ---- the processor's state

#if defined(__x86_64__) && defined(__linux__)
AHK_TARGET_BEGIN("amx-tile")
// The tile registers are set up as before when a scope ends, whoever has used them.
void test_scope(const TileKernels<float>& tiles) {
  if (tiles.enter == nullptr) return;
  const auto disturbed = [&](const std::vector<std::byte>& before) {
    _tile_loadconfig(before.data());
    test_products(tiles, Element::kFloat, 5, 7, 70, false);
    std::vector<std::byte> after(64, std::byte{0xFF});
    _tile_storeconfig(after.data());
    ++comparisons;
    if (after != before) ++disagreements, std::printf("tile registers are not set up as before\n");
  };
  std::vector<std::byte> configuration(64);  // none
  disturbed(configuration);
  configuration[0] = std::byte{1};
  configuration[16 + 2 * 3] = std::byte{32}, configuration[48 + 3] = std::byte{9};  // tile 3 alone, of 9 rows
  disturbed(configuration);
  _tile_release();
}
AHK_TARGET_END
#else
void test_scope(const TileKernels<float>&) {}
#endif

// Sizes: single numbers, one short of a vector and one past it, whole panels, and k beyond a block of gemm (512 packed
// floats).
template <class T>
void test_table(const TileKernels<T>& tiles, const std::vector<Element>& elements) {
  for (const int64_t rows : {1, 5, 16, 33, 48}) {
    for (const int64_t cols : {1, 15, 17, 48}) {
      Epilogue<T> epilogue{tiles, rows, cols};
      epilogue.test_hadamard();
      epilogue.test_mean_free();
      epilogue.test_centered_product();
      epilogue.test_sums();
      for (const int64_t k : {0, 1, 7, 64, 129, 400}) test_made_tiles(tiles, elements[0], rows, cols, k);
    }
  }
  for (const Element element : elements) {
    for (const bool transposed : {false, true}) {
      for (const int64_t k : {0, 1, 15, 16, 77, 1100}) {
        for (const int64_t rows : {1, 31, 48}) test_products(tiles, element, rows, 49 - rows, k, transposed);
      }
      for (const int64_t k : {1, 16, 77}) test_means(tiles, element, 33, k, transposed);
      for (const int64_t k : {1, 15, 64, 131}) test_rows(tiles, element, 7, k, transposed);
    }
  }
}

}  // namespace

int main() {
  for (const std::string& capability : capabilities()) std::printf("%s\n", capability.c_str());
  const TileKernels<float>* before = nullptr;
  // The numbers here are exact in bf16, and so are their differences from means.
  for (const auto& [precision, count] : {std::pair{"highest", 1}, {"high", 256}, {"medium", 1}}) {
    const TileKernels<float>& tiles = float_kernels(precision);
    if (&tiles == before) continue;
    before = &tiles;
    roundings = count;
    test_table(tiles, {Element::kFloat, Element::kHalf, Element::kBFloat16});
    test_scope(tiles);
  }
  roundings = 1;
  test_table(double_kernels(), {Element::kDouble, Element::kFloat, Element::kHalf, Element::kBFloat16});
  std::printf("%d disagreements in %d comparisons\n", disagreements, comparisons);
  return disagreements || !comparisons ? 1 : 0;
}
