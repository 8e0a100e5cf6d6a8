// The CPU ops against plain loops in double, on problems that a fuzzer's bytes describe: built without torch, for
// libFuzzer or with walks_driver.cpp (see run_walks.sh). An op that throws, or is off by more than rounding, aborts.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cpu/isa/kernel_table.h"
#include "cpu/ops/ops.h"
#include "tiling.h"

using namespace ahkernels;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

// ---- a problem from bytes

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), end_(data + size) {}
  int64_t next() { return data_ < end_ ? *data_++ : 0; }
  int64_t below(int64_t count) { return next() % count; }
  bool flag() { return next() % 2 == 1; }
  template <class T>
  T one_of(std::initializer_list<T> choices) {
    return choices.begin()[below(static_cast<int64_t>(choices.size()))];
  }

 private:
  const uint8_t *data_, *end_;
};

// A tensor, and its numbers in double in the order of its dimensions.
struct Factor {
  Tensor tensor;
  std::vector<double> numbers;
};

double bfloat16_value(uint16_t bits) { return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16); }

std::vector<double> numbers_in(const Tensor& tensor) {
  std::vector<double> numbers(tensor.numel());
  const void* data = tensor.const_data_ptr();
  tensor.for_each([&](int64_t to, int64_t from) {
    switch (tensor.scalar_type()) {
      case ScalarType::Double:
        numbers[to] = static_cast<const double*>(data)[from];
        break;
      case ScalarType::Float:
        numbers[to] = static_cast<double>(static_cast<const float*>(data)[from]);
        break;
      case ScalarType::Half:
        numbers[to] = static_cast<double>(static_cast<const cpu::Half*>(data)[from]);
        break;
      default:
        numbers[to] = bfloat16_value(static_cast<const uint16_t*>(data)[from]);
    }
  });
  return numbers;
}

// Strides for these sizes: the dimensions in any order, with gaps, and some of them expanded or overlapping.
std::vector<int64_t> strides_for(Bytes& bytes, const std::vector<int64_t>& sizes) {
  std::vector<size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[bytes.below(static_cast<int64_t>(i))]);
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = bytes.one_of<int64_t>({1, 1, 2, 3});
  for (const size_t dim : order) {
    strides[dim] = stride;
    stride *= std::max<int64_t>(sizes[dim], 1);
  }
  for (int64_t& one : strides) one = bytes.one_of<int64_t>({one, one, one, one, one, one, 0, 1});
  return strides;
}

// Multiples of 1/64 up to 2, which all types hold exactly, times a power of two; a few zeros where they are asked for.
Factor factor_of(Bytes& bytes, const std::vector<int64_t>& sizes, ScalarType type) {
  const Tensor tensor(sizes, strides_for(bytes, sizes), type);
  std::mt19937 random(static_cast<uint32_t>(bytes.next()));
  const int64_t zeros = bytes.one_of<int64_t>({0, 0, 0, 1, 9, 10}), most = type == ScalarType::Half ? 4 : 60;
  // Beside zeros there are no extremes: where a huge number meets nothing but zeros, it hides all others of its kernel.
  const int64_t exponent = bytes.one_of<int64_t>({0, 0, 0, 1, -2, most, -most});
  const double scale = std::ldexp(1.0, zeros % 10 ? 0 : static_cast<int>(exponent));
  for (int64_t i = 0; i < tensor.reach(); ++i) {
    const double magnitude = (2 * static_cast<double>(random() % 64) + 1) / 64;
    const double number = static_cast<int64_t>(random() % 10) < zeros ? 0 : (random() % 2 ? scale : -scale) * magnitude;
    void* data = tensor.mutable_data_ptr();
    if (type == ScalarType::Double) static_cast<double*>(data)[i] = number;
    if (type == ScalarType::Float) static_cast<float*>(data)[i] = static_cast<float>(number);
    if (type == ScalarType::Half) static_cast<cpu::Half*>(data)[i] = static_cast<cpu::Half>(number);
    if (type == ScalarType::BFloat16) {
      static_cast<uint16_t*>(data)[i] =
          static_cast<uint16_t>(__builtin_bit_cast(uint32_t, static_cast<float>(number)) >> 16);
    }
  }
  return {tensor, numbers_in(tensor)};
}

