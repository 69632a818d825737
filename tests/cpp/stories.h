// What the stories about the scheduler start from.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/request_params.h"
#include "runtime/scheduler_config.h"

namespace runtime::testing {

inline SchedulerConfig Config(std::int32_t num_steps_in_flight = 1) {
  SchedulerConfig config;
  config.max_num_seqs = 4;
  config.max_num_batched_tokens = 16;
  config.block_size = 4;
  config.max_model_len = 64;
  config.vocab_size = 1000;
  config.watermark = 0.0;
  config.admission = AdmissionMode::kNone;
  config.num_steps_in_flight = num_steps_in_flight;
  return config;
}

inline std::vector<TokenId> Prompt(std::int32_t len, TokenId first = 0) {
  std::vector<TokenId> prompt;
  for (std::int32_t i = 0; i < len; ++i) prompt.push_back(first + i);
  return prompt;
}

inline RequestNumbers Greedy(std::int64_t max_tokens) {
  return {.temperature = 0, .seed = 1, .max_tokens = max_tokens};
}

}  // namespace runtime::testing
