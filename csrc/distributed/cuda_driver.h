// The CUDA driver as far as it is used here, loaded at run time; its headers are not needed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace runtime {

// The declarations below are those of cuda.h, which promises them to stay.
using CudaAddress = unsigned long long;
using CudaResult = int;  // 0: success
struct CudaContext;      // opaque
struct CudaStream;       // opaque

struct CudaIpcHandle {
  char bytes[64];
};

struct CudaDriver {
  CudaResult (*GetErrorString)(CudaResult result, const char** text) = nullptr;
  CudaResult (*CtxGetCurrent)(CudaContext** context) = nullptr;
  CudaResult (*CtxPushCurrent)(CudaContext* context) = nullptr;
  CudaResult (*CtxPopCurrent)(CudaContext** context) = nullptr;
  CudaResult (*CtxSynchronize)() = nullptr;
  CudaResult (*MemAlloc)(CudaAddress* address, std::size_t num_bytes) = nullptr;
  CudaResult (*MemFree)(CudaAddress address) = nullptr;
  CudaResult (*MemsetD8)(CudaAddress address, unsigned char value, std::size_t num_bytes) = nullptr;
  CudaResult (*MemsetD32Async)(CudaAddress address, unsigned value, std::size_t count,
                               CudaStream* stream) = nullptr;
  CudaResult (*MemcpyAsync)(CudaAddress to, CudaAddress from, std::size_t num_bytes,
                            CudaStream* stream) = nullptr;
  CudaResult (*StreamCreate)(CudaStream** stream, unsigned flags) = nullptr;
  CudaResult (*StreamDestroy)(CudaStream* stream) = nullptr;
  CudaResult (*StreamWriteValue32)(CudaStream* stream, CudaAddress address, std::uint32_t value,
                                   unsigned flags) = nullptr;
  CudaResult (*StreamWaitValue32)(CudaStream* stream, CudaAddress address, std::uint32_t value,
                                  unsigned flags) = nullptr;
  CudaResult (*MemHostAlloc)(void** memory, std::size_t num_bytes, unsigned flags) = nullptr;
  CudaResult (*MemHostGetDevicePointer)(CudaAddress* address, void* memory,
                                        unsigned flags) = nullptr;
  CudaResult (*MemFreeHost)(void* memory) = nullptr;
  CudaResult (*IpcGetMemHandle)(CudaIpcHandle* handle, CudaAddress address) = nullptr;
  CudaResult (*IpcOpenMemHandle)(CudaAddress* address, CudaIpcHandle handle,
                                 unsigned flags) = nullptr;
  CudaResult (*IpcCloseMemHandle)(CudaAddress address) = nullptr;
};

// Loads it at the first call; throws ConfigError where there is none.
const CudaDriver& LoadedCudaDriver();

}  // namespace runtime
