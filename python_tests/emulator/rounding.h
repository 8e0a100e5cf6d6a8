// How a matrix unit rounds: products are exact, but what is added in one step is first shifted to the largest exponent
// among its addends, and what falls below the last bit there is cut off. So is the sum, to fp32.
//
// For bf16 numbers, Ampere adds eight products and the sum so far in a step, with 24 bits behind the largest exponent;
// Hopper adds sixteen, with 25 bits. The exponent of a product is the sum of the factors' exponents. Models of this
// kind are those of Fasi et al. (PeerJ Computer Science 7:e330) and of Khattak and Mikaitis (arXiv:2512.07004); that
// they hold of these chips in this form is for the first run on them to show.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace emulator {

struct MatrixUnit {
  int step, bits;
};
inline constexpr MatrixUnit kAmpere{8, 24}, kHopper{16, 25};

// The power of two at or below |value|, 0 for 0 and subnormal numbers, infinite for nan.
inline float power(float value) { return std::bit_cast<float>(std::bit_cast<uint32_t>(value) & 0x7F800000u); }

// A sum of shifted addends, cut off to fp32.
inline float cut(double value) {
  return static_cast<float>(std::bit_cast<double>(std::bit_cast<uint64_t>(value) & ~uint64_t{0x1FFFFFFF}));
}

template <int kCols>
struct Columns {
  float numbers[16][kCols], powers[16][kCols];  // [k][col]

  void set(uint32_t k, uint32_t col, float number) {
    numbers[k][col] = number;
    powers[k][col] = power(number);
  }
};

// sums [kCols] += a [16] columns. A number that is not finite gives a sum that is none of the numbers' either.
template <MatrixUnit kUnit, int kCols>
void multiply_row(const float (&a)[16], const Columns<kCols>& columns, float (&sums)[kCols]) {
  static_assert(kUnit.bits <= 25);  // eight products below 2^27 fit a sum of 32 bits
  for (int first = 0; first < 16; first += kUnit.step) {
    float largest[kCols], to_integers[kCols];
    for (int col = 0; col < kCols; ++col) largest[col] = std::max(power(sums[col]), 0x1p-100f);
    for (int k = first; k < first + kUnit.step; ++k) {
      const float of_a = power(a[k]);
      for (int col = 0; col < kCols; ++col) largest[col] = std::max(of_a * columns.powers[k][col], largest[col]);
    }
    for (int col = 0; col < kCols; ++col) to_integers[col] = static_cast<float>(1 << kUnit.bits) / largest[col];
    double total[kCols];
    for (int col = 0; col < kCols; ++col) total[col] = static_cast<int32_t>(sums[col] * to_integers[col]);
    for (int begin = first; begin < first + kUnit.step; begin += 8) {
      int32_t of_eight[kCols] = {};
      for (int k = begin; k < begin + 8; ++k) {
        for (int col = 0; col < kCols; ++col) {
          of_eight[col] += static_cast<int32_t>(a[k] * columns.numbers[k][col] * to_integers[col]);
        }
      }
      for (int col = 0; col < kCols; ++col) total[col] += of_eight[col];
    }
    for (int col = 0; col < kCols; ++col) sums[col] = cut(total[col] / static_cast<double>(to_integers[col]));
  }
}

}  // namespace emulator
