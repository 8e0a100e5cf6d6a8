// Centering of near-constant kernels: the means leave the factors before these are multiplied.
//
// In deep networks the block K_ij of two outputs comes close to constant. Centering over the samples removes the
// constant part, and of what is left the entries have few digits in fp32. With any a0 and g0^i (here the means of a,
// and of the gradients of output i), a = a0 + a', g^i = g0^i + g'^i, p = <a', a0>, q_ij = <g'^i, g0^j>, p0 = <a0, a0> +
// b and q0_ij = <g0^i, g0^j>,
//
//     K_ri,sj = (p0 + p_r + p_s + P') (q0_ij + q_r,ij + q_s,ji + Q')      P' = <a'_r, a'_s>, Q' = <g'^i_r, g'^j_s>
//             = T_ri,sj + h_r,ij + h_s,ji + p0 q0_ij
//     T_ri,sj = (p0 + p_r + p_s + P') Q' + P' (q0_ij + q_r,ij + q_s,ji) + p_r q_s,ji + q_r,ij p_s
//     h_r,ij  = p0 q_r,ij + q0_ij p_r + p_r q_r,ij.
//
// Centering each block removes h and p0 q0. Tiles hold T alone, which is as small as the centered block.
//
// A layer with several positions has all this for each pair (s, s') of them, with p_r = <a'_s(x_r), a0_s'> and
// p_s = <a0_s, a'_s'(x_s)>. A layer that goes by its Jacobian J^i = J0^i + J'^i has K_ri,sj = T_ri,sj + h_r,ij + h_s,ji
// + <J0^i, J0^j> with T_ri,sj = <J'^i_r, J'^j_s> and h_r,ij = <J'^i_r, J0^j>.
//
// Kernels over several outputs that are centered globally are far from constant. Their layers are not near_constant,
// and row_mean_centering.h centers them.
#pragma once

#include <vector>

#include "layer_factors.h"

namespace ahkernels::cpu {

// The means of a layer's factors over more samples than those at hand, [s, d] and [s, o, m] in fp64; unless they are
// given, the means of the samples at hand are taken.
struct FactorMeans {
  bool given = false;
  const double *forward = nullptr, *backward = nullptr;
};

// Means and offsets of a near-constant layer, times the layer's scales unless it says otherwise; empty for other
// layers. T is the type of tiles.
template <class T>
struct NearConstantCentering {
  int64_t o = 1;
  std::vector<T> forward_mean;        // [s][d], unscaled
  std::vector<T> backward_mean;       // [s][o][m], unscaled
  int64_t stride = 0;                 // length of rows of p and q: n rounded up to whole panels
  std::vector<T> p0, p;               // [s][s'] and [s][s'][stride]
  std::vector<T> q0, q;               // [s][s'][i][j] and [s][s'][i][j][stride]
  std::vector<double> jacobian_mean;  // [o][m d + m], of the weight and then of a bias; instead of all of the above
  // Empty with given means, where nobody asks for them.
  std::vector<double> h;         // [i][j][n]
  std::vector<double> constant;  // [i][j] sum of p0 q0_ij over pairs of positions, or <J0^i, J0^j>

  NearConstantCentering() = default;
  NearConstantCentering(const TileKernels<double>& tiles, const LayerFactors& layer, const FactorMeans& means = {});

  bool active() const { return active_; }
  // The mean of a layer with one position, for rows packed as [o][m] from number `begin` on; null where there is none.
  const T* backward_mean_at(int64_t output, int64_t m, int64_t begin) const {
    return backward_mean.empty() ? nullptr : backward_mean.data() + output * m + begin;
  }

  // tile [rows, cols] (+)= T at outputs (i, j) for the samples from `row` and from `col` on, from tiles of P' and Q' at
  // the pair of positions `pair` = (s, s'), of which `turned` = (s', s).
  void add_tile(const TileKernels<T>& tiles, int64_t pair, int64_t turned, int64_t i, int64_t j, int64_t row,
                int64_t col, const T* p_tile, const T* q_tile, int64_t rows, int64_t cols, bool accumulate,
                T* tile) const {
    const int64_t ij = (pair * o + i) * o + j, ji = (turned * o + j) * o + i;
    tiles.centered_hadamard(p_tile, p0[pair], &p[pair * stride + row], &p[turned * stride + col], q_tile, q0[ij],
                            &q[ij * stride + row], &q[ji * stride + col], rows, cols, accumulate, tile);
  }

 private:
  bool active_ = false;

  // Products with means are in numbers of type C: fp64 for one output, since row means come from them.
  template <class C>
  void of_factors(const TileKernels<double>& tiles, const TileKernels<C>& dots, const LayerFactors& layer,
                  const FactorMeans& means);
  void of_jacobian(const TileKernels<double>& tiles, const LayerFactors& layer);
  void of_jacobian(const LayerFactors& layer, const FactorMeans& means);
};

// One for each layer.
template <class T>
std::vector<NearConstantCentering<T>> near_constant_centering_of(const std::vector<LayerFactors>& layers) {
  std::vector<NearConstantCentering<T>> all;
  for (const LayerFactors& layer : layers) all.emplace_back(double_kernels(), layer);
  return all;
}

}  // namespace ahkernels::cpu
