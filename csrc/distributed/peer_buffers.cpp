#include "distributed/peer_buffers.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <string>

#include "common/text.h"
#include "runtime/error.h"

namespace runtime {
namespace {

constexpr unsigned kPortableAndMapped = 1 | 2;
constexpr unsigned kLazyPeerAccess = 1;
// Smaller allocations share a block, and a handle names the block.
constexpr std::size_t kBlockBytes = std::size_t{2} << 20;

// What a rank says after each part of the set-up; an empty error is success.
struct Report {
  CudaIpcHandle handle{};
  char error[192] = {};
};

template <typename Work>
Report Attempt(Work work) {
  Report report;
  try {
    work(report);
  } catch (const std::exception& failure) {
    std::strncpy(report.error, failure.what(), sizeof(report.error) - 1);
  }
  return report;
}

// The ranks' reports; throws the first error, which every rank sees.
std::vector<Report> Exchanged(Communicator& group, const Report& own) {
  std::vector<Report> reports(static_cast<std::size_t>(group.size()));
  group.Exchange(&own, reports.data(), sizeof(own));
  for (int rank = 0; rank < group.size(); ++rank) {
    const char* error = reports[static_cast<std::size_t>(rank)].error;
    if (*error != '\0') throw ConfigError("rank " + Text(rank) + ": " + error);
  }
  return reports;
}

}  // namespace

std::unique_ptr<PeerBuffers> PeerBuffers::Make(
    Communicator& group, std::size_t num_bytes,
    const std::function<const CudaDriver&()>& load_driver) {
  std::unique_ptr<PeerBuffers> buffers(new PeerBuffers(group.rank(), group.size()));
  const auto offers = Exchanged(group, Attempt([&](Report& report) {
                                  report.handle = buffers->Allocate(load_driver(), num_bytes);
                                }));
  Exchanged(group, Attempt([&](Report&) {
              for (int rank = 0; rank < group.size(); ++rank) {
                if (rank != group.rank())
                  buffers->Open(rank, offers[static_cast<std::size_t>(rank)].handle);
              }
            }));
  group.OnFailure([word = std::weak_ptr(buffers->host_word_)] {
    if (const auto held = word.lock()) Set(*held);
  });
  return buffers;
}

PeerBuffers::PeerBuffers(int rank, int size)
    : rank_(rank), addresses_(static_cast<std::size_t>(size)) {}

CudaIpcHandle PeerBuffers::Allocate(const CudaDriver& driver, std::size_t num_bytes) {
  driver_ = &driver;
  Check("cuCtxGetCurrent", driver.CtxGetCurrent(&context_));
  void* word = nullptr;
  Check("cuMemHostAlloc", driver.MemHostAlloc(&word, sizeof(*host_word_), kPortableAndMapped));
  host_word_.reset(static_cast<std::int32_t*>(word),
                   [&driver](std::int32_t* memory) { driver.MemFreeHost(memory); });
  *host_word_ = 0;
  Check("cuMemHostGetDevicePointer", driver.MemHostGetDevicePointer(&abort_word_, word, 0));
  CudaAddress& memory = addresses_[static_cast<std::size_t>(rank_)];
  const std::size_t whole_blocks = (num_bytes + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
  Check("cuMemAlloc", driver.MemAlloc(&memory, std::max(whole_blocks, kBlockBytes)));
  Check("cuMemsetD8", driver.MemsetD8(memory, 0xff, num_bytes));
  Check("cuCtxSynchronize", driver.CtxSynchronize());
  CudaIpcHandle handle;
  Check("cuIpcGetMemHandle", driver.IpcGetMemHandle(&handle, memory));
  return handle;
}

void PeerBuffers::Open(int rank, const CudaIpcHandle& handle) {
  CudaAddress address = 0;
  const CudaResult result = driver_->IpcOpenMemHandle(&address, handle, kLazyPeerAccess);
  Check(("cuIpcOpenMemHandle of rank " + Text(rank)).c_str(), result);
  addresses_[static_cast<std::size_t>(rank)] = address;
}

void PeerBuffers::Check(const char* name, CudaResult result) const {
  if (result == 0) return;
  const char* text = nullptr;
  driver_->GetErrorString(result, &text);
  throw ConfigError(std::string(name) + ": " + (text != nullptr ? text : "error " + Text(result)));
}

void PeerBuffers::Set(std::int32_t& word) noexcept { std::atomic_ref(word).store(1); }

// Results are of no use any more: the context may be gone, with all that was in it.
PeerBuffers::~PeerBuffers() {
  if (driver_ == nullptr || context_ == nullptr) return;
  if (host_word_ != nullptr) Set(*host_word_);
  driver_->CtxPushCurrent(context_);
  for (std::size_t rank = 0; rank < addresses_.size(); ++rank) {
    if (addresses_[rank] == 0) continue;
    const bool own = rank == static_cast<std::size_t>(rank_);
    (own ? driver_->MemFree : driver_->IpcCloseMemHandle)(addresses_[rank]);
  }
  host_word_.reset();
  driver_->CtxPopCurrent(&context_);
}

}  // namespace runtime
