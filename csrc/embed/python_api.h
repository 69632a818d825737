#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace runtime::embed {

// The few functions of Python's C API that come before the bridge, found at run time. `void*`
// stands for PyObject*, PyInitConfig* and PyThreadState*.
struct PythonApi {
  int (*IsInitialized)();
  const char* (*GetVersion)();  // "3.11.7 (main, ..."; may be called at any time
  void (*InitializeEx)(int install_signal_handlers);
  wchar_t* (*DecodeLocale)(const char*, std::size_t*);
  void (*SetProgramName)(const wchar_t*);  // null from 3.15 on
  // PEP 741; null before 3.14
  void* (*InitConfigCreate)();
  void (*InitConfigFree)(void*);
  int (*InitConfigSetStr)(void*, const char*, const char*);
  int (*InitConfigSetInt)(void*, const char*, std::int64_t);
  int (*InitializeFromInitConfig)(void*);
  int (*InitConfigGetError)(void*, const char**);

  void* (*SaveThread)();
  int (*GilEnsure)();
  void (*GilRelease)(int);
  int (*GilCheck)();

  void* (*ImportModule)(const char*);
  void* (*GetAttrString)(void*, const char*);
  void* (*CapsuleGetPointer)(void*, const char*);
  void* (*Str)(void*);
  const char* (*AsUtf8)(void*);
  void (*ErrFetch)(void**, void**, void**);
  void (*ErrNormalize)(void**, void**, void**);
  void (*ErrClear)();
  void (*DecRef)(void*);
};

// The Python that this process has loaded, linked by the program or opened by one of its plugins
// for itself; as LoadPythonApi takes it. Its symbols are global from then on.
std::optional<void*> FindLoadedPython();

// `library` as dlopen gave it, or RTLD_DEFAULT. Throws PythonNotFound when it is no Python.
PythonApi LoadPythonApi(void* library);

}  // namespace runtime::embed
