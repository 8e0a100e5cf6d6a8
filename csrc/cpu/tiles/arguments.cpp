#include "arguments.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>

namespace ahkernels::cpu {
namespace {

using torch::headeronly::ScalarType;

std::string list_of(const std::vector<int64_t>& sizes) {
  std::string list;
  for (const int64_t size : sizes) list += (list.empty() ? "" : ", ") + (size < 0 ? "1 or more" : std::to_string(size));
  return "[" + list + "]";
}

std::string shape_of(const Tensor& tensor) {
  std::vector<int64_t> sizes;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) sizes.push_back(tensor.size(dim));
  return list_of(sizes);
}

// The types that factors have, and the names of these and of their neighbours.
std::optional<Element> find_element(const Tensor& tensor) {
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
      return std::nullopt;
  }
}

std::string dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return torch::headeronly::toString(tensor.scalar_type());
  }
}

void check_count(const std::string& op, const std::string& argument, size_t count, size_t expected,
                 const std::string& prefix) {
  AHK_REQUIRE(count == expected, op, ": ", prefix, argument, ": expected as many as ", prefix, "forward has factors (",
              expected, "), got ", count);
}

void check_layers(const std::string& op, const std::vector<int64_t>& layers, size_t factors,
                  const std::string& prefix) {
  int64_t left = static_cast<int64_t>(factors);
  for (const int64_t count : layers) {
    AHK_REQUIRE(count > 0, op, ": ", prefix, "layers: expected at least one for each kernel, got ", count);
    AHK_REQUIRE(count <= left, op, ": ", prefix, "layers: expected a sum of ", factors, ", the factors of ", prefix,
                "forward, got more: ", list_of(layers));
    left -= count;
  }
  AHK_REQUIRE(left == 0, op, ": ", prefix, "layers: expected a sum of ", factors, ", the factors of ", prefix,
              "forward, got less: ", list_of(layers));
}

// Within these no product of sizes leaves 64 bits. Factors that have memory for all of their numbers are far below;
// expanded and empty ones need not be.
constexpr double kMostNumbers = 0x1p48;   // of a factor, with one more along d and m
constexpr double kMostProducts = 0x1p57;  // n s o (d + 1) (m + 1)
constexpr double kMostEntries = 0x1p50;   // of all kernels

void check_layer(const std::string& op, const KernelBatch& batch, size_t i, const std::string& prefix) {
  const Tensor &a = batch.forward[i], &g = batch.backward[i], &first = batch.forward[0];
  // Called for errors alone.
  const auto named = [&](const char* list) { return prefix + list + "[" + std::to_string(i) + "]"; };
  AHK_REQUIRE(a.dim() == 3, op, ": ", named("forward"), ": expected shape [n, s, d], got ", shape_of(a));
  AHK_REQUIRE(g.dim() == 4, op, ": ", named("backward"), ": expected shape [n, s, o, m], got ", shape_of(g));
  AHK_REQUIRE(a.size(0) == g.size(0) && a.size(1) == g.size(1), op, ": ", named("backward"), ": expected n and s of ",
              named("forward"), ", [", a.size(0), ", ", a.size(1), "], got [", g.size(0), ", ", g.size(1), "]");
  AHK_REQUIRE(g.size(0) > 0 && g.size(1) > 0 && g.size(2) > 0, op, ": ", named("backward"),
              ": expected n, s and o of at least 1, got shape ", shape_of(g));
  AHK_REQUIRE(find_element(a), op, ": ", named("forward"),
              ": expected float32, float64, float16 or bfloat16 numbers, got ", dtype_of(a),
              "; convert both factors of the layer");
  AHK_REQUIRE(g.scalar_type() == a.scalar_type(), op, ": ", named("backward"), ": expected the dtype of ",
              named("forward"), ", ", dtype_of(a), ", got ", dtype_of(g), "; convert one of them");
  AHK_REQUIRE(a.scalar_type() == first.scalar_type(), op, ": ", named("forward"), ": expected the dtype of ", prefix,
              "forward[0], ", dtype_of(first), ", got ", dtype_of(a), "; convert the factors of all layers to one");
  AHK_REQUIRE(g.size(0) == batch.backward[0].size(0) && g.size(2) == batch.backward[0].size(2), op, ": ",
              named("backward"), ": expected n and o of ", prefix, "backward[0], [", batch.backward[0].size(0), ", ",
              batch.backward[0].size(2), "], got [", g.size(0), ", ", g.size(2), "]");
  AHK_REQUIRE(batch.bias[i] >= 0 && std::isfinite(batch.bias[i]), op, ": ", named("bias"),
              ": expected a finite number of at least 0, which is 1 for a layer with a bias, got ", batch.bias[i]);
  const double rows = static_cast<double>(g.size(0)) * static_cast<double>(g.size(1)) * static_cast<double>(g.size(2));
  const double d = static_cast<double>(a.size(2)) + 1, m = static_cast<double>(g.size(3)) + 1;
  AHK_REQUIRE(rows * std::max(d, m) <= kMostNumbers && rows * d * m <= kMostProducts, op, ": ", named("backward"),
              ": expected n*s*o*(d + 1) and n*s*o*(m + 1) of at most 2^48 and n*s*o*(d + 1)*(m + 1) of at most "
              "2^57, got forward of shape ",
              shape_of(a), " and backward of shape ", shape_of(g));
}

}  // namespace

