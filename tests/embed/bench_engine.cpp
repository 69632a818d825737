// Offline throughput of an engine in a C++ program, for tools/bench_embedding.py, which says what
// it is built from and what it is asked.
//   bench_engine [ARGUMENT=VALUE...]
// Each line on stdin is a request: its max_tokens, its temperature, whether it is to be detokenised
// (0, 1), then the ids of its prompt. An empty line runs those before it and prints the seconds of
// wall clock, and of the process's CPUs, until the last token.
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <iostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "runtime/engine.h"

namespace {

using Clock = std::chrono::steady_clock;

runtime::EngineConfig::Value ToValue(const std::string& text) {
  if (text == "true" || text == "false") return text == "true";
  char* end = nullptr;
  const std::int64_t integer = std::strtoll(text.c_str(), &end, 10);
  if (!text.empty() && *end == '\0') return integer;
  const double real = std::strtod(text.c_str(), &end);
  if (!text.empty() && *end == '\0') return real;
  return text;
}

runtime::EngineConfig ToConfig(const std::vector<std::string>& words) {
  runtime::EngineConfig config;
  for (const std::string& word : words) {
    const std::size_t equals = word.find('=');
    if (equals == std::string::npos) throw runtime::ConfigError(word + ": no ARGUMENT=VALUE");
    config.arguments[word.substr(0, equals)] = ToValue(word.substr(equals + 1));
  }
  return config;
}

runtime::Request ToRequest(const std::string& line) {
  runtime::Request request{.ignore_eos = true};
  std::istringstream words(line);
  std::vector<runtime::TokenId> ids;
  words >> request.max_tokens.emplace() >> request.temperature >> request.detokenize;
  for (runtime::TokenId id; words >> id;) ids.push_back(id);
  request.prompt = std::move(ids);
  return request;
}

double CpuSeconds() {
  std::timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void RunAll(runtime::Engine& engine, std::vector<runtime::Request> requests) {
  std::vector<runtime::RequestId> ids;
  for (runtime::Request& request : requests) ids.push_back(engine.Submit(std::move(request)));
  for (const runtime::RequestId id : ids) {
    std::string text;
    while (const auto chunk = engine.Next(id)) text += chunk->text;
  }
}

void Serve(runtime::Engine& engine) {
  std::vector<runtime::Request> requests;
  for (std::string line; std::getline(std::cin, line);) {
    if (!line.empty()) {
      requests.push_back(ToRequest(line));
      continue;
    }
    const auto begin = Clock::now();
    const double cpu_s = CpuSeconds();
    RunAll(engine, std::exchange(requests, {}));
    std::cout << std::chrono::duration<double>(Clock::now() - begin).count() << " "
              << CpuSeconds() - cpu_s << std::endl;
  }
}

}  // namespace

int main(int argc, char** argv) try {
  runtime::Engine engine(ToConfig({argv + 1, argv + argc}));
  Serve(engine);
} catch (const runtime::Error& error) {
  std::cerr << error.what() << "\n" << error.hint() << "\n";
  return EXIT_FAILURE;
}
