// Offline throughput of an engine in a C++ program, for tools/bench_embedding.py: for each line on
// stdin, NUM_REQUESTS streams of the built-in model; prints the seconds that they took.
//   bench_engine NUM_REQUESTS INPUT_LEN OUTPUT_LEN
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "runtime/engine.h"

namespace {

using Clock = std::chrono::steady_clock;

// Prompts that share no prefix; ids above the special ones.
std::vector<runtime::Prompt> Prompts(int num_requests, int input_len, int pass) {
  std::vector<runtime::Prompt> prompts;
  for (int i = 0; i < num_requests; ++i) {
    std::vector<runtime::TokenId> ids;
    for (int j = 0; j < input_len; ++j) ids.push_back(16 + (i * 7 + j * 3 + pass * 11) % 256);
    prompts.emplace_back(std::move(ids));
  }
  return prompts;
}

double RunOnce(runtime::Engine& engine, std::vector<runtime::Prompt> prompts, int output_len) {
  const auto begin = Clock::now();
  std::vector<runtime::RequestId> ids;
  for (runtime::Prompt& prompt : prompts) {
    ids.push_back(engine.Submit({.prompt = std::move(prompt),
                                 .temperature = 0,
                                 .ignore_eos = true,
                                 .max_tokens = output_len}));
  }
  for (const runtime::RequestId id : ids) {
    std::string text;
    while (const auto chunk = engine.Next(id)) text += chunk->text;
  }
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: bench_engine NUM_REQUESTS INPUT_LEN OUTPUT_LEN\n";
    return 2;
  }
  const int num_requests = std::atoi(argv[1]), input_len = std::atoi(argv[2]);
  runtime::Engine engine(
      {.arguments = {{"device", "cpu"}, {"max_num_seqs", num_requests}, {"seed", 0}}});
  int pass = 0;
  for (std::string line; std::getline(std::cin, line); ++pass) {
    auto prompts = Prompts(num_requests, input_len, pass);
    std::cout << RunOnce(engine, std::move(prompts), std::atoi(argv[3])) << std::endl;
  }
}
