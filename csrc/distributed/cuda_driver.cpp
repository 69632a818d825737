#include "distributed/cuda_driver.h"

#include <dlfcn.h>

#include <string>

#include "runtime/error.h"

namespace runtime {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";

template <typename Function>
void Resolve(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
  if (function == nullptr) throw ConfigError(std::string(kLibrary) + " lacks " + name);
}

// Never unloaded: torch uses it as well.
CudaDriver Load() {
  void* handle = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw ConfigError(std::string("no CUDA driver: ") + dlerror());
  CudaDriver driver;
  Resolve(handle, "cuGetErrorString", driver.GetErrorString);
  Resolve(handle, "cuCtxGetCurrent", driver.CtxGetCurrent);
  Resolve(handle, "cuCtxPushCurrent_v2", driver.CtxPushCurrent);
  Resolve(handle, "cuCtxPopCurrent_v2", driver.CtxPopCurrent);
  Resolve(handle, "cuCtxSynchronize", driver.CtxSynchronize);
  Resolve(handle, "cuMemAlloc_v2", driver.MemAlloc);
  Resolve(handle, "cuMemFree_v2", driver.MemFree);
  Resolve(handle, "cuMemsetD8_v2", driver.MemsetD8);
  Resolve(handle, "cuMemsetD32Async", driver.MemsetD32Async);
  Resolve(handle, "cuMemcpyAsync", driver.MemcpyAsync);
  Resolve(handle, "cuStreamCreate", driver.StreamCreate);
  Resolve(handle, "cuStreamDestroy_v2", driver.StreamDestroy);
  Resolve(handle, "cuStreamWriteValue32_v2", driver.StreamWriteValue32);
  Resolve(handle, "cuStreamWaitValue32_v2", driver.StreamWaitValue32);
  Resolve(handle, "cuMemHostAlloc", driver.MemHostAlloc);
  Resolve(handle, "cuMemHostGetDevicePointer_v2", driver.MemHostGetDevicePointer);
  Resolve(handle, "cuMemFreeHost", driver.MemFreeHost);
  Resolve(handle, "cuIpcGetMemHandle", driver.IpcGetMemHandle);
  Resolve(handle, "cuIpcOpenMemHandle_v2", driver.IpcOpenMemHandle);
  Resolve(handle, "cuIpcCloseMemHandle", driver.IpcCloseMemHandle);
  return driver;
}

}  // namespace

const CudaDriver& LoadedCudaDriver() {
  static const CudaDriver driver = Load();
  return driver;
}

}  // namespace runtime
