#include "runtime/communicator.h"

#include <sys/random.h>

#include <cmath>
#include <cstdint>
#include <cstdio>

#include "common/check.h"
#include "common/text.h"
#include "distributed/shm_communicator.h"
#include "runtime/error.h"

namespace runtime {
namespace {

constexpr std::size_t kSmallestPiece = 4096;

// Guessing it would let another process of the user join.
std::string RandomName() {
  std::uint64_t words[2];
  Ensure(getrandom(words, sizeof(words), 0) == sizeof(words), "the system gives random bytes");
  char digits[33];
  std::snprintf(digits, sizeof(digits), "%016lx%016lx", static_cast<unsigned long>(words[0]),
                static_cast<unsigned long>(words[1]));
  return digits;
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

}  // namespace

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
  Require(backend == Backend::kSharedMemory, "only the shared-memory backend is there");
  return "shm:runtime-" + RandomName();
}

std::unique_ptr<Communicator> MakeCommunicator(const CommunicatorOptions& options) {
  Verify(options);
  if (options.unique_id.starts_with("shm:runtime-")) {
    return std::make_unique<ShmCommunicator>(options);
  }
  throw ConfigError("unique_id is not one that Communicator.unique_id made");
}

}  // namespace runtime
