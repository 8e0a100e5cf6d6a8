// Work shared between torch's threads, each of which takes the next item when it has finished one. No result depends on
// which thread runs an item, since an item writes only to memory of its own.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../tiling.h"

namespace ahkernels::cpu {

inline int64_t thread_count() { return static_cast<int64_t>(torch::stable::get_num_threads()); }

// Calls work(item, thread) for every item in [0, count), where `thread` < thread_count() indexes scratch memory.
// Threads take `chunk` items at a time: so many should be worth the tens of microseconds that waking a thread can take.
// work() must not throw.
template <class Work>
void for_each_item(int64_t count, int64_t chunk, const Work& work) {
  const int64_t threads = std::min(thread_count(), ceil_div(count, chunk));
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (int64_t first; (first = next.fetch_add(chunk)) < count;) {
        for (int64_t item = first; item < std::min(first + chunk, count); ++item) work(item, thread);
      }
    }
  });
}

}  // namespace ahkernels::cpu
