// Near-constant kernels: taking the mean out of the factors before they are multiplied.
//
// Kernels over samples alone (one output, or the trace over outputs) come close to constant in deep networks, and of
// their entries fp32 keeps few digits beyond the constant part that centering removes. With any a0 and g0 (here the
// factors' means), a = a0 + a', g = g0 + g', p = <a', a0>, q = <g', g0>, p0 = <a0, a0> + b and q0 = <g0, g0>,
//
//     K_rs = (p0 + p_r + p_s + P') (q0 + q_r + q_s + Q')        P' = <a'_r, a'_s>, Q' = <g'_r, g'_s>
//          = T_rs + h_r + h_s + p0 q0
//     T_rs = (p0 + p_r + p_s + P') Q' + P' (q0 + q_r + q_s) + p_r q_s + q_r p_s
//     h_r  = p0 q_r + q0 p_r + p_r q_r.
//
// h and p0 q0 vanish under centering, and T, all that tiles compute, is as small as the centered kernel. With several
// uses of a layer all this holds for each pair (s, s') of them, with p_r = <a'_s(x_r), a0_s'> and p_s = <a0_s,
// a'_s'(x_s)>. Contracted through its Jacobian J = J0 + J', the layer has K_rs = T_rs + h_r + h_s + |J0|^2 with
// T_rs = <J'_r, J'_s> and h_r = <J'_r, J0>, which is what row r's mean is above the mean of all.
#pragma once

#include <vector>

#include "term.h"

namespace ahkernels::cpu {

// The means of a term's factors and what goes with them, times the term's scales; empty for kernels over several
// outputs, which global centering leaves far from constant, so that nothing is lost there.
template <class T>
struct Centering {
  std::vector<T> forward_mean;        // [s][d], unscaled
  std::vector<T> backward_mean;       // [s][m], unscaled
  int64_t stride = 0;                 // of the rows of p and q: n rounded up to whole panels
  std::vector<T> p0, q0;              // [s][s']
  std::vector<T> p, q;                // [s][s'][stride]
  std::vector<double> jacobian_mean;  // [m][d], then [m] for a bias; instead of all of the above
  std::vector<double> h;              // [n]
  double constant = 0;                // sum of p0 q0 over pairs of uses, or |J0|^2

  Centering() = default;
  Centering(const TileKernels<double>& tiles, const Term& term);

  bool active() const { return !h.empty(); }

 private:
  void of_jacobian(const TileKernels<double>& tiles, const Term& term);
};

// Of each term.
template <class T>
std::vector<Centering<T>> centering_of(const std::vector<Term>& terms) {
  std::vector<Centering<T>> all;
  for (const Term& term : terms) all.emplace_back(double_kernels(), term);
  return all;
}

}  // namespace ahkernels::cpu
