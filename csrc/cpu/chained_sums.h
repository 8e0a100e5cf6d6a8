// Sums in fp64 in several chains of additions, which need not wait for one another.
#pragma once

#include <cstdint>

namespace ahkernels::cpu {

// The sum of number(0), ..., number(count - 1).
template <class Number>
double sum_in_chains(int64_t count, const Number& number) {
  double chains[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int64_t chain = 0; chain < 8; ++chain) chains[chain] += number(i + chain);
  }
  for (; i < count; ++i) chains[0] += number(i);
  return ((chains[0] + chains[1]) + (chains[2] + chains[3])) + ((chains[4] + chains[5]) + (chains[6] + chains[7]));
}
inline double sum_of(const double* x, int64_t count) {
  return sum_in_chains(count, [x](int64_t i) { return x[i]; });
}
inline double dot(const double* x, const double* y, int64_t count) {
  return sum_in_chains(count, [x, y](int64_t i) { return x[i] * y[i]; });
}

}  // namespace ahkernels::cpu
