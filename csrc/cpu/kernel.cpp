#include "kernel.h"

#include <cmath>
#include <cstring>

#include "parallel.h"

namespace ahkernels::cpu {
namespace {

using torch::headeronly::ScalarType;

Element element_of(const std::string& what, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Element::kFloat;
    case ScalarType::Double:
      return Element::kDouble;
    case ScalarType::Half:
      return Element::kHalf;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    default:
      STD_TORCH_CHECK(false, what, ": expected float32, float64, float16 or bfloat16 numbers");
  }
}

// The exponent e with 2^e <= largest magnitude < 2^(e+1), or 0 where there is none (zero, infinite or nan).
int exponent_of(double magnitude) { return magnitude > 0 && std::isfinite(magnitude) ? std::ilogb(magnitude) : 0; }

template <class T, class Bits>
double max_magnitude(const Strided& rows, int64_t count, int64_t k) {
  const Bits magnitude_bits = static_cast<Bits>(~Bits{0}) >> 1;  // integers order magnitudes as numbers do
  Bits largest = 0;
  for (int64_t row = 0; row < count; ++row) {
    const Bits* from = static_cast<const Bits*>(rows.data) + row * rows.row_stride;
    if (rows.k_stride == 1) {
      for (int64_t i = 0; i < k; ++i) {
        const Bits bits = from[i] & magnitude_bits;
        largest = bits > largest ? bits : largest;
      }
    } else {
      for (int64_t i = 0; i < k; ++i) {
        const Bits bits = from[i * rows.k_stride] & magnitude_bits;
        largest = bits > largest ? bits : largest;
      }
    }
  }
  T value;
  std::memcpy(&value, &largest, sizeof(value));
  return static_cast<double>(value);
}

double max_magnitude(const Strided& rows, int64_t count, int64_t k) {
  switch (rows.element) {
    case Element::kFloat:
      return max_magnitude<float, uint32_t>(rows, count, k);
    case Element::kDouble:
      return max_magnitude<double, uint64_t>(rows, count, k);
    default:
      return 1.0;  // 16-bit factors become fp32: nothing of theirs overflows or vanishes before K does
  }
}

// Largest magnitude over `blocks` blocks of rows, in parallel.
template <class Rows>
double max_magnitude(int64_t samples, int64_t blocks, int64_t k, const Rows& rows_of) {
  const int64_t panels = ceil_div(samples, kPanel);
  std::vector<double> largest(panels * blocks, 0.0);
  for_each_item(panels * blocks, std::max<int64_t>(1, (1 << 18) / (kPanel * std::max<int64_t>(k, 1))),
                [&](int64_t item, int64_t) {
                  const int64_t first = item / blocks * kPanel;
                  largest[item] = max_magnitude(rows_of(first, item % blocks), std::min(kPanel, samples - first), k);
                });
  double result = 0;
  for (const double value : largest) {
    if (!(value <= result)) result = value;  // a nan stays
  }
  return result;
}

bool same_memory(const Tensor& a, const Tensor& b) {
  if (a.const_data_ptr() != b.const_data_ptr()) return false;
  for (int64_t dim = 0; dim < 4; ++dim) {
    if (a.size(dim) != b.size(dim) || a.stride(dim) != b.stride(dim)) return false;
  }
  return true;
}

}  // namespace

Strided Kernel::forward_rows(int64_t sample, int64_t use) const {
  const Strided all{forward.const_data_ptr(), element, 1, forward.stride(2), forward_scale};
  Strided rows = all.from_row(sample * forward.stride(0) + use * forward.stride(1));
  rows.row_stride = forward.stride(0);
  return rows;
}

Strided Kernel::backward_rows(int64_t sample, int64_t use, int64_t output) const {
  const Strided all{backward.const_data_ptr(), element, 1, backward.stride(3), backward_scale};
  Strided rows = all.from_row(sample * backward.stride(0) + use * backward.stride(1) + output * backward.stride(2));
  rows.row_stride = backward.stride(0);
  return rows;
}

