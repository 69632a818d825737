#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <string>

#include "distributed/nccl_api.h"
#include "runtime/communicator.h"

namespace runtime {

// Collectives of NCCL on the current CUDA device, queued on the caller's stream; they can be
// captured in CUDA graphs. `host`, a group of the same ranks, carries what the host says: who has
// joined, who died, versions, the first failure.
//
// The NCCL communicator is a non-blocking one: no call waits inside NCCL, and what does not finish
// at once is asked after, together with the host group, until it has or the time is up. Only what
// gives a communicator back waits there, until no CUDA graph has one of its kernels any more; a
// thread of its own makes these calls, and a graph that lives on keeps nobody from leaving.
class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(const NcclApi& nccl, std::unique_ptr<Communicator> host, const NcclUniqueId& id,
                   double timeout_s);
  ~NcclCommunicator() override;

  void AllReduce(const void* in, void* out, std::size_t count, DataType type,
                 StreamHandle stream) override;
  void AllGather(const void* in, void* out, std::size_t count, DataType type,
                 StreamHandle stream) override;
  void ReduceScatter(const void* in, void* out, std::size_t count, DataType type,
                     StreamHandle stream) override;
  void Broadcast(void* data, std::size_t count, DataType type, int root,
                 StreamHandle stream) override;
  void Barrier() override { host_->Barrier(); }
  void Exchange(const void* in, void* out, std::size_t num_bytes) override {
    host_->Exchange(in, out, num_bytes);
  }
  void Poll() override;
  void Abort(const std::string& cause) noexcept override;
  bool blocks() const override { return false; }

 private:
  using Clock = std::chrono::steady_clock;

  void CompareVersions();
  void Join(const NcclUniqueId& id);
  void Leave();
  template <typename Function>
  void Call(const char* name, Function function);
  NcclResult State();
  void Settle(const char* name, NcclResult result, Clock::duration limit);
  void PollHost();
  void DropComm() noexcept;
  [[noreturn]] void Fail(const char* name, NcclResult result);

  const NcclApi& nccl_;
  const std::unique_ptr<Communicator> host_;
  const Clock::duration timeout_;
  std::mutex mutex_;          // of comm_: Abort comes from another thread
  NcclComm* comm_ = nullptr;  // null: not joined, or aborted
};

}  // namespace runtime
