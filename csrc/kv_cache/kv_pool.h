#pragma once

#include <cstdint>
#include <span>

#include "kv_cache/block_table.h"
#include "kv_cache/prefix_cache.h"

namespace runtime {

// A request's share of the pool.
struct KvShare {
  explicit KvShare(BlockAllocator& allocator) : table(allocator) {}

  BlockTable table;
  std::int32_t num_reserved = 0;        // blocks set aside that only this request may take
  mutable std::int32_t num_shared = 0;  // where NumShared starts to look
  PrefixChain chain;
};

// The block pool as the scheduler sees it: allocation within reservations and the watermark, and
// the prefix cache. Not thread-safe.
class KvPool {
 public:
  struct Options {
    std::int32_t block_size = 16;
    double watermark = 0.01;  // share of the blocks that only running decodes may take
    bool enable_prefix_caching = true;
    std::uint64_t hash_seed = 0;
    bool constant_hash = false;
  };

  KvPool(BlockAllocator& allocator, const Options& options);

  std::int32_t block_size() const { return options_.block_size; }
  std::int32_t num_blocks() const { return allocator_.num_blocks(); }
  std::int32_t num_free() const { return allocator_.num_free(); }
  std::int32_t num_cached() const { return cache_.num_cached(); }
  std::int32_t num_reserved() const { return num_reserved_; }
  std::int32_t watermark() const { return watermark_; }
  // Free blocks that are not set aside for anyone.
  std::int32_t num_available() const { return allocator_.num_free() - num_reserved_; }

  std::int32_t BlocksFor(std::int32_t num_tokens) const {
    return (num_tokens + options_.block_size - 1) >> block_shift_;
  }

  // A cached prefix: its blocks, and how many of them are free now and would stop being so.
  struct Hit {
    std::span<const BlockId> blocks;
    std::int32_t num_free = 0;
  };
  // Looks at the first `max_tokens` tokens. Valid until the next call; takes nothing.
  Hit Match(KvShare& share, std::span<const TokenId> tokens, std::int32_t max_tokens);

  // Starts an empty share with a hit.
  void Adopt(KvShare& share, const Hit& hit);
  void Reserve(KvShare& share, std::int32_t count);
  bool CanExtend(const KvShare& share, std::int32_t count, std::int32_t floor) const {
    return share.num_reserved >= count || num_available() + share.num_reserved - count >= floor;
  }
  // Takes `count` blocks, its own reserved ones first.
  // REQUIRES: CanExtend(share, count, 0).
  void Extend(KvShare& share, std::int32_t count);

  // Indexes the full blocks among the first `num_final` tokens, whose KV no step still writes.
  void Publish(KvShare& share, std::span<const TokenId> tokens, std::int32_t num_final);

  void Release(KvShare& share);

  // Leading blocks of its table that others hold too. Whoever holds a block of a chain holds the
  // chain up to there, so no later one is shared; own copies of indexed blocks may end the count
  // early.
  std::int32_t NumShared(const KvShare& share) const;

  // Forgets all cached prefixes. Shares that hold blocks must be closed (chain.open = false).
  void ClearPrefixes() { cache_.Clear(); }

  const BlockAllocator& allocator() const { return allocator_; }

  void Check() const;

 private:
  BlockAllocator& allocator_;
  Options options_;
  std::int32_t block_shift_;
  std::int32_t watermark_;
  std::int32_t num_reserved_ = 0;
  PrefixCache cache_;
};

}  // namespace runtime