// A tensor of doubles with any strides.
Tensor doubles_of(Bytes& bytes, const std::vector<int64_t>& sizes, const std::vector<double>& numbers) {
  const Tensor tensor(sizes, Tensor::contiguous_strides(sizes), ScalarType::Double);
  std::copy(numbers.begin(), numbers.end(), static_cast<double*>(tensor.mutable_data_ptr()));
  if (!bytes.flag()) return tensor;
  std::vector<int64_t> strides = Tensor::contiguous_strides(sizes);
  for (int64_t& stride : strides) stride *= 2;
  const Tensor spread(sizes, strides, ScalarType::Double);
  spread.for_each(
      [&](int64_t from, int64_t to) { static_cast<double*>(spread.mutable_data_ptr())[to] = numbers[from]; });
  return spread;
}

struct Layer {
  int64_t s, d, m;
  Factor forward, backward;  // [n, s, d] and [n, s, o, m]
  double bias;
  bool by_jacobian;
};

// The samples of a problem. Rows of K are (sample, output).
struct Samples {
  int64_t n, o;
  std::vector<Layer> layers;
};

struct Problem {
  Samples samples;
  ScalarType type;
  std::vector<int64_t> layers_of_kernels;
  std::string precision;

  KernelBatch batch() const { return batch_of(samples, layers_of_kernels); }

  static KernelBatch batch_of(const Samples& samples, const std::vector<int64_t>& layers_of_kernels) {
    KernelBatch batch;
    for (const Layer& layer : samples.layers) {
      batch.forward.push_back(layer.forward.tensor);
      batch.backward.push_back(layer.backward.tensor);
      batch.bias.push_back(layer.bias);
      batch.by_jacobian.push_back(layer.by_jacobian);
    }
    batch.layers = layers_of_kernels;
    return batch;
  }
};

constexpr int64_t kMostRows = 200;    // n s o, so that plain loops take milliseconds
constexpr int64_t kMostNumbers = 50;  // d and m

// A backward factor of an earlier layer with the same sizes: as it is, or the same memory with another stride.
Factor shared_factor(Bytes& bytes, const Factor& earlier) {
  std::vector<int64_t> strides = earlier.tensor.strides();
  if (bytes.flag()) strides[bytes.below(4)] = 0;
  const Tensor view = earlier.tensor.with_strides(strides);
  return {view, numbers_in(view)};
}

