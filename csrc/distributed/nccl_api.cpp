#include "distributed/nccl_api.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdlib>
#include <memory>
#include <mutex>

#include "runtime/error.h"

namespace runtime {
namespace {

constexpr int kOldestVersion = 21400;  // the first with ncclCommInitRankConfig
constexpr const char* kHint = "pip install nvidia-nccl-cu13, or set RUNTIME_NCCL_LIB to its path";

// Looks in one place after the other and remembers where it found nothing.
class Finder {
 public:
  explicit Finder(const NcclSearch& search) : search_(search) {}

  void* Find() {
    if (!search_.library.empty()) return OpenOnly(search_.library);
    if (void* handle = Open("the process itself", search_.name, RTLD_NOLOAD)) return handle;
    const char* chosen = std::getenv(search_.environment.c_str());
    if (chosen != nullptr && *chosen != '\0') return OpenOnly(chosen);
    searched_ += "; $" + search_.environment + ": not set";
    for (const std::string& folder : search_.folders) {
      const std::string path = folder + "/" + search_.name;
      if (void* handle = Open(path, path, 0)) return handle;
    }
    if (void* handle = Open("the system", search_.name, 0)) return handle;
    throw ConfigError("NCCL was not found; searched: " + searched_, kHint);
  }

 private:
  void* Open(const std::string& place, const std::string& path, int flags) {
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | flags);
    if (handle == nullptr) searched_ += (searched_.empty() ? "" : "; ") + place + ": " + Why();
    return handle;
  }

  // Where somebody asked for this one, another will not do.
  void* OpenOnly(const std::string& path) {
    if (void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
    throw ConfigError("NCCL cannot be loaded from " + path + ": " + Why(), kHint);
  }

  static std::string Why() {
    const char* error = dlerror();
    return error != nullptr ? error : "not loaded";
  }

  const NcclSearch& search_;
  std::string searched_;
};

std::string PathOf(void* handle) {
  link_map* map = nullptr;
  return dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 ? map->l_name : "";
}

template <typename Function>
void Resolve(void* handle, const char* name, const std::string& path, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
  if (function != nullptr) return;
  throw ConfigError(path + " lacks " + name + ": NCCL 2.14 or newer is needed", kHint);
}

NcclApi Resolved(void* handle) {
  NcclApi api;
  api.info.path = PathOf(handle);
  const auto resolve = [&](const char* name, auto& function) {
    Resolve(handle, name, api.info.path, function);
  };
  resolve("ncclGetVersion", api.GetVersion);
  resolve("ncclGetUniqueId", api.GetUniqueId);
  resolve("ncclCommInitRankConfig", api.CommInitRankConfig);
  resolve("ncclCommFinalize", api.CommFinalize);
  resolve("ncclCommDestroy", api.CommDestroy);
  resolve("ncclCommAbort", api.CommAbort);
  resolve("ncclCommGetAsyncError", api.CommGetAsyncError);
  resolve("ncclGetErrorString", api.GetErrorString);
  resolve("ncclGetLastError", api.GetLastError);
  resolve("ncclAllReduce", api.AllReduce);
  resolve("ncclAllGather", api.AllGather);
  resolve("ncclReduceScatter", api.ReduceScatter);
  resolve("ncclBroadcast", api.Broadcast);
  return api;
}

// NCCL reads these once, when it is first used: its sockets stay on this host, and no multicast
// memory is asked for.
void SetEnvironment() {
  setenv("NCCL_SOCKET_IFNAME", "lo", /*overwrite=*/0);
  setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0);
}

std::mutex& LoadMutex() {
  static std::mutex mutex;
  return mutex;
}

// Never unloaded: NCCL's threads may outlive every communicator.
std::unique_ptr<NcclApi>& Loaded() {
  static auto* loaded = new std::unique_ptr<NcclApi>;
  return *loaded;
}

const NcclApi& Load(const NcclSearch& search) {
  const std::lock_guard lock(LoadMutex());
  std::unique_ptr<NcclApi>& loaded = Loaded();
  if (loaded == nullptr) {
    loaded = std::make_unique<NcclApi>(OpenNccl(search));
    SetEnvironment();
  }
  return *loaded;
}

}  // namespace

NcclApi OpenNccl(const NcclSearch& search) {
  NcclApi api = Resolved(Finder(search).Find());
  if (api.GetVersion(&api.info.version) != NcclResult::kSuccess ||
      api.info.version < kOldestVersion) {
    throw ConfigError(api.info.path + " is NCCL version " + std::to_string(api.info.version) +
                          ": " + std::to_string(kOldestVersion) + " or newer is needed",
                      kHint);
  }
  return api;
}

const NcclApi& LoadedNccl() { return Load({}); }

NcclInfo LoadNccl(const std::string& library, const std::vector<std::string>& folders) {
  NcclSearch search;
  search.library = library;
  search.folders = folders;
  return Load(search).info;
}

}  // namespace runtime
