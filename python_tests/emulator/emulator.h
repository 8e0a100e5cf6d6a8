// A graphics processor on a host: enough of one to run the tile kernels where there is no other.
//
// The threads of a block are fibers that take turns. What a real processor does later happens here as late as it may: a
// copy lands and a product is made when something waits for it, reading shared memory as it is by then, so that a
// missing wait or a place given up too soon shows as a wrong number. A block in which nobody can go on is reported, not
// waited for. Shared memory starts as nan, and sums of products lose what a matrix unit cuts off.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __launch_bounds__(...)
#define __grid_constant__
#define AHK_WITH_HOPPER 1

namespace emulator {

struct Index {
  uint32_t x;
};

inline Index thread_index, block_index, grid_size, block_size;

using std::memcpy;

// A matrix of 16-bit numbers in memory and the box that copies take from it.
struct Tensor {
  const uint16_t* data;
  int64_t rows, cols;
  int32_t box_rows, box_cols;
};

[[noreturn]] inline void fail(const std::string& what) { throw std::runtime_error("emulator: " + what); }

class Block {
 public:
  static constexpr uint32_t kSharedBytes = 232448;

  Block(int threads, const std::function<void()>& kernel, uint32_t seed)
      : memory_(kSharedBytes + 1024, std::byte{0xFF}), kernel_(kernel), fibers_(threads), random_(seed) {}

  static Block& current() { return *current_; }

