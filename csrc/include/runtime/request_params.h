#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "runtime/types.h"

namespace runtime {

// The numbers of one request, as a user gives them. Bounds are in brackets.
struct RequestNumbers {
  std::int64_t n = 1;                     // [1, 128] completions; one scheduler request each
  double temperature = 1.0;               // 0 (greedy) or [0.01, 2]
  double top_p = 1.0;                     // (0, 1]
  std::int64_t top_k = 0;                 // 0 or -1: off; else [1, 2^31 - 1]
  double min_p = 0.0;                     // [0, 1]
  double presence_penalty = 0.0;          // [-2, 2]
  double frequency_penalty = 0.0;         // [-2, 2]
  double repetition_penalty = 1.0;        // [0.01, 2]
  std::optional<std::int64_t> seed = {};  // none: from the engine's seed and the request's id
  std::vector<std::int64_t> stop_token_ids = {};  // at most 62 different ids
  bool ignore_eos = false;
  std::optional<std::int64_t> max_tokens = {};  // [1, 2^31 - 1]; none: up to the model's length
  std::int64_t min_tokens = 0;                  // [0, max_tokens]
  std::optional<std::int64_t> logprobs = {};    // [0, 20]
  // [0, 20], of the prompt's tokens; those are for a request with SubmitOptions::score_start
  std::optional<std::int64_t> prompt_logprobs = {};
  // at most 320 ids, each [-100, 100]
  std::vector<std::pair<std::int64_t, double>> logit_bias = {};
  std::optional<std::vector<std::int64_t>> allowed_token_ids = {};  // not empty
  std::vector<std::int64_t> banned_token_ids = {};  // with logit_bias at most 320 different ids
};

// Validated numbers of one request; the only constructor is the one place that checks them. What
// depends on the model (the vocabulary, its length) is checked by Scheduler::Submit. Immutable.
class RequestParams {
 public:
  static constexpr std::int32_t kMaxCompletions = 128;
  static constexpr std::int32_t kMaxStopTokenIds = 62;
  static constexpr std::int32_t kMaxLogprobs = 20;
  static constexpr std::int32_t kMaxLogitBias = 320;

  // Throws InvalidRequest that names the field, its value, the limit and the nearest valid value.
  explicit RequestParams(const RequestNumbers& numbers = {});

  std::int32_t n() const { return n_; }
  float temperature() const { return temperature_; }
  float top_p() const { return top_p_; }
  std::int32_t top_k() const { return top_k_; }  // 0: off
  float min_p() const { return min_p_; }
  float presence_penalty() const { return presence_penalty_; }
  float frequency_penalty() const { return frequency_penalty_; }
  float repetition_penalty() const { return repetition_penalty_; }
  const std::optional<std::int64_t>& seed() const { return seed_; }
  const std::vector<TokenId>& stop_token_ids() const { return stop_token_ids_; }  // sorted
  bool ignore_eos() const { return ignore_eos_; }
  const std::optional<std::int32_t>& max_tokens() const { return max_tokens_; }
  std::int32_t min_tokens() const { return min_tokens_; }
  std::int32_t num_logprobs() const { return num_logprobs_; }                // -1: off
  std::int32_t num_prompt_logprobs() const { return num_prompt_logprobs_; }  // -1: off
  // Sorted by id; minus infinity for banned ids.
  const std::vector<std::pair<TokenId, float>>& logit_bias() const { return logit_bias_; }
  const std::vector<TokenId>& allowed_token_ids() const {
    return allowed_token_ids_;
  }  // empty: all

  bool is_greedy() const { return temperature_ == 0.0f; }
  bool has_penalties() const {
    return presence_penalty_ != 0.0f || frequency_penalty_ != 0.0f || repetition_penalty_ != 1.0f;
  }
  bool has_filter() const { return top_k_ > 0 || top_p_ < 1.0f || min_p_ > 0.0f; }

 private:
  std::int32_t n_;
  float temperature_;
  float top_p_;
  std::int32_t top_k_;
  float min_p_;
  float presence_penalty_;
  float frequency_penalty_;
  float repetition_penalty_;
  std::optional<std::int64_t> seed_;
  std::vector<TokenId> stop_token_ids_;
  bool ignore_eos_;
  std::optional<std::int32_t> max_tokens_;
  std::int32_t min_tokens_;
  std::int32_t num_logprobs_;
  std::int32_t num_prompt_logprobs_;
  std::vector<std::pair<TokenId, float>> logit_bias_;
  std::vector<TokenId> allowed_token_ids_;
};

}  // namespace runtime
