#include "kv_cache/prefix_cache.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "common/check.h"

namespace runtime {

PrefixCache::PrefixCache(BlockAllocator& allocator, const Options& options)
    : allocator_(allocator), options_(options), hash_key_{options.hash_seed, ~options.hash_seed} {
  const auto num_blocks = static_cast<std::size_t>(allocator.num_blocks());
  entries_.resize(num_blocks + 1);
  tokens_.resize((num_blocks + 1) * static_cast<std::size_t>(options.block_size));
  slots_.resize(std::bit_ceil(2 * num_blocks), kNoBlock);
  allocator_.SetEvictionListener(this);
}

PrefixCache::~PrefixCache() {
  Clear();
  allocator_.SetEvictionListener(nullptr);
}

std::span<const BlockId> PrefixCache::Match(PrefixChain& chain, std::span<const TokenId> tokens,
                                            std::int32_t max_blocks) {
  matched_.clear();
  BlockId parent = kNoBlock;
  for (std::int32_t index = 0; index < max_blocks; ++index) {
    ExtendKeys(chain, tokens, index + 1);
    const BlockId block = Find(chain.keys[static_cast<std::size_t>(index)]);
    if (block == kNoBlock || !Holds(block, parent, chain.salt, BlockTokens(tokens, index))) break;
    matched_.push_back(parent = block);
  }
  return matched_;
}

void PrefixCache::Adopt(PrefixChain& chain, std::span<const BlockId> matched, BlockTable& table) {
  for (const BlockId block : matched) table.AppendShared(block);
  chain.num_indexed = table.size();
  chain.tail = matched.empty() ? kNoBlock : matched.back();
  chain.open = true;
}

void PrefixCache::Publish(PrefixChain& chain, std::span<const TokenId> tokens,
                          const BlockTable& table, bool may_hold_twin) {
  const std::int32_t index = chain.num_indexed;
  const std::span<const TokenId> block_tokens = BlockTokens(tokens, index);
  ExtendKeys(chain, tokens, index + 1);
  const Entry entry{chain.keys[static_cast<std::size_t>(index)], chain.tail};
  BlockId indexed = Find(entry.key);
  if (indexed == kNoBlock) {
    indexed = table[index];
    Insert(indexed, entry, chain.salt, block_tokens);
  } else {
    const bool is_twin = Holds(indexed, chain.tail, chain.salt, block_tokens);
    chain.open = is_twin && (may_hold_twin || allocator_.num_owners(indexed) > 0);
    if (!chain.open) return;
    chain.twins.emplace_back(index, allocator_.Share(indexed));
  }
  chain.tail = indexed;
  ++chain.num_indexed;
}

void PrefixCache::Release(PrefixChain& chain, BlockTable& table) {
  while (table.size() > 0) {
    table.PopBack();
    if (!chain.twins.empty() && chain.twins.back().first == table.size()) chain.twins.pop_back();
  }
  chain.num_indexed = 0;
  chain.tail = kNoBlock;
}

void PrefixCache::Clear() {
  for (BlockId block = 1; block <= allocator_.num_blocks(); ++block) {
    allocator_.SetCached(block, false);
  }
  std::ranges::fill(slots_, kNoBlock);
  root_salts_.clear();
  num_cached_ = 0;
}

void PrefixCache::OnEvict(BlockId block) { Erase(block); }

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

std::span<const TokenId> PrefixCache::StoredTokens(BlockId block) const {
  const auto size = static_cast<std::size_t>(options_.block_size);
  return std::span(tokens_).subspan(static_cast<std::size_t>(block) * size, size);
}

bool PrefixCache::Holds(BlockId block, BlockId parent, const std::string& salt,
                        std::span<const TokenId> tokens) const {
  return entries_[static_cast<std::size_t>(block)].parent == parent &&
         std::ranges::equal(StoredTokens(block), tokens) &&
         (parent != kNoBlock || SaltOf(block) == salt);
}

const std::string& PrefixCache::SaltOf(BlockId root) const {
  static const std::string kNoSalt;
  const auto found = root_salts_.find(root);
  return found == root_salts_.end() ? kNoSalt : found->second;
}

std::size_t PrefixCache::FindSlot(const Hash128& key) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t at = key.low & mask;
  while (slots_[at] != kNoBlock && entries_[static_cast<std::size_t>(slots_[at])].key != key) {
    at = (at + 1) & mask;
  }
  return at;
}

void PrefixCache::Insert(BlockId block, const Entry& entry, const std::string& salt,
                         std::span<const TokenId> tokens) {
  if (entry.parent == kNoBlock && !salt.empty()) root_salts_[block] = salt;
  entries_[static_cast<std::size_t>(block)] = entry;
  std::ranges::copy(tokens, tokens_.begin() + std::ptrdiff_t{block} * options_.block_size);
  slots_[FindSlot(entry.key)] = block;
  allocator_.SetCached(block, true);
  ++num_cached_;
}

void PrefixCache::Erase(BlockId block) {
  const std::size_t mask = slots_.size() - 1;
  std::size_t hole = FindSlot(entries_[static_cast<std::size_t>(block)].key);
  Ensure(slots_[hole] == block, "an indexed block is found under its key");
  // close the gap: an entry moves back if its own slot does not lie between the hole and itself
  for (std::size_t at = (hole + 1) & mask; slots_[at] != kNoBlock; at = (at + 1) & mask) {
    const std::size_t home = entries_[static_cast<std::size_t>(slots_[at])].key.low & mask;
    if (((at - home) & mask) < ((at - hole) & mask)) continue;
    slots_[hole] = slots_[at];
    hole = at;
  }
  slots_[hole] = kNoBlock;
  root_salts_.erase(block);
  allocator_.SetCached(block, false);
  --num_cached_;
}

void PrefixCache::Check() const {
  std::int32_t num_found = 0;
  for (BlockId block = 1; block <= allocator_.num_blocks(); ++block) {
    if (!allocator_.is_cached(block)) continue;
    ++num_found;
    CheckEntry(block);
  }
  Hold(num_found == num_cached_, "cached blocks are counted");
}

void PrefixCache::CheckEntry(BlockId block) const {
  const Entry& entry = entries_[static_cast<std::size_t>(block)];
  Hold(Find(entry.key) == block, "a cached block is found under its key");
  Hash128 parent_key;
  if (entry.parent == kNoBlock) {
    parent_key = RootKey(SaltOf(block));
  } else {
    Hold(allocator_.is_cached(entry.parent), "a cached block goes before its parent does");
    Hold(allocator_.num_owners(block) == 0 || allocator_.num_owners(entry.parent) > 0,
         "who owns a cached block owns its parent");
    parent_key = entries_[static_cast<std::size_t>(entry.parent)].key;
  }
  Hold(Key(parent_key, StoredTokens(block)) == entry.key,
       "a key is the hash of the block's tokens");
}

}  // namespace runtime
