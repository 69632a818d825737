#include "runtime/request_params.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <concepts>
#include <limits>
#include <string>

#include "runtime/error.h"

namespace runtime {
namespace {

constexpr std::int64_t kMaxInt = std::numeric_limits<std::int32_t>::max();

std::string Text(std::integral auto value) { return std::to_string(value); }

std::string Text(double value) {
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof(digits), value).ptr;
  return std::string(digits, end);
}

std::int32_t Integer(const char* param, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value < low || value > high) {
    throw InvalidRequest(param, Text(value), "between " + Text(low) + " and " + Text(high),
                         Text(std::clamp(value, low, high)));
  }
  return static_cast<std::int32_t>(value);
}

// NaN fails every comparison, so the test asks for what is allowed.
float Real(const char* param, double value, double low, double high) {
  if (!(value >= low && value <= high)) {
    throw InvalidRequest(param, Text(value), "between " + Text(low) + " and " + Text(high),
                         std::isnan(value) ? "" : Text(std::clamp(value, low, high)));
  }
  return static_cast<float>(value);
}

float Temperature(double value) {
  if (value == 0.0) return 0.0f;
  if (!(value >= 0.01 && value <= 2.0)) {
    std::string nearest = std::isnan(value) ? "" : value < 0.005 ? "0" : value > 2.0 ? "2" : "0.01";
    throw InvalidRequest("temperature", Text(value), "0 (greedy) or between 0.01 and 2",
                         std::move(nearest));
  }
  return static_cast<float>(value);
}

float TopP(double value) {
  if (!(value > 0.0 && value <= 1.0)) {
    throw InvalidRequest("top_p", Text(value), "above 0 and at most 1", value > 1.0 ? "1" : "");
  }
  // a tiny value must not become 0, which would keep no token at all
  return std::max(static_cast<float>(value), std::numeric_limits<float>::min());
}

std::int32_t TopK(std::int64_t value) {
  if (value == -1) return 0;
  if (value < -1 || value > kMaxInt) {
    throw InvalidRequest("top_k", Text(value), "0 or -1 (off), or between 1 and " + Text(kMaxInt),
                         value < 0 ? "0" : Text(kMaxInt));
  }
  return static_cast<std::int32_t>(value);
}

std::int32_t MinTokens(std::int64_t value, const std::optional<std::int32_t>& max_tokens) {
  return Integer("min_tokens", value, 0, max_tokens.value_or(static_cast<std::int32_t>(kMaxInt)));
}

void RequireCount(const char* param, std::size_t count, std::int32_t limit) {
  if (count > static_cast<std::size_t>(limit)) {
    throw InvalidRequest(param, Text(static_cast<std::int64_t>(count)) + " entries",
                         "at most " + Text(limit) + " entries", Text(limit) + " entries");
  }
}

std::int32_t NumLogprobs(const char* param, const std::optional<std::int64_t>& value) {
  return value ? Integer(param, *value, 0, RequestParams::kMaxLogprobs) : -1;
}

std::vector<TokenId> TokenIds(const char* param, const std::vector<std::int64_t>& values) {
  std::vector<TokenId> ids;
  ids.reserve(values.size());
  for (const std::int64_t value : values) ids.push_back(Integer(param, value, 0, kMaxInt));
  std::ranges::sort(ids);
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

std::vector<std::pair<TokenId, float>> LogitBias(
    const std::vector<std::pair<std::int64_t, double>>& values) {
  std::vector<std::pair<TokenId, float>> biases;
  biases.reserve(values.size());
  for (const auto& [id, bias] : values) {
    biases.emplace_back(Integer("logit_bias", id, 0, kMaxInt),
                        Real("logit_bias", bias, -100.0, 100.0));
  }
  std::ranges::sort(biases);
  for (std::size_t i = 1; i < biases.size(); ++i) {
    if (biases[i].first == biases[i - 1].first) {
      throw InvalidRequest("logit_bias", "token " + Text(biases[i].first) + " twice",
                           "one value for each token");
    }
  }
  return biases;
}

// A banned token's bias is minus infinity, whatever else was asked for it.
void Ban(const std::vector<std::int64_t>& banned, std::vector<std::pair<TokenId, float>>& biases) {
  if (banned.empty()) return;
  const std::vector<TokenId> ids = TokenIds("banned_token_ids", banned);
  std::erase_if(biases,
                [&](const auto& bias) { return std::ranges::binary_search(ids, bias.first); });
  for (const TokenId id : ids) biases.emplace_back(id, -std::numeric_limits<float>::infinity());
  std::ranges::sort(biases);
}

}  // namespace

RequestParams::RequestParams(const RequestNumbers& numbers)
    : n_(Integer("n", numbers.n, 1, kMaxCompletions)),
      temperature_(Temperature(numbers.temperature)),
      top_p_(TopP(numbers.top_p)),
      top_k_(TopK(numbers.top_k)),
      min_p_(Real("min_p", numbers.min_p, 0.0, 1.0)),
      presence_penalty_(Real("presence_penalty", numbers.presence_penalty, -2.0, 2.0)),
      frequency_penalty_(Real("frequency_penalty", numbers.frequency_penalty, -2.0, 2.0)),
      repetition_penalty_(Real("repetition_penalty", numbers.repetition_penalty, 0.01, 2.0)),
      seed_(numbers.seed),
      stop_token_ids_(TokenIds("stop_token_ids", numbers.stop_token_ids)),
      ignore_eos_(numbers.ignore_eos) {
  RequireCount("stop_token_ids", stop_token_ids_.size(), kMaxStopTokenIds);
  if (numbers.max_tokens) max_tokens_ = Integer("max_tokens", *numbers.max_tokens, 1, kMaxInt);
  min_tokens_ = MinTokens(numbers.min_tokens, max_tokens_);
  num_logprobs_ = NumLogprobs("logprobs", numbers.logprobs);
  num_prompt_logprobs_ = NumLogprobs("prompt_logprobs", numbers.prompt_logprobs);
  RequireCount("logit_bias", numbers.logit_bias.size(), kMaxLogitBias);
  logit_bias_ = LogitBias(numbers.logit_bias);
  Ban(numbers.banned_token_ids, logit_bias_);
  RequireCount("banned_token_ids", logit_bias_.size(), kMaxLogitBias);
  if (!numbers.allowed_token_ids) return;
  if (numbers.allowed_token_ids->empty()) {
    throw InvalidRequest("allowed_token_ids", "an empty list", "none or at least one token id");
  }
  allowed_token_ids_ = TokenIds("allowed_token_ids", *numbers.allowed_token_ids);
}

}  // namespace runtime
