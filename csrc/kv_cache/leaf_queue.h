#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "runtime/types.h"

namespace runtime {

// Blocks by priority, lowest first; of equal ones that which came first. A binary heap that knows
// where each block stands, so that any of them can leave. Takes memory only when it is made.
class LeafQueue {
 public:
  explicit LeafQueue(std::int32_t num_blocks)
      : positions_(static_cast<std::size_t>(num_blocks) + 1) {
    heap_.reserve(static_cast<std::size_t>(num_blocks));
  }

  bool empty() const { return heap_.empty(); }
  bool contains(BlockId block) const { return positions_[Index(block)] > 0; }
  // REQUIRES: !empty().
  BlockId top() const { return heap_.front().block; }

  // REQUIRES: !contains(block).
  void Push(BlockId block, std::int64_t priority) {
    heap_.push_back({priority, ++num_pushed_, block});
    SiftUp(heap_.size() - 1);
  }
  // REQUIRES: contains(block).
  void Erase(BlockId block) {
    const std::size_t at = positions_[Index(block)] - 1;
    positions_[Index(block)] = 0;
    const Item last = heap_.back();
    heap_.pop_back();
    if (at == heap_.size()) return;
    Put(at, last);
    SiftUp(at);
    SiftDown(positions_[Index(last.block)] - 1);
  }
  void Clear() {
    while (!empty()) Erase(heap_.back().block);
  }

 private:
  struct Item {
    std::int64_t priority;
    std::int64_t order;
    BlockId block;
  };

  static std::size_t Index(BlockId block) { return static_cast<std::size_t>(block); }
  static bool Before(const Item& a, const Item& b) {
    return a.priority != b.priority ? a.priority < b.priority : a.order < b.order;
  }
  void Put(std::size_t at, const Item& item) {
    heap_[at] = item;
    positions_[Index(item.block)] = at + 1;
  }
  void SiftUp(std::size_t at) {
    const Item item = heap_[at];
    for (; at > 0 && Before(item, heap_[(at - 1) / 2]); at = (at - 1) / 2) {
      Put(at, heap_[(at - 1) / 2]);
    }
    Put(at, item);
  }
  void SiftDown(std::size_t at) {
    const Item item = heap_[at];
    for (std::size_t child = 2 * at + 1; child < heap_.size(); child = 2 * at + 1) {
      child += child + 1 < heap_.size() && Before(heap_[child + 1], heap_[child]);
      if (!Before(heap_[child], item)) break;
      Put(std::exchange(at, child), heap_[child]);
    }
    Put(at, item);
  }

  std::vector<Item> heap_;
  std::vector<std::size_t> positions_;  // by block: 1 + its place in the heap; 0: not there
  std::int64_t num_pushed_ = 0;
};

}  // namespace runtime