Element element_of(const Tensor& factor) { return *find_element(factor); }

void check_batch(const std::string& op, const KernelBatch& batch, const std::string& prefix) {
  const size_t count = batch.forward.size();
  AHK_REQUIRE(count > 0, op, ": ", prefix, "forward: expected at least one factor, got none");
  check_count(op, "backward", batch.backward.size(), count, prefix);
  check_count(op, "bias", batch.bias.size(), count, prefix);
  check_count(op, "by_jacobian", batch.by_jacobian.size(), count, prefix);
  check_layers(op, batch.layers, count, prefix);
  for (size_t i = 0; i < count; ++i) check_layer(op, batch, i, prefix);
}

void require_one_kernel(const std::string& op, const KernelBatch& batch, const std::string& prefix) {
  AHK_REQUIRE(batch.layers.size() == 1, op, ": ", prefix, "layers: expected one kernel, got ", batch.layers.size());
}

void check_entries(const std::string& op, const KernelBatch& batch) {
  const Tensor& g = batch.backward[0];
  const double rows = static_cast<double>(g.size(0)) * static_cast<double>(g.size(2));
  AHK_REQUIRE(rows * rows * static_cast<double>(batch.layers.size()) <= kMostEntries, op,
              ": backward: expected kernels of at most 2^50 entries together, got ", batch.layers.size(),
              " of n = ", g.size(0), " samples and o = ", g.size(2), " outputs");
}

void check_precision(const std::string& op, const std::string& precision) {
  AHK_REQUIRE(precision == "highest" || precision == "high" || precision == "medium", op,
              ": precision: expected highest, high or medium, got ", precision);
}

Tensor numbers_of(const std::string& what, const Tensor& tensor, const std::string& shape,
                  const std::vector<int64_t>& sizes) {
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size()) && tensor.scalar_type() == ScalarType::Double;
  for (size_t i = 0; fits && i < sizes.size(); ++i) {
    const int64_t size = tensor.size(static_cast<int64_t>(i));
    fits = sizes[i] < 0 ? size > 0 : size == sizes[i];
  }
  AHK_REQUIRE(fits, what, ": expected float64 numbers of shape ", shape, " = ", list_of(sizes), ", got ",
              dtype_of(tensor), " of shape ", shape_of(tensor));
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

void check_out(const std::string& what, const Tensor& out, int64_t size, bool float64_factors) {
  AHK_REQUIRE(out.dim() == 2 && out.size(0) == size && out.size(1) == size && out.is_contiguous(), what,
              ": expected a contiguous tensor of shape [n*o, n*o] = ", list_of({size, size}), ", got ",
              out.is_contiguous() ? "" : "one with gaps or turned, ", "shape ", shape_of(out));
  const bool allowed =
      out.scalar_type() == ScalarType::Double || (out.scalar_type() == ScalarType::Float && !float64_factors);
  AHK_REQUIRE(allowed, what, ": expected float64 numbers, or float32 for factors below float64, got ", dtype_of(out));
}

bool share_memory(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto begin = [](const Tensor& tensor) { return static_cast<const std::byte*>(tensor.const_data_ptr()); };
  const auto end = [&](const Tensor& tensor) {
    int64_t last = 0;
    for (int64_t dim = 0; dim < tensor.dim(); ++dim) last += (tensor.size(dim) - 1) * tensor.stride(dim);
    return begin(tensor) + (last + 1) * static_cast<int64_t>(tensor.element_size());
  };
  return begin(a) < end(b) && begin(b) < end(a);
}

std::vector<Tensor> all_numbers_of(const std::string& what, const std::vector<Tensor>& tensors,
                                   const std::string& shape, const std::vector<std::vector<int64_t>>& sizes) {
  AHK_REQUIRE(tensors.size() == sizes.size(), what, ": expected ", sizes.size(), " tensors, got ", tensors.size());
  std::vector<Tensor> found;
  for (size_t i = 0; i < tensors.size(); ++i) {
    found.push_back(numbers_of(what + "[" + std::to_string(i) + "]", tensors[i], shape, sizes[i]));
  }
  return found;
}

}  // namespace ahkernels::cpu
