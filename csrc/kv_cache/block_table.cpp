#include "kv_cache/block_table.h"

#include <algorithm>

#include "common/check.h"

namespace runtime {

BlockTable::~BlockTable() {
  while (size() > 0) PopBack();
}

void BlockTable::Reserve(std::int32_t count) {
  const auto needed = static_cast<std::size_t>(count);
  if (needed > blocks_.capacity()) blocks_.reserve(std::max(needed, 2 * blocks_.capacity()));
}

bool BlockTable::Append(std::int32_t count) {
  Require(count >= 0, "the number of blocks to append must not be negative");
  if (allocator_->num_free() < count) return false;
  Reserve(size() + count);
  for (std::int32_t i = 0; i < count; ++i) blocks_.push_back(allocator_->TakeFree());
  return true;
}

void BlockTable::AppendShared(BlockId block) {
  Reserve(size() + 1);
  allocator_->AddOwner(block);
  blocks_.push_back(block);
}

void BlockTable::PopBack() {
  Ensure(!blocks_.empty(), "an empty block table has no last block");
  allocator_->RemoveOwner(blocks_.back());
  blocks_.pop_back();
}

}  // namespace runtime
