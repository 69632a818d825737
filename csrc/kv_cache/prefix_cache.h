#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/cache_line.h"
#include "common/siphash.h"
#include "kv_cache/block_table.h"
#include "kv_cache/kv_costs.h"
#include "kv_cache/node_table.h"
#include "kv_cache/prefix_node.h"
#include "kv_cache/tier.h"
#include "runtime/block_allocator.h"
#include "runtime/scheduler_config.h"

namespace runtime {

// One request's place in the prefix index.
//
// Whoever holds an indexed block holds its whole chain up to the root: either the block stands in
// the request's table, or, where the request computed a block that was indexed meanwhile, the
// indexed twin is held here. So a child is never free while its parent is owned by nobody else, and
// releasing from the last block to the first evicts leaves before their parents.
struct PrefixChain {
  std::string salt;                   // requests share blocks only under equal salts
  std::vector<std::uint64_t> hashes;  // of the first full blocks, as far as they were needed
  std::int32_t num_indexed = 0;       // leading blocks of the request that the index knows
  NodeId tail = kNoNode;              // the node of the last of them
  bool open = true;  // false: a block could not be indexed, so none behind it can be found
  std::vector<std::pair<std::int32_t, BlockRef>> twins;  // (index in the table, indexed block)

  // The index was cleared: what the request holds cannot be found any more.
  void Detach() {
    open = false;
    num_indexed = 0;
    tail = kNoNode;
  }
};

// Finds full KV cache blocks by the tokens they hold, through a chain of keyed 64-bit hashes, one
// for each block, over its parent's hash and its own tokens. A block is what has the same tokens,
// parent and salt: hashes only say where to look, and equal ones cost a second look.
//
// A node is the content of one block; it has a block on the device, one on the host, or both, and
// ends with the last of them. In each memory (see Tier) a node's ancestors are resident too, so a
// prefix is found as blocks on the device, then blocks on the host. What a block goes through:
//
//   device:  free -> owned -> owned and indexed <-> cached -> free
//   host:    free -> owned -> owned and indexed <-> cached -> free
//
//   owned    device: in a request's table, being computed or copied in; host: by a copy
//            under way. "In transfer" is no state: whoever waits for the copy owns both ends.
//   indexed  the content is final (its step retired, its copy is done) and findable
//   cached   indexed and owned by nobody: shared again, or evicted in the tier's order
//
// Not thread-safe.
class PrefixCache final : public Tier::Index {
 public:
  struct Options {
    std::int32_t block_size = 16;
    std::uint64_t hash_seed = 0;
    bool constant_hash = false;  // for tests: every hash is the same
    EvictionPolicy eviction = EvictionPolicy::kLru;
    KvCosts costs{16, 0.0, 0.0, 0.0};
  };

  // `host`: blocks of the CPU tier; nullptr: there is none.
  PrefixCache(BlockAllocator& device, BlockAllocator* host, const Options& options);
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  const Tier& device() const { return device_; }
  const Tier* host() const { return host_.get(); }

  // A prefix: first the blocks that hold it on the device, then blocks on the host.
  struct Found {
    std::span<const BlockId> device;
    std::span<const BlockId> host;
  };
  // The longest prefix of `tokens`, at most `max_blocks` of them. Valid until the next call. Takes
  // no reference.
  Found Match(PrefixChain& chain, std::span<const TokenId> tokens, std::int32_t max_blocks);

  // Puts matched device blocks into an empty table; `chain` goes on behind them.
  void Adopt(PrefixChain& chain, std::span<const BlockId> matched, BlockTable& table);

  // Computes the hashes of the request's first full blocks, `tokens` being its from position 0, and
  // starts to fetch where they lead.
  void ExtendHashes(PrefixChain& chain, std::span<const TokenId> tokens,
                    std::int32_t num_blocks) const;

  // Indexes the request's next full block, which has its hash. `may_hold_twin` allows holding a
  // block that is free now.
  // REQUIRES: chain.open; the block's content is final.
  void Publish(PrefixChain& chain, std::span<const TokenId> tokens, const BlockTable& table,
               bool may_hold_twin);

  // Gives all blocks of a request back, last to first.
  static void Release(PrefixChain& chain, BlockTable& table);

  // REQUIRES of the following: there is a host tier.
  // The device blocks of the chain's nodes that are not on the host, from the root. Valid until the
  // next call.
  std::span<const BlockId> Unstored(const PrefixChain& chain);
  // The host blocks of a prefix whose last one is `last`, from the root.
  std::vector<BlockRef> HoldOnHost(BlockId last) const;
  // Those of the chain's nodes that are on the host.
  std::vector<BlockRef> HoldOnHost(const PrefixChain& chain) const;
  // host[i] now holds the content of the chain's block i. Where another copy of it came first,
  // host[i] becomes a reference to that one.
  void PublishOnHost(const PrefixChain& chain, std::span<BlockRef> host);

  // Forgets every block. The chains of requests that hold blocks must be detached.
  void Clear();

  void OnEvicted(NodeId id) override;
  void OnEvictSoon(NodeId id) override { table_.Fetch(node(id).hash); }
  std::int64_t Cost(NodeId id) const override { return options_.costs.Recompute(node(id).index); }

  // Throws InvariantError unless each node is found under its hash, has a block and a parent, and
  // the tiers' invariants hold.
  void Check() const;

 private:
  std::uint64_t Hash(std::uint64_t parent, std::span<const TokenId> tokens) const;
  std::uint64_t RootHash(const std::string& salt) const;
  std::span<const TokenId> BlockTokens(std::span<const TokenId> tokens, std::int32_t index) const;
  std::span<const TokenId> StoredTokens(NodeId id) const;
  // The node of the chain's block `index`, given its parent; kNoNode: there is none.
  NodeId Find(const PrefixChain& chain, std::int32_t index, NodeId parent,
              std::span<const TokenId> tokens) const;
  bool Holds(NodeId id, NodeId parent, const std::string& salt,
             std::span<const TokenId> tokens) const;
  const std::string& SaltOf(NodeId root) const;
  void CheckNode(NodeId id) const;
  std::uint64_t ChainHash(NodeId id, std::vector<std::optional<std::uint64_t>>& known) const;

  PrefixNode& node(NodeId id) { return nodes_[static_cast<std::size_t>(id)]; }
  const PrefixNode& node(NodeId id) const { return nodes_[static_cast<std::size_t>(id)]; }
  NodeId MakeNode(const PrefixChain& chain, std::span<const TokenId> tokens);
  void EraseNode(NodeId id);

  Options options_;
  Hash128 hash_key_;
  PrefixNodes nodes_;
  NodeTable table_;
  NodeId free_node_ = kNoNode;                          // the first of a list through `parent`
  LineVector<TokenId> tokens_;                          // by node, block_size each
  std::unordered_map<NodeId, std::string> root_salts_;  // first blocks of salted chains
  std::vector<BlockId> matched_, matched_on_host_;
  Tier device_;
  std::unique_ptr<Tier> host_;
};

}  // namespace runtime
