#include "kv_cache/prefix_cache.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace runtime {

namespace {

std::size_t NumBlocks(const BlockAllocator& device, const BlockAllocator* host) {
  const std::int64_t on_host = host == nullptr ? 0 : host->num_blocks();
  return static_cast<std::size_t>(device.num_blocks() + on_host);
}

std::uint32_t TableHash(const PrefixChain& chain, std::int32_t index) {
  return static_cast<std::uint32_t>(chain.hashes[static_cast<std::size_t>(index)]);
}

}  // namespace

PrefixCache::PrefixCache(BlockAllocator& device, BlockAllocator* host, const Options& options)
    : options_(options),
      hash_key_{options.hash_seed, ~options.hash_seed},
      nodes_(NumBlocks(device, host) + 1),
      table_(NumBlocks(device, host)),
      tokens_(nodes_.size() * static_cast<std::size_t>(options.block_size)),
      device_(device, options.eviction, nodes_, &PrefixNode::device, *this) {
  if (host != nullptr) {
    host_ = std::make_unique<Tier>(*host, options.eviction, nodes_, &PrefixNode::host, *this);
  }
  Clear();
}

PrefixCache::Found PrefixCache::Match(PrefixChain& chain, std::span<const TokenId> tokens,
                                      std::int32_t max_blocks) {
  matched_.clear();
  matched_on_host_.clear();
  NodeId parent = kNoNode;
  for (std::int32_t index = 0; index < max_blocks; ++index) {
    ExtendHashes(chain, tokens, index + 1);
    const NodeId id = Find(chain, index, parent, BlockTokens(tokens, index));
    if (id == kNoNode) break;
    if (node(id).device.block != kNoBlock) {
      matched_.push_back(node(id).device.block);
    } else {
      matched_on_host_.push_back(node(id).host.block);
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
  NodeId id = Find(chain, index, chain.tail, block_tokens);
  if (id == kNoNode) id = MakeNode(chain, block_tokens);
  const BlockId twin = node(id).device.block;
  chain.open = twin == kNoBlock || may_hold_twin || device_.allocator().num_owners(twin) > 0;
  if (!chain.open) return;
  if (twin == kNoBlock) {
    device_.Insert(table[index], id);
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
  for (NodeId id = chain.tail; id != kNoNode && node(id).host.block == kNoBlock;
       id = node(id).parent) {
    matched_.push_back(node(id).device.block);
  }
  std::ranges::reverse(matched_);
  return matched_;
}

std::vector<BlockRef> PrefixCache::HoldOnHost(BlockId last) const {
  std::vector<BlockRef> held;
  for (NodeId id = host_->node(last); id != kNoNode; id = node(id).parent) {
    held.push_back(host_->allocator().Share(node(id).host.block));
  }
  std::ranges::reverse(held);
  return held;
}

std::vector<BlockRef> PrefixCache::HoldOnHost(const PrefixChain& chain) const {
  NodeId id = chain.tail;
  while (id != kNoNode && node(id).host.block == kNoBlock) id = node(id).parent;
  return id == kNoNode ? std::vector<BlockRef>{} : HoldOnHost(node(id).host.block);
}

void PrefixCache::PublishOnHost(const PrefixChain& chain, std::span<BlockRef> host) {
  std::vector<NodeId> ids;
  for (NodeId id = chain.tail; id != kNoNode; id = node(id).parent) ids.push_back(id);
  for (std::size_t i = 0; i < host.size(); ++i) {
    const NodeId id = ids[ids.size() - 1 - i];
    const BlockId twin = node(id).host.block;
    if (twin == kNoBlock) {
      host_->Insert(host[i].id(), id);
    } else if (twin != host[i].id()) {
      host[i] = host_->allocator().Share(twin);
    }
  }
}

void PrefixCache::Clear() {
  device_.Clear();
  if (host_ != nullptr) host_->Clear();
  table_.Clear();
  root_salts_.clear();
  std::ranges::fill(nodes_, PrefixNode{});
  free_node_ = kNoNode;
  for (auto id = static_cast<NodeId>(nodes_.size()); id-- > 1;) {
    node(id).parent = std::exchange(free_node_, id);
  }
}

// A node ends with its last block.
void PrefixCache::OnEvicted(NodeId id) {
  if (node(id).device.block == kNoBlock && node(id).host.block == kNoBlock) EraseNode(id);
}

// The parent's hash stands in the key: each link is keyed by the chain before it.
std::uint64_t PrefixCache::Hash(std::uint64_t parent, std::span<const TokenId> tokens) const {
  if (options_.constant_hash) return 0;
  return SipHash13({hash_key_.low, parent}, std::as_bytes(tokens));
}

std::uint64_t PrefixCache::RootHash(const std::string& salt) const {
  return SipHash13(hash_key_, std::as_bytes(std::span(salt)));
}

void PrefixCache::ExtendHashes(PrefixChain& chain, std::span<const TokenId> tokens,
                               std::int32_t num_blocks) const {
  for (auto index = static_cast<std::int32_t>(chain.hashes.size()); index < num_blocks; ++index) {
    const std::uint64_t parent = index == 0 ? RootHash(chain.salt) : chain.hashes.back();
    chain.hashes.push_back(Hash(parent, BlockTokens(tokens, index)));
    table_.Fetch(TableHash(chain, index));
  }
}

std::span<const TokenId> PrefixCache::BlockTokens(std::span<const TokenId> tokens,
                                                  std::int32_t index) const {
  const auto size = static_cast<std::size_t>(options_.block_size);
  const std::size_t start = static_cast<std::size_t>(index) * size;
  Ensure(start + size <= tokens.size(), "only a full block has a hash");
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

NodeId PrefixCache::Find(const PrefixChain& chain, std::int32_t index, NodeId parent,
                         std::span<const TokenId> tokens) const {
  return table_.Find(TableHash(chain, index),
                     [&](NodeId id) { return Holds(id, parent, chain.salt, tokens); });
}

// The node of the chain's next block; it has no block of its own yet.
NodeId PrefixCache::MakeNode(const PrefixChain& chain, std::span<const TokenId> tokens) {
  const NodeId id = free_node_;
  free_node_ = node(id).parent;
  const std::uint32_t hash = TableHash(chain, chain.num_indexed);
  node(id) = {chain.tail, chain.num_indexed, hash, {}, {}};
  if (chain.tail == kNoNode && !chain.salt.empty()) root_salts_[id] = chain.salt;
  std::ranges::copy(tokens, tokens_.begin() + std::ptrdiff_t{id} * options_.block_size);
  table_.Insert(hash, id);
  return id;
}

void PrefixCache::EraseNode(NodeId id) {
  table_.Erase(node(id).hash, id);
  if (node(id).parent == kNoNode) root_salts_.erase(id);
  node(id).parent = std::exchange(free_node_, id);
  FetchLine(StoredTokens(id).data());  // the next node to be made
}

void PrefixCache::Check() const {
  device_.Check();
  if (host_ != nullptr) host_->Check();
  std::size_t num_used = 0, num_free = 0;
  std::vector<std::optional<std::uint64_t>> hashes(nodes_.size());
  for (std::size_t id = 1; id < nodes_.size(); ++id) {
    const PrefixNode& used = nodes_[id];
    if (used.device.block == kNoBlock && used.host.block == kNoBlock) continue;
    ++num_used;
    CheckNode(static_cast<NodeId>(id));
    Hold(static_cast<std::uint32_t>(ChainHash(static_cast<NodeId>(id), hashes)) == used.hash,
         "a hash is that of the block's tokens");
  }
  for (NodeId id = free_node_; id != kNoNode && num_free < nodes_.size(); id = node(id).parent) {
    ++num_free;
  }
  Hold(num_used == table_.size() && num_used + num_free + 1 == nodes_.size(),
       "indexed blocks are counted");
}

void PrefixCache::CheckNode(NodeId id) const {
  const PrefixNode& checked = node(id);
  const NodeId found = table_.Find(checked.hash, [&](NodeId other) {
    return Holds(other, checked.parent, SaltOf(id), StoredTokens(id));
  });
  Hold(found == id, "a cached block is found by its tokens");
  Hold(checked.device.block == kNoBlock || device_.node(checked.device.block) == id,
       "a block on the device belongs to its node");
  Hold(checked.host.block == kNoBlock || host_->node(checked.host.block) == id,
       "a block on the host belongs to its node");
  if (checked.parent != kNoNode) {
    Hold(checked.index == node(checked.parent).index + 1, "a block follows its parent");
  }
}

// From the tokens alone; `known` has those of the nodes so far.
std::uint64_t PrefixCache::ChainHash(NodeId id,
                                     std::vector<std::optional<std::uint64_t>>& known) const {
  std::optional<std::uint64_t>& hash = known[static_cast<std::size_t>(id)];
  if (!hash) {
    const NodeId parent = node(id).parent;
    hash =
        Hash(parent == kNoNode ? RootHash(SaltOf(id)) : ChainHash(parent, known), StoredTokens(id));
  }
  return *hash;
}

}  // namespace runtime
