// How much memory the CPU ops hold at a time, counted where it is allocated: with limits of a few KiB, on problems that
// would take hundreds of them at once. Built without torch (see run_walks.sh).
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "cpu/ops/ops.h"
#include "tiling.h"

namespace {

// What is allocated now, and the most that there was. Each block begins with its size.
std::atomic<int64_t> held{0}, most{0};
constexpr size_t kBefore = 64;  // keeps every alignment that is asked for

void* allocate(size_t bytes) {
  const size_t rounded = (bytes + 2 * kBefore - 1) / kBefore * kBefore;
  auto* block = static_cast<std::byte*>(std::aligned_alloc(kBefore, rounded));
  if (block == nullptr) throw std::bad_alloc();
  *reinterpret_cast<size_t*>(block) = bytes;
  const int64_t now = held += static_cast<int64_t>(bytes);
  if (now > most) most = now;  // one thread
  return block + kBefore;
}

void release(void* memory) noexcept {
  if (memory == nullptr) return;
  auto* block = static_cast<std::byte*>(memory) - kBefore;
  held -= static_cast<int64_t>(*reinterpret_cast<size_t*>(block));
  std::free(block);
}

}  // namespace

void* operator new(size_t bytes) { return allocate(bytes); }
void* operator new[](size_t bytes) { return allocate(bytes); }
void* operator new(size_t bytes, std::align_val_t) { return allocate(bytes); }
void* operator new[](size_t bytes, std::align_val_t) { return allocate(bytes); }
void operator delete(void* memory) noexcept { release(memory); }
void operator delete[](void* memory) noexcept { release(memory); }
void operator delete(void* memory, size_t) noexcept { release(memory); }
void operator delete[](void* memory, size_t) noexcept { release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { release(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { release(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { release(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { release(memory); }

namespace {

using namespace ahkernels;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A tensor of one number, which is expanded to these sizes.
Tensor expanded(const std::vector<int64_t>& sizes, ScalarType type) {
  const Tensor tensor(sizes, std::vector<int64_t>(sizes.size(), 0), type);
  if (type == ScalarType::Double) *static_cast<double*>(tensor.mutable_data_ptr()) = 1;
  if (type == ScalarType::Float) *static_cast<float*>(tensor.mutable_data_ptr()) = 1;
  return tensor;
}

struct Sizes {
  int64_t n, s, o, d, m;
  bool by_jacobian = false;
  int64_t kernels = 1;
};

KernelBatch batch_of(const Sizes& of) {
  KernelBatch batch;
  for (int64_t kernel = 0; kernel < of.kernels; ++kernel) {
    batch.forward.push_back(expanded({of.n, of.s, of.d}, ScalarType::Float));
    batch.backward.push_back(expanded({of.n, of.s, of.o, of.m}, ScalarType::Float));
    batch.bias.push_back(1);
    batch.by_jacobian.push_back(of.by_jacobian);
    batch.layers.push_back(1);
  }
  return batch;
}

int failures = 0;

void expect(const std::string& what, int64_t kilobytes, const std::function<void()>& op) {
  const int64_t before = held;
  most = before;
  op();
  const int64_t found = (most - before + 1023) / 1024;
  std::printf("%-60s %6lld of at most %lld kB\n", what.c_str(), static_cast<long long>(found),
              static_cast<long long>(kilobytes));
  failures += found > kilobytes;
}

void products(const std::string& what, int64_t kilobytes, const Sizes& of) {
  const KernelBatch batch = batch_of(of);
  const std::vector<Tensor> means(of.kernels, expanded({of.n, of.o}, ScalarType::Double));
  expect("centered_inner_products, " + what, kilobytes, [&] { cpu::centered_inner_products(batch, means, "highest"); });
}

}  // namespace

int main() {
  memory_divisor = 1024;  // 32 kB of packed panels, 128 kB of tiles, 4 kB for a slice
  products("panels", 200, {960, 1, 2, 4, 64});
  products("tiles of two kernels", 140, {60, 1, 20, 1, 1, false, 2});
  products("rows of many numbers", 200, {480, 1, 2, 4, 200});
  products("positions as rows", 250, {40, 30, 4, 6, 5});
  products("Jacobians", 5000, {200, 3, 2, 60, 50, true});
  const Tensor v = expanded({960, 4, 1}, ScalarType::Double);
  const KernelBatch batch = batch_of({960, 1, 4, 4, 4});
  expect("per_output_inner_products", 900, [&] { cpu::per_output_inner_products(batch, "highest"); });
  expect("tangent_moments", 400, [&] { cpu::tangent_moments(batch, v, "highest", false); });
  expect("tangent_moments per output", 1000, [&] { cpu::tangent_moments(batch, v, "highest", true); });
  const KernelBatch wide = batch_of({960, 1, 4, 200, 300});
  expect("tangent_product", 350, [&] { cpu::tangent_product(wide, v, false); });
  expect("tangent_quadratic", 250, [&] { cpu::tangent_quadratic(wide, v); });
  const KernelBatch jacobians = batch_of({200, 2, 1, 200, 100, true});
  expect("tangent_diagonal of Jacobians", 40, [&] { cpu::tangent_diagonal(jacobians); });
  return failures ? 1 : 0;
}
