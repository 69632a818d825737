#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "distributed/peer_buffers.h"

namespace runtime {

// Copies from this rank's device into the memory of the others, by the devices' copy engines, and
// words by which streams of two devices wait for each other: no kernel waits, and no
// multiprocessor is taken from those that compute.
//
// The memory is that of a PeerBuffers: `num_words` int32, all -1 at first, then the rest. A stream
// that waits for a word goes on when the group fails; what it then reads means nothing.
//
// Calls only queue work on the stream that is given. It belongs to the CUDA context that is current
// when it is made, and may be destroyed in any thread.
class PeerCopies {
 public:
  // As PeerBuffers::Make.
  static std::unique_ptr<PeerCopies> Make(
      Communicator& group, std::size_t num_words, std::size_t num_bytes,
      const std::function<const CudaDriver&()>& load_driver = &LoadedCudaDriver);

  PeerCopies(const PeerCopies&) = delete;
  PeerCopies& operator=(const PeerCopies&) = delete;
  ~PeerCopies();

  // Where this rank's bytes behind the words begin, as this device knows it.
  CudaAddress own_bytes() const { return At(rank_, words_bytes_); }

  // num_bytes of this device at `from`, to `offset` of the bytes of `rank`.
  void Copy(int rank, std::size_t offset, CudaAddress from, std::size_t num_bytes,
            StreamHandle stream);
  // The word of `rank`, once all that the stream did before can be seen there.
  void Write(int rank, std::size_t word, std::int32_t value, StreamHandle stream);
  // Until this rank's word is `value` or has passed it, counting round.
  void Wait(std::size_t word, std::int32_t value, StreamHandle stream);

 private:
  // What ends the waits; a failure may be told while the rest is being destroyed.
  struct Release {
    std::mutex mutex;
    const CudaDriver* driver = nullptr;  // null: there is nothing to end any more
    CudaContext* context = nullptr;
    CudaStream* stream = nullptr;  // of its own: those that wait are not waited for
    CudaAddress words = 0;
    std::size_t num_words = 0;
    std::atomic<std::uint32_t> latest{0};  // that was waited for

    void Run() noexcept;
  };

  PeerCopies(int rank, std::unique_ptr<PeerBuffers> buffers, std::size_t num_words,
             std::size_t num_bytes, const CudaDriver& driver);
  CudaAddress At(int rank, std::size_t offset) const;
  CudaAddress WordAt(int rank, std::size_t word) const;

  const int rank_;
  const std::unique_ptr<PeerBuffers> buffers_;
  const std::size_t num_words_;
  const std::size_t words_bytes_;  // rounded up, for copies that begin behind them
  const std::size_t num_bytes_;
  const CudaDriver& driver_;
  const std::shared_ptr<Release> release_;
};

}  // namespace runtime
