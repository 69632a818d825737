#include "kv_cache/prefix_cache.h"

#include <algorithm>
#include <bit>

#include "common/check.h"

namespace runtime {

PrefixCache::PrefixCache(BlockAllocator& device, BlockAllocator* host, const Options& options)
    : options_(options),
      hash_key_{options.hash_seed, ~options.hash_seed},
      device_(device, options.eviction, *this) {
  if (host != nullptr) host_ = std::make_unique<Tier>(*host, options.eviction, *this);
  const auto num_blocks = device.num_blocks() + (host == nullptr ? 0 : host->num_blocks());
  const auto num_nodes = static_cast<std::size_t>(num_blocks);
  nodes_.resize(num_nodes + 1);
  tokens_.resize((num_nodes + 1) * static_cast<std::size_t>(options.block_size));
  slots_.resize(std::bit_ceil(2 * num_nodes));
  free_nodes_.reserve(num_nodes);
  Clear();
}

PrefixCache::Found PrefixCache::Match(PrefixChain& chain, std::span<const TokenId> tokens,
                                      std::int32_t max_blocks) {
  matched_.clear();
  matched_on_host_.clear();
  NodeId parent = kNoNode;
  for (std::int32_t index = 0; index < max_blocks; ++index) {
    ExtendKeys(chain, tokens, index + 1);
    const NodeId id = Find(chain.keys[static_cast<std::size_t>(index)]);
    if (id == kNoNode || !Holds(id, parent, chain.salt, BlockTokens(tokens, index))) break;
    if (node(id).on_device != kNoBlock) {
      matched_.push_back(node(id).on_device);
    } else {
      matched_on_host_.push_back(node(id).on_host);
    }
    parent = id;
  }
  return {matched_, matched_on_host_};
}

void PrefixCache::Adopt(PrefixChain& chain, std::span<const BlockId> matched, BlockTable& table) {
  for (const BlockId block : matched) {
    table.AppendShared(block);
    device_.CountUse(block);
  }
  chain.num_indexed = table.size();
  chain.tail = matched.empty() ? kNoNode : device_.node(matched.back());
  chain.open = true;
}

void PrefixCache::Publish(PrefixChain& chain, std::span<const TokenId> tokens,
                          const BlockTable& table, bool may_hold_twin) {
  const std::int32_t index = chain.num_indexed;
  const std::span<const TokenId> block_tokens = BlockTokens(tokens, index);
  ExtendKeys(chain, tokens, index + 1);
  NodeId id = Find(chain.keys[static_cast<std::size_t>(index)]);
  const bool is_new = id == kNoNode;
  if (is_new) id = MakeNode(chain, block_tokens);
  const BlockId twin = node(id).on_device;
  if (!is_new) {
    const bool can_hold =
        twin == kNoBlock || may_hold_twin || device_.allocator().num_owners(twin) > 0;
    chain.open = can_hold && Holds(id, chain.tail, chain.salt, block_tokens);
    if (!chain.open) return;
  }
  if (twin == kNoBlock) {
    PlaceOnDevice(id, table[index]);
  } else {
    chain.twins.emplace_back(index, device_.allocator().Share(twin));
  }
  chain.tail = id;
  ++chain.num_indexed;
}

void PrefixCache::Release(PrefixChain& chain, BlockTable& table) {
  while (table.size() > 0) {
    table.PopBack();
    if (!chain.twins.empty() && chain.twins.back().first == table.size()) chain.twins.pop_back();
  }
  chain.num_indexed = 0;
  chain.tail = kNoNode;
}

std::span<const BlockId> PrefixCache::Unstored(const PrefixChain& chain) {
  matched_.clear();
  for (NodeId id = chain.tail; id != kNoNode && node(id).on_host == kNoBlock;
       id = node(id).parent) {
    matched_.push_back(node(id).on_device);
  }
  std::ranges::reverse(matched_);
  return matched_;
}

std::vector<BlockRef> PrefixCache::HoldOnHost(BlockId last) const {
  std::vector<BlockRef> held;
  for (NodeId id = host_->node(last); id != kNoNode; id = node(id).parent) {
    held.push_back(host_->allocator().Share(node(id).on_host));
  }
  std::ranges::reverse(held);
  return held;
}

std::vector<BlockRef> PrefixCache::HoldOnHost(const PrefixChain& chain) const {
  NodeId id = chain.tail;
  while (id != kNoNode && node(id).on_host == kNoBlock) id = node(id).parent;
  return id == kNoNode ? std::vector<BlockRef>{} : HoldOnHost(node(id).on_host);
}

void PrefixCache::PublishOnHost(const PrefixChain& chain, std::span<BlockRef> host) {
  std::vector<NodeId> ids;
  for (NodeId id = chain.tail; id != kNoNode; id = node(id).parent) ids.push_back(id);
  for (std::size_t i = 0; i < host.size(); ++i) {
    const NodeId id = ids[ids.size() - 1 - i];
    if (node(id).on_host == kNoBlock) {
      PlaceOnHost(id, host[i].id());
    } else if (node(id).on_host != host[i].id()) {
      host[i] = host_->allocator().Share(node(id).on_host);
    }
  }
}

void PrefixCache::Clear() {
  device_.Clear();
  if (host_ != nullptr) host_->Clear();
  std::ranges::fill(nodes_, Node{});
  std::ranges::fill(slots_, kNoNode);
  root_salts_.clear();
  free_nodes_.clear();
  for (auto id = static_cast<NodeId>(nodes_.size()); id-- > 1;) free_nodes_.push_back(id);
}

// A node ends with its last block.
void PrefixCache::OnEvicted(const Tier& tier, NodeId id) {
  (&tier == &device_ ? node(id).on_device : node(id).on_host) = kNoBlock;
  if (node(id).on_device == kNoBlock && node(id).on_host == kNoBlock) EraseNode(id);
}

Hash128 PrefixCache::Key(const Hash128& parent, std::span<const TokenId> tokens) const {
  if (options_.constant_hash) return {};
  // the parent's key takes the place of the secret: each link is keyed by the chain before it
  return SipHash128(parent, std::as_bytes(tokens));
}

Hash128 PrefixCache::RootKey(const std::string& salt) const {
  return SipHash128(hash_key_, std::as_bytes(std::span(salt)));
}

void PrefixCache::ExtendKeys(PrefixChain& chain, std::span<const TokenId> tokens,
                             std::int32_t num_blocks) const {
  for (auto index = static_cast<std::int32_t>(chain.keys.size()); index < num_blocks; ++index) {
    const Hash128 parent = index == 0 ? RootKey(chain.salt) : chain.keys.back();
    chain.keys.push_back(Key(parent, BlockTokens(tokens, index)));
  }
}

std::span<const TokenId> PrefixCache::BlockTokens(std::span<const TokenId> tokens,
                                                  std::int32_t index) const {
  const auto size = static_cast<std::size_t>(options_.block_size);
  const std::size_t start = static_cast<std::size_t>(index) * size;
  Ensure(start + size <= tokens.size(), "only a full block has a key");
  return tokens.subspan(start, size);
}

std::span<const TokenId> PrefixCache::StoredTokens(NodeId id) const {
  const auto size = static_cast<std::size_t>(options_.block_size);
  return std::span(tokens_).subspan(static_cast<std::size_t>(id) * size, size);
}

bool PrefixCache::Holds(NodeId id, NodeId parent, const std::string& salt,
                        std::span<const TokenId> tokens) const {
  return node(id).parent == parent && std::ranges::equal(StoredTokens(id), tokens) &&
         (parent != kNoNode || SaltOf(id) == salt);
}

const std::string& PrefixCache::SaltOf(NodeId root) const {
  static const std::string kNoSalt;
  const auto found = root_salts_.find(root);
  return found == root_salts_.end() ? kNoSalt : found->second;
}

std::size_t PrefixCache::FindSlot(const Hash128& key) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t at = key.low & mask;
  while (slots_[at] != kNoNode && node(slots_[at]).key != key) at = (at + 1) & mask;
  return at;
}

