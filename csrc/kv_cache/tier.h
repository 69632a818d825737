#pragma once

#include <cstdint>
#include <vector>

#include "kv_cache/leaf_queue.h"
#include "kv_cache/prefix_node.h"
#include "runtime/block_allocator.h"
#include "runtime/scheduler_config.h"

namespace runtime {

// The blocks of one memory (the device's or the host's) whose content is indexed, and the order in
// which they are evicted.
//
// They form a forest: with a node its parent is resident too, and whoever owns a block owns its
// parents, so a resident block without resident children (a leaf) goes first.
//
// LRU is the allocator's own order: owners give a chain back from its leaf to its root. By cost it
// is Greedy-Dual-Size-Frequency (L. Cherkasova, "Improving WWW Proxies Performance with
// Greedy-Dual-Size-Frequency Caching Policy", HP Labs HPL-98-69R1, 1998) over the free leaves: the
// lowest `age + uses * cost` goes, where cost is the time to compute the block again, every block
// has the same size, and `age`, the priority of what was evicted last, is added when a block is
// released. Not thread-safe.
class Tier final : public EvictionListener {
 public:
  class Index {
   public:
    // The node has no block in a tier any more; it soon has none.
    virtual void OnEvicted(NodeId node) = 0;
    virtual void OnEvictSoon(NodeId node) = 0;
    // Nanoseconds to compute its content again.
    virtual std::int64_t Cost(NodeId node) const = 0;

   protected:
    ~Index() = default;
  };

  // `residence`: which one of its nodes' is of this memory.
  Tier(BlockAllocator& allocator, EvictionPolicy policy, PrefixNodes& nodes,
       PrefixNode::Residence PrefixNode::* residence, Index& index);
  ~Tier();
  Tier(const Tier&) = delete;
  Tier& operator=(const Tier&) = delete;

  BlockAllocator& allocator() const { return allocator_; }
  std::int32_t num_resident() const { return num_resident_; }
  std::int64_t num_evicted() const { return num_evicted_; }
  NodeId node(BlockId block) const { return allocator_.content(block); }

  // The content of an owned block is now findable. REQUIRES: the node's parent is resident.
  void Insert(BlockId block, NodeId node);
  // Another request found it.
  void CountUse(BlockId block) {
    if (is_by_cost()) ++value(block).num_uses;
  }
  // Forgets every block. The nodes are the caller's to clear.
  void Clear();

  void OnEvict(BlockId block) override;
  BlockId Victim(BlockId oldest) override;
  void OnEvictSoon(BlockId next, BlockId later) override;
  void OnFree(BlockId block) override;
  void OnShare(BlockId block) override;

  // Throws InvariantError unless parents are resident and owned where their children are, and the
  // queue holds the free leaves.
  void Check() const;

 private:
  struct Value {
    std::int64_t priority = 0;  // as of its release
    std::int32_t num_uses = 0;
  };

  NodeId Parent(NodeId node) const { return nodes_[static_cast<std::size_t>(node)].parent; }
  PrefixNode::Residence& residence(NodeId node) const {
    return nodes_[static_cast<std::size_t>(node)].*residence_;
  }
  Value& value(BlockId block) { return values_[static_cast<std::size_t>(block)]; }
  bool is_by_cost() const { return policy_ == EvictionPolicy::kCost; }
  bool IsFreeLeaf(const PrefixNode::Residence& residence) const {
    return residence.num_children == 0 && allocator_.num_owners(residence.block) == 0;
  }
  void PushLeaf(BlockId block) { leaves_.Push(block, value(block).priority); }
  void CheckResident(BlockId block) const;

  BlockAllocator& allocator_;
  const EvictionPolicy policy_;
  PrefixNodes& nodes_;
  PrefixNode::Residence PrefixNode::* const residence_;
  Index& index_;
  std::vector<Value> values_;  // by block, when evicted by cost; as is what follows
  LeafQueue leaves_;           // the free leaves
  std::int64_t age_ = 0;
  std::int32_t num_resident_ = 0;
  std::int64_t num_evicted_ = 0;
};

}  // namespace runtime
