#pragma once

#include <memory>
#include <string>
#include <vector>

#include "distributed/shm_group.h"
#include "runtime/communicator.h"

namespace runtime {

// Collectives over memory that the ranks share; they run in the caller's thread.
class ShmCommunicator final : public Communicator {
 public:
  explicit ShmCommunicator(const CommunicatorOptions& options);
  // For threads as ranks.
  ShmCommunicator(std::shared_ptr<SharedMemory> memory, const CommunicatorOptions& options);

  void AllReduce(const void* in, void* out, std::size_t count, DataType type,
                 StreamHandle stream) override;
  void AllGather(const void* in, void* out, std::size_t count, DataType type,
                 StreamHandle stream) override;
  void ReduceScatter(const void* in, void* out, std::size_t count, DataType type,
                     StreamHandle stream) override;
  void Broadcast(void* data, std::size_t count, DataType type, int root,
                 StreamHandle stream) override;
  void Barrier() override;
  void Exchange(const void* in, void* out, std::size_t num_bytes) override;
  void Poll() override { group_.Poll(); }
  void Abort(const std::string& cause) noexcept override { group_.Abort(cause); }
  bool blocks() const override { return true; }

 private:
  void Gather(const void* in, void* out, std::size_t num_bytes);
  void Sum(DataType type, std::size_t first, std::size_t count, void* out);
  void SumInParts(DataType type, std::size_t count, void* out);

  ShmGroup group_;
  std::vector<const void*> parts_;
};

}  // namespace runtime