void check_columns(const std::string& op, const Kernel& kernel, const Tensor& v) {
  STD_TORCH_CHECK(v.dim() == 3 && v.size(0) == kernel.n && v.size(1) == kernel.o && v.size(2) > 0 &&
                      v.is_contiguous() && v.scalar_type() == torch::headeronly::ScalarType::Double,
                  op, ": v: expected a contiguous float64 tensor of shape [n, o, columns] = [", kernel.n, ", ",
                  kernel.o, ", columns]");
}

void check_precision(const std::string& op, const std::string& precision) {
  STD_TORCH_CHECK(precision == "highest" || precision == "high" || precision == "medium", op,
                  ": precision: expected highest, high or medium, got ", precision);
}

std::vector<Kernel> make_kernels(const std::string& op, const std::vector<Tensor>& forward,
                                 const std::vector<Tensor>& backward, const std::vector<double>& bias, bool scaled) {
  STD_TORCH_CHECK(!forward.empty(), op, ": forward: expected at least one factor, got none");
  STD_TORCH_CHECK(backward.size() == forward.size(), op, ": backward: expected as many factors as forward (",
                  forward.size(), "), got ", backward.size());
  STD_TORCH_CHECK(bias.size() == forward.size(), op, ": bias: expected as many numbers as forward has factors (",
                  forward.size(), "), got ", bias.size());
  std::vector<Kernel> kernels;
  for (size_t i = 0; i < forward.size(); ++i) {
    const Tensor& a = forward[i];
    const Tensor& g = backward[i];
    const std::string which = op + ": forward[" + std::to_string(i) + "]";
    STD_TORCH_CHECK(a.dim() == 3, which, ": expected shape [n, s, d], got ", a.dim(), " dimensions");
    STD_TORCH_CHECK(g.dim() == 4, op, ": backward[", i, "]: expected shape [n, s, o, m], got ", g.dim(), " dimensions");
    STD_TORCH_CHECK(a.size(0) == g.size(0) && a.size(1) == g.size(1), op, ": backward[", i,
                    "]: expected n and s of forward (", a.size(0), ", ", a.size(1), "), got (", g.size(0), ", ",
                    g.size(1), ")");
    STD_TORCH_CHECK(a.size(0) > 0 && a.size(1) > 0 && g.size(2) > 0, which, ": expected n, s and o of at least 1, got ",
                    a.size(0), ", ", a.size(1), " and ", g.size(2));
    STD_TORCH_CHECK(a.scalar_type() == g.scalar_type(), op, ": backward[", i, "]: expected the dtype of forward");
    Kernel kernel{a, g, element_of(which, a), bias[i], a.size(0), a.size(1), a.size(2), g.size(2), g.size(3)};
    STD_TORCH_CHECK(kernel.n == forward[0].size(0) && kernel.o == backward[0].size(2), which,
                    ": expected n and o of the first kernel (", forward[0].size(0), ", ", backward[0].size(2),
                    "), got (", kernel.n, ", ", kernel.o, ")");
    STD_TORCH_CHECK(a.scalar_type() == forward[0].scalar_type(), which, ": expected the dtype of the first kernel");
    if (scaled) {
      // A bias is one more number of the forward factor, sqrt(b).
      const double largest_forward = std::max(
          std::sqrt(kernel.bias), max_magnitude(kernel.n, kernel.s, kernel.d, [&](int64_t sample, int64_t use) {
            return kernel.forward_rows(sample, use);
          }));
      const double largest_backward =
          max_magnitude(kernel.n, kernel.s * kernel.o, kernel.m, [&](int64_t sample, int64_t block) {
            return kernel.backward_rows(sample, block / kernel.o, block % kernel.o);
          });
      // A scale must itself be a number of the tiles' type: 2^126 is the largest power that fp32 and its inverse have.
      kernel.forward_scale = std::ldexp(1.0, -std::clamp(exponent_of(largest_forward), -126, 126));
      kernel.backward_scale = std::ldexp(1.0, -std::clamp(exponent_of(largest_backward), -126, 126));
    }
    kernel.backward_of = i;
    for (size_t earlier = 0; earlier < i && kernel.backward_of == i; ++earlier) {
      if (same_memory(g, kernels[earlier].backward)) kernel.backward_of = earlier;
    }
    kernels.push_back(kernel);
  }
  return kernels;
}

}  // namespace ahkernels::cpu
