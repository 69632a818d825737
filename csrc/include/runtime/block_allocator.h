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
// content): it then waits at the back of the free list, so blocks without content go first and
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
  std::int32_t num_owners(BlockId block) const { return slot(block).num_owners; }
  bool is_cached(BlockId block) const { return slot(block).cached; }

  // Takes `count` blocks, or none and returns nullopt if fewer are free.
  // REQUIRES: count >= 0.
  std::optional<std::vector<BlockRef>> Allocate(std::int32_t count);

  // One more owner of `block`, which must be owned or cached.
  BlockRef Share(BlockId block);

  // Marks the content of a block as findable. A free block that stops being cached stays where it
  // is in the free list.
  void SetCached(BlockId block, bool cached);
  void SetEvictionListener(EvictionListener* listener) { listener_ = listener; }

  // Throws InvariantError unless free <=> no owner and every free block is in the free list once.
  void Check() const;

 private:
  friend class BlockRef;
  friend class BlockTable;
  friend struct BlockAllocatorPeer;

  struct Slot {
    std::int32_t num_owners = 0;
    bool cached = false;
    BlockId prev = kNoBlock;  // neighbours in the free list; slot 0 is its sentinel
    BlockId next = kNoBlock;
  };

  Slot& slot(BlockId block);
  const Slot& slot(BlockId block) const;
  BlockId TakeFree();
  void AddOwner(BlockId block);
  void RemoveOwner(BlockId block);
  void Unlink(BlockId block);
  void LinkAfter(BlockId block, BlockId prev);

  std::int32_t num_blocks_;
  std::int32_t num_free_;
  std::int32_t num_shared_ = 0;
  std::vector<Slot> slots_;
  EvictionListener* listener_ = nullptr;
};

}  // namespace runtime
