// What the ranks of a shared-memory group share, and how they meet there.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/unique_fd.h"
#include "distributed/shared_memory.h"
#include "runtime/communicator.h"

namespace runtime {

// A collective as its caller asks for it; those of all ranks must be equal.
struct ShmCall {
  enum class Kind : std::uint8_t {
    kBarrier,
    kAllReduce,
    kAllGather,
    kReduceScatter,
    kBroadcast,
    kExchange
  };

  Kind kind = Kind::kBarrier;
  DataType type = DataType::kInt32;
  std::int32_t root = 0;
  std::uint64_t count = 0;

  std::string Text() const;
  friend bool operator==(const ShmCall&, const ShmCall&) = default;
};

// One rank's view of the shared memory: a header, then two buffers of `piece_bytes` for every rank.
//
// Ranks meet at numbered points. A rank counts its arrivals in its own word; it may pass point n
// when every word has come to n. What it wrote before it arrived is visible to all behind the
// point. Data of successive pieces lies in alternate buffers: a buffer is written again two pieces
// later, and the point between them says that everybody has read it.
class ShmGroup {
 public:
  static constexpr int kMaxRanks = 64;
  static constexpr const char* kNamePrefix = "runtime-";  // of the memory, and 32 random digits

  // The group of options.unique_id: rank 0 makes the memory. Returns when all ranks have joined.
  explicit ShmGroup(const CommunicatorOptions& options);
  // In memory that was formatted; threads may share one mapping.
  ShmGroup(std::shared_ptr<SharedMemory> memory, const CommunicatorOptions& options);
  ShmGroup(const ShmGroup&) = delete;
  ShmGroup& operator=(const ShmGroup&) = delete;
  ~ShmGroup();

  static std::size_t MemoryBytes(const CommunicatorOptions& options);
  // Makes a group of nobody of zeros.
  static void Format(SharedMemory& memory, const CommunicatorOptions& options);

  int rank() const { return rank_; }
  int size() const { return size_; }
  std::size_t piece_bytes() const { return piece_bytes_; }
  // A rank's buffer for the piece at hand.
  std::byte* buffer(int rank) const;

  // Begins a collective: from its first meeting point on, all ranks are known to make this call.
  void Begin(const ShmCall& call);
  void NextPiece() { ++num_pieces_; }
  void Meet();

  // Throws what has failed, and looks at the peers if the last look is some time ago.
  void Poll();
  void Abort(const std::string& cause) noexcept;

 private:
  using Clock = std::chrono::steady_clock;
  struct Rank;
  struct Header;

  static std::shared_ptr<SharedMemory> Rendezvous(const CommunicatorOptions& options);
  void CheckGeometry(const CommunicatorOptions& options) const;
  void Arrive(std::uint32_t point);
  void WaitFor(int rank, std::uint32_t point, Clock::time_point deadline);
  void CompareCalls();
  bool HasArrived(int rank, std::uint32_t point) const;
  void ThrowIfFailed() const;
  [[noreturn]] void FailFor(int rank, const char* what, const char* relation = "in");
  bool HaveAllArrived(std::uint32_t point) const;
  bool IsDead(int rank);
  void CheckPeers(std::uint32_t point);
  std::string MissingRanks(std::uint32_t point) const;
  std::string CallText(const char* relation) const;
  // `relation` of the failure to the last collective that was begun.
  [[noreturn]] void Fail(const std::string& cause, const char* relation = "in");

  const std::shared_ptr<SharedMemory> memory_;
  Header& header_;
  const int rank_;
  const int size_;
  const std::size_t piece_bytes_;
  const std::chrono::duration<double> timeout_;
  const int num_spins_;
  std::vector<UniqueFd> pidfds_;  // none: not opened yet
  std::uint32_t num_arrivals_ = 0;
  std::uint64_t num_calls_ = 0;
  std::uint64_t num_pieces_ = 0;
  Clock::time_point last_look_ = Clock::now();
  ShmCall call_;
  bool compared_ = true;  // whether all ranks are known to make call_
};

}  // namespace runtime
