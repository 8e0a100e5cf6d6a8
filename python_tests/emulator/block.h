// A block of threads of a graphics processor on a host: enough of one to run the tile kernels where there is no other.
//
// The threads are fibers that take turns. Warps are held up at random, and what a real processor does on the side
// happens at random moments between the earliest and the latest it may: copies land in any order, products read shared
// memory early or late, and their registers hold nan until they have been waited for. A missing wait, or a place given
// up too soon, therefore shows as a wrong number under some schedule; a schedule is a seed. A block in which nobody can
// go on is reported, not waited for. What the PTX manual leaves undefined, such as a missing fence, is refused with a
// sentence. Shared memory starts as nan, and sums of products lose what a matrix unit cuts off.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rounding.h"

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

struct Span {
  const void* begin;
  int64_t bytes;
};

// The global memory that single threads of a launch may read; any, where nothing is listed.
inline std::vector<Span> readable;

[[noreturn]] inline void fail(const std::string& what) { throw std::runtime_error("emulator: " + what); }

inline void check_readable(const void* from, size_t bytes) {
  const auto holds = [&](const Span& span) {
    const int64_t offset = static_cast<const std::byte*>(from) - static_cast<const std::byte*>(span.begin);
    return offset >= 0 && offset + static_cast<int64_t>(bytes) <= span.bytes;
  };
  if (!readable.empty() && std::none_of(readable.begin(), readable.end(), holds)) fail("a read beyond what was given");
}

inline float bfloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &wide, sizeof(value));
  return value;
}

class Block {
 public:
  static constexpr uint32_t kMostSharedBytes = 232448;
  static constexpr uint32_t kBase = 128;  // address of shared memory: on 128 bytes and on no more
  static constexpr size_t kWarp = 32, kWarpgroup = 128;

  Block(size_t threads, uint32_t shared_bytes, const std::function<void()>& kernel, uint32_t schedule)
      : memory_(kBase + shared_bytes, std::byte{0xFF}),
        kernel_(kernel),
        fibers_(threads),
        random_(schedule),
        slow_warps_(2 + below(6)),
        copies_(Moments::any(*this)),
        products_made_(Moments::any(*this)) {
    if (shared_bytes > kMostSharedBytes) fail("a launch with more shared memory than a block can have");
    for (Fiber& fiber : fibers_) fiber.registers = static_cast<int>(65536 / threads / 8 * 8);
  }

  static Block& current() { return *current_; }

