#include "distributed/nccl_communicator.h"

#include <algorithm>
#include <future>
#include <thread>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/text.h"
#include "runtime/error.h"

namespace runtime {
namespace {

constexpr int kSum = 0;
constexpr std::chrono::seconds kLeave{5};
constexpr std::chrono::microseconds kFirstPause{20};
constexpr std::chrono::microseconds kLongestPause{1000};

int NcclType(DataType type) {
  switch (type) {
    case DataType::kInt32:
      return 2;
    case DataType::kFloat16:
      return 6;
    case DataType::kFloat32:
      return 7;
    case DataType::kBFloat16:
      return 9;
  }
  return -1;
}

// "2.28.9"
std::string VersionText(int version) {
  return Text(version / 10000) + "." + Text(version / 100 % 100) + "." + Text(version % 100);
}

// Calls ncclCommDestroy or ncclCommAbort, in a thread that may outlive the caller: both wait for
// the graphs with a kernel of the communicator, which the caller may hold, or another thread that
// needs what the caller has locked (NCCL 2.26 and later, commDestroySync).
std::future<void> GiveBack(NcclResult (*call)(NcclComm*), NcclComm* comm) {
  std::promise<void> done;
  std::future<void> is_done = done.get_future();
  std::thread([call, comm, done = std::move(done)]() mutable {
    call(comm);
    done.set_value();
  }).detach();
  return is_done;
}

}  // namespace

NcclCommunicator::NcclCommunicator(const NcclApi& nccl, std::unique_ptr<Communicator> host,
                                   const NcclUniqueId& id, double timeout_s)
    : Communicator(host->rank(), host->size()),
      nccl_(nccl),
      host_(std::move(host)),
      timeout_(
          std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout_s))) {
  CompareVersions();
  Join(id);
}

NcclCommunicator::~NcclCommunicator() {
  try {
    Leave();
  } catch (const Error&) {
    DropComm();  // a peer has failed: nothing is left to wait for
  }
}

void NcclCommunicator::CompareVersions() {
  const int own = nccl_.info.version;
  std::vector<int> versions(static_cast<std::size_t>(size()));
  host_->Exchange(&own, versions.data(), sizeof(own));
  const auto other = std::find_if(versions.begin(), versions.end(),
                                  [&](int version) { return version != versions[0]; });
  if (other == versions.end()) return;
  throw ConfigError("rank " + Text(static_cast<int>(other - versions.begin())) + " has NCCL " +
                        VersionText(*other) + ", rank 0 " + VersionText(versions[0]) +
                        ": all ranks need the same; rank " + Text(rank()) + " loaded " +
                        nccl_.info.path,
                    "RUNTIME_NCCL_LIB sets the library");
}

void NcclCommunicator::Join(const NcclUniqueId& id) {
  NcclConfig config;
  NcclResult result;
  {
    const std::lock_guard lock(mutex_);
    result = nccl_.CommInitRankConfig(&comm_, size(), id, rank(), &config);
  }
  Settle("ncclCommInitRankConfig", result, timeout_);
}

void NcclCommunicator::Leave() {
  NcclResult result;
  {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) return;
    result = nccl_.CommFinalize(comm_);
  }
  Settle("ncclCommFinalize", result, std::min<Clock::duration>(kLeave, timeout_));
  const std::lock_guard lock(mutex_);
  NcclComm* comm = std::exchange(comm_, nullptr);
  if (comm != nullptr) GiveBack(nccl_.CommDestroy, comm).wait_for(kLeave);
}

// function(comm) -> NcclResult. Without a comm the group has failed, and the host knows why.
template <typename Function>
void NcclCommunicator::Call(const char* name, Function function) {
  NcclResult result = NcclResult::kInvalidUsage;
  {
    const std::lock_guard lock(mutex_);
    if (comm_ != nullptr) result = function(comm_);
  }
  if (result != NcclResult::kSuccess) [[unlikely]]
    Settle(name, result, timeout_);
}

NcclResult NcclCommunicator::State() {
  const std::lock_guard lock(mutex_);
  NcclResult state = NcclResult::kInvalidUsage;
  if (comm_ == nullptr) return state;
  const NcclResult asked = nccl_.CommGetAsyncError(comm_, &state);
  return asked == NcclResult::kSuccess ? state : asked;
}

// Returns when the call that gave `result` is done; throws when it failed or took too long.
void NcclCommunicator::Settle(const char* name, NcclResult result, Clock::duration limit) {
  const auto deadline = Clock::now() + limit;
  for (auto pause = kFirstPause; result == NcclResult::kInProgress;
       pause = std::min(2 * pause, kLongestPause)) {
    PollHost();
    if (Clock::now() >= deadline) {
      Abort(std::string(name) + " was not done on rank " + Text(rank()) + " after " +
            Text(std::chrono::duration<double>(limit).count()) + " s");
      PollHost();
    }
    std::this_thread::sleep_for(pause);
    result = State();
  }
  if (result != NcclResult::kSuccess) Fail(name, result);
}

// Another rank may know the cause better: what NCCL meets here is often that one's absence.
void NcclCommunicator::Fail(const char* name, NcclResult result) {
  PollHost();
  std::string cause =
      std::string(name) + " failed on rank " + Text(rank()) + ": " + nccl_.GetErrorString(result);
  {
    const std::lock_guard lock(mutex_);
    const char* details = nccl_.GetLastError(comm_);
    if (details != nullptr && *details != '\0') cause += std::string(" (") + details + ")";
  }
  Abort(cause);
  PollHost();
  throw CommunicatorError(cause);
}

// What ends the host group ends this one: an aborted collective would otherwise wait for ever on
// the device.
void NcclCommunicator::PollHost() {
  try {
    host_->Poll();
  } catch (const Error&) {
    DropComm();
    throw;
  }
}

void NcclCommunicator::Poll() {
  PollHost();
  const NcclResult state = State();
  if (state != NcclResult::kSuccess && state != NcclResult::kInProgress) {
    Fail("a collective", state);
  }
}

void NcclCommunicator::Abort(const std::string& cause) noexcept {
  host_->Abort(cause);
  DropComm();
}

void NcclCommunicator::DropComm() noexcept {
  StopKernels();
  const std::lock_guard lock(mutex_);
  if (NcclComm* comm = std::exchange(comm_, nullptr)) GiveBack(nccl_.CommAbort, comm);
}

void NcclCommunicator::AllReduce(const void* in, void* out, std::size_t count, DataType type,
                                 StreamHandle stream) {
  Call("ncclAllReduce", [&](NcclComm* comm) {
    return nccl_.AllReduce(in, out, count, NcclType(type), kSum, comm, stream);
  });
}

void NcclCommunicator::AllGather(const void* in, void* out, std::size_t count, DataType type,
                                 StreamHandle stream) {
  Call("ncclAllGather", [&](NcclComm* comm) {
    return nccl_.AllGather(in, out, count, NcclType(type), comm, stream);
  });
}

void NcclCommunicator::ReduceScatter(const void* in, void* out, std::size_t count, DataType type,
                                     StreamHandle stream) {
  Call("ncclReduceScatter", [&](NcclComm* comm) {
    return nccl_.ReduceScatter(in, out, count, NcclType(type), kSum, comm, stream);
  });
}

void NcclCommunicator::Broadcast(void* data, std::size_t count, DataType type, int root,
                                 StreamHandle stream) {
  Require(root >= 0 && root < size(), "broadcast: root is not a rank of the group");
  Call("ncclBroadcast", [&](NcclComm* comm) {
    return nccl_.Broadcast(data, data, count, NcclType(type), root, comm, stream);
  });
}

}  // namespace runtime
