#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/cache_line.h"
#include "kv_cache/prefix_node.h"

namespace runtime {

// Nodes by a hash of theirs: open addressing, linear probing, at most half full. A slot has the
// hash beside the node, so that no node is read which another hash belongs to.
class NodeTable {
 public:
  explicit NodeTable(std::size_t max_nodes) : slots_(std::bit_ceil(2 * max_nodes)) {}

  // The node with that hash of which `is_wanted(id)` holds, or kNoNode.
  template <typename Predicate>
  NodeId Find(std::uint32_t hash, Predicate is_wanted) const {
    std::size_t at = Home(hash);
    for (; slots_[at].node != kNoNode; at = Next(at)) {
      if (slots_[at].hash == hash && is_wanted(slots_[at].node)) break;
    }
    return slots_[at].node;
  }

  // Starts to fetch what Find, Insert and Erase with that hash look at.
  void Fetch(std::uint32_t hash) const { FetchLine(&slots_[Home(hash)]); }

  // REQUIRES: there is room.
  void Insert(std::uint32_t hash, NodeId node) {
    std::size_t at = Home(hash);
    while (slots_[at].node != kNoNode) at = Next(at);
    slots_[at] = {hash, node};
  }

  // REQUIRES: it was inserted with that hash.
  void Erase(std::uint32_t hash, NodeId node) {
    std::size_t hole = Home(hash);
    while (slots_[hole].node != node) hole = Next(hole);
    // close the gap: an entry moves back if its home does not lie between the hole and itself
    for (std::size_t at = Next(hole); slots_[at].node != kNoNode; at = Next(at)) {
      if (Distance(Home(slots_[at].hash), at) < Distance(hole, at)) continue;
      slots_[hole] = slots_[at];
      hole = at;
    }
    slots_[hole] = {};
  }

  void Clear() { std::ranges::fill(slots_, Slot{}); }

  std::size_t size() const {
    return slots_.size() -
           static_cast<std::size_t>(std::ranges::count(slots_, kNoNode, &Slot::node));
  }

 private:
  struct Slot {
    std::uint32_t hash = 0;
    NodeId node = kNoNode;
  };

  std::size_t mask() const { return slots_.size() - 1; }
  std::size_t Home(std::uint32_t hash) const { return hash & mask(); }
  std::size_t Next(std::size_t at) const { return (at + 1) & mask(); }
  std::size_t Distance(std::size_t from, std::size_t to) const { return (to - from) & mask(); }

  std::vector<Slot> slots_;
};

}  // namespace runtime
