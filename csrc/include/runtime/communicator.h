#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

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
  // How long a rank waits for the others on the host: in every call of the shared-memory backend,
  // in the set-up of NCCL.
  double timeout_s = 60.0;
  // Shared memory: what a rank hands over at a time; longer messages go in pieces. /dev/shm holds
  // two of these for every rank.
  std::size_t piece_bytes = std::size_t{1} << 20;
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

  // These two concern the host alone, whatever the backend: they return when all ranks have come
  // to them, and know nothing of streams. Exchange: out[size * num_bytes] = the ranks'
  // in[num_bytes], one after the other.
  virtual void Barrier() = 0;
  virtual void Exchange(const void* in, void* out, std::size_t num_bytes) = 0;

  // Throws what has failed since, a rank that died included, without waiting.
  virtual void Poll() = 0;
  // Ends the group with `cause`: calls under way that wait on the host throw it on every rank, and
  // so does Poll. What NCCL has queued on this rank's device returns without a result.
  virtual void Abort(const std::string& cause) noexcept = 0;

  // `stop` ends the kernels of others that wait for a peer on this device. It runs, perhaps more
  // than once and from any thread, when the group has failed and before NCCL is aborted, which
  // waits for the device; it must not throw or wait. The shared-memory backend never calls it.
  void OnFailure(std::function<void()> stop);

  // Whether a collective waits for the other ranks before it returns.
  virtual bool blocks() const = 0;

 protected:
  Communicator(int rank, int size) : rank_(rank), size_(size) {}
  void StopKernels() noexcept;

 private:
  const int rank_;
  const int size_;
  std::mutex stops_mutex_;
  std::vector<std::function<void()>> stops_;
};

enum class Backend : std::uint8_t { kSharedMemory, kNccl };

// "shm" or "nccl"; ConfigError for others.
Backend BackendNamed(const std::string& name);

struct NcclInfo {
  std::string path;
  int version = 0;  // as NCCL counts: 22809 is 2.28.9
};

// Finds NCCL; the first call that does so decides for the process, and the backend calls this
// itself if nobody has. In this order: `library`, a path; what the process has loaded already;
// $RUNTIME_NCCL_LIB; libnccl.so.2 in `folders`; the system's. Throws ConfigError with all that was
// searched. Sets NCCL_SOCKET_IFNAME=lo and NCCL_NVLS_ENABLE=0 unless they are set.
NcclInfo LoadNccl(const std::string& library = "", const std::vector<std::string>& folders = {});

// Names a group to be: a secret of at most 256 bytes, for the ranks alone. Of kNccl on a process
// that will be one of the ranks.
std::string MakeUniqueId(Backend backend);

// Joins the group that the id names, and returns when all ranks have. Throws ConfigError (what can
// not work), CapacityError (no room in /dev/shm), CommunicatorError (a rank died or did not come).
std::unique_ptr<Communicator> MakeCommunicator(const CommunicatorOptions& options);

}  // namespace runtime
