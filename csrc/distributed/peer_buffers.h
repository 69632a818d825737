#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "distributed/cuda_driver.h"
#include "runtime/communicator.h"

namespace runtime {

// A piece of device memory on every rank of a group that all of them can read and write, and a word
// of this host's memory that the device can read.
//
// It belongs to the CUDA context that is current when it is made, and may be destroyed in any
// thread; nothing queued may use it then, but for kernels that end at the word.
class PeerBuffers {
 public:
  // `num_bytes` on every rank, all 0xff on all of them when this returns. A collective call on the
  // host. Throws ConfigError, on every rank the same, where a rank has no such memory or cannot
  // reach another's; what the communicator throws passes.
  static std::unique_ptr<PeerBuffers> Make(
      Communicator& group, std::size_t num_bytes,
      const std::function<const CudaDriver&()>& load_driver = &LoadedCudaDriver);

  PeerBuffers(const PeerBuffers&) = delete;
  PeerBuffers& operator=(const PeerBuffers&) = delete;
  ~PeerBuffers();

  // Of each rank's memory, as this device knows it.
  const std::vector<CudaAddress>& addresses() const { return addresses_; }
  // An int32 that is 0 until the group has failed: kernels that wait for a peer look at it.
  CudaAddress abort_word() const { return abort_word_; }

 private:
  PeerBuffers(int rank, int size);
  CudaIpcHandle Allocate(const CudaDriver& driver, std::size_t num_bytes);
  void Open(int rank, const CudaIpcHandle& handle);
  void Check(const char* name, CudaResult result) const;
  static void Set(std::int32_t& word) noexcept;

  const int rank_;
  const CudaDriver* driver_ = nullptr;  // null: nothing is allocated
  CudaContext* context_ = nullptr;
  std::vector<CudaAddress> addresses_;
  std::shared_ptr<std::int32_t> host_word_;
  CudaAddress abort_word_ = 0;
};

}  // namespace runtime
