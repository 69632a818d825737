#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/types.h"

namespace runtime {

class BlockAllocator;

// Owns one reference to a block; the last one gives the block back.
// The allocator must outlive every BlockRef.
class BlockRef {
 public:
  BlockRef(BlockRef&& other) noexcept;
  BlockRef& operator=(BlockRef&& other) noexcept;
  BlockRef(const BlockRef&) = delete;
  BlockRef& operator=(const BlockRef&) = delete;
  ~BlockRef();

  BlockId id() const { return id_; }

  // A second owner of the same block.
  BlockRef Share() const;

 private:
  friend class BlockAllocator;
  BlockRef(BlockAllocator& allocator, BlockId id) : allocator_(&allocator), id_(id) {}

  BlockAllocator* allocator_;
  BlockId id_;
};

// Told what happens to cached blocks, and asked which of them goes first.
class EvictionListener {
 public:
  // The content of a free block is about to be overwritten.
  virtual void OnEvict(BlockId block) = 0;
  // Which cached block to hand out when no other is free. `oldest` is the free block whose last
  // owner left first.
  virtual BlockId Victim(BlockId oldest) { return oldest; }
  // A hint: by the order of the free blocks `next` is evicted soon, and `later` a few blocks after
  // it. What their eviction reads can be fetched meanwhile.
  virtual void OnEvictSoon([[maybe_unused]] BlockId next, [[maybe_unused]] BlockId later) {}
  // A cached block lost its last owner; one that had lost it is shared again.
  virtual void OnFree(BlockId) {}
  virtual void OnShare(BlockId) {}

 protected:
  ~EvictionListener() = default;
};

// Hands out fixed-size KV cache blocks, ids 1..num_blocks, and counts their owners. Holds no
// tensors.
//
// A block is free when nobody owns it. A free block may still be cached (an index can find its
// content): it then waits at the back of the free queue, so blocks without content go first and
// cached ones in the order of their release, unless the listener picks another. Not thread-safe:
// only the scheduler's thread calls it.
class BlockAllocator {
 public:
  explicit BlockAllocator(std::int32_t num_blocks);
  // REQUIRES: every block has been given back.
  ~BlockAllocator();
  BlockAllocator(const BlockAllocator&) = delete;
  BlockAllocator& operator=(const BlockAllocator&) = delete;

  std::int32_t num_blocks() const { return num_blocks_; }
  std::int32_t num_free() const { return num_free_; }
  // Blocks with several owners.
  std::int32_t num_shared() const { return num_shared_; }
  // Owners beyond the first of each block.
  std::int32_t num_repeats() const { return num_repeats_; }
  std::int32_t num_owners(BlockId block) const { return slot(block).num_owners; }
  bool is_cached(BlockId block) const { return content(block) != 0; }
  // What an index calls that which the block holds; 0: it cannot be found.
  std::int32_t content(BlockId block) const { return slot(block).content; }

  // Takes `count` blocks, or none and returns nullopt if fewer are free.
  // REQUIRES: count >= 0.
  std::optional<std::vector<BlockRef>> Allocate(std::int32_t count);

  // One more owner of `block`, which must be owned or cached.
  BlockRef Share(BlockId block);

  // Says what a block holds. A free block that stops being cached keeps its place in the free
  // queue.
  void SetContent(BlockId block, std::int32_t content);
  void SetEvictionListener(EvictionListener* listener) { listener_ = listener; }

  // Throws InvariantError unless free <=> no owner and every free block is in the free queue once.
  void Check() const;

 private:
  friend class BlockRef;
  friend class BlockTable;
  friend struct BlockAllocatorPeer;

  struct Slot {
    std::int32_t num_owners = 0;
    std::int32_t content = 0;
    std::uint32_t place = 0;  // in the free queue, while free
  };

  Slot& slot(BlockId block);
  const Slot& slot(BlockId block) const;
  BlockId TakeFree();
  void ForetellEvictions() const;
  void AddOwner(BlockId block);
  void RemoveOwner(BlockId block);

  // The free queue: an array that is read in order, so that the blocks to come are known ahead,
  // which a list through `slots_` would tell one cache miss at a time. A block that leaves it from
  // within leaves a hole; when holes have filled the other half, all are closed at once.
  BlockId& queued(std::uint32_t place) { return queue_[place & mask_]; }
  BlockId queued(std::uint32_t place) const { return queue_[place & mask_]; }
  void Enqueue(BlockId block, bool at_front);
  void Dequeue(BlockId block);
  void CloseHoles();

  std::int32_t num_blocks_;
  std::int32_t num_free_;
  std::int32_t num_shared_ = 0;
  std::int32_t num_repeats_ = 0;
  std::vector<Slot> slots_;
  std::vector<BlockId> queue_;  // a ring, with room for every block twice; kNoBlock: a hole
  std::uint32_t mask_;
  std::uint32_t front_ = 0;  // no hole, unless the queue is empty
  std::uint32_t back_ = 0;   // one behind the last
  EvictionListener* listener_ = nullptr;
};

}  // namespace runtime
