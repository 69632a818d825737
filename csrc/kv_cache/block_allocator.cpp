#include "runtime/block_allocator.h"

#include <string>
#include <utility>

#include "common/check.h"
#include "runtime/error.h"

namespace runtime {

BlockRef::BlockRef(BlockRef&& other) noexcept
    : allocator_(other.allocator_), id_(std::exchange(other.id_, kNoBlock)) {}

BlockRef& BlockRef::operator=(BlockRef&& other) noexcept {
  std::swap(allocator_, other.allocator_);
  std::swap(id_, other.id_);
  return *this;
}

BlockRef::~BlockRef() {
  if (id_ != kNoBlock) allocator_->RemoveOwner(id_);
}

BlockRef BlockRef::Share() const { return allocator_->Share(id_); }

BlockAllocator::BlockAllocator(std::int32_t num_blocks)
    : num_blocks_(num_blocks), num_free_(num_blocks) {
  if (num_blocks < 1) {
    throw ConfigError("num_blocks=" + std::to_string(num_blocks) + ": must be at least 1",
                      "num_kv_blocks or kv_cache_memory_bytes sets it");
  }
  slots_.resize(static_cast<std::size_t>(num_blocks) + 1);
  for (BlockId block = 1; block <= num_blocks; ++block) LinkAfter(block, block - 1);
}

BlockAllocator::~BlockAllocator() {
  Ensure(num_free_ == num_blocks_, "no block is owned when its allocator is destroyed");
}

std::optional<std::vector<BlockRef>> BlockAllocator::Allocate(std::int32_t count) {
  Require(count >= 0, "the number of blocks to allocate must not be negative");
  if (num_free_ < count) return std::nullopt;
  std::vector<BlockRef> blocks;
  blocks.reserve(static_cast<std::size_t>(count));
  for (std::int32_t i = 0; i < count; ++i) blocks.push_back(BlockRef(*this, TakeFree()));
  return blocks;
}

BlockRef BlockAllocator::Share(BlockId block) {
  AddOwner(block);
  return BlockRef(*this, block);
}

void BlockAllocator::SetCached(BlockId block, bool cached) { slot(block).cached = cached; }

BlockAllocator::Slot& BlockAllocator::slot(BlockId block) {
  Ensure(block >= 1 && block <= num_blocks_, "block ids run from 1 to num_blocks");
  return slots_[static_cast<std::size_t>(block)];
}

const BlockAllocator::Slot& BlockAllocator::slot(BlockId block) const {
  return const_cast<BlockAllocator*>(this)->slot(block);
}

BlockId BlockAllocator::TakeFree() {
  BlockId block = slots_[0].next;
  if (slot(block).cached) {
    block = listener_->Victim(block);
    listener_->OnEvict(block);
    slot(block).cached = false;
  }
  Unlink(block);
  slot(block).num_owners = 1;
  return block;
}

void BlockAllocator::AddOwner(BlockId block) {
  Slot& shared = slot(block);
  Ensure(shared.num_owners > 0 || shared.cached, "a shared block is owned or cached");
  num_shared_ += ++shared.num_owners == 2;
  if (shared.num_owners > 1) return;
  Unlink(block);
  if (listener_ != nullptr) listener_->OnShare(block);
}

void BlockAllocator::RemoveOwner(BlockId block) {
  Slot& owned = slot(block);
  Ensure(owned.num_owners > 0, "a block is released once by each owner");
  num_shared_ -= --owned.num_owners == 1;
  if (owned.num_owners > 0) return;
  LinkAfter(block, owned.cached ? slots_[0].prev : kNoBlock);
  ++num_free_;
  if (owned.cached && listener_ != nullptr) listener_->OnFree(block);
}

void BlockAllocator::Unlink(BlockId block) {
  Slot& unlinked = slot(block);
  slots_[static_cast<std::size_t>(unlinked.prev)].next = unlinked.next;
  slots_[static_cast<std::size_t>(unlinked.next)].prev = unlinked.prev;
  --num_free_;
}

void BlockAllocator::LinkAfter(BlockId block, BlockId prev) {
  const BlockId next = slots_[static_cast<std::size_t>(prev)].next;
  slot(block).prev = prev;
  slot(block).next = next;
  slots_[static_cast<std::size_t>(prev)].next = block;
  slots_[static_cast<std::size_t>(next)].prev = block;
}

void BlockAllocator::Check() const {
  std::int32_t num_unowned = 0, num_shared = 0;
  for (BlockId block = 1; block <= num_blocks_; ++block) {
    num_unowned += num_owners(block) == 0;
    num_shared += num_owners(block) > 1;
  }
  Hold(num_shared == num_shared_, "blocks with several owners are counted");
  std::int32_t num_listed = 0;
  for (BlockId block = slots_[0].next; block != kNoBlock; block = slot(block).next) {
    Hold(num_owners(block) == 0, "a block in the free list has no owner");
    Hold(++num_listed <= num_blocks_, "a block stands in the free list once");
  }
  Hold(num_listed == num_unowned, "every block without an owner is in the free list");
  Hold(num_listed == num_free_, "free blocks are counted");
}

}  // namespace runtime
