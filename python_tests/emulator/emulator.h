// The instructions of csrc/cuda/instructions.cuh as functions on an emulated block.
#pragma once

#include "block.h"

#define __device__
#define __global__
#define __shared__
#define __launch_bounds__(...)
#define __grid_constant__
#define AHK_WITH_HOPPER 1

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define gridDim emulator::grid_size
#define blockDim emulator::block_size

struct alignas(8) float2 {
  float x, y;
};

template <class T>
T __ldg(const T* pointer) {
  emulator::check_readable(pointer, sizeof(T));
  if (reinterpret_cast<uintptr_t>(pointer) % alignof(T) != 0) emulator::fail("a read of numbers that are not aligned");
  return *pointer;
}

namespace ahkernels::cuda {

using TensorMap = emulator::Tensor;
using emulator::Block;

inline unsigned char* shared_memory() {
  return reinterpret_cast<unsigned char*>(Block::current().begin()) + Block::kBase;
}
inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const std::byte*>(pointer) - Block::current().begin());
}

inline void sync_threads() { Block::current().sync(); }

template <class T>
T load_shared(uint32_t address) {
  T value;
  std::memcpy(&value, Block::current().numbers_at(address, sizeof(T), alignof(T)), sizeof(T));
  return value;
}
template <class T>
void store_shared(uint32_t address, const T& value) {
  std::memcpy(Block::current().numbers_at(address, sizeof(T), alignof(T)), &value, sizeof(T));
}

inline void copy_4(uint32_t to, const void* from) { Block::current().copy(to, from, 4); }
inline void copy_16(uint32_t to, const void* from) { Block::current().copy(to, from, 16); }
inline void copies_commit() { Block::current().commit_copies(); }
template <int Pending>
void copies_wait() {
  Block::current().wait_for_copies(Pending);
}

inline void load_matrices(uint32_t (&registers)[4], uint32_t row_address) {
  struct Lane {
    uint32_t* registers;
    uint32_t address;
  } lane{registers, row_address};
  Block::current().together(32, "ldmatrix", &lane, [](const std::vector<Lane*>& lanes) {
    for (uint32_t matrix = 0; matrix < 4; ++matrix) {
      uint32_t banks = 0;
      for (uint32_t row = 0; row < 8; ++row) banks |= 1u << lanes[matrix * 8 + row]->address / 16 % 8;
      if (banks != 0xFF) emulator::fail("ldmatrix reads rows of a matrix from the same banks");
    }
    for (uint32_t l = 0; l < 32; ++l) {
      for (uint32_t matrix = 0; matrix < 4; ++matrix) {
        const uint32_t row = lanes[matrix * 8 + l / 4]->address;
        std::memcpy(&lanes[l]->registers[matrix], Block::current().at(row + l % 4 * 4, 4), 4);
      }
    }
  });
}

inline void multiply_16x8(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Lane {
    float* c;
    const uint32_t* a;
    uint32_t b[2];
  } lane{c, a, {b0, b1}};
  Block::current().together(32, "mma", &lane, [](const std::vector<Lane*>& lanes) {
    const auto half = [](uint32_t pair, uint32_t which) { return emulator::bfloat16(pair >> (16 * which) & 0xFFFF); };
    float rows[16][16];  // [row][k]
    emulator::Columns<8> cols;
    for (uint32_t l = 0; l < 32; ++l) {
      for (uint32_t which = 0; which < 2; ++which) {
        const uint32_t k = l % 4 * 2 + which;
        rows[l / 4][k] = half(lanes[l]->a[0], which);
        rows[l / 4 + 8][k] = half(lanes[l]->a[1], which);
        rows[l / 4][k + 8] = half(lanes[l]->a[2], which);
        rows[l / 4 + 8][k + 8] = half(lanes[l]->a[3], which);
        cols.set(k, l / 4, half(lanes[l]->b[0], which));
        cols.set(k + 8, l / 4, half(lanes[l]->b[1], which));
      }
    }
    const auto value = [&](uint32_t row, uint32_t col) -> float& {
      return lanes[row % 8 * 4 + col / 2]->c[row / 8 * 2 + col % 2];
    };
    for (uint32_t row = 0; row < 16; ++row) {
      float sums[8];
      for (uint32_t col = 0; col < 8; ++col) sums[col] = value(row, col);
      emulator::multiply_row<emulator::kAmpere>(rows[row], cols, sums);
      for (uint32_t col = 0; col < 8; ++col) value(row, col) = sums[col];
    }
  });
}

inline double add_over_warp(double value) {
  Block::current().together(32, "a sum of the warp", &value, [](const std::vector<double*>& lanes) {
    double sums[32];
    for (uint32_t l = 0; l < 32; ++l) sums[l] = *lanes[l];
    for (uint32_t step = 16; step > 0; step /= 2) {
      double next[32];
      for (uint32_t l = 0; l < 32; ++l) next[l] = sums[l] + sums[l ^ step];
      std::memcpy(sums, next, sizeof(sums));
    }
    for (uint32_t l = 0; l < 32; ++l) *lanes[l] = sums[l];
  });
  return value;
}

inline void barrier_init(uint32_t barrier, uint32_t arrivals) { Block::current().init_barrier(barrier, arrivals); }
inline void barriers_ready() { Block::current().publish_barriers(); }
inline void barrier_arrive(uint32_t barrier) { Block::current().arrive(barrier, 0); }
inline void barrier_arrive_expecting(uint32_t barrier, uint32_t bytes) { Block::current().arrive(barrier, bytes); }
inline void barrier_wait(uint32_t barrier, uint32_t parity) { Block::current().wait_for_phase(barrier, parity); }
inline void copy_box(uint32_t to, const TensorMap& tensor, int32_t column, int32_t row, uint32_t barrier) {
  Block::current().copy_box({to, tensor, column, row, barrier});
}
inline void prefetch_tensor(const TensorMap&) {}

inline int32_t thread_number() { return static_cast<int32_t>(threadIdx.x); }
inline bool elect_one() { return Block::current().elect(); }

inline void sync_warpgroup(int group) { Block::current().sync_warpgroup(group); }

inline void products_begin() { Block::current().begin_products(); }
inline void products_commit() { Block::current().commit_products(); }
template <int Pending>
void products_wait() {
  Block::current().wait_for_products(Pending);
}
inline void multiply_64x128(float (&c)[16][4], uint64_t a, uint64_t b, bool accumulate) {
  Block::current().issue_product(c, a, b, accumulate);
}

template <int Registers>
void release_registers() {
  Block::current().release_registers(Registers);
}
template <int Registers>
void acquire_registers() {
  Block::current().acquire_registers(Registers);
}

}  // namespace ahkernels::cuda
