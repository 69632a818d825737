#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/block_allocator.h"

namespace runtime {

// The blocks of one request in the order of its tokens; owns one reference to each.
// The allocator must outlive it.
class BlockTable {
 public:
  explicit BlockTable(BlockAllocator& allocator) : allocator_(&allocator) {}
  ~BlockTable();
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;

  std::int32_t size() const { return static_cast<std::int32_t>(blocks_.size()); }
  BlockId operator[](std::int32_t index) const { return blocks_[static_cast<std::size_t>(index)]; }
  std::span<const BlockId> blocks() const { return blocks_; }

  // Room for `count` blocks, so that Append up to there takes no memory.
  void Reserve(std::int32_t count);

  // Appends `count` free blocks, or none and returns false if fewer are free.
  [[nodiscard]] bool Append(std::int32_t count);
  // Appends a block that others own or that is cached.
  void AppendShared(BlockId block);
  // Gives the last block back.
  void PopBack();

 private:
  BlockAllocator* allocator_;
  std::vector<BlockId> blocks_;
};

}  // namespace runtime
