#include "kv_cache/tier.h"

#include <algorithm>

#include "common/cache_line.h"
#include "common/check.h"

namespace runtime {
namespace {

// keep priorities far inside 64 bits
constexpr std::int32_t kMaxUses = 1 << 10;
constexpr std::int64_t kMaxCost = 1'000'000'000'000;

}  // namespace

Tier::Tier(BlockAllocator& allocator, EvictionPolicy policy, PrefixNodes& nodes,
           PrefixNode::Residence PrefixNode::* residence, Index& index)
    : allocator_(allocator),
      policy_(policy),
      nodes_(nodes),
      residence_(residence),
      index_(index),
      values_(is_by_cost() ? static_cast<std::size_t>(allocator.num_blocks()) + 1 : 0),
      leaves_(is_by_cost() ? allocator.num_blocks() : 0) {
  allocator_.SetEvictionListener(this);
}

Tier::~Tier() {
  Clear();
  allocator_.SetEvictionListener(nullptr);
}

void Tier::Insert(BlockId block, NodeId node) {
  Ensure(allocator_.num_owners(block) > 0, "a block is indexed while somebody owns it");
  residence(node).block = block;
  allocator_.SetContent(block, node);
  if (Parent(node) != kNoNode) ++residence(Parent(node)).num_children;
  if (is_by_cost()) value(block) = {0, 1};
  ++num_resident_;
}

void Tier::Clear() {
  for (BlockId block = 1; block <= allocator_.num_blocks(); ++block) {
    allocator_.SetContent(block, kNoNode);
  }
  leaves_.Clear();
  num_resident_ = 0;
}

void Tier::OnEvict(BlockId block) {
  const NodeId evicted = node(block);
  const NodeId parent = Parent(evicted);
  Ensure(residence(evicted).num_children == 0, "leaves are evicted before their parents");
  residence(evicted).block = kNoBlock;
  --num_resident_;
  ++num_evicted_;
  if (parent != kNoNode) --residence(parent).num_children;
  if (is_by_cost()) {
    leaves_.Erase(block);
    age_ = std::max(age_, value(block).priority);
    if (parent != kNoNode && IsFreeLeaf(residence(parent))) PushLeaf(residence(parent).block);
  }
  index_.OnEvicted(evicted);
}

void Tier::OnEvictSoon(BlockId next, BlockId later) {
  if (is_by_cost()) return;
  index_.OnEvictSoon(node(next));
  FetchLine(&nodes_[static_cast<std::size_t>(node(later))]);
}

BlockId Tier::Victim(BlockId oldest) { return is_by_cost() ? leaves_.top() : oldest; }

void Tier::OnFree(BlockId block) {
  if (!is_by_cost()) return;
  Value& freed = value(block);
  freed.priority =
      age_ + std::min(freed.num_uses, kMaxUses) * std::min(index_.Cost(node(block)), kMaxCost);
  if (residence(node(block)).num_children == 0) PushLeaf(block);
}

void Tier::OnShare(BlockId block) {
  if (is_by_cost() && leaves_.contains(block)) leaves_.Erase(block);
}

void Tier::Check() const {
  std::int32_t num_found = 0;
  std::vector<std::int32_t> num_children(nodes_.size());
  for (BlockId block = 1; block <= allocator_.num_blocks(); ++block) {
    if (!allocator_.is_cached(block)) continue;
    ++num_found;
    ++num_children[static_cast<std::size_t>(Parent(node(block)))];
    CheckResident(block);
  }
  Hold(num_found == num_resident_, "cached blocks are counted");
  for (std::size_t id = 1; id < nodes_.size(); ++id) {
    Hold(num_children[id] == (nodes_[id].*residence_).num_children, "children are counted");
  }
}

void Tier::CheckResident(BlockId block) const {
  const PrefixNode::Residence& checked = residence(node(block));
  Hold(checked.block == block, "a cached block is its node's");
  const NodeId parent = Parent(node(block));
  if (parent != kNoNode) {
    const BlockId before = residence(parent).block;
    Hold(before != kNoBlock, "a cached block goes before its parent does");
    Hold(allocator_.num_owners(block) == 0 || allocator_.num_owners(before) > 0,
         "who owns a cached block owns its parent");
  }
  Hold(!is_by_cost() || leaves_.contains(block) == IsFreeLeaf(checked),
       "the free leaves wait to be evicted");
}

}  // namespace runtime
