#include "runtime/communicator.h"

#include <sys/random.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "common/text.h"
#include "distributed/nccl_communicator.h"
#include "distributed/shm_communicator.h"
#include "runtime/error.h"

namespace runtime {
namespace {

constexpr std::size_t kSmallestPiece = 4096;

// An id is the backend, for NCCL its own id, and the name of the ranks' shared memory.
const std::string kShm = "shm:";
const std::string kNccl = "nccl:";
const std::size_t kNameLength = std::strlen(ShmGroup::kNamePrefix) + 32;

// Guessing it would let another process of the user join.
std::string RandomName() {
  std::uint64_t words[2];
  Ensure(getrandom(words, sizeof(words), 0) == sizeof(words), "the system gives random bytes");
  char digits[33];
  std::snprintf(digits, sizeof(digits), "%016lx%016lx", static_cast<unsigned long>(words[0]),
                static_cast<unsigned long>(words[1]));
  return std::string(ShmGroup::kNamePrefix) + digits;
}

void Verify(const CommunicatorOptions& options) {
  RequireSetting(options.size >= 1 && options.size <= ShmGroup::kMaxRanks, "size", options.size,
                 "from 1 to " + Text(ShmGroup::kMaxRanks));
  RequireSetting(options.rank >= 0 && options.rank < options.size, "rank", options.rank,
                 "from 0 to " + Text(options.size - 1));
  RequireSetting(options.timeout_s > 0 && std::isfinite(options.timeout_s), "timeout_s",
                 options.timeout_s, "a positive number of seconds");
  RequireSetting(options.piece_bytes >= kSmallestPiece, "piece_bytes", options.piece_bytes,
                 "at least " + Text(kSmallestPiece));
}

// The host's messages are small.
std::unique_ptr<Communicator> MakeNcclCommunicator(const CommunicatorOptions& options) {
  const NcclApi& nccl = LoadedNccl();
  NcclUniqueId id;
  std::memcpy(id.bytes, options.unique_id.data() + kNccl.size(), sizeof(id.bytes));
  CommunicatorOptions host = options;
  host.unique_id = kShm + options.unique_id.substr(kNccl.size() + sizeof(id.bytes));
  host.piece_bytes = kSmallestPiece;
  return std::make_unique<NcclCommunicator>(nccl, std::make_unique<ShmCommunicator>(host), id,
                                            options.timeout_s);
}

}  // namespace

void Communicator::OnFailure(std::function<void()> stop) {
  const std::lock_guard lock(stops_mutex_);
  stops_.push_back(std::move(stop));
}

void Communicator::StopKernels() noexcept {
  const std::lock_guard lock(stops_mutex_);
  for (const auto& stop : stops_) stop();
}

std::size_t ItemBytes(DataType type) {
  return type == DataType::kFloat32 || type == DataType::kInt32 ? 4 : 2;
}

const char* Name(DataType type) {
  constexpr const char* kNames[] = {"float32", "bfloat16", "float16", "int32"};
  return kNames[static_cast<int>(type)];
}

Backend BackendNamed(const std::string& name) {
  if (name == "shm") return Backend::kSharedMemory;
  if (name == "nccl") return Backend::kNccl;
  throw ConfigError("backend=" + name + ": must be shm or nccl");
}

std::string MakeUniqueId(Backend backend) {
  const std::string name = RandomName();
  if (backend == Backend::kSharedMemory) return kShm + name;
  const NcclApi& nccl = LoadedNccl();
  NcclUniqueId id;
  if (const NcclResult result = nccl.GetUniqueId(&id); result != NcclResult::kSuccess) {
    throw ConfigError(std::string("NCCL makes no unique id: ") + nccl.GetErrorString(result));
  }
  return kNccl + std::string(id.bytes, sizeof(id.bytes)) + name;
}

std::unique_ptr<Communicator> MakeCommunicator(const CommunicatorOptions& options) {
  Verify(options);
  const std::string& id = options.unique_id;
  if (id.size() == kShm.size() + kNameLength && id.starts_with(kShm)) {
    return std::make_unique<ShmCommunicator>(options);
  }
  if (id.size() == kNccl.size() + sizeof(NcclUniqueId) + kNameLength && id.starts_with(kNccl)) {
    return MakeNcclCommunicator(options);
  }
  throw ConfigError("unique_id is not one that Communicator.unique_id made");
}

}  // namespace runtime
