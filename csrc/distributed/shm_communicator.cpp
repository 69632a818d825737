#include "distributed/shm_communicator.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "distributed/rank_sum.h"

namespace runtime {
namespace {

// Up to here every rank adds everything, and meets the others once; above, it adds its part and
// they meet again.
constexpr std::size_t kAddedByAll = 32 * 1024;

std::byte* At(void* data, std::size_t offset) { return static_cast<std::byte*>(data) + offset; }

const std::byte* At(const void* data, std::size_t offset) {
  return static_cast<const std::byte*>(data) + offset;
}

// Calls work(first, count) for [0, count) in pieces of at most `largest`.
template <typename Work>
void InPieces(std::size_t count, std::size_t largest, Work work) {
  for (std::size_t first = 0; first < count; first += largest) {
    work(first, std::min(largest, count - first));
  }
}

}  // namespace

ShmCommunicator::ShmCommunicator(const CommunicatorOptions& options)
    : Communicator(options.rank, options.size), group_(options), parts_(options.size) {}

ShmCommunicator::ShmCommunicator(std::shared_ptr<SharedMemory> memory,
                                 const CommunicatorOptions& options)
    : Communicator(options.rank, options.size),
      group_(std::move(memory), options),
      parts_(options.size) {}

// The ranks' elements [first, first + count) of the piece at hand.
void ShmCommunicator::Sum(DataType type, std::size_t first, std::size_t count, void* out) {
  for (int rank = 0; rank < size(); ++rank) {
    parts_[static_cast<std::size_t>(rank)] = At(group_.buffer(rank), first * ItemBytes(type));
  }
  SumInOrder(type, parts_, count, out);
}

// Each rank leaves the sum of its part in its own buffer, whose old content there nobody else
// reads, and takes the other parts from the others' buffers.
void ShmCommunicator::SumInParts(DataType type, std::size_t count, void* out) {
  const std::size_t item = ItemBytes(type);
  const std::size_t largest = (count + static_cast<std::size_t>(size()) - 1) / size();
  const auto begin = [&](int rank) { return std::min(count, largest * rank); };
  const std::size_t own = begin(rank());
  Sum(type, own, begin(rank() + 1) - own, At(group_.buffer(rank()), own * item));
  group_.Meet();
  for (int rank = 0; rank < size(); ++rank) {
    const std::size_t first = begin(rank) * item;
    std::memcpy(At(out, first), At(group_.buffer(rank), first), begin(rank + 1) * item - first);
  }
}

void ShmCommunicator::AllReduce(const void* in, void* out, std::size_t count, DataType type,
                                StreamHandle) {
  const std::size_t item = ItemBytes(type);
  if (count == 0) return;
  group_.Begin({ShmCall::Kind::kAllReduce, type, 0, count});
  InPieces(count, group_.piece_bytes() / item, [&](std::size_t first, std::size_t n) {
    group_.NextPiece();
    std::memcpy(group_.buffer(rank()), At(in, first * item), n * item);
    group_.Meet();
    if (n * item <= kAddedByAll) {
      Sum(type, 0, n, At(out, first * item));
    } else {
      SumInParts(type, n, At(out, first * item));
    }
  });
}

void ShmCommunicator::AllGather(const void* in, void* out, std::size_t count, DataType type,
                                StreamHandle) {
  if (count == 0) return;
  group_.Begin({ShmCall::Kind::kAllGather, type, 0, count});
  Gather(in, out, count * ItemBytes(type));
}

void ShmCommunicator::Exchange(const void* in, void* out, std::size_t num_bytes) {
  if (num_bytes == 0) return;
  group_.Begin({ShmCall::Kind::kExchange, {}, 0, num_bytes});
  Gather(in, out, num_bytes);
}

void ShmCommunicator::Gather(const void* in, void* out, std::size_t num_bytes) {
  InPieces(num_bytes, group_.piece_bytes(), [&](std::size_t first, std::size_t n) {
    group_.NextPiece();
    std::memcpy(group_.buffer(rank()), At(in, first), n);
    group_.Meet();
    for (int rank = 0; rank < size(); ++rank) {
      std::memcpy(At(out, rank * num_bytes + first), group_.buffer(rank), n);
    }
  });
}

void ShmCommunicator::ReduceScatter(const void* in, void* out, std::size_t count, DataType type,
                                    StreamHandle) {
  const std::size_t item = ItemBytes(type);
  if (count == 0) return;
  group_.Begin({ShmCall::Kind::kReduceScatter, type, 0, count});
  InPieces(count, group_.piece_bytes() / item / size(), [&](std::size_t first, std::size_t n) {
    group_.NextPiece();
    for (int rank = 0; rank < size(); ++rank) {
      std::memcpy(At(group_.buffer(this->rank()), rank * n * item),
                  At(in, (rank * count + first) * item), n * item);
    }
    group_.Meet();
    Sum(type, rank() * n, n, At(out, first * item));
  });
}

void ShmCommunicator::Broadcast(void* data, std::size_t count, DataType type, int root,
                                StreamHandle) {
  Require(root >= 0 && root < size(), "broadcast: root is not a rank of the group");
  if (count == 0) return;
  group_.Begin({ShmCall::Kind::kBroadcast, type, root, count});
  InPieces(count * ItemBytes(type), group_.piece_bytes(), [&](std::size_t first, std::size_t n) {
    group_.NextPiece();
    if (rank() == root) std::memcpy(group_.buffer(root), At(data, first), n);
    group_.Meet();
    if (rank() != root) std::memcpy(At(data, first), group_.buffer(root), n);
  });
}

void ShmCommunicator::Barrier() {
  group_.Begin({});
  group_.Meet();
}

}  // namespace runtime
