// Token ids that nobody stored: of prompts, and of outputs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/scheduler_config.h"
#include "runtime/simulation.h"

namespace runtime::simulation {

// The vocabulary of simulated requests: the eos token, then ids that mean nothing.
inline constexpr TokenId kEos = 0;
inline constexpr std::int32_t kVocabSize = 1 << 15;

// Writes prompts as functions of (prefix id, length, number of the request).
class PromptWriter {
 public:
  explicit PromptWriter(const SharedPrefixes& shape) : shape_(shape) {}

  // Equal paths through the prefix tree give equal ids.
  std::vector<TokenId> Write(const SimulatedRequest& request, std::int64_t number) const;

 private:
  SharedPrefixes shape_;
};

// What a request's seed tells the executor: where it ends, and which ids it samples.
std::int64_t SeedOf(const SimulatedRequest& request, std::int64_t number);

// Samples in place of a device, from the plan's words alone: eos where the true length is reached.
class Executor {
 public:
  explicit Executor(std::int32_t max_num_seqs) : rows_(static_cast<std::size_t>(max_num_seqs)) {}

  // One token for each row of the plan, -1 where nothing is sampled. Returns how many are.
  std::int32_t Sample(std::span<const std::int32_t> plan, std::vector<TokenId>& tokens);

 private:
  struct Row {
    std::int32_t end = 0;  // tokens of prompt and output together
    std::uint32_t salt = 0;
  };
  std::vector<Row> rows_;
};

}  // namespace runtime::simulation
