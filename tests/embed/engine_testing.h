#pragma once

#include <gtest/gtest.h>

#include <map>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <utility>

#include "runtime/engine.h"

namespace runtime {

// What came of a request, all chunks together, by completion.
struct Output {
  std::string text;
  std::vector<TokenId> token_ids;
  std::vector<TokenLogprobs> logprobs;
  FinishReason finish_reason = FinishReason::kNone;
  std::string stop_string;
  TokenId stop_token_id = -1;
  std::optional<RequestMetrics> metrics;

  void Add(const Chunk& chunk) {
    text += chunk.text;
    token_ids.insert(token_ids.end(), chunk.token_ids.begin(), chunk.token_ids.end());
    logprobs.insert(logprobs.end(), chunk.logprobs.begin(), chunk.logprobs.end());
    finish_reason = chunk.finish_reason;
    stop_string = chunk.stop_string;
    stop_token_id = chunk.stop_token_id;
    metrics = chunk.metrics;
  }
};

inline std::map<int, Output> ReadAll(Engine& engine, RequestId id) {
  std::map<int, Output> outputs;
  while (const auto chunk = engine.Next(id)) outputs[chunk->index].Add(*chunk);
  return outputs;
}

inline Output Read(Engine& engine, RequestId id) { return ReadAll(engine, id)[0]; }

inline Output Ask(Engine& engine, Request request) {
  return Read(engine, engine.Submit(std::move(request)));
}

// The built-in model, small. `arguments` come on top.
inline EngineConfig Config(std::map<std::string, EngineConfig::Value> arguments = {}) {
  arguments.insert({{"device", "cpu"}, {"max_num_seqs", 32}, {"num_kv_blocks", 512}});
  EngineConfig config;
  config.arguments = std::move(arguments);
  return config;
}

// One engine for all the tests that leave it as it was.
inline Engine& SharedEngine() {
  static auto* const engine = new Engine(Config());  // the process ends with it running
  return *engine;
}

inline Request Endless(std::string prompt = "12+35=") {
  return {.prompt = std::move(prompt), .ignore_eos = true, .max_tokens = std::nullopt};
}

// The error of that very class that `call` throws.
template <typename E>
E Thrown(auto call) {
  try {
    call();
  } catch (const E& e) {
    EXPECT_EQ(typeid(e).name(), typeid(E).name());
    return e;
  }
  throw std::logic_error("nothing was thrown");
}

inline bool Has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace runtime
