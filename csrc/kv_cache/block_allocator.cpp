#include "runtime/block_allocator.h"

#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include "common/cache_line.h"
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

BlockAllocator::BlockAllocator(std::int32_t num_blocks) : num_blocks_(num_blocks), num_free_(0) {
  if (num_blocks < 1) {
    throw ConfigError("num_blocks=" + std::to_string(num_blocks) + ": must be at least 1",
                      "num_kv_blocks or kv_cache_memory_bytes sets it");
  }
  slots_.resize(static_cast<std::size_t>(num_blocks) + 1);
  queue_.resize(std::bit_ceil(2 * static_cast<std::size_t>(num_blocks)));
  mask_ = static_cast<std::uint32_t>(queue_.size() - 1);
  for (BlockId block = 1; block <= num_blocks; ++block) Enqueue(block, /*at_front=*/false);
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

void BlockAllocator::SetContent(BlockId block, std::int32_t content) {
  slot(block).content = content;
}

BlockAllocator::Slot& BlockAllocator::slot(BlockId block) {
  Ensure(block >= 1 && block <= num_blocks_, "block ids run from 1 to num_blocks");
  return slots_[static_cast<std::size_t>(block)];
}

const BlockAllocator::Slot& BlockAllocator::slot(BlockId block) const {
  return const_cast<BlockAllocator*>(this)->slot(block);
}

BlockId BlockAllocator::TakeFree() {
  BlockId block = queued(front_);
  if (is_cached(block)) {
    block = listener_->Victim(block);
    listener_->OnEvict(block);
    slot(block).content = 0;
  }
  Dequeue(block);
  slot(block).num_owners = 1;
  ForetellEvictions();
  return block;
}

void BlockAllocator::ForetellEvictions() const {
  constexpr std::uint32_t kAhead = 4;  // evictions that take as long as a read from memory
  const BlockId next = queued(front_ + kAhead);
  const BlockId later = queued(front_ + 2 * kAhead);
  FetchLine(&slots_[static_cast<std::size_t>(queued(front_ + 3 * kAhead))]);
  if (next == kNoBlock || later == kNoBlock) return;
  if (is_cached(next) && is_cached(later)) listener_->OnEvictSoon(next, later);
}

void BlockAllocator::AddOwner(BlockId block) {
  Slot& shared = slot(block);
  Ensure(shared.num_owners > 0 || shared.content != 0, "a shared block is owned or cached");
  num_shared_ += ++shared.num_owners == 2;
  num_repeats_ += shared.num_owners > 1;
  if (shared.num_owners > 1) return;
  Dequeue(block);
  if (listener_ != nullptr) listener_->OnShare(block);
}

void BlockAllocator::RemoveOwner(BlockId block) {
  Slot& owned = slot(block);
  Ensure(owned.num_owners > 0, "a block is released once by each owner");
  num_repeats_ -= owned.num_owners > 1;
  num_shared_ -= --owned.num_owners == 1;
  if (owned.num_owners > 0) return;
  const bool is_cached = owned.content != 0;
  Enqueue(block, /*at_front=*/!is_cached);
  if (is_cached && listener_ != nullptr) listener_->OnFree(block);
}

void BlockAllocator::Enqueue(BlockId block, bool at_front) {
  if (back_ - front_ == queue_.size()) CloseHoles();
  const std::uint32_t place = at_front ? --front_ : back_++;
  queued(place) = block;
  slot(block).place = place;
  ++num_free_;
}

void BlockAllocator::Dequeue(BlockId block) {
  queued(slot(block).place) = kNoBlock;
  --num_free_;
  while (front_ != back_ && queued(front_) == kNoBlock) ++front_;
}

void BlockAllocator::CloseHoles() {
  std::uint32_t place = front_;
  for (std::uint32_t from = front_; from != back_; ++from) {
    const BlockId block = std::exchange(queued(from), kNoBlock);
    if (block == kNoBlock) continue;
    slot(block).place = place;
    queued(place++) = block;
  }
  back_ = place;
}

void BlockAllocator::Check() const {
  std::int32_t num_unowned = 0, num_shared = 0, num_repeats = 0;
  for (BlockId block = 1; block <= num_blocks_; ++block) {
    num_unowned += num_owners(block) == 0;
    num_shared += num_owners(block) > 1;
    num_repeats += std::max(num_owners(block) - 1, 0);
  }
  Hold(num_shared == num_shared_, "blocks with several owners are counted");
  Hold(num_repeats == num_repeats_, "owners beyond the first of each block are counted");
  std::int32_t num_listed = 0;
  for (std::uint32_t place = front_; place != back_; ++place) {
    const BlockId block = queued(place);
    if (block == kNoBlock) continue;
    Hold(num_owners(block) == 0, "a block in the free queue has no owner");
    Hold(slot(block).place == place, "a block stands in the free queue once");
    ++num_listed;
  }
  Hold(num_listed == num_unowned, "every block without an owner is in the free queue");
  Hold(num_listed == num_free_, "free blocks are counted");
}

}  // namespace runtime
