#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

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

// Blocks of one request that are copied between device and host. The request owns the device
// blocks; the host blocks, and those of their prefix, are owned here.
struct KvCopy {
  enum class Kind : std::uint8_t { kStore, kLoad };  // to the host, from it

  Kind kind;
  std::vector<BlockRef> host;                       // from the root of the request's chain
  std::vector<std::pair<BlockId, BlockId>> blocks;  // (device, host), the last ones of `host`

  // Gives the host blocks back, leaves first.
  void ReleaseHost() {
    while (!host.empty()) host.pop_back();
  }
};

// The block pool as the scheduler sees it: allocation within reservations and the watermark, the
// prefix cache, and the CPU tier behind it. Not thread-safe.
//
// The tier holds copies of indexed blocks and nothing else. A request's blocks are stored when it
// gives them up (it ended, or was preempted), before they are released, so eviction never waits for
// a copy: it drops the device's block of a content that the host has too, or has not.
class KvPool {
 public:
  struct Options {
    std::int32_t block_size = 16;
    double watermark = 0.01;  // share of the blocks that only running decodes may take
    bool enable_prefix_caching = true;
    std::uint64_t hash_seed = 0;
    bool constant_hash = false;
    EvictionPolicy eviction = EvictionPolicy::kLru;
    KvCosts costs{16, 0.0, 0.0, 0.0};
    std::int32_t num_host_blocks = 0;
  };

  KvPool(BlockAllocator& allocator, const Options& options);

  std::int32_t block_size() const { return options_.block_size; }
  std::int32_t num_blocks() const { return allocator_.num_blocks(); }
  std::int32_t num_free() const { return allocator_.num_free(); }
  std::int32_t num_cached() const { return cache_.device().num_resident(); }
  std::int64_t num_evicted() const { return cache_.device().num_evicted(); }
  std::int32_t num_reserved() const { return num_reserved_; }
  // Tokens that shares hold together, once for each holder but one.
  std::int32_t num_repeated_tokens() const { return allocator_.num_repeats() * block_size(); }
  std::int32_t watermark() const { return watermark_; }
  // Free blocks that are not set aside for anyone.
  std::int32_t num_available() const { return allocator_.num_free() - num_reserved_; }
  // nullptr: there is no CPU tier.
  const Tier* host() const { return cache_.host(); }

  std::int32_t BlocksFor(std::int32_t num_tokens) const {
    return (num_tokens + options_.block_size - 1) >> block_shift_;
  }

  // A cached prefix: its blocks on the device, and how many of them are free now and would stop
  // being so; then blocks on the host, as far as a copy beats computing them again.
  struct Hit {
    std::span<const BlockId> blocks;
    std::int32_t num_free = 0;
    std::span<const BlockId> host;
    bool is_awaited = false;  // another request is loading the first of `host`

    std::int32_t num_blocks() const { return static_cast<std::int32_t>(blocks.size()); }
    std::int32_t num_host_blocks() const { return static_cast<std::int32_t>(host.size()); }
  };
  // Looks at the first `max_tokens` tokens. Valid until the next call; takes nothing.
  Hit Match(KvShare& share, std::span<const TokenId> tokens, std::int32_t max_tokens);

  // Starts an empty share with the hit's device blocks.
  void Adopt(KvShare& share, const Hit& hit);
  void Reserve(KvShare& share, std::int32_t count);
  bool CanExtend(const KvShare& share, std::int32_t count, std::int32_t floor) const {
    return share.num_reserved >= count || num_available() + share.num_reserved - count >= floor;
  }
  // Takes `count` blocks, its own reserved ones first.
  // REQUIRES: CanExtend(share, count, 0).
  void Extend(KvShare& share, std::int32_t count);

  // Indexes the full blocks among the first `num_final` tokens, whose KV no step and no copy still
  // writes.
  void Publish(KvShare& share, std::span<const TokenId> tokens, std::int32_t num_final);

  void Release(KvShare& share);

  // Leading blocks of its table that others hold too. Whoever holds a block of a chain holds the
  // chain up to there, so no later one is shared; own copies of indexed blocks may end the count
  // early.
  std::int32_t NumShared(const KvShare& share) const;

  // Plans to bring the hit's host blocks into those that follow its device blocks in the table.
  // When the copy is done, publish them and drop it.
  KvCopy Load(const KvShare& share, const Hit& hit);
  // Plans to copy the share's indexed blocks that the host does not have, as many as have room
  // there. Nothing: there are none, or computing them again costs less than this copy, the way back
  // and the `num_ahead` blocks that are copied before.
  std::optional<KvCopy> Store(const KvShare& share, std::int32_t num_ahead);
  // The copy is done: its blocks are findable.
  void FinishStore(const KvShare& share, KvCopy& copy);

  // Forgets all cached prefixes. The chains of shares that hold blocks must be detached.
  void ClearPrefixes() { cache_.Clear(); }

  const BlockAllocator& allocator() const { return allocator_; }

  void Check() const;

 private:
  BlockAllocator& allocator_;
  Options options_;
  std::int32_t block_shift_;
  std::int32_t watermark_;
  std::int32_t num_reserved_ = 0;
  std::optional<BlockAllocator> host_allocator_;
  PrefixCache cache_;
};

}  // namespace runtime
