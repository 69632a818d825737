// A program one of whose plugins has opened Python for itself alone (RTLD_LOCAL) and started it.
//   plugin_host LIBPYTHON INTERPRETER
#include <dlfcn.h>

#include <iostream>

#include "runtime/engine.h"

namespace {

template <typename Function>
Function Find(void* library, const char* name) {
  return reinterpret_cast<Function>(dlsym(library, name));
}

void StartPython(void* library, const char* interpreter) {
  const auto decode = Find<wchar_t* (*)(const char*, std::size_t*)>(library, "Py_DecodeLocale");
  Find<void (*)(const wchar_t*)>(library, "Py_SetProgramName")(decode(interpreter, nullptr));
  Find<void (*)(int)>(library, "Py_InitializeEx")(0);
  Find<void* (*)()>(library, "PyEval_SaveThread")();
}

}  // namespace

int main(int argc, char** argv) {
  void* library = argc == 3 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : nullptr;
  if (library == nullptr) return 2;
  StartPython(library, argv[2]);
  runtime::Engine engine({.arguments = {{"device", "cpu"}, {"num_kv_blocks", 64}}});
  const auto id = engine.Submit({.prompt = "12+35=", .temperature = 0});
  while (const auto chunk = engine.Next(id)) std::cout << chunk->text;
  std::cout << "\n";
}
