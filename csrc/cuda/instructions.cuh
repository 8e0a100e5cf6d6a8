// The instructions that the tile kernels are made of, each as a function: copies into shared memory, barriers and
// matrix products. The PTX manual says under each instruction which numbers its registers hold.
//
// With AHK_EMULATOR an emulator (python_tests/emulator) provides the same functions, and the kernels run on a host.
#pragma once

#include <cstdint>

#if defined(AHK_EMULATOR)
#include "emulator.h"
#else

// In code for other architectures, kernels with Hopper instructions are empty. Nothing launches them there.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define AHK_WITH_HOPPER 1
#else
#define AHK_WITH_HOPPER 0
#endif

#include <cuda.h>
#include <cuda_runtime.h>

namespace ahkernels::cuda {

using TensorMap = CUtensorMap;

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The shared memory that a launch asked for.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

__device__ inline void sync_threads() { __syncthreads(); }

template <class T>
__device__ inline T load_shared(uint32_t address) {
  return *static_cast<const T*>(__cvta_shared_to_generic(address));
}
template <class T>
__device__ inline void store_shared(uint32_t address, const T& value) {
  *static_cast<T*>(__cvta_shared_to_generic(address)) = value;
}

// ---- sm_80: copies of 4 and 16 bytes, and matrix products of a warp

__device__ inline void copy_4(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
__device__ inline void copy_16(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ inline void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all but the last `Pending` groups of this thread's copies are done.
template <int Pending>
__device__ inline void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Four 8 x 8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void load_matrices(uint32_t (&registers)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(row_address)
               : "memory");
}

// c [16, 8] += a [16, 16] b [8, 16]^T
__device__ inline void multiply_16x8(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline double add_over_warp(double value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffff, value, step);
  return value;
}

// threadIdx.x, asked for anew: what a tile takes once is not worth a register while its products run.
__device__ inline int32_t thread_number() {
  int32_t number;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
  return number;
}

// Whether this thread is the one that its warp has chosen. That a single thread goes on is known to the compiler only
// so: after a comparison with its number, it puts each bulk copy into a loop over the threads' operands.
__device__ inline bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

// ---- sm_90a: barriers in shared memory, bulk tensor copies, matrix products of a warpgroup

__device__ inline void barrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialised barriers known to the bulk copies.
__device__ inline void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and keeps the phase from ending before this many bytes have come.
__device__ inline void barrier_arrive_expecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Waits for the end of the phase of this parity. A build for first runs on a device (AHK_WATCHDOG) ends the kernel with
// an error after 2^26 tries, where a hang would cost minutes. The loop is one block of assembly, since a counter in C++
// would take a register and spill the sums.
__device__ inline void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
#if defined(AHK_WATCHDOG)
      ".reg .pred late;\n"
      ".reg .u32 tries;\n"
      "mov.u32 tries, 0;\n"
#endif
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
#if defined(AHK_WATCHDOG)
      "@done bra over;\n"
      "add.u32 tries, tries, 1;\n"
      "setp.gt.u32 late, tries, 67108864;\n"
      "@late trap;\n"
      "bra again;\n"
      "over:\n"
#else
      "@!done bra again;\n"
#endif
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Copies the tensor's box at (column, row) to a swizzled place in shared memory; its bytes arrive at the barrier.
__device__ inline void copy_box(uint32_t to, const TensorMap& tensor, int32_t column, int32_t row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          to),
      "l"(&tensor), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
__device__ inline void prefetch_tensor(const TensorMap& tensor) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&tensor) : "memory");
}

// Threads of a warpgroup wait for each other, at a barrier of its own.
__device__ inline void sync_warpgroup(int group) { asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory"); }

__device__ inline void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until all but the last `Pending` groups of products are done.
template <int Pending>
__device__ inline void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// c [64, 128] (+)= a [64, 16] b [128, 16]^T, where warp w of the warpgroup holds the rows 16 w to 16 w + 15 of c in the
// registers of 16 products of 16 x 8.
__device__ inline void multiply_64x128(float (&c)[16][4], uint64_t a, uint64_t b, bool accumulate) {
#define AHK_FOUR(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 0, 0;\n"
      "}"
      : AHK_FOUR(0), AHK_FOUR(1), AHK_FOUR(2), AHK_FOUR(3), AHK_FOUR(4), AHK_FOUR(5), AHK_FOUR(6), AHK_FOUR(7),
        AHK_FOUR(8), AHK_FOUR(9), AHK_FOUR(10), AHK_FOUR(11), AHK_FOUR(12), AHK_FOUR(13), AHK_FOUR(14), AHK_FOUR(15)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
#undef AHK_FOUR
}

// Move registers from warpgroups that need few to warpgroups that need many.
template <int Registers>
__device__ inline void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ inline void acquire_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

}  // namespace ahkernels::cuda

#endif

namespace ahkernels::cuda {

// The descriptor of a matrix [rows][64] of 16-bit numbers in shared memory, swizzled in 128 bytes: groups of 8 rows lie
// 1024 bytes apart.
__device__ inline uint64_t matrix_descriptor(uint32_t address) {
  return static_cast<uint64_t>((address & 0x3FFFF) >> 4) | (uint64_t{1} << 16) | (uint64_t{1024 >> 4} << 32) |
         (uint64_t{1} << 62);
}

}  // namespace ahkernels::cuda
