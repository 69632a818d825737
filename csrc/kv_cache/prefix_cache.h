#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/siphash.h"
#include "kv_cache/block_table.h"
#include "kv_cache/kv_costs.h"
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
  std::string salt;              // requests share blocks only under equal salts
  std::vector<Hash128> keys;     // of the first full blocks, as far as they were needed
  std::int32_t num_indexed = 0;  // leading blocks of the request that the index knows
  NodeId tail = kNoNode;         // the node of the last of them
  bool open = true;  // false: a block could not be indexed, so none behind it can be found
  std::vector<std::pair<std::int32_t, BlockRef>> twins;  // (index in the table, indexed block)

  // The index was cleared: what the request holds cannot be found any more.
  void Detach() {
    open = false;
    num_indexed = 0;
    tail = kNoNode;
  }
};

// Finds full KV cache blocks by the tokens they hold: a chain of keyed 128-bit hashes, one key per
// block, each over its parent's key and its own tokens. A hit compares tokens, parent and salt, so
// a collision costs a miss and never a wrong block.
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
    bool constant_hash = false;  // for tests: every key is the same
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

  // Indexes the request's next full block. `tokens` are the request's from position 0 and cover the
  // block; `may_hold_twin` allows holding a block that is free now.
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

  void OnEvicted(const Tier& tier, NodeId id) override;
  std::int64_t Cost(NodeId id) const override { return options_.costs.Recompute(node(id).index); }

  // Throws InvariantError unless each node is found under its key, has a block and a parent, and
  // the tiers' invariants hold.
  void Check() const;

 private:
  struct Node {
    Hash128 key;
    NodeId parent = kNoNode;
    std::int32_t index = 0;  // of the block in its request
    BlockId on_device = kNoBlock;
    BlockId on_host = kNoBlock;
  };

  Hash128 Key(const Hash128& parent, std::span<const TokenId> tokens) const;
  Hash128 RootKey(const std::string& salt) const;
  void ExtendKeys(PrefixChain& chain, std::span<const TokenId> tokens,
                  std::int32_t num_blocks) const;
  std::span<const TokenId> BlockTokens(std::span<const TokenId> tokens, std::int32_t index) const;
  std::span<const TokenId> StoredTokens(NodeId id) const;
  bool Holds(NodeId id, NodeId parent, const std::string& salt,
             std::span<const TokenId> tokens) const;
  const std::string& SaltOf(NodeId root) const;
  void CheckNode(NodeId id) const;

  Node& node(NodeId id) { return nodes_[static_cast<std::size_t>(id)]; }
  const Node& node(NodeId id) const { return nodes_[static_cast<std::size_t>(id)]; }
  std::size_t FindSlot(const Hash128& key) const;  // the key's slot, or the free one it would take
  NodeId Find(const Hash128& key) const { return slots_[FindSlot(key)]; }
  NodeId MakeNode(const PrefixChain& chain, std::span<const TokenId> tokens);
  void EraseNode(NodeId id);
  void PlaceOnDevice(NodeId id, BlockId block);
  void PlaceOnHost(NodeId id, BlockId block);

  Options options_;
  Hash128 hash_key_;
  std::vector<Node> nodes_;
  std::vector<NodeId> free_nodes_;
  std::vector<TokenId> tokens_;  // by node, block_size each
  std::vector<NodeId> slots_;    // open addressing, linear probing, at most half full
  std::unordered_map<NodeId, std::string> root_salts_;  // first blocks of salted chains
  std::vector<BlockId> matched_, matched_on_host_;
  Tier device_;
  std::unique_ptr<Tier> host_;
};

}  // namespace runtime
