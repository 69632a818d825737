#include "embed/python_api.h"

#include <dlfcn.h>
#include <link.h>

#include <cstring>
#include <string>

#include "runtime/error.h"

namespace runtime::embed {
namespace {

template <typename Function>
void Find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
}

template <typename Function>
void Require(void* library, const char* name, Function& function) {
  Find(library, name, function);
  if (function == nullptr) {
    throw PythonNotFound(std::string("Python's library has no function ") + name);
  }
}

// For dl_iterate_phdr: writes the name of a loaded libpython, and ends the search.
int IsLibpython(dl_phdr_info* info, std::size_t, void* found) {
  if (std::strstr(info->dlpi_name, "/libpython3") == nullptr) return 0;
  *static_cast<std::string*>(found) = info->dlpi_name;
  return 1;
}

}  // namespace

std::optional<void*> FindLoadedPython() {
  if (dlsym(RTLD_DEFAULT, "Py_IsInitialized") != nullptr) return RTLD_DEFAULT;
  std::string name;
  if (dl_iterate_phdr(&IsLibpython, &name) == 0) return std::nullopt;
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL);
  return library == nullptr ? std::nullopt : std::optional(library);
}

PythonApi LoadPythonApi(void* library) {
  PythonApi api{};
  Require(library, "Py_IsInitialized", api.IsInitialized);
  Require(library, "Py_GetVersion", api.GetVersion);
  Require(library, "Py_InitializeEx", api.InitializeEx);
  Require(library, "Py_DecodeLocale", api.DecodeLocale);
  Find(library, "Py_SetProgramName", api.SetProgramName);
  Find(library, "PyInitConfig_Create", api.InitConfigCreate);
  Find(library, "PyInitConfig_Free", api.InitConfigFree);
  Find(library, "PyInitConfig_SetStr", api.InitConfigSetStr);
  Find(library, "PyInitConfig_SetInt", api.InitConfigSetInt);
  Find(library, "Py_InitializeFromInitConfig", api.InitializeFromInitConfig);
  Find(library, "PyInitConfig_GetError", api.InitConfigGetError);
  Require(library, "PyEval_SaveThread", api.SaveThread);
  Require(library, "PyGILState_Ensure", api.GilEnsure);
  Require(library, "PyGILState_Release", api.GilRelease);
  Require(library, "PyGILState_Check", api.GilCheck);
  Require(library, "PyImport_ImportModule", api.ImportModule);
  Require(library, "PyObject_GetAttrString", api.GetAttrString);
  Require(library, "PyCapsule_GetPointer", api.CapsuleGetPointer);
  Require(library, "PyObject_Str", api.Str);
  Require(library, "PyUnicode_AsUTF8", api.AsUtf8);
  Require(library, "PyErr_Fetch", api.ErrFetch);
  Require(library, "PyErr_NormalizeException", api.ErrNormalize);
  Require(library, "PyErr_Clear", api.ErrClear);
  Require(library, "Py_DecRef", api.DecRef);
  return api;
}

}  // namespace runtime::embed
