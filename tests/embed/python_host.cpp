// A program that runs Python itself, by pybind11, and engines beside it; test_hosts.py compiles it
// against the libpython of one interpreter and starts it with the words below.
//   python_host beside|finalized|unstarted INTERPRETER
#include <pybind11/embed.h>

#include <exception>
#include <iostream>
#include <memory>
#include <string>

#include "runtime/engine.h"

namespace py = pybind11;

namespace {

runtime::EngineConfig Config() {
  return {.arguments = {{"device", "cpu"}, {"max_num_seqs", 4}, {"num_kv_blocks", 64}}};
}

std::string Ask(runtime::Engine& engine, const std::string& prompt) {
  const auto id = engine.Submit({.prompt = prompt, .temperature = 0});
  std::string text;
  while (const auto chunk = engine.Next(id)) text += chunk->text;
  return text;
}

runtime::RequestId SubmitEndless(runtime::Engine& engine) {
  return engine.Submit({.prompt = "12+35=", .ignore_eos = true, .max_tokens = std::nullopt});
}

// Prints the error that `call` ends with.
void PrintError(const char* what, auto call) {
  try {
    call();
    std::cout << what << ": no error\n";
  } catch (const runtime::Error& e) {
    std::cout << what << ": " << e.code() << ": " << e.what() << "\n";
  }
}

// As the interpreter of that path would be: its environment is found from its name.
std::unique_ptr<py::scoped_interpreter> StartPython(const char* interpreter) {
  PyConfig config;
  PyConfig_InitPythonConfig(&config);
  PyConfig_SetBytesString(&config, &config.program_name, interpreter);
  return std::make_unique<py::scoped_interpreter>(&config);
}

// The program has an interpreter, whose GIL it holds, or not; engines come and go.
void RunBeside(const char* interpreter) {
  const auto python = StartPython(interpreter);
  PrintError("start with the GIL", [] { runtime::Engine engine(Config()); });
  std::unique_ptr<runtime::Engine> engine;
  for (int i = 0; i < 2; ++i) {
    const py::gil_scoped_release no_gil;
    engine = nullptr;
    engine = std::make_unique<runtime::Engine>(Config());
    std::cout << "without the GIL: " << Ask(*engine, "12+35=") << "\n";
  }
  const auto id = SubmitEndless(*engine);
  PrintError("wait with the GIL", [&] {
    while (engine->Next(id)) {
    }
  });
  engine->Abort(id);
  engine = nullptr;  // with the GIL
  std::cout << py::eval(
                   "__import__('runtime').LLM(device='cpu', max_num_seqs=4, num_kv_blocks=64)"
                   ".generate('40+2=')[0].outputs[0].text")
                   .cast<std::string>()
            << "\n";
}

// The program ends its interpreter while an engine serves.
void RunFinalized(const char* interpreter) {
  auto python = StartPython(interpreter);
  std::unique_ptr<runtime::Engine> engine;
  runtime::RequestId id = 0;
  {
    const py::gil_scoped_release no_gil;
    engine = std::make_unique<runtime::Engine>(Config());
    id = SubmitEndless(*engine);
    engine->Next(id);
  }
  python = nullptr;
  PrintError("its request", [&] {
    while (engine->Next(id)) {
    }
  });
  PrintError("later request", [&] { SubmitEndless(*engine); });
  PrintError("stats", [&] { engine->Stats(); });
  engine = nullptr;
  PrintError("later engine", [] { runtime::Engine later(Config()); });
}

// The program links libpython and leaves it alone: the first engine starts it.
void RunUnstarted(const char* interpreter) {
  runtime::EngineConfig config = Config();
  config.python = interpreter;
  PrintError("start", [&] {
    runtime::Engine engine(config);
    std::cout << Ask(engine, "12+35=") << "\n";
  });
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc == 3 ? argv[1] : "";
  if (what == "beside") RunBeside(argv[2]);
  if (what == "finalized") RunFinalized(argv[2]);
  if (what == "unstarted") RunUnstarted(argv[2]);
}
