// The part of torch's stable API that the CPU ops use, for builds without torch: views of memory, and plain threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

namespace torch::headeronly {

enum class ScalarType { Float, Double, Half, BFloat16, Int, Long, ComplexFloat, ComplexDouble };

inline const char* toString(ScalarType) { return "another type"; }

}  // namespace torch::headeronly

namespace torch::stable {

using headeronly::ScalarType;

class Tensor {
 public:
  Tensor() = default;

  // Memory for all numbers that the strides reach, and not a byte more.
  Tensor(std::vector<int64_t> sizes, std::vector<int64_t> strides, ScalarType type)
      : sizes_(std::move(sizes)),
        strides_(std::move(strides)),
        type_(type),
        memory_(new std::byte[reach() * bytes()]) {}

  // The same memory with other strides.
  Tensor with_strides(std::vector<int64_t> strides) const {
    Tensor view = *this;
    view.strides_ = std::move(strides);
    return view;
  }

  static std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
    std::vector<int64_t> strides(sizes.size());
    int64_t stride = 1;
    for (size_t dim = sizes.size(); dim-- > 0; stride *= sizes[dim]) strides[dim] = stride;
    return strides;
  }

  int64_t dim() const { return static_cast<int64_t>(sizes_.size()); }
  int64_t size(int64_t dim) const { return sizes_[dim]; }
  int64_t stride(int64_t dim) const { return strides_[dim]; }
  const std::vector<int64_t>& sizes() const { return sizes_; }
  const std::vector<int64_t>& strides() const { return strides_; }
  int64_t numel() const {
    int64_t count = 1;
    for (const int64_t size : sizes_) count *= size;
    return count;
  }
  bool is_contiguous() const { return numel() == 0 || strides_ == contiguous_strides(sizes_); }
  ScalarType scalar_type() const { return type_; }
  size_t element_size() const { return static_cast<size_t>(bytes()); }
  const void* const_data_ptr() const { return memory_.get(); }
  void* mutable_data_ptr() const { return memory_.get(); }

  // Numbers from the first to the last that the strides reach.
  int64_t reach() const {
    int64_t last = 0;
    for (size_t dim = 0; dim < sizes_.size(); ++dim) {
      if (sizes_[dim] == 0) return 0;
      last += (sizes_[dim] - 1) * strides_[dim];
    }
    return last + 1;
  }

  // Calls visit(number, offset) for each number in the order of the dimensions; `offset` counts numbers in memory.
  template <class Visit>
  void for_each(const Visit& visit) const {
    std::vector<int64_t> at(sizes_.size(), 0);
    for (int64_t number = 0; number < numel(); ++number) {
      int64_t offset = 0;
      for (size_t dim = 0; dim < at.size(); ++dim) offset += at[dim] * strides_[dim];
      visit(number, offset);
      for (size_t dim = at.size(); dim-- > 0;) {
        if (++at[dim] < sizes_[dim]) break;
        at[dim] = 0;
      }
    }
  }

 private:
  int64_t bytes() const { return type_ == ScalarType::Double ? 8 : type_ == ScalarType::Float ? 4 : 2; }

  std::vector<int64_t> sizes_, strides_;
  ScalarType type_ = ScalarType::Float;
  std::shared_ptr<std::byte[]> memory_;
};

inline Tensor new_empty(const Tensor& self, std::vector<int64_t> sizes, std::optional<ScalarType> type = std::nullopt) {
  std::vector<int64_t> strides = Tensor::contiguous_strides(sizes);
  return Tensor(std::move(sizes), std::move(strides), type.value_or(self.scalar_type()));
}

inline Tensor contiguous(const Tensor& self) {
  if (self.is_contiguous()) return self;
  const Tensor copy = new_empty(self, self.sizes());
  const auto copy_numbers = [&](auto number) {
    using Number = decltype(number);
    self.for_each([&](int64_t to, int64_t from) {
      static_cast<Number*>(copy.mutable_data_ptr())[to] = static_cast<const Number*>(self.const_data_ptr())[from];
    });
  };
  switch (self.element_size()) {
    case 8:
      copy_numbers(uint64_t{});
      break;
    case 4:
      copy_numbers(uint32_t{});
      break;
    default:
      copy_numbers(uint16_t{});
  }
  return copy;
}

// ---- threads

inline uint32_t thread_count = 1;
inline thread_local bool in_parallel_region = false;

inline uint32_t get_num_threads() { return thread_count; }

// As torch does it: within a parallel region, one thread does all. `grain_size` is 1 here.
template <class Work>
void parallel_for(int64_t begin, int64_t end, int64_t, const Work& work) {
  if (in_parallel_region || end - begin <= 1) {
    if (begin < end) work(begin, end);
    return;
  }
  std::vector<std::thread> threads;
  for (int64_t first = begin; first < end; ++first) {
    threads.emplace_back([&work, first] {
      in_parallel_region = true;
      work(first, first + 1);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace torch::stable
