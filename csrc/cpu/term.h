// The terms of tangent kernels as the CPU ops read them: the factors of one layer each, checked and scaled. A kernel is
// a sum of such terms.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "../ops.h"
#include "tile.h"

namespace ahkernels::cpu {

struct Term {
  Tensor forward;   // [n, s, d] inputs of the layer at each of its s uses
  Tensor backward;  // [n, s, o, m] gradients of the outputs with respect to its pre-activations
  Element element;
  double bias;
  int64_t n, s, d, o, m;
  size_t kernel;     // which one it is a term of
  bool by_jacobian;  // contracted through sum_s g_s a_s^T instead of by pairs of uses
  bool means_out;    // whether its factors lose their means before they are multiplied: see centering.h
  // Powers of two that bring the largest magnitude of each factor to [1, 2), so that fp32 tiles neither overflow nor
  // vanish; the term is computed times scale(). All terms of a kernel have the same scale(): that of the largest, so
  // that the backward factors of the others are smaller still.
  double forward_scale = 1, backward_scale = 1;

  // The first term of the list with the very same backward factor and scale, whose tiles this one shares.
  size_t backward_of = 0;

  double scale() const { return forward_scale * forward_scale * backward_scale * backward_scale; }
  double scaled_bias() const { return bias * forward_scale * forward_scale; }

  // Rows of the forward factor at `use`, from `sample` on: [*, d].
  Strided forward_rows(int64_t sample, int64_t use) const;
  // Rows of the backward factor at `use` and `output`, from `sample` on: [*, m].
  Strided backward_rows(int64_t sample, int64_t use, int64_t output) const;
};

// Checked arguments of an op (`op` names it in errors), in the order of their kernels; `scaled` looks for the largest
// magnitudes, and factors lose their means for centering per output. Those of one output always do.
std::vector<Term> make_terms(const std::string& op, const Factors& factors, bool scaled, bool per_output = false);

inline int64_t kernel_count(const std::vector<Term>& terms) { return static_cast<int64_t>(terms.back().kernel) + 1; }

// The scale of each kernel.
std::vector<double> kernel_scales(const std::vector<Term>& terms);

// v is [n, o, columns] in float64.
void check_columns(const std::string& op, const Term& term, const Tensor& v);

void check_precision(const std::string& op, const std::string& precision);

}  // namespace ahkernels::cpu
