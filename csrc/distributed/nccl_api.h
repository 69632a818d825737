// NCCL as far as it is used here, loaded at run time; its headers are not needed.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "runtime/communicator.h"

namespace runtime {

// The declarations below are those of nccl.h, which promises them to stay.
struct NcclComm;  // opaque

struct NcclUniqueId {
  char bytes[128];
};

enum class NcclResult : int {
  kSuccess = 0,
  kUnhandledCudaError = 1,
  kSystemError = 2,
  kInternalError = 3,
  kInvalidArgument = 4,
  kInvalidUsage = 5,
  kRemoteError = 6,
  kInProgress = 7,
};

// ncclConfig_t as of NCCL 2.14; later versions give what is missing its default value.
struct NcclConfig {
  std::size_t size = sizeof(NcclConfig);
  unsigned int magic = 0xcafebeef;
  unsigned int version = 21400;
  int blocking = 0;
};

struct NcclApi {
  using Stream = StreamHandle;

  NcclResult (*GetVersion)(int* version) = nullptr;
  NcclResult (*GetUniqueId)(NcclUniqueId* id) = nullptr;
  NcclResult (*CommInitRankConfig)(NcclComm** comm, int size, NcclUniqueId id, int rank,
                                   NcclConfig* config) = nullptr;
  NcclResult (*CommFinalize)(NcclComm* comm) = nullptr;
  NcclResult (*CommDestroy)(NcclComm* comm) = nullptr;
  NcclResult (*CommAbort)(NcclComm* comm) = nullptr;
  NcclResult (*CommGetAsyncError)(NcclComm* comm, NcclResult* state) = nullptr;
  const char* (*GetErrorString)(NcclResult result) = nullptr;
  const char* (*GetLastError)(NcclComm* comm) = nullptr;
  NcclResult (*AllReduce)(const void* in, void* out, std::size_t count, int type, int op,
                          NcclComm* comm, Stream stream) = nullptr;
  NcclResult (*AllGather)(const void* in, void* out, std::size_t in_count, int type, NcclComm* comm,
                          Stream stream) = nullptr;
  NcclResult (*ReduceScatter)(const void* in, void* out, std::size_t out_count, int type, int op,
                              NcclComm* comm, Stream stream) = nullptr;
  NcclResult (*Broadcast)(const void* in, void* out, std::size_t count, int type, int root,
                          NcclComm* comm, Stream stream) = nullptr;

  NcclInfo info;
};

// Where to look, in the order of LoadNccl; `loaded_name` and `environment` are what it looks for
// in the process and the variable that it asks.
struct NcclSearch {
  std::string library;
  std::vector<std::string> folders;
  std::string name = "libnccl.so.2";
  std::string environment = "RUNTIME_NCCL_LIB";
};

// Loads and resolves it, or throws ConfigError: what was searched, what is missing.
NcclApi OpenNccl(const NcclSearch& search);

// What LoadNccl found, or now finds.
const NcclApi& LoadedNccl();

}  // namespace runtime
