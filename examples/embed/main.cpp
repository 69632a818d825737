// A model inside a C++ program: streams one answer, then runs two requests at once.
//   embed [MODEL_FOLDER [PROMPT]]   without a folder: the built-in model
#include <cstdlib>
#include <iostream>
#include <string>

#include "runtime/engine.h"

namespace {

void Run(const std::string& model, const std::string& prompt) {
  runtime::EngineConfig config;
  config.model = model;
  config.arguments = {{"max_num_seqs", 8}};
  runtime::Engine engine(config);

  std::cout << prompt;
  runtime::RequestId id = engine.Submit({.prompt = prompt, .temperature = 0, .max_tokens = 32});
  while (auto chunk = engine.Next(id)) std::cout << chunk->text << std::flush;
  std::cout << "\n";

  const std::string prompts[] = {"40+2=", "reverse(abcd)="};
  runtime::RequestId ids[2];
  for (int i = 0; i < 2; ++i) ids[i] = engine.Submit({.prompt = prompts[i], .temperature = 0});
  for (int i = 0; i < 2; ++i) {
    std::string text;
    while (auto chunk = engine.Next(ids[i])) text += chunk->text;
    std::cout << prompts[i] << text << "\n";
  }
}

}  // namespace

int main(int argc, char** argv) try {
  Run(argc > 1 ? argv[1] : "", argc > 2 ? argv[2] : "12+35=");
} catch (const runtime::Error& error) {
  std::cerr << error.code() << ": " << error.what() << "\n" << error.hint() << "\n";
  return EXIT_FAILURE;
}