  void run() {
    current_ = this;
    for (size_t thread = 0; thread < fibers_.size(); ++thread) {
      Fiber& fiber = fibers_[thread];
      fiber.stack = std::make_unique<std::byte[]>(kStackBytes);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Block::start), 0);
    }
    size_t left = fibers_.size();
    while (left > 0) {
      const int64_t before = progress_;
      left = 0;
      for (size_t thread = 0; thread < fibers_.size(); ++thread) {
        if (fibers_[thread].done) continue;
        ++left;
        running_ = thread;
        thread_index.x = static_cast<uint32_t>(thread);
        resume(fibers_[thread]);
        if (error_) std::rethrow_exception(error_);
      }
      // Bulk copies land one at a time, in any order.
      if (!boxes_.empty()) land(random_() % boxes_.size());
      if (left > 0 && progress_ == before) fail("no thread can go on");
    }
    if (!boxes_.empty()) fail("a bulk copy was left in flight");
  }

  size_t thread() const { return running_; }
  void progress() { ++progress_; }

  // Until ready() is true, other threads run.
  template <class Ready>
  void wait(const Ready& ready) {
    while (!ready()) leave();
    ++progress_;
  }

  // All of a group of threads come here with their arguments; the last one does the work of all.
  template <class Arguments, class Work>
  void together(size_t size, const std::string& what, Arguments* arguments, const Work& work) {
    const size_t group = running_ / size;
    Meeting& meeting = meetings_[{size, group}];
    if (meeting.arrived.empty()) {
      meeting.what = what;
      meeting.arrived.assign(size, nullptr);
    }
    if (meeting.what != what) fail("threads of a group meet at " + meeting.what + " and at " + what);
    meeting.arrived[running_ % size] = arguments;
    const int64_t generation = meeting.generation;
    if (++meeting.count == size) {
      std::vector<Arguments*> all;
      for (void* one : meeting.arrived) all.push_back(static_cast<Arguments*>(one));
      meeting.arrived.clear();
      meeting.count = 0;
      ++meeting.generation;
      work(all);
      ++progress_;
    } else {
      wait([&] { return meeting.generation != generation; });
    }
  }

  std::byte* at(uint32_t address, uint32_t bytes) {
    if (address + bytes > memory_.size()) fail("an address beyond shared memory");
    return memory_.data() + address;
  }
  std::byte* base() { return memory_.data(); }

  // ---- copies of single threads

  struct Copy {
    uint32_t to;
    const void* from;
  };

  void copy(uint32_t to, const void* from) { fibers_[running_].open.push_back({to, from}); }
  void commit_copies() {
    Fiber& fiber = fibers_[running_];
    fiber.committed.push_back(std::move(fiber.open));
    fiber.open.clear();
    ++progress_;
  }
  void wait_for_copies(size_t pending) {
    Fiber& fiber = fibers_[running_];
    while (fiber.committed.size() > pending) {
      for (const Copy& copy : fiber.committed.front()) memcpy(at(copy.to, 16), copy.from, 16);
      fiber.committed.pop_front();
    }
    ++progress_;
  }

  // ---- barriers

  struct Barrier {
    int64_t expected = 0, pending = 0, bytes = 0;
    uint32_t phase = 0;
  };

  void init_barrier(uint32_t address, uint32_t arrivals) { barriers_[address] = {arrivals, arrivals, 0, 0}; }
  Barrier& barrier(uint32_t address) {
    const auto found = barriers_.find(address);
    if (found == barriers_.end()) fail("a barrier that was not initialised");
    return found->second;
  }
  void arrive(uint32_t address, int64_t bytes) {
    Barrier& at = barrier(address);
    if (at.pending == 0) fail("more arrivals at a barrier than it expects");
    at.bytes += bytes;
    --at.pending;
    end_phase(at);
  }
  void wait_for_phase(uint32_t address, uint32_t parity) {
    const Barrier& at = barrier(address);
    wait([&] { return (at.phase & 1) != parity; });
  }

  // ---- bulk copies

  struct Box {
    uint32_t to;
    Tensor tensor;
    int32_t col, row;
    uint32_t barrier;
  };

  void copy_box(const Box& box) {
    if (box.to % 1024 != 0) fail("a swizzled box that does not begin on 1024 bytes");
    boxes_.push_back(box);
    ++progress_;
  }

  // ---- products of warpgroups

  struct Product {
    std::vector<float (*)[4]> sums;  // of each thread
    uint64_t a, b;
    bool accumulate;
  };
  struct Products {
    std::vector<Product> open;
    std::deque<std::vector<Product>> committed;
  };

  Products& products() { return products_[running_ / 128]; }
  void make(const Product& product);

 private:
  static constexpr size_t kStackBytes = 256 << 10;

  struct Fiber {
    ucontext_t context;
    jmp_buf left;  // where it stopped; jumping spares the system calls of swapcontext
    bool begun = false;
    std::unique_ptr<std::byte[]> stack;
    bool done = false;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> committed;
  };
  struct Meeting {
    std::string what;
    std::vector<void*> arrived;
    size_t count = 0;
    int64_t generation = 0;
  };

  [[gnu::noinline]] void leave() {
    if (_setjmp(fibers_[running_].left) == 0) _longjmp(scheduler_left_, 1);
  }

  [[gnu::noinline]] void resume(Fiber& fiber) {
    if (_setjmp(scheduler_left_) != 0) return;
    if (fiber.begun) _longjmp(fiber.left, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
  }

  static void start() {
    Block& block = current();
    const size_t self = block.running_;
    try {
      block.kernel_();
    } catch (...) {
      block.error_ = std::current_exception();
    }
    block.fibers_[self].done = true;
    block.progress();
    _longjmp(block.scheduler_left_, 1);
  }

  void end_phase(Barrier& at) {
    ++progress_;
    if (at.pending == 0 && at.bytes == 0) {
      at.pending = at.expected;
      ++at.phase;
    }
  }

  void land(size_t which) {
    const Box box = boxes_[which];
    boxes_.erase(boxes_.begin() + static_cast<int64_t>(which));
    const Tensor& tensor = box.tensor;
    for (int32_t row = 0; row < tensor.box_rows; ++row) {
      for (int32_t col = 0; col < tensor.box_cols; ++col) {
        const int64_t r = box.row + row, c = box.col + col;
        const uint16_t number = r < tensor.rows && c < tensor.cols ? tensor.data[r * tensor.cols + c] : uint16_t{0};
        memcpy(at(swizzled(box.to + (row * tensor.box_cols + col) * 2), 2), &number, 2);
      }
    }
    Barrier& at = barrier(box.barrier);
    at.bytes -= int64_t{tensor.box_rows} * tensor.box_cols * 2;
    end_phase(at);
  }

 public:
  // 128-byte swizzle: the 16-byte piece within 128 bytes, exclusive-or the 128-byte row within 1024.
  static uint32_t swizzled(uint32_t address) { return address ^ ((address >> 7 & 7) << 4); }

 private:
  static inline Block* current_ = nullptr;
  std::vector<std::byte> memory_;
  const std::function<void()>& kernel_;
  std::vector<Fiber> fibers_;
  jmp_buf scheduler_left_;
  size_t running_ = 0;
  int64_t progress_ = 0;
  std::exception_ptr error_;
  std::map<std::pair<size_t, size_t>, Meeting> meetings_;
  std::map<uint32_t, Barrier> barriers_;
  std::vector<Box> boxes_;
  std::map<size_t, Products> products_;
  std::mt19937 random_;
};

