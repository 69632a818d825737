#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace runtime {

enum class DataType : std::uint8_t { kFloat32, kBFloat16, kFloat16, kInt32 };

std::size_t ItemBytes(DataType type);
const char* Name(DataType type);

// A CUDA stream as the driver knows it. Calls of the shared-memory backend ignore it: they return
// when the result is there.
using StreamHandle = void*;

struct CommunicatorOptions {
  std::string unique_id;  // of MakeUniqueId, called once, on rank 0
  int rank = 0;
  int size = 1;
  // How long a rank waits for the others: in every collective of the shared-memory backend, in the
  // set-up of NCCL.
  double timeout_s = 60.0;
  // Shared memory: what a rank hands over at a time; longer messages go in pieces. /dev/shm holds
  // two of these for every rank.
  std::size_t piece_bytes = std::size_t{1} << 20;
  // NCCL: four bytes of device memory that outlive the communicator; Barrier needs them.
  void* barrier_word = nullptr;
};

// One rank's end of a group of processes of one host. All ranks make the same calls in the same
// order. Counts are elements of `type`; `out` may be `in`, or hold it at its place. Sums are added
// in float32 and rounded once, int32 in int32; in rank order where the memory is shared, so that
// every rank gets the same bits.
//
// A failure ends the group: the call that meets it, and every later one on any rank, throws
// CommunicatorError with the first cause. Only Abort may be called from another thread.
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  // out[count] = sum of the ranks' in[count].
  virtual void AllReduce(const void* in, void* out, std::size_t count, DataType type,
                         StreamHandle stream) = 0;
  // out[size * count] = the ranks' in[count], one after the other.
  virtual void AllGather(const void* in, void* out, std::size_t count, DataType type,
                         StreamHandle stream) = 0;
  // out[count] = part `rank` of the sum of the ranks' in[size * count].
  virtual void ReduceScatter(const void* in, void* out, std::size_t count, DataType type,
                             StreamHandle stream) = 0;
  // data[count] = that of `root`. REQUIRES: 0 <= root < size.
  virtual void Broadcast(void* data, std::size_t count, DataType type, int root,
                         StreamHandle stream) = 0;
  // Nothing behind it on any rank begins before all ranks have come to it.
  virtual void Barrier(StreamHandle stream) = 0;

  // Throws what has failed since, without waiting.
  virtual void Poll() = 0;
  // Ends the group with `cause`; calls under way on this and, where memory is shared, on other
  // ranks return with it.
  virtual void Abort(const std::string& cause) noexcept = 0;

  // Whether a collective waits for the other ranks before it returns.
  virtual bool blocks() const = 0;

 protected:
  Communicator(int rank, int size) : rank_(rank), size_(size) {}

 private:
  const int rank_;
  const int size_;
};

enum class Backend : std::uint8_t { kSharedMemory, kNccl };

// "shm" or "nccl"; ConfigError for others.
Backend BackendNamed(const std::string& name);

// Names a group to be: a secret of at most 256 bytes, for the ranks alone.
std::string MakeUniqueId(Backend backend);

// Joins the group that the id names, and returns when all ranks have. Throws ConfigError (what can
// not work), CapacityError (no room in /dev/shm), CommunicatorError (a rank died or did not come).
std::unique_ptr<Communicator> MakeCommunicator(const CommunicatorOptions& options);

}  // namespace runtime
