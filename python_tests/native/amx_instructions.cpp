// Programs of a few instructions of AMX, by name. Each prints what it computes, or breaks a rule.
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <string>

#include "cpu/isa/target.h"

namespace {

struct Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  Configuration& tile(int which, int of_rows, int of_bytes) {
    rows[which] = static_cast<uint8_t>(of_rows);
    row_bytes[which] = static_cast<uint16_t>(of_bytes);
    return *this;
  }
};

// c [16, 16] and a and b of whole tiles, in the registers 0, 1 and 2.
Configuration whole() { return Configuration().tile(0, 16, 64).tile(1, 16, 64).tile(2, 16, 64); }

alignas(64) float numbers[16][16];
alignas(64) uint16_t left[16][32], right[16][32];
alignas(64) int8_t left_bytes[16][64], right_bytes[16][64];

uint16_t bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

AHK_TARGET_BEGIN("amx-tile,amx-bf16,amx-int8")

void configure(const Configuration& configuration) {
  asm volatile("" : : "r"(&configuration) : "memory");  // gcc 12 believes that loading reads eight bytes alone
  _tile_loadconfig(&configuration);
}

// One row of a and one column of b, pair after pair.
float dot(float start, std::initializer_list<float> a, std::initializer_list<float> b) {
  std::memset(left, 0, sizeof(left));
  std::memset(right, 0, sizeof(right));
  int at = 0;
  for (const float value : a) left[2][at++] = bfloat16(value);
  at = 0;
  for (const float value : b) right[at / 2][2 * 5 + at % 2] = bfloat16(value), ++at;
  numbers[2][5] = start;
  configure(whole());
  _tile_loadd(0, numbers, 64);
  _tile_loadd(1, left, 64);
  _tile_loadd(2, right, 64);
  _tile_dpbf16ps(0, 1, 2);
  _tile_stored(0, numbers, 64);
  _tile_release();
  return numbers[2][5];
}

void print_products_of_bfloat16() {
  const float tiny = std::ldexp(1.0f, -126), large = std::ldexp(1.0f, 24);
  std::printf("%.9g", static_cast<double>(dot(1, {2, 3}, {5, 7})));
  std::printf(" %.9g", static_cast<double>(dot(0, {tiny / 4}, {large})));  // a denormal number is zero
  std::printf(" %.9g", static_cast<double>(dot(0, {tiny}, {0.5f})));       // and so is a denormal product
  std::printf(" %.9g", static_cast<double>(dot(tiny / 4, {0}, {0})));      // and a denormal sum
  std::printf(" %.9g", static_cast<double>(dot(0, {large, -large, 1, 0}, {1, 1, 1, 0})));  // 1 is lost beside 2^24
  std::printf(" %.9g", static_cast<double>(dot(0, {large, 0, -large, 0, 1, 1}, {1, 0, 1, 0, 1, 1})));  // in its order
  std::printf(" %.9g\n", static_cast<double>(dot(large, {1, 1}, {1, 1})));  // pairs first, then the sum
}

void print_products_of_bytes() {
  for (int r = 0; r < 16; ++r) {
    for (int i = 0; i < 64; ++i) {
      left_bytes[r][i] = static_cast<int8_t>(37 * r + 11 * i);
      right_bytes[r][i] = static_cast<int8_t>(53 * r - 29 * i + 128);
    }
  }
  alignas(64) int32_t sums[16][16] = {};
  configure(whole());
  _tile_zero(0);
  _tile_loadd(1, left_bytes, 64);
  _tile_loadd(2, right_bytes, 64);
  _tile_dpbssd(0, 1, 2);
  _tile_dpbssd(0, 1, 2);
  _tile_stored(0, sums, 64);
  _tile_release();
  int wrong = 0;
  for (int r = 0; r < 16; ++r) {
    for (int c = 0; c < 16; ++c) {
      int expected = 0;
      for (int i = 0; i < 64; ++i) expected += 2 * left_bytes[r][i] * right_bytes[i / 4][4 * c + i % 4];
      wrong += sums[r][c] != expected;
    }
  }
  std::printf("%d wrong\n", wrong);
}

