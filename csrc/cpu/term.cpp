#include "term.h"

#include <cmath>
#include <limits>

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

// Largest magnitude over `blocks` blocks of rows, in parallel.
template <class Rows>
double max_magnitude(int64_t samples, int64_t blocks, int64_t k, const Rows& rows_of) {
  const int64_t panels = ceil_div(samples, kPanel);
  std::vector<double> largest(panels * blocks, 0.0);
  for_each_item(panels * blocks, std::max<int64_t>(1, (1 << 18) / (kPanel * std::max<int64_t>(k, 1))),
                [&](int64_t item, int64_t) {
                  const int64_t first = item / blocks * kPanel;
                  const int64_t count = std::min(kPanel, samples - first);
                  largest[item] = double_kernels().largest(rows_of(first, item % blocks), count, k);
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

Strided Term::forward_rows(int64_t sample, int64_t use) const {
  const Strided all{forward.const_data_ptr(), element, 1, forward.stride(2), forward_scale};
  Strided rows = all.from_row(sample * forward.stride(0) + use * forward.stride(1));
  rows.row_stride = forward.stride(0);
  return rows;
}

Strided Term::backward_rows(int64_t sample, int64_t use, int64_t output) const {
  const Strided all{backward.const_data_ptr(), element, 1, backward.stride(3), backward_scale};
  Strided rows = all.from_row(sample * backward.stride(0) + use * backward.stride(1) + output * backward.stride(2));
  rows.row_stride = backward.stride(0);
  return rows;
}

void check_columns(const std::string& op, const Term& term, const Tensor& v) {
  STD_TORCH_CHECK(v.dim() == 3 && v.size(0) == term.n && v.size(1) == term.o && v.size(2) > 0 && v.is_contiguous() &&
                      v.scalar_type() == torch::headeronly::ScalarType::Double,
                  op, ": v: expected a contiguous float64 tensor of shape [n, o, columns] = [", term.n, ", ", term.o,
                  ", columns]");
}

void check_precision(const std::string& op, const std::string& precision) {
  STD_TORCH_CHECK(precision == "highest" || precision == "high" || precision == "medium", op,
                  ": precision: expected highest, high or medium, got ", precision);
}

namespace {

// The kernel of each term.
std::vector<size_t> kernels_of_terms(const std::string& op, const Factors& factors) {
  std::vector<size_t> kernels;
  if (factors.terms.empty()) {
    for (size_t term = 0; term < factors.forward.size(); ++term) kernels.push_back(term);
    return kernels;
  }
  for (size_t kernel = 0; kernel < factors.terms.size(); ++kernel) {
    STD_TORCH_CHECK(factors.terms[kernel] > 0, op, ": terms: expected at least one for each kernel, got ",
                    factors.terms[kernel]);
    kernels.insert(kernels.end(), factors.terms[kernel], kernel);
  }
  STD_TORCH_CHECK(kernels.size() == factors.forward.size(), op, ": terms: expected a sum of ", factors.forward.size(),
                  ", the factors of forward, got ", kernels.size());
  return kernels;
}

// Where means are taken out for each pair of positions, each pair of outputs has its own offsets at each sample
// (centering.h). Beyond so many bytes of them a layer goes by its Jacobian, which has one mean for each output. Kernels
// over samples alone have few.
constexpr int64_t kOffsetBytes = 64 << 20;
int64_t offset_bytes(const Term& term) {
  return term.o == 1 ? 0 : term.s * term.o * term.s * term.o * term.n * static_cast<int64_t>(sizeof(float));
}

// A scale must itself be a number of the tiles' type: 2^126 is the largest power that fp32 and its inverse have.
double scale_of(double magnitude) { return std::ldexp(1.0, -std::clamp(exponent_of(magnitude), -126, 126)); }

void find_scales(Term& term) {
  // A bias is one more number of the forward factor, sqrt(b).
  term.forward_scale =
      scale_of(std::max(std::sqrt(term.bias), max_magnitude(term.n, term.s, term.d, [&](int64_t sample, int64_t use) {
                          return term.forward_rows(sample, use);
                        })));
  term.backward_scale = scale_of(max_magnitude(term.n, term.s * term.o, term.m, [&](int64_t sample, int64_t block) {
    return term.backward_rows(sample, block / term.o, block % term.o);
  }));
}

// Gives the terms of a kernel the scale of the largest of them.
void share_scales(std::vector<Term>& terms) {
  std::vector<double> smallest(kernel_count(terms), std::numeric_limits<double>::infinity());
  for (const Term& term : terms) {
    smallest[term.kernel] = std::min(smallest[term.kernel], term.forward_scale * term.backward_scale);
  }
  for (Term& term : terms) term.backward_scale = smallest[term.kernel] / term.forward_scale;
}

}  // namespace

std::vector<Term> make_terms(const std::string& op, const Factors& factors, bool scaled, bool per_output) {
  const std::vector<Tensor>&forward = factors.forward, &backward = factors.backward;
  STD_TORCH_CHECK(!forward.empty(), op, ": forward: expected at least one factor, got none");
  STD_TORCH_CHECK(backward.size() == forward.size(), op, ": backward: expected as many factors as forward (",
                  forward.size(), "), got ", backward.size());
  STD_TORCH_CHECK(factors.bias.size() == forward.size(), op,
                  ": bias: expected as many numbers as forward has factors (", forward.size(), "), got ",
                  factors.bias.size());
  STD_TORCH_CHECK(factors.by_jacobian.empty() || factors.by_jacobian.size() == forward.size(), op,
                  ": by_jacobian: expected as many as forward has factors (", forward.size(), ") or none, got ",
                  factors.by_jacobian.size());
  const std::vector<size_t> kernels = kernels_of_terms(op, factors);
  std::vector<Term> terms;
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
    STD_TORCH_CHECK(a.size(0) == forward[0].size(0) && g.size(2) == backward[0].size(2), which,
                    ": expected n and o of the first kernel (", forward[0].size(0), ", ", backward[0].size(2),
                    "), got (", a.size(0), ", ", g.size(2), ")");
    STD_TORCH_CHECK(a.scalar_type() == forward[0].scalar_type(), which, ": expected the dtype of the first kernel");
    Term term{a,
              g,
              element_of(which, a),
              factors.bias[i],
              a.size(0),
              a.size(1),
              a.size(2),
              g.size(2),
              g.size(3),
              kernels[i],
              false,
              per_output || g.size(2) == 1};
    const bool asked = !factors.by_jacobian.empty() && factors.by_jacobian[i];
    term.by_jacobian = term.s > 1 && (asked || (term.means_out && offset_bytes(term) > kOffsetBytes));
    if (scaled) find_scales(term);
    terms.push_back(term);
  }
  share_scales(terms);
  for (size_t i = 0; i < terms.size(); ++i) {
    Term& term = terms[i];
    term.backward_of = i;
    for (size_t earlier = 0; earlier < i && term.backward_of == i; ++earlier) {
      const Term& other = terms[earlier];
      if (!term.by_jacobian && !other.by_jacobian && term.backward_scale == other.backward_scale &&
          same_memory(term.backward, other.backward)) {
        term.backward_of = earlier;
      }
    }
  }
  return terms;
}

std::vector<double> kernel_scales(const std::vector<Term>& terms) {
  std::vector<double> scales(kernel_count(terms));
  for (const Term& term : terms) scales[term.kernel] = term.scale();
  return scales;
}

}  // namespace ahkernels::cpu
