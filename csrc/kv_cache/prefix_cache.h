#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/siphash.h"
#include "kv_cache/block_table.h"
#include "runtime/block_allocator.h"

namespace runtime {

// One request's place in the prefix index.
//
// Whoever holds an indexed block holds its whole chain up to the root: either the block stands in
// the request's table, or, where the request computed a block that was indexed meanwhile, the
// indexed twin is held here. So a child is never free while its parent is owned by nobody else, and
// releasing from the last block to the first evicts leaves before their parents.
struct PrefixChain {
  std::string salt;              // requests share blocks only under equal salts
  std::vector<Hash128> keys;     // of the first full blocks, as far as they were needed
  std::int32_t num_indexed = 0;  // leading blocks of the request that the index knows
  BlockId tail = kNoBlock;       // the indexed block of the last of them
  bool open = true;  // false: a block could not be indexed, so none behind it can be found
  std::vector<std::pair<std::int32_t, BlockRef>> twins;  // (index in the table, indexed block)
};

// Finds full KV cache blocks by the tokens they hold: a chain of keyed 128-bit hashes, one key per
// block, each over its parent's key and its own tokens. A hit compares tokens, parent and salt, so
// a collision costs a miss and never a wrong block. Free cached blocks are evicted by the allocator
// in the order of their release (LRU, leaves first). Not thread-safe.
class PrefixCache final : public EvictionListener {
 public:
  struct Options {
    std::int32_t block_size = 16;
    std::uint64_t hash_seed = 0;
    bool constant_hash = false;  // for tests: every key is the same
  };

  PrefixCache(BlockAllocator& allocator, const Options& options);
  ~PrefixCache();
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  std::int32_t num_cached() const { return num_cached_; }

  // The indexed blocks that hold the longest prefix of `tokens`, at most `max_blocks` of them.
  // Valid until the next call. Takes no reference.
  std::span<const BlockId> Match(PrefixChain& chain, std::span<const TokenId> tokens,
                                 std::int32_t max_blocks);

  // Puts matched blocks into an empty table; `chain` goes on behind them.
  void Adopt(PrefixChain& chain, std::span<const BlockId> matched, BlockTable& table);

  // Indexes the request's next full block. `tokens` are the request's from position 0 and cover the
  // block; `may_hold_twin` allows holding a block that is free now.
  // REQUIRES: chain.open; the block's content is final.
  void Publish(PrefixChain& chain, std::span<const TokenId> tokens, const BlockTable& table,
               bool may_hold_twin);

  // Gives all blocks of a request back, last to first.
  static void Release(PrefixChain& chain, BlockTable& table);

  // Forgets every block. Requests that hold blocks must stop publishing.
  void Clear();

  void OnEvict(BlockId block) override;

  // Throws InvariantError unless each indexed block is chained from an indexed parent, is found
  // under its key, and is not owned while its parent is free.
  void Check() const;

 private:
  struct Entry {
    Hash128 key;
    BlockId parent = kNoBlock;
  };

  Hash128 Key(const Hash128& parent, std::span<const TokenId> tokens) const;
  Hash128 RootKey(const std::string& salt) const;
  void ExtendKeys(PrefixChain& chain, std::span<const TokenId> tokens,
                  std::int32_t num_blocks) const;
  std::span<const TokenId> BlockTokens(std::span<const TokenId> tokens, std::int32_t index) const;
  std::span<const TokenId> StoredTokens(BlockId block) const;
  bool Holds(BlockId block, BlockId parent, const std::string& salt,
             std::span<const TokenId> tokens) const;
  const std::string& SaltOf(BlockId root) const;
  void CheckEntry(BlockId block) const;

  std::size_t FindSlot(const Hash128& key) const;  // the key's slot, or the free one it would take
  BlockId Find(const Hash128& key) const { return slots_[FindSlot(key)]; }
  void Insert(BlockId block, const Entry& entry, const std::string& salt,
              std::span<const TokenId> tokens);
  void Erase(BlockId block);

  BlockAllocator& allocator_;
  Options options_;
  Hash128 hash_key_;
  std::int32_t num_cached_ = 0;
  std::vector<Entry> entries_;   // by block
  std::vector<TokenId> tokens_;  // by block, block_size each
  std::vector<BlockId> slots_;   // open addressing, linear probing, at most half full
  std::unordered_map<BlockId, std::string> root_salts_;  // first blocks of salted chains
  std::vector<BlockId> matched_;
};

}  // namespace runtime
