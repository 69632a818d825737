#pragma once

#include <cstdint>
#include <vector>

#include "runtime/types.h"

namespace runtime {

// A block's worth of tokens that the prefix index knows; 0: none.
using NodeId = std::int32_t;
inline constexpr NodeId kNoNode = 0;

// Its place in the index. Two fill a cache line, and nothing but the node is read to evict its
// block or to add a child: with more blocks than a core caches that is what either costs.
struct alignas(32) PrefixNode {
  // In one memory, the device's or the host's.
  struct Residence {
    BlockId block = kNoBlock;       // that holds it; kNoBlock: it is not there
    std::int32_t num_children = 0;  // children that are there
  };

  NodeId parent = kNoNode;
  std::int32_t index = 0;  // of the block in its request
  std::uint32_t hash = 0;  // of its key, see NodeTable
  Residence device, host;
};

// By id; the first is none.
using PrefixNodes = std::vector<PrefixNode>;

}  // namespace runtime