// The node of the chain's next block; it has no block of its own yet.
NodeId PrefixCache::MakeNode(const PrefixChain& chain, std::span<const TokenId> tokens) {
  const NodeId id = free_nodes_.back();
  free_nodes_.pop_back();
  const Hash128 key = chain.keys[static_cast<std::size_t>(chain.num_indexed)];
  node(id) = {key, chain.tail, chain.num_indexed, kNoBlock, kNoBlock};
  if (chain.tail == kNoNode && !chain.salt.empty()) root_salts_[id] = chain.salt;
  std::ranges::copy(tokens, tokens_.begin() + std::ptrdiff_t{id} * options_.block_size);
  slots_[FindSlot(key)] = id;
  return id;
}

void PrefixCache::EraseNode(NodeId id) {
  const std::size_t mask = slots_.size() - 1;
  std::size_t hole = FindSlot(node(id).key);
  Ensure(slots_[hole] == id, "an indexed block is found under its key");
  // close the gap: an entry moves back if its own slot does not lie between the hole and itself
  for (std::size_t at = (hole + 1) & mask; slots_[at] != kNoNode; at = (at + 1) & mask) {
    const std::size_t home = node(slots_[at]).key.low & mask;
    if (((at - home) & mask) < ((at - hole) & mask)) continue;
    slots_[hole] = slots_[at];
    hole = at;
  }
  slots_[hole] = kNoNode;
  root_salts_.erase(id);
  free_nodes_.push_back(id);
}

