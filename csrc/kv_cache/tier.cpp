#include "kv_cache/tier.h"

#include <algorithm>

#include "common/check.h"

namespace runtime {
namespace {

// keep priorities far inside 64 bits
constexpr std::int32_t kMaxUses = 1 << 10;
constexpr std::int64_t kMaxCost = 1'000'000'000'000;

}  // namespace

Tier::Tier(BlockAllocator& allocator, EvictionPolicy policy, Index& index)
    : allocator_(allocator),
      policy_(policy),
      index_(index),
      items_(static_cast<std::size_t>(allocator.num_blocks()) + 1),
      values_(is_by_cost() ? items_.size() : 0),
      leaves_(is_by_cost() ? allocator.num_blocks() : 0) {
  allocator_.SetEvictionListener(this);
}

Tier::~Tier() {
  Clear();
  allocator_.SetEvictionListener(nullptr);
}

void Tier::Insert(BlockId block, NodeId node, BlockId parent) {
  Ensure(allocator_.num_owners(block) > 0, "a block is indexed while somebody owns it");
  item(block) = {node, parent, 0};
  if (is_by_cost()) value(block) = {0, 1};
  if (parent != kNoBlock) ++item(parent).num_children;
  allocator_.SetCached(block, true);
  ++num_resident_;
}

void Tier::Clear() {
  for (BlockId block = 1; block <= allocator_.num_blocks(); ++block) {
    allocator_.SetCached(block, false);
  }
  std::ranges::fill(items_, Item{});
  leaves_.Clear();
  num_resident_ = 0;
}

void Tier::OnEvict(BlockId block) {
  const Item evicted = item(block);
  Ensure(evicted.num_children == 0, "leaves are evicted before their parents");
  item(block) = {};
  --num_resident_;
  ++num_evicted_;
  if (evicted.parent != kNoBlock) --item(evicted.parent).num_children;
  if (is_by_cost()) {
    leaves_.Erase(block);
    age_ = std::max(age_, value(block).priority);
    if (evicted.parent != kNoBlock && IsFreeLeaf(evicted.parent)) {
      leaves_.Push(evicted.parent, value(evicted.parent).priority);
    }
  }
  index_.OnEvicted(*this, evicted.node);
}

BlockId Tier::Victim(BlockId oldest) { return is_by_cost() ? leaves_.top() : oldest; }

void Tier::OnFree(BlockId block) {
  if (!is_by_cost()) return;
  Value& freed = value(block);
  freed.priority =
      age_ + std::min(freed.num_uses, kMaxUses) * std::min(index_.Cost(node(block)), kMaxCost);
  if (item(block).num_children == 0) leaves_.Push(block, freed.priority);
}

void Tier::OnShare(BlockId block) {
  if (is_by_cost() && leaves_.contains(block)) leaves_.Erase(block);
}

void Tier::Check() const {
  std::int32_t num_found = 0;
  std::vector<std::int32_t> num_children(items_.size());
  for (BlockId block = 1; block <= allocator_.num_blocks(); ++block) {
    Hold(allocator_.is_cached(block) == (node(block) != kNoNode), "cached blocks are indexed");
    if (!allocator_.is_cached(block)) continue;
    ++num_found;
    ++num_children[static_cast<std::size_t>(item(block).parent)];
    CheckItem(block);
  }
  Hold(num_found == num_resident_, "cached blocks are counted");
  for (std::size_t block = 1; block < items_.size(); ++block) {
    Hold(num_children[block] == items_[block].num_children, "children are counted");
  }
}

void Tier::CheckItem(BlockId block) const {
  const BlockId parent = item(block).parent;
  if (parent != kNoBlock) {
    Hold(allocator_.is_cached(parent), "a cached block goes before its parent does");
    Hold(allocator_.num_owners(block) == 0 || allocator_.num_owners(parent) > 0,
         "who owns a cached block owns its parent");
  }
  Hold(!is_by_cost() || leaves_.contains(block) == IsFreeLeaf(block),
       "the free leaves wait to be evicted");
}

}  // namespace runtime