  void run() {
    current_ = this;
    while (stacks_.size() < fibers_.size()) stacks_.push_back(std::make_unique_for_overwrite<std::byte[]>(kStackBytes));
    for (size_t thread = 0; thread < fibers_.size(); ++thread) {
      Fiber& fiber = fibers_[thread];
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = stacks_[thread].get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Block::start), 0);
    }
    while (take_turns()) {
    }
    if (!boxes_.empty()) fail("a bulk copy was left in flight");
    for (const auto& [warp, products] : products_) {
      if (!products.in_flight.empty()) fail("products were left in flight");
    }
  }

  size_t thread() const { return running_; }

  // All of a group of threads come here with their arguments; the last one does the work of all.
  template <class Arguments, class Work>
  void together(size_t size, std::string_view what, Arguments* arguments, const Work& work) {
    Meeting& meeting = meetings_[{size, running_ / size}];
    if (meeting.arrived.empty()) {
      meeting.what = what;
      meeting.arrived.assign(size, nullptr);
    }
    if (meeting.what != what) {
      fail("threads of a group meet at " + std::string(meeting.what) + " and at " + std::string(what));
    }
    meeting.arrived[running_ % size] = arguments;
    const int64_t generation = meeting.generation;
    if (++meeting.count < size) {
      wait(meeting.generation, [&] { return meeting.generation != generation; });
      return;
    }
    std::vector<Arguments*> all;
    for (void* one : meeting.arrived) all.push_back(static_cast<Arguments*>(one));
    meeting.arrived.clear();
    meeting.count = 0;
    ++meeting.generation;
    work(all);
  }

  void sync() {
    int nothing = 0;
    together(fibers_.size(), "a barrier of the block", &nothing, [&](const auto&) { ++syncs_; });
  }

  void sync_warpgroup(int barrier) {
    if (barrier < 0 || barrier > 14) fail("a barrier of a warpgroup that a block does not have");
    together(kWarpgroup, "a barrier of the warpgroup", &barrier, [&](const std::vector<int*>& barriers) {
      for (const int* one : barriers) {
        if (*one != barrier) fail("threads of a warpgroup wait at different barriers");
      }
      const auto [owner, first] = barrier_owners_.emplace(barrier, running_ / kWarpgroup);
      if (owner->second != running_ / kWarpgroup) fail("warpgroups wait at the same barrier");
    });
  }

  // Any one thread of a warp.
  bool elect() {
    bool elected = false;
    together(kWarp, "an election", &elected, [&](const auto& lanes) { *lanes[below(kWarp)] = true; });
    return elected;
  }

  std::byte* at(uint32_t address, size_t bytes) {
    if (address < kBase || address + bytes > memory_.size()) fail("an address beyond the launch's shared memory");
    return memory_.data() + address;
  }
  // For numbers that threads read and write by themselves.
  std::byte* numbers_at(uint32_t address, size_t bytes, size_t alignment) {
    if (address % alignment != 0) fail("an address in shared memory that is not aligned");
    const auto barrier = barriers_.upper_bound(address - kBarrierBytes);
    if (barrier != barriers_.end() && barrier->first < address + bytes) fail("numbers where a barrier is");
    return at(address, bytes);
  }
  std::byte* begin() { return memory_.data(); }

  // ---- copies of single threads

  struct Copy {
    uint32_t to, bytes;
    const void* from;
  };

  void copy(uint32_t to, const void* from, uint32_t bytes) {
    if (reinterpret_cast<uintptr_t>(from) % bytes != 0) fail("a copy of bytes that are not aligned");
    numbers_at(to, bytes, bytes);
    check_readable(from, bytes);
    fibers_[running_].open.push_back({to, bytes, from});
  }
  void commit_copies() {
    Fiber& fiber = fibers_[running_];
    fiber.committed.push_back(std::move(fiber.open));
    fiber.open.clear();
    if (happens_early(copies_)) make(fiber.committed.back());
  }
  void wait_for_copies(size_t pending) {
    Fiber& fiber = fibers_[running_];
    for (; fiber.committed.size() > pending; fiber.committed.pop_front()) make(fiber.committed.front());
  }

  // ---- barriers

  void init_barrier(uint32_t address, uint32_t arrivals) {
    at(address, kBarrierBytes);
    if (address % kBarrierBytes != 0) fail("a barrier that is not aligned");
    if (barriers_.count(address) != 0) fail("a barrier that was initialised before");
    barriers_[address] = {arrivals, arrivals, 0, 0, running_, syncs_, false};
  }
  // The fence between initialisation and bulk copies.
  void publish_barriers() {
    for (auto& [address, barrier] : barriers_) barrier.known_to_copies |= barrier.maker == running_;
  }
  void arrive(uint32_t address, int64_t bytes) {
    Barrier& barrier = barrier_of(address);
    if (barrier.pending == 0) fail("more arrivals at a barrier than it expects");
    barrier.bytes += bytes;
    --barrier.pending;
    end_phase(barrier);
    for (uint32_t turns = below(4); turns > 0; --turns) leave();
  }
  void wait_for_phase(uint32_t address, uint32_t parity) {
    const Barrier& barrier = barrier_of(address);
    wait(barrier.phase, [&] { return (barrier.phase & 1) != parity; });
  }

  // ---- bulk copies

  struct Box {
    uint32_t to;
    Tensor tensor;
    int32_t col, row;
    uint32_t barrier;
  };

  void copy_box(const Box& box) {
    const uint32_t bytes = static_cast<uint32_t>(box.tensor.box_rows) * kSwizzledRow;
    if (box.tensor.box_cols * 2 != kSwizzledRow) fail("a swizzled box whose rows are not 128 bytes");
    if (box.tensor.box_rows > 256) fail("a box of more than 256 rows");
    if (box.to % 1024 != 0) fail("a swizzled box that does not begin on 1024 bytes");
    at(box.to, bytes);
    for (const auto& [address, barrier] : barriers_) {
      if (address + kBarrierBytes > box.to && address < box.to + bytes) fail("a bulk copy over a barrier");
    }
    if (!barrier_of(box.barrier).known_to_copies) fail("a bulk copy with a barrier that no fence made known to it");
    boxes_.push_back(box);
  }

  // ---- products of warpgroups, a warp's part at a time

  using Accumulators = float (*)[4];  // of one thread: [16][4]

  void begin_products() { fibers_[running_].fenced = true; }

  // accumulators (+)= a b^T
  void issue_product(Accumulators accumulators, uint64_t a, uint64_t b, bool accumulate) {
    check_descriptor(a);
    check_descriptor(b);
    if (!fibers_[running_].fenced) fail("a product of registers that no wgmma.fence has handed over");
    struct Lane {
      Accumulators accumulators;
      uint64_t a, b;
      bool accumulate;
    } lane{accumulators, a, b, accumulate};
    together(kWarp, "wgmma", &lane, [&](const std::vector<Lane*>& lanes) {
      Products& products = products_[running_ / kWarp];
      for (const Lane* one : lanes) {
        if (one->a != a || one->b != b || one->accumulate != accumulate) fail("threads ask for different products");
      }
      check_same_in_warpgroup(products.issued++, {a, b, accumulate});
      Registers& registers = products.in_flight[lanes[0]->accumulators];
      if (registers.of.empty()) {
        for (const Lane* one : lanes) registers.of.push_back(one->accumulators);
        registers.take();
      }
      ++registers.products;
      products.open.push_back({lanes[0]->accumulators, a, b, accumulate});
    });
  }
  void commit_products() {
    int nothing = 0;
    together(kWarp, "wgmma commit", &nothing, [&](const auto&) {
      Products& products = products_[running_ / kWarp];
      products.committed.push_back({std::move(products.open), false});
      products.open.clear();
      if (!happens_early(products_made_)) return;
      for (Group& group : products.committed) make(running_ / kWarp, group);
    });
  }
  void wait_for_products(size_t pending) {
    Products& products = products_[running_ / kWarp];
    const int64_t before = products.waits;
    int nothing = 0;
    together(kWarp, "wgmma wait", &nothing, [&](const auto&) {
      products.pending = pending;
      waiting_.push_back(running_ / kWarp);
    });
    wait(products.waits, [&] { return products.waits != before; });
  }

  // ---- registers

  void release_registers(int count) {
    Fiber& fiber = fibers_[running_];
    check_registers(count, count <= fiber.registers);
    free_registers_ += fiber.registers - count;
    ++register_changes_;
    fiber.registers = count;
  }
  void acquire_registers(int count) {
    Fiber& fiber = fibers_[running_];
    check_registers(count, count >= fiber.registers);
    const int64_t more = count - fiber.registers;
    wait(register_changes_, [&] { return free_registers_ >= more; });
    free_registers_ -= more;
    fiber.registers = count;
  }

 private:
  static constexpr size_t kStackBytes = 256 << 10;
  static constexpr uint32_t kBarrierBytes = 8;
  static constexpr int32_t kSwizzledRow = 128;

  struct Fiber {
    ucontext_t context;
    jmp_buf left;  // where it stopped; jumping spares the system calls of swapcontext
    bool begun = false, done = false;
    // It waits until the counter differs from what it saw.
    const int64_t* counter = nullptr;
    int64_t seen = 0;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> committed;
    bool fenced = false;
    int registers = 0;
  };
  struct Meeting {
    std::string_view what;
    std::vector<void*> arrived;
    size_t count = 0;
    int64_t generation = 0;
  };
  struct Barrier {
    int64_t expected = 0, pending = 0, bytes = 0, phase = 0;
    size_t maker = 0;
    int64_t made = 0;  // barriers of the block before
    bool known_to_copies = false;
  };

  // When something happens that may happen early or late: with a chance of one in `early` at once, otherwise with a
  // chance of one in `late` in each turn, and when nothing else can.
  struct Moments {
    uint32_t early, late;

    static Moments any(Block& block) {
      constexpr uint32_t kEarly[] = {1, 2, 1000}, kLate[] = {1, 4, 1000};
      return {kEarly[block.below(3)], kLate[block.below(3)]};
    }
  };
  bool happens_early(const Moments& moments) { return below(moments.early) == 0; }
  bool happens_now(const Moments& moments) { return below(moments.late) == 0; }
  uint32_t below(uint32_t count) { return static_cast<uint32_t>(random_() % count); }

  // ---- turns

  // Everybody's turn who can go on. Returns whether anybody is left.
  bool take_turns() {
    bool left = false, can_go_on = false, slow = false;
    for (size_t thread = 0; thread < fibers_.size(); ++thread) {
      if (thread % kWarp == 0) slow = below(slow_warps_) == 0;
      Fiber& fiber = fibers_[thread];
      if (fiber.done) continue;
      left = true;
      if (fiber.counter != nullptr && *fiber.counter == fiber.seen) continue;
      can_go_on = true;
      if (slow) continue;
      running_ = thread;
      thread_index.x = static_cast<uint32_t>(thread);
      resume(fiber);
      if (error_) std::rethrow_exception(error_);
    }
    const bool happened = let_things_happen(!can_go_on);
    if (left && !can_go_on && !happened) fail("no thread can go on");
    return left;
  }

  // Bulk copies land, and products are done that a warp waits for; at least one of them if one must.
  bool let_things_happen(bool must) {
    bool happened = false;
    for (size_t tries = boxes_.size(); tries > 0; --tries) {
      if (happens_now(copies_)) land(), happened = true;
    }
    for (size_t tries = waiting_.size(); tries > 0; --tries) {
      if (happens_now(products_made_)) finish_products(), happened = true;
    }
    if (happened || !must || boxes_.size() + waiting_.size() == 0) return happened;
    if (below(static_cast<uint32_t>(boxes_.size() + waiting_.size())) < boxes_.size()) {
      land();
    } else {
      finish_products();
    }
    return true;
  }

  // Takes any one out of `all`.
  template <class T>
  T any_of(std::vector<T>& all) {
    std::swap(all[below(static_cast<uint32_t>(all.size()))], all.back());
    const T one = all.back();
    all.pop_back();
    return one;
  }

  // Until ready() is true, other threads run; it can only become true when the counter changes.
  template <class Ready>
  void wait(const int64_t& counter, const Ready& ready) {
    Fiber& fiber = fibers_[running_];
    while (!ready()) {
      fiber.counter = &counter;
      fiber.seen = counter;
      leave();
    }
    fiber.counter = nullptr;
  }

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
    _longjmp(block.scheduler_left_, 1);
  }

  // ---- copies and barriers

  void make(std::vector<Copy>& copies) {
    for (const Copy& copy : copies) memcpy(at(copy.to, copy.bytes), copy.from, copy.bytes);
    copies.clear();
  }

  Barrier& barrier_of(uint32_t address) {
    const auto found = barriers_.find(address);
    if (found == barriers_.end()) fail("a barrier that was not initialised");
    Barrier& barrier = found->second;
    if (barrier.maker != running_ && barrier.made == syncs_) fail("a barrier that other threads do not know of yet");
    return barrier;
  }

  void end_phase(Barrier& barrier) {
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    barrier.pending = barrier.expected;
    ++barrier.phase;
  }

  // A swizzled copy: row after row, of whose eight pieces of 16 bytes number p comes to place p ^ (row % 8).
  void land() {
    const Box box = any_of(boxes_);
    const Tensor& tensor = box.tensor;
    for (int32_t row = 0; row < tensor.box_rows; ++row) {
      std::byte* to = at(box.to + static_cast<uint32_t>(row * kSwizzledRow), kSwizzledRow);
      for (int32_t col = 0; col < tensor.box_cols; ++col) {
        const int64_t r = int64_t{box.row} + row, c = int64_t{box.col} + col;
        const bool inside = r >= 0 && c >= 0 && r < tensor.rows && c < tensor.cols;
        const uint16_t number = inside ? tensor.data[r * tensor.cols + c] : uint16_t{0};
        memcpy(to + ((col / 8) ^ (row % 8)) * 16 + col % 8 * 2, &number, 2);
      }
    }
    Barrier& barrier = barriers_.at(box.barrier);
    barrier.bytes -= int64_t{tensor.box_rows} * kSwizzledRow;
    end_phase(barrier);
  }

  // ---- products

  struct Product {
    Accumulators accumulators;  // those of the warp's first thread, which name the registers
    uint64_t a, b;
    bool accumulate;
  };
  struct Group {
    std::vector<Product> products;
    bool made;
  };

  // What products in flight have in their registers. These hold nan meanwhile, and nobody may write them.
  struct Registers {
    static constexpr size_t kCount = 16 * 4;
    static constexpr uint32_t kInFlight = 0x7FD5AA55;

    std::vector<Accumulators> of;  // [lane]
    std::vector<float> values;     // [lane][16][4]
    int products = 0;

    void take() {
      values.resize(of.size() * kCount);
      for (size_t lane = 0; lane < of.size(); ++lane) {
        memcpy(values.data() + lane * kCount, of[lane], kCount * 4);
        for (size_t i = 0; i < kCount; ++i) memcpy(&of[lane][i / 4][i % 4], &kInFlight, 4);
      }
    }
    void give_back() const {
      for (size_t lane = 0; lane < of.size(); ++lane) {
        for (size_t i = 0; i < kCount; ++i) {
          if (std::memcmp(&of[lane][i / 4][i % 4], &kInFlight, 4) != 0)
            fail("registers of products in flight were written");
        }
        memcpy(of[lane], values.data() + lane * kCount, kCount * 4);
      }
    }
  };

  struct Request {
    uint64_t a, b;
    bool accumulate;
    bool operator==(const Request&) const = default;
  };

  // Of one warp.
  struct Products {
    std::vector<Product> open;
    std::deque<Group> committed;
    std::map<Accumulators, Registers> in_flight;
    size_t issued = 0, pending = 0;  // the latter of the wait that it is at
    int64_t waits = 0;
  };

  // A warpgroup's warps issue the same products, though not at the same time.
  void check_same_in_warpgroup(size_t index, const Request& request) {
    std::vector<Request>& requests = requests_[running_ / kWarpgroup];
    if (index == requests.size()) requests.push_back(request);
    if (!(requests[index] == request)) fail("warps of a warpgroup ask for different products");
  }

  // The fields of a descriptor are the address, the leading and the stride offset, the base offset and the swizzle.
  static void check_descriptor(uint64_t descriptor) {
    constexpr uint64_t kReserved = uint64_t{3} << 14 | uint64_t{3} << 30 | uint64_t{7} << 46 | uint64_t{0x3FF} << 52;
    if (descriptor & kReserved) fail("a descriptor with reserved bits that are not zero");
    if (descriptor >> 62 != 1) fail("a matrix that is not swizzled in 128 bytes");
    if ((descriptor >> 49 & 7) != 0) fail("a swizzle that does not begin on 1024 bytes");
    if ((descriptor >> 16 & 0x3FFF) != 1) fail("a swizzled matrix with a leading offset");
  }

  // numbers [16] of a row, along k. The swizzle of a product acts on addresses: exclusive-or of bits 4 to 6 with bits 7
  // to 9.
  void read_row(uint64_t descriptor, uint32_t row, float (&numbers)[16]) {
    const uint32_t first = static_cast<uint32_t>(descriptor & 0x3FFF) << 4;
    const uint32_t eight_rows = static_cast<uint32_t>(descriptor >> 32 & 0x3FFF) << 4;
    for (uint32_t piece = 0; piece < 2; ++piece) {
      const uint32_t linear = first + row / 8 * eight_rows + row % 8 * kSwizzledRow + piece * 16;
      uint16_t bits[8];
      memcpy(bits, at(linear ^ (linear >> 3 & 0x70), 16), 16);
      for (uint32_t i = 0; i < 8; ++i) numbers[piece * 8 + i] = bfloat16(bits[i]);
    }
  }

  void make(size_t warp, Group& group) {
    if (group.made) return;
    group.made = true;
    for (const Product& product : group.products) {
      float a[16][16];  // [row][k]
      Columns<128> b;
      for (uint32_t row = 0; row < 16; ++row) {
        read_row(product.a, static_cast<uint32_t>(warp * 16 % 64) + row, a[row]);
      }
      for (uint32_t col = 0; col < 128; ++col) {
        float numbers[16];
        read_row(product.b, col, numbers);
        for (uint32_t k = 0; k < 16; ++k) b.set(k, col, numbers[k]);
      }
      float* values = products_.at(warp).in_flight.at(product.accumulators).values.data();
      const auto value = [&](uint32_t row, uint32_t col) -> float& {
        const uint32_t lane = row % 8 * 4 + col % 8 / 2;
        return values[lane * 64 + col / 8 * 4 + row / 8 * 2 + col % 2];
      };
      for (uint32_t row = 0; row < 16; ++row) {
        float sums[128];
        for (uint32_t col = 0; col < 128; ++col) sums[col] = product.accumulate ? value(row, col) : 0.0f;
        multiply_row<kHopper>(a[row], b, sums);
        for (uint32_t col = 0; col < 128; ++col) value(row, col) = sums[col];
      }
    }
  }

  void finish_products() {
    const size_t warp = any_of(waiting_);
    Products& products = products_.at(warp);
    while (products.committed.size() > products.pending) {
      make(warp, products.committed.front());
      for (const Product& product : products.committed.front().products) {
        const auto registers = products.in_flight.find(product.accumulators);
        if (--registers->second.products > 0) continue;
        registers->second.give_back();
        products.in_flight.erase(registers);
      }
      products.committed.pop_front();
    }
    if (products.in_flight.empty()) {  // others may use the registers now
      for (size_t lane = 0; lane < kWarp; ++lane) fibers_[warp * kWarp + lane].fenced = false;
    }
    ++products.waits;
  }

  // ---- registers

  static void check_registers(int count, bool towards) {
    if (count % 8 != 0 || count < 24 || count > 256 || !towards) fail("setmaxnreg with a number that it may not have");
  }

  static inline Block* current_ = nullptr;
  static inline std::vector<std::unique_ptr<std::byte[]>> stacks_;  // one block uses them after the other
  std::vector<std::byte> memory_;
  const std::function<void()>& kernel_;
  std::vector<Fiber> fibers_;
  std::mt19937 random_;
  const uint32_t slow_warps_;  // one in so many, each turn
  const Moments copies_, products_made_;
  jmp_buf scheduler_left_;
  size_t running_ = 0;
  std::exception_ptr error_;
  std::map<std::pair<size_t, size_t>, Meeting> meetings_;
  int64_t syncs_ = 0;
  std::map<int, size_t> barrier_owners_;  // warpgroups
  std::map<uint32_t, Barrier> barriers_;
  std::vector<Box> boxes_;
  std::map<size_t, Products> products_;              // of each warp
  std::map<size_t, std::vector<Request>> requests_;  // of each warpgroup
  std::vector<size_t> waiting_;                      // warps that wait for products
  int64_t free_registers_ = 0, register_changes_ = 0;
};

// The schedule of the next launch; one comes after the other.
inline uint32_t next_schedule = 0;

// Runs a kernel block by block.
inline void launch(int64_t blocks, int threads, uint32_t shared_bytes, const std::function<void()>& kernel) {
  grid_size.x = static_cast<uint32_t>(blocks);
  block_size.x = static_cast<uint32_t>(threads);
  for (int64_t block = 0; block < blocks; ++block) {
    block_index.x = static_cast<uint32_t>(block);
    Block(static_cast<size_t>(threads), shared_bytes, kernel, next_schedule++).run();
  }
}

}  // namespace emulator