// A tile of 3 rows of 8 bytes, with strides, leaves what is around it.
void print_part_of_a_tile() {
  float to[4][4] = {};
  for (float& one : to[3]) one = 9;
  for (int r = 0; r < 16; ++r) {
    for (int c = 0; c < 16; ++c) numbers[r][c] = static_cast<float>(16 * r + c);
  }
  configure(Configuration().tile(7, 3, 8));
  _tile_loadd(7, numbers, 128);  // every other row
  _tile_stored(7, to, 16);
  _tile_release();
  for (const auto& row : to) std::printf("%g %g %g ", double{row[0]}, double{row[1]}, double{row[2]});
  std::printf("\n");
}

void print_configurations() {
  Configuration seen;
  _tile_storeconfig(&seen);
  std::printf("%d", int{seen.palette});
  configure(whole());
  _tile_storeconfig(&seen);
  std::printf(" %d %d %d", int{seen.palette}, int{seen.rows[2]}, int{seen.rows[3]});
  configure(Configuration{.palette = 0});
  _tile_storeconfig(&seen);
  std::printf(" %d %d\n", int{seen.palette}, int{seen.rows[2]});
}

void configure_reserved(int byte) {
  Configuration configuration = whole();
  reinterpret_cast<uint8_t*>(&configuration)[byte] = 1;
  configure(configuration);
}

const std::map<std::string, std::function<void()>> kPrograms = {
    {"products of bf16", print_products_of_bfloat16},
    {"products of int8", print_products_of_bytes},
    {"part of a tile", print_part_of_a_tile},
    {"configurations", print_configurations},
    {"palette 2", [] { configure(Configuration{.palette = 2}); }},
    {"byte 2", [] { configure_reserved(2); }},
    {"byte 15", [] { configure_reserved(15); }},
    {"ninth tile", [] { configure_reserved(32); }},
    {"last byte", [] { configure_reserved(63); }},
    {"17 rows", [] { configure(Configuration().tile(0, 17, 64)); }},
    {"65 bytes", [] { configure(Configuration().tile(0, 16, 65)); }},
    {"rows without bytes", [] { configure(Configuration().tile(0, 16, 0)); }},
    {"bytes without rows", [] { configure(Configuration().tile(0, 0, 64)); }},
    {"load before configuration", [] { _tile_loadd(0, numbers, 64); }},
    {"zero before configuration", [] { _tile_zero(0); }},
    {"store after release",
     [] {
       configure(whole());
       _tile_release();
       _tile_stored(0, numbers, 64);
     }},
    {"missing tile",
     [] {
       configure(whole());
       _tile_loadd(3, numbers, 64);
     }},
    {"odd bytes",
     [] {
       configure(Configuration().tile(0, 4, 6));
       _tile_loadd(0, numbers, 64);
     }},
    {"same register",  // tdpbssd of the registers 0, 1 and 1, which the assembler refuses
     [] {
       configure(whole());
       asm volatile(".byte 0xC4, 0xE2, 0x73, 0x5E, 0xC1");
     }},
    {"rows of sums",
     [] {
       configure(whole().tile(0, 15, 64));
       _tile_dpbssd(0, 1, 2);
     }},
    {"columns of sums",
     [] {
       configure(whole().tile(2, 16, 60));
       _tile_dpbf16ps(0, 1, 2);
     }},
    {"length of products",
     [] {
       configure(whole().tile(1, 16, 60));
       _tile_dpbf16ps(0, 1, 2);
     }},
    {"start row",
     [] {
       configure(Configuration{.start_row = 16}.tile(0, 16, 64));
       _tile_loadd(0, numbers, 64);
     }},
    {"left set up", [] { configure(whole()); }},
};

AHK_TARGET_END

}  // namespace

int main(int, char** arguments) {
  kPrograms.at(arguments[1])();
  return 0;
}
