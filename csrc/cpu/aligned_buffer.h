// Uninitialised memory on a cache line's boundary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace ahkernels::cpu {

struct AlignedDelete {
  void operator()(std::byte* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};

class AlignedBuffer {
 public:
  explicit AlignedBuffer(int64_t bytes)
      : memory_(static_cast<std::byte*>(::operator new[](static_cast<size_t>(bytes), std::align_val_t{64}))) {}

  template <class T>
  T* at(int64_t byte_offset) const {
    return reinterpret_cast<T*>(memory_.get() + byte_offset);
  }

 private:
  std::unique_ptr<std::byte, AlignedDelete> memory_;
};

}  // namespace ahkernels::cpu
