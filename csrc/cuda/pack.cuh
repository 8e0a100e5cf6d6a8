// Packs a factor as a sum of bf16 parts, in the layout that the tile kernels read.
#pragma once

#include "problem.cuh"

namespace ahkernels::cuda {

enum class Element { kFloat, kHalf, kBFloat16 };

struct Packing {
  const void* factor;  // [n, positions, o, m], any strides (counted in elements)
  Element element;
  int64_t strides[4];
  int32_t n, positions, o, m;
  const double* scale;  // a power of two
  uint16_t* parts;      // [count][positions][blocks][padded_rows][k], zero where there is nothing
  int64_t part_size;    // numbers from one part to the next
  int32_t count;        // parts
  int32_t blocks;       // of each position; they follow one another along m
  int64_t padded_rows;
  int32_t k;
};

__device__ inline float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

__device__ inline uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

__device__ inline float bfloat16_value(uint16_t bits) { return from_bits(static_cast<uint32_t>(bits) << 16); }

// Rounds a finite number to the nearest, ties to even.
__device__ inline uint16_t bfloat16_bits(float value) {
  const uint32_t bits = to_bits(value);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

__device__ inline float half_value(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7FFFu;
  // Exponent and digits in their places in fp32, then the exponent's bias by a multiplication that also gets subnormal
  // numbers right.
  return from_bits(sign | to_bits(from_bits(magnitude << 13) * from_bits(0x77800000u)));  // 2^112
}

__device__ inline float read(const Packing& packing, int64_t index) {
  switch (packing.element) {
    case Element::kHalf:
      return half_value(static_cast<const uint16_t*>(packing.factor)[index]);
    case Element::kBFloat16:
      return bfloat16_value(static_cast<const uint16_t*>(packing.factor)[index]);
    default:
      return static_cast<const float*>(packing.factor)[index];
  }
}

// A thread packs two numbers of every part at a time.
__global__ void pack(const __grid_constant__ Packing packing) {
  const float scale = static_cast<float>(*packing.scale);
  const int64_t pairs_per_row = packing.k / 2, rows = int64_t{packing.positions} * packing.blocks * packing.padded_rows;
  for (int64_t pair = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; pair < rows * pairs_per_row;
       pair += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = pair / pairs_per_row, block = row / packing.padded_rows, in_block = row % packing.padded_rows;
    const int64_t position = block / packing.blocks, x = in_block / packing.o, i = in_block % packing.o;
    const int32_t begin = static_cast<int32_t>(block % packing.blocks * packing.k + pair % pairs_per_row * 2);
    float rest[2] = {0, 0};
    for (int e = 0; e < 2; ++e) {
      if (x < packing.n && begin + e < packing.m) {
        rest[e] = scale * read(packing, x * packing.strides[0] + position * packing.strides[1] +
                                            i * packing.strides[2] + (begin + e) * packing.strides[3]);
      }
    }
    for (int part = 0; part < packing.count; ++part) {
      uint32_t both = 0;
      for (int e = 0; e < 2; ++e) {
        const uint16_t bits = bfloat16_bits(rest[e]);
        rest[e] -= bfloat16_value(bits);
        both |= static_cast<uint32_t>(bits) << (16 * e);
      }
      reinterpret_cast<uint32_t*>(packing.parts + part * packing.part_size)[pair] = both;
    }
  }
}

}  // namespace ahkernels::cuda