inline double bfloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &wide, sizeof(value));
  return value;
}

// Cut off, not rounded, to fp32.
inline float cut(double value) {
  float nearest = static_cast<float>(value);
  if (std::abs(static_cast<double>(nearest)) > std::abs(value)) nearest = std::nextafterf(nearest, 0.0f);
  return nearest;
}

inline void Block::make(const Product& product) {
  const auto address = [](uint64_t descriptor) { return static_cast<uint32_t>(descriptor & 0x3FFF) << 4; };
  const auto row_groups = [](uint64_t descriptor) { return static_cast<uint32_t>(descriptor >> 32 & 0x3FFF) << 4; };
  for (const uint64_t descriptor : {product.a, product.b}) {
    if (descriptor >> 62 != 1) fail("a matrix that is not swizzled in 128 bytes");
  }
  const auto number = [&](uint64_t descriptor, uint32_t row, uint32_t k) {
    const uint32_t linear = address(descriptor) + row / 8 * row_groups(descriptor) + row % 8 * 128 + k * 2;
    uint16_t bits;
    memcpy(&bits, at(swizzled(linear), 2), 2);
    return bfloat16(bits);
  };
  double a[64][16], b[128][16];
  for (uint32_t k = 0; k < 16; ++k) {
    for (uint32_t row = 0; row < 64; ++row) a[row][k] = number(product.a, row, k);
    for (uint32_t col = 0; col < 128; ++col) b[col][k] = number(product.b, col, k);
  }
  for (uint32_t thread = 0; thread < 128; ++thread) {
    for (uint32_t eight = 0; eight < 16; ++eight) {
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t row = thread / 32 * 16 + thread % 32 / 4 + i / 2 * 8, col = eight * 8 + thread % 4 * 2 + i % 2;
        float& sum = product.sums[thread][eight][i];
        double value = product.accumulate ? static_cast<double>(sum) : 0.0;
        for (uint32_t k = 0; k < 16; ++k) value += a[row][k] * b[col][k];
        sum = cut(value);
      }
    }
  }
}

// Runs a kernel block by block.
inline void launch(int64_t blocks, int threads, const std::function<void()>& kernel) {
  grid_size.x = static_cast<uint32_t>(blocks);
  block_size.x = static_cast<uint32_t>(threads);
  for (int64_t block = 0; block < blocks; ++block) {
    block_index.x = static_cast<uint32_t>(block);
    Block(threads, kernel, static_cast<uint32_t>(block)).run();
  }
}

}  // namespace emulator

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define gridDim emulator::grid_size
#define blockDim emulator::block_size

template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}

// ---- the functions of csrc/cuda/instructions.cuh