void PrefixCache::PlaceOnDevice(NodeId id, BlockId block) {
  node(id).on_device = block;
  device_.Insert(block, id, node(node(id).parent).on_device);
}

void PrefixCache::PlaceOnHost(NodeId id, BlockId block) {
  node(id).on_host = block;
  host_->Insert(block, id, node(node(id).parent).on_host);
}

void PrefixCache::Check() const {
  device_.Check();
  if (host_ != nullptr) host_->Check();
  std::size_t num_used = 0, num_found = 0;
  for (std::size_t id = 1; id < nodes_.size(); ++id) {
    const Node& used = nodes_[id];
    if (used.on_device == kNoBlock && used.on_host == kNoBlock) continue;
    ++num_used;
    CheckNode(static_cast<NodeId>(id));
  }
  for (const NodeId id : slots_) num_found += id != kNoNode;
  Hold(num_used == num_found && num_used + free_nodes_.size() + 1 == nodes_.size(),
       "indexed blocks are counted");
}

void PrefixCache::CheckNode(NodeId id) const {
  const Node& checked = node(id);
  Hold(Find(checked.key) == id, "a cached block is found under its key");
  Hold(checked.on_device == kNoBlock || device_.node(checked.on_device) == id,
       "a block on the device belongs to its node");
  Hold(checked.on_host == kNoBlock || host_->node(checked.on_host) == id,
       "a block on the host belongs to its node");
  const Node& parent = node(checked.parent);
  if (checked.parent != kNoNode) {
    Hold(checked.on_device == kNoBlock || parent.on_device != kNoBlock,
         "a block's parent is on the device with it");
    Hold(checked.on_host == kNoBlock || parent.on_host != kNoBlock,
         "a block's parent is on the host with it");
    Hold(checked.index == parent.index + 1, "a block follows its parent");
  }
  const Hash128 parent_key = checked.parent == kNoNode ? RootKey(SaltOf(id)) : parent.key;
  Hold(Key(parent_key, StoredTokens(id)) == checked.key, "a key is the hash of the block's tokens");
}

}  // namespace runtime