Problem problem_of(Bytes& bytes) {
  const ScalarType type =
      bytes.one_of({ScalarType::Float, ScalarType::Double, ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  const int64_t n = bytes.one_of<int64_t>({1, 2, 7, 20, 47, 48, 49, 60, 95, 97, 130, 200});
  const int64_t o = 1 + bytes.below(std::max<int64_t>(1, std::min<int64_t>(20, kMostRows / n)));
  Problem problem{{n, o, {}}, type, {}, bytes.one_of<std::string>({"highest", "high", "medium"})};
  for (int64_t kernels = bytes.one_of<int64_t>({1, 1, 2, 3}); kernels > 0; --kernels) {
    problem.layers_of_kernels.push_back(bytes.one_of<int64_t>({1, 1, 2, 3}));
    for (int64_t left = problem.layers_of_kernels.back(); left > 0; --left) {
      Layer layer;
      layer.s = 1 + (bytes.flag() ? bytes.below(std::max<int64_t>(1, kMostRows / (n * o))) : 0);
      layer.d = bytes.flag() ? bytes.below(8) : bytes.below(kMostNumbers);
      layer.m = bytes.flag() ? bytes.below(8) : bytes.below(kMostNumbers);
      layer.bias = bytes.one_of({0.0, 1.0, 0.25});
      layer.by_jacobian = bytes.flag();
      layer.forward = factor_of(bytes, {n, layer.s, layer.d}, type);
      const std::vector<Layer>& earlier = problem.samples.layers;
      if (!earlier.empty() && bytes.flag() && earlier.back().s == layer.s) {
        layer.m = earlier.back().m;
        layer.backward = shared_factor(bytes, earlier.back().backward);
      } else {
        layer.backward = factor_of(bytes, {n, layer.s, o, layer.m}, type);
      }
      problem.samples.layers.push_back(layer);
    }
  }
  return problem;
}

// ---- plain loops

// A kernel, and in its place the sums of the magnitudes of all products, which rounding is measured by.
struct Dense {
  int64_t rows, cols;
  std::vector<double> k, magnitude;

  double& at(int64_t row, int64_t col) { return k[row * cols + col]; }
  double at(int64_t row, int64_t col) const { return k[row * cols + col]; }
  double reach(int64_t row, int64_t col) const { return magnitude[row * cols + col]; }
};

// Adds the kernel of a layer between two sets of samples.
void add_layer(const Layer& a, const Layer& b, int64_t o, int64_t other_o, Dense& to) {
  const int64_t n = to.rows / o, other_n = to.cols / other_o, d = a.d, m = a.m;
  for (int64_t xs = 0; xs < n * a.s; ++xs) {
    for (int64_t yt = 0; yt < other_n * b.s; ++yt) {
      double p = a.bias, p_reach = a.bias;
      for (int64_t k = 0; k < d; ++k) {
        const double product = a.forward.numbers[xs * d + k] * b.forward.numbers[yt * d + k];
        p += product, p_reach += std::fabs(product);
      }
      for (int64_t i = 0; i < o; ++i) {
        for (int64_t j = 0; j < other_o; ++j) {
          double q = 0, q_reach = 0;
          for (int64_t k = 0; k < m; ++k) {
            const double product =
                a.backward.numbers[(xs * o + i) * m + k] * b.backward.numbers[(yt * other_o + j) * m + k];
            q += product, q_reach += std::fabs(product);
          }
          const int64_t at = (xs / a.s * o + i) * to.cols + yt / b.s * other_o + j;
          to.k[at] += p * q;
          to.magnitude[at] += p_reach * q_reach;
        }
      }
    }
  }
}

Dense dense_of(const Samples& rows, const Samples& cols, size_t begin, size_t end) {
  Dense found{rows.n * rows.o, cols.n * cols.o, {}, {}};
  found.k.assign(found.rows * found.cols, 0.0);
  found.magnitude.assign(found.rows * found.cols, 0.0);
  for (size_t layer = begin; layer < end; ++layer) {
    add_layer(rows.layers[layer], cols.layers[layer], rows.o, cols.o, found);
  }
  return found;
}

std::vector<Dense> kernels_of(const Problem& problem) {
  std::vector<Dense> found;
  size_t begin = 0;
  for (const int64_t count : problem.layers_of_kernels) {
    found.push_back(dense_of(problem.samples, problem.samples, begin, begin + static_cast<size_t>(count)));
    begin += static_cast<size_t>(count);
  }
  return found;
}

enum class Centering { kNone, kGlobal, kPerOutput };

Dense centered(Dense k, Centering centering, int64_t o) {
  if (centering == Centering::kNone) return k;
  const int64_t groups = centering == Centering::kGlobal ? 1 : o;
  for (int64_t pass = 0; pass < 2; ++pass) {  // rows, then columns
    for (int64_t line = 0; line < k.rows; ++line) {
      for (int64_t group = 0; group < groups; ++group) {
        double sum = 0;
        for (int64_t at = group; at < k.cols; at += groups) sum += pass ? k.at(at, line) : k.at(line, at);
        const double mean = sum / static_cast<double>(k.cols / groups);
        for (int64_t at = group; at < k.cols; at += groups) (pass ? k.at(at, line) : k.at(line, at)) -= mean;
      }
    }
  }
  return k;
}

// ---- comparisons

// With any centering, what an op may be off by is a part of the sums of all magnitudes.
[[noreturn]] void fail(const std::string& what, double got, double expected, double bound) {
  std::fprintf(stderr, "%s: expected %.17g, got %.17g, which is off by more than %.3g\n", what.c_str(), expected, got,
               bound);
  std::abort();
}

void compare(const std::string& what, double got, double expected, double bound) {
  if (!(std::fabs(got - expected) <= bound)) fail(what, got, expected, bound);  // also for nan
}

// What rounding may be, as a part of the magnitudes that are summed.
double rounding_of(const Problem& problem, bool in_double) {
  if (in_double || problem.type == ScalarType::Double) return 4096 * std::numeric_limits<double>::epsilon();
  if (problem.precision == "highest") return 128 * static_cast<double>(std::numeric_limits<float>::epsilon());
  return problem.precision == "high" ? 0x1p-12 : 0x1p-5;
}

// Beside the largest sum of magnitudes, fp32 does not hold what is below this.
constexpr double kVanishing = 1e-30;

void compare_entries(const std::string& what, const Tensor& got, const Dense& expected, double rounding) {
  const double largest = *std::max_element(expected.magnitude.begin(), expected.magnitude.end());
  const bool single = got.scalar_type() == ScalarType::Float;
  const std::vector<double> numbers = numbers_in(got);
  for (int64_t i = 0; i < expected.rows * expected.cols; ++i) {
    if (single && expected.magnitude[i] > std::numeric_limits<float>::max()) continue;
    const double least = single ? static_cast<double>(std::numeric_limits<float>::min()) : 0;
    compare(what, numbers[i], expected.k[i], rounding * expected.magnitude[i] + kVanishing * largest + least);
  }
}

double inner_product(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

// ---- the ops

Tensor vectors_of(Bytes& bytes, int64_t n, int64_t o, int64_t columns, std::vector<double>& numbers) {
  std::mt19937 random(static_cast<uint32_t>(bytes.next()));
  numbers.resize(n * o * columns);
  for (double& number : numbers) number = (static_cast<double>(random() % 257) - 128) / 64;
  return doubles_of(bytes, {n, o, columns}, numbers);
}

struct Product {
  std::vector<double> value, magnitude;
};

// K v and the magnitudes of its terms.
Product product_of(const Dense& k, const std::vector<double>& v, int64_t columns) {
  Product found{std::vector<double>(k.rows * columns), std::vector<double>(k.rows * columns)};
  for (int64_t row = 0; row < k.rows; ++row) {
    for (int64_t col = 0; col < k.cols; ++col) {
      for (int64_t c = 0; c < columns; ++c) {
        found.value[row * columns + c] += k.at(row, col) * v[col * columns + c];
        found.magnitude[row * columns + c] += k.reach(row, col) * std::fabs(v[col * columns + c]);
      }
    }
  }
  return found;
}

void compare_products(const std::string& what, const Tensor& got, const Product& expected, double rounding) {
  const double largest = *std::max_element(expected.magnitude.begin(), expected.magnitude.end());
  const std::vector<double> numbers = numbers_in(got);
  for (size_t i = 0; i < numbers.size(); ++i) {
    compare(what, numbers[i], expected.value[i], rounding * expected.magnitude[i] + kVanishing * largest);
  }
}

// The first kernel of a problem alone.
Problem first_kernel(Problem problem) {
  problem.layers_of_kernels.resize(1);
  problem.samples.layers.resize(problem.layers_of_kernels[0]);
  return problem;
}

void check_gram(Bytes& bytes, const Problem& problem) {
  const Dense k = kernels_of(problem)[0];
  if (bytes.flag()) {
    compare_entries("tangent_gram", cpu::tangent_gram(problem.batch(), problem.precision), k,
                    rounding_of(problem, false));
    return;
  }
  const std::vector<int64_t> sizes{k.rows, k.cols};
  const Tensor out(sizes, Tensor::contiguous_strides(sizes), ScalarType::Double);
  cpu::tangent_gram_out(problem.batch(), problem.precision, out);
  compare_entries("tangent_gram_out", out, k, rounding_of(problem, true));
}

void check_thin(Bytes& bytes, const Problem& problem) {
  const int64_t n = problem.samples.n, o = problem.samples.o;
  const int64_t columns = bytes.one_of<int64_t>({1, 2, 3, 17});
  const Dense k = kernels_of(problem)[0];
  std::vector<double> v;
  const Tensor vectors = vectors_of(bytes, n, o, columns, v);
  const Product product = product_of(k, v, columns);
  const double exact = rounding_of(problem, true);
  Problem in_float = problem;
  in_float.precision = "highest";
  switch (bytes.below(5)) {
    case 0:
      compare_products("tangent_product", cpu::tangent_product(problem.batch(), vectors, false), product, exact);
      break;
    case 1:
      compare_products("tangent_product in fp32", cpu::tangent_product(problem.batch(), vectors, true), product,
                       rounding_of(in_float, false));
      break;
    case 2: {
      Product forms{std::vector<double>(columns), std::vector<double>(columns)};
      for (size_t i = 0; i < v.size(); ++i) {
        forms.value[i % columns] += v[i] * product.value[i];
        forms.magnitude[i % columns] += std::fabs(v[i]) * product.magnitude[i];
      }
      compare_products("tangent_quadratic", cpu::tangent_quadratic(problem.batch(), vectors), forms, exact);
      break;
    }
    case 3:
      compare_products("tangent_row_sums", cpu::tangent_row_sums(problem.batch()),
                       product_of(k, std::vector<double>(n * o, 1.0), 1), rounding_of(in_float, o == 1));
      break;
    default: {
      Product diagonal;
      for (int64_t row = 0; row < k.rows; ++row) {
        diagonal.value.push_back(k.at(row, row));
        diagonal.magnitude.push_back(k.reach(row, row));
      }
      compare_products("tangent_diagonal", cpu::tangent_diagonal(problem.batch()), diagonal, exact);
    }
  }
}

void check_cross_product(Bytes& bytes, const Problem& problem) {
  Samples rows{bytes.one_of<int64_t>({1, 5, 49}), 1 + bytes.below(3), {}};
  for (const Layer& layer : problem.samples.layers) {
    Layer other = layer;
    other.s = 1 + bytes.below(3);
    other.forward = factor_of(bytes, {rows.n, other.s, layer.d}, problem.type);
    other.backward = factor_of(bytes, {rows.n, other.s, rows.o, layer.m}, problem.type);
    rows.layers.push_back(other);
  }
  std::vector<double> v;
  const Tensor vectors = vectors_of(bytes, problem.samples.n, problem.samples.o, 2, v);
  const Tensor got =
      cpu::tangent_cross_product(Problem::batch_of(rows, problem.layers_of_kernels), problem.batch(), vectors);
  const Dense k = dense_of(rows, problem.samples, 0, rows.layers.size());
  compare_products("tangent_cross_product", got, product_of(k, v, 2), rounding_of(problem, true));
}

// got [kernels, kernels] from `offset` on, against the inner products of centered kernels.
void compare_inner_products(const std::string& what, const std::vector<double>& got, size_t offset,
                            const std::vector<Dense>& kernels, Centering centering, int64_t o, double rounding) {
  std::vector<Dense> all;
  for (const Dense& k : kernels) all.push_back(centered(k, centering, o));
  for (size_t a = 0; a < all.size(); ++a) {
    for (size_t b = 0; b < all.size(); ++b) {
      compare(what, got[offset + a * all.size() + b], inner_product(all[a].k, all[b].k),
              rounding * std::sqrt(inner_product(all[a].magnitude, all[a].magnitude)) *
                  std::sqrt(inner_product(all[b].magnitude, all[b].magnitude)));
    }
  }
}

void check_inner_products(Bytes& bytes, const Problem& problem) {
  const int64_t n = problem.samples.n, o = problem.samples.o;
  const std::vector<Dense> kernels = kernels_of(problem);
  const double rounding = rounding_of(problem, false);
  if (bytes.flag()) {
    const std::vector<double> got = numbers_in(cpu::per_output_inner_products(problem.batch(), problem.precision));
    const size_t of_one = kernels.size() * kernels.size();
    compare_inner_products("per_output_inner_products [0]", got, 0, kernels, Centering::kGlobal, o, rounding);
    compare_inner_products("per_output_inner_products [1]", got, of_one, kernels, Centering::kPerOutput, o, rounding);
    return;
  }
  const bool as_they_are = bytes.flag();
  std::vector<Tensor> means;
  for (const Dense& k : kernels) {
    std::vector<double> of_rows(k.rows, 0.0);
    for (int64_t row = 0; row < k.rows && !as_they_are; ++row) {
      for (int64_t col = 0; col < k.cols; ++col) of_rows[row] += k.at(row, col) / static_cast<double>(k.cols);
    }
    means.push_back(doubles_of(bytes, {n, o}, of_rows));
  }
  const std::vector<double> got = numbers_in(cpu::centered_inner_products(problem.batch(), means, problem.precision));
  compare_inner_products("centered_inner_products", got, 0, kernels,
                         as_they_are ? Centering::kNone : Centering::kGlobal, o, rounding);
}

void check_moments(Bytes& bytes, const Problem& problem) {
  const int64_t n = problem.samples.n, o = problem.samples.o;
  if (o == 1) return;
  const bool per_output = bytes.flag();
  std::vector<double> v;
  const Tensor labels = vectors_of(bytes, n, o, 1, v);
  const std::vector<double> got =
      numbers_in(cpu::tangent_moments(problem.batch(), labels, problem.precision, per_output));
  const std::vector<Dense> kernels = kernels_of(problem);
  const double rounding = rounding_of(problem, false);
  size_t at = 0;
  for (const Dense& k : kernels) {
    for (const Centering centering : {Centering::kGlobal, Centering::kPerOutput}) {
      if (centering == Centering::kPerOutput && !per_output) continue;
      const Dense c = centered(k, centering, o);
      const double reach = std::sqrt(inner_product(k.magnitude, k.magnitude));
      double trace = 0, sum = 0, trace_reach = 0;
      for (int64_t row = 0; row < k.rows; ++row) {
        trace += k.at(row, row);
        trace_reach += k.reach(row, row);
        for (int64_t col = 0; col < k.cols; ++col) {
          if (centering == Centering::kGlobal || row % o == col % o) sum += k.at(row, col);
        }
      }
      const double rows = static_cast<double>(k.rows);
      const std::string name = centering == Centering::kGlobal ? "tangent_moments" : "tangent_moments per output";
      compare(name + ": inner_product", got[at++], inner_product(v, product_of(c, v, 1).value),
              rounding * reach * inner_product(v, v));
      compare(name + ": squared_norm", got[at++], inner_product(c.k, c.k), rounding * reach * reach);
      compare(name + ": trace", got[at++], trace, rounding * std::max(trace_reach, reach));
      compare(name + ": sum", got[at++], sum, rounding * rows * reach);
    }
  }
}

// The factors of the deviations from means, as ahkernels/ops/deviations.py has them.
Layer deviations_of(const Layer& layer, int64_t n, int64_t o, const std::vector<double>& forward_mean,
                    const std::vector<double>& backward_mean) {
  const int64_t s = layer.s, d = layer.d, m = layer.m;
  Layer found = layer;
  found.s = 2 * s, found.d = d + 1, found.bias = 0;
  found.forward.numbers.assign(n * 2 * s * (d + 1), 0.0);
  found.backward.numbers.assign(n * 2 * s * o * m, 0.0);
  for (int64_t x = 0; x < n; ++x) {
    for (int64_t p = 0; p < s; ++p) {
      double* first = found.forward.numbers.data() + (x * 2 * s + p) * (d + 1);
      double* second = first + s * (d + 1);
      for (int64_t k = 0; k < d; ++k) {
        first[k] = layer.forward.numbers[(x * s + p) * d + k] - forward_mean[p * d + k];
        second[k] = forward_mean[p * d + k];
      }
      second[d] = std::sqrt(layer.bias);
      for (int64_t c = 0; c < o * m; ++c) {
        const double g = layer.backward.numbers[(x * s + p) * o * m + c];
        found.backward.numbers[(x * 2 * s + p) * o * m + c] = g;
        found.backward.numbers[(x * 2 * s + s + p) * o * m + c] = g - backward_mean[p * o * m + c];
      }
    }
  }
  return found;
}

void check_pairs(Bytes& bytes, const Problem& problem) {
  const int64_t n = problem.samples.n, o = problem.samples.o;
  const bool of_factors = bytes.flag();
  const int64_t second_begin = bytes.below((n - 1) / kPanel + 1) * kPanel;
  const int64_t first_end = second_begin ? 1 + bytes.below(second_begin) : n;
  Problem measured = problem;  // what the definition is about
  std::vector<Tensor> means, forward_means, backward_means;
  for (Layer& layer : measured.samples.layers) {
    if (!of_factors) break;
    // The mean of the first two samples, which 24 bits hold.
    std::vector<double> forward(layer.s * layer.d), backward(layer.s * o * layer.m);
    const int64_t second = n > 1 ? 1 : 0;
    const auto mean_of = [&](const std::vector<double>& numbers, std::vector<double>& to) {
      const size_t width = to.size();
      for (size_t k = 0; k < width; ++k) to[k] = (numbers[k] + numbers[second * width + k]) / 2;
    };
    mean_of(layer.forward.numbers, forward);
    mean_of(layer.backward.numbers, backward);
    forward_means.push_back(doubles_of(bytes, {layer.s, layer.d}, forward));
    backward_means.push_back(doubles_of(bytes, {layer.s, o, layer.m}, backward));
    layer = deviations_of(layer, n, o, forward, backward);
  }
  const std::vector<Dense> kernels = kernels_of(measured);
  const int64_t width = of_factors ? o : 1;
  std::vector<std::vector<double>> given;
  for (const Dense& k : kernels) {
    std::vector<double>& c = given.emplace_back(n * o * width, 0.0);
    for (int64_t row = 0; row < k.rows; ++row) {
      for (int64_t col = 0; col < k.cols; ++col) {
        c[row * width + (of_factors ? col % o : 0)] += k.at(row, col) / static_cast<double>(of_factors ? n : n * o);
      }
    }
    means.push_back(doubles_of(bytes, {n, o, width}, c));
  }
  const std::vector<double> got = numbers_in(cpu::pair_inner_products(
      problem.batch(), means, problem.precision, first_end, second_begin, forward_means, backward_means));
  const auto entry = [&](size_t which, int64_t row, int64_t col) {
    const std::vector<double>& c = given[which];
    return kernels[which].at(row, col) - c[row * width + (of_factors ? col % o : 0)] -
           c[col * width + (of_factors ? row % o : 0)];
  };
  const double weight = second_begin ? 2 : 1, rounding = 16 * rounding_of(problem, false);
  for (size_t a = 0; a < kernels.size(); ++a) {
    for (size_t b = 0; b < kernels.size(); ++b) {
      double sum = 0;
      for (int64_t row = 0; row < first_end * o; ++row) {
        for (int64_t col = second_begin * o; col < n * o; ++col)
          sum += weight * entry(a, row, col) * entry(b, row, col);
      }
      compare("pair_inner_products", got[a * kernels.size() + b], sum,
              rounding * std::sqrt(inner_product(kernels[a].magnitude, kernels[a].magnitude)) *
                  std::sqrt(inner_product(kernels[b].magnitude, kernels[b].magnitude)));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const int64_t op = bytes.below(6);
  memory_divisor = bytes.one_of<int64_t>({1, 16, 64, 256, 1024, 4096});
  torch::stable::thread_count = static_cast<uint32_t>(bytes.one_of<int64_t>({1, 1, 2, 3}));
  const Problem problem = problem_of(bytes);
  switch (op) {
    case 0:
      check_gram(bytes, first_kernel(problem));
      break;
    case 1:
      check_thin(bytes, first_kernel(problem));
      break;
    case 2:
      check_cross_product(bytes, first_kernel(problem));
      break;
    case 3:
      check_inner_products(bytes, problem);
      break;
    case 4:
      check_moments(bytes, problem);
      break;
    default:
      check_pairs(bytes, problem);
  }
  return 0;
}