namespace ahkernels::cuda {

using TensorMap = emulator::Tensor;
using emulator::Block;

// As on a processor, it begins on 128 bytes and on no more.
inline unsigned char* shared_memory() { return reinterpret_cast<unsigned char*>(Block::current().base()) + 128; }
inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const std::byte*>(pointer) - Block::current().base());
}

struct Nothing {};

inline void sync_threads() {
  Nothing nothing;
  Block::current().together(emulator::block_size.x, "a barrier of the block", &nothing, [](const auto&) {});
}

inline void copy_16(uint32_t to, const void* from) { Block::current().copy(to, from); }
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
    double rows[16][16], cols[8][16];
    for (uint32_t l = 0; l < 32; ++l) {
      for (uint32_t which = 0; which < 2; ++which) {
        const uint32_t k = l % 4 * 2 + which;
        rows[l / 4][k] = half(lanes[l]->a[0], which);
        rows[l / 4 + 8][k] = half(lanes[l]->a[1], which);
        rows[l / 4][k + 8] = half(lanes[l]->a[2], which);
        rows[l / 4 + 8][k + 8] = half(lanes[l]->a[3], which);
        cols[l / 4][k] = half(lanes[l]->b[0], which);
        cols[l / 4][k + 8] = half(lanes[l]->b[1], which);
      }
    }
    for (uint32_t l = 0; l < 32; ++l) {
      for (uint32_t i = 0; i < 4; ++i) {
        double sum = lanes[l]->c[i];
        for (uint32_t k = 0; k < 16; ++k) sum += rows[l / 4 + i / 2 * 8][k] * cols[l % 4 * 2 + i % 2][k];
        lanes[l]->c[i] = emulator::cut(sum);
      }
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
inline void barriers_ready() {}
inline void barrier_arrive(uint32_t barrier) { Block::current().arrive(barrier, 0); }
inline void barrier_arrive_expecting(uint32_t barrier, uint32_t bytes) { Block::current().arrive(barrier, bytes); }
inline void barrier_wait(uint32_t barrier, uint32_t parity) { Block::current().wait_for_phase(barrier, parity); }
inline void copy_box(uint32_t to, const TensorMap& tensor, int32_t column, int32_t row, uint32_t barrier) {
  Block::current().copy_box({to, tensor, column, row, barrier});
}
inline void prefetch_tensor(const TensorMap&) {}

inline void products_begin() {}
inline void products_commit() {
  Nothing nothing;
  Block::current().together(128, "wgmma commit", &nothing, [](const auto&) {
    Block::Products& products = Block::current().products();
    products.committed.push_back(std::move(products.open));
    products.open.clear();
  });
}
template <int Pending>
void products_wait() {
  Nothing nothing;
  Block::current().together(128, "wgmma wait", &nothing, [](const auto&) {
    Block::Products& products = Block::current().products();
    while (products.committed.size() > Pending) {
      for (const Block::Product& product : products.committed.front()) Block::current().make(product);
      products.committed.pop_front();
    }
  });
}

inline void multiply_64x128(float (&c)[16][4], uint64_t a, uint64_t b, bool accumulate) {
  struct Thread {
    float (*c)[4];
    uint64_t a, b;
    bool accumulate;
  } thread{c, a, b, accumulate};
  Block::current().together(128, "wgmma", &thread, [](const std::vector<Thread*>& threads) {
    Block::Product product{{}, threads[0]->a, threads[0]->b, threads[0]->accumulate};
    for (const Thread* one : threads) {
      if (one->a != product.a || one->b != product.b || one->accumulate != product.accumulate) {
        emulator::fail("threads of a warpgroup ask for different products");
      }
      product.sums.push_back(one->c);
    }
    Block::current().products().open.push_back(std::move(product));
  });
}

template <int Registers>
void release_registers() {}
template <int Registers>
void acquire_registers() {}

}  // namespace ahkernels::cuda
