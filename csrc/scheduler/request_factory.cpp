#include "scheduler/request_factory.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "common/siphash.h"
#include "runtime/error.h"
#include "runtime/step_plan.h"

namespace runtime {
namespace {

using std::to_string;

std::string Tokens(std::int64_t count) { return to_string(count) + " tokens"; }

void RequireInVocabulary(const SchedulerConfig& config, const char* param, TokenId id) {
  if (id >= 0 && id < config.vocab_size) return;
  throw InvalidRequest(param, "token id " + to_string(id),
                       "token ids between 0 and " + to_string(config.vocab_size - 1));
}

// Without an exit in the middle, so that many ids are looked at at once.
bool AreInVocabulary(const SchedulerConfig& config, const std::vector<TokenId>& ids) {
  const auto size = static_cast<std::uint32_t>(config.vocab_size);
  bool all = true;
  for (const TokenId id : ids) all = all & (static_cast<std::uint32_t>(id) < size);
  return all;
}

void RequireVocabulary(const SchedulerConfig& config, const std::vector<TokenId>& prompt_ids,
                       const RequestParams& params) {
  if (!AreInVocabulary(config, prompt_ids)) {
    for (const TokenId id : prompt_ids) RequireInVocabulary(config, "prompt_ids", id);
  }
  for (const TokenId id : params.stop_token_ids())
    RequireInVocabulary(config, "stop_token_ids", id);
  for (const auto& [id, bias] : params.logit_bias()) RequireInVocabulary(config, "logit_bias", id);
  for (const TokenId id : params.allowed_token_ids()) {
    RequireInVocabulary(config, "allowed_token_ids", id);
  }
}

void RequirePromptLen(const SchedulerConfig& config, std::int64_t prompt_len, bool is_scoring) {
  if (prompt_len == 0) throw InvalidRequest("prompt_ids", "an empty prompt", "at least one token");
  const std::int64_t limit = is_scoring ? config.max_model_len : config.max_model_len - 1;
  if (prompt_len > limit) {
    throw InvalidRequest("prompt_ids", "a prompt of " + Tokens(prompt_len),
                         "at most " + Tokens(limit), "",
                         "max_model_len is " + to_string(config.max_model_len));
  }
}

void RequireScoreStart(std::int32_t score_start, std::int64_t prompt_len) {
  if (score_start < -1 || score_start >= prompt_len) {
    throw InvalidRequest("score_start", to_string(score_start),
                         "-1 (off) or an index into the " + Tokens(prompt_len) + " of the prompt");
  }
}

std::string PoolText(const BlockAllocator& allocator, const SchedulerConfig& config) {
  return "the KV cache has " + to_string(allocator.num_blocks()) + " blocks of " +
         Tokens(config.block_size) + "; num_kv_blocks or kv_cache_memory_bytes raises it";
}

// Length at which the request ends, refused if its KV can never fit.
std::int32_t MaxLen(const SchedulerConfig& config, const BlockAllocator& allocator,
                    std::int64_t prompt_len, const RequestParams& params, bool is_scoring) {
  const std::int64_t pool_tokens = std::int64_t{allocator.num_blocks()} * config.block_size;
  if (prompt_len > pool_tokens) {
    throw InvalidRequest("prompt_ids", "a prompt of " + Tokens(prompt_len),
                         "at most " + Tokens(pool_tokens), "", PoolText(allocator, config));
  }
  if (is_scoring) return static_cast<std::int32_t>(prompt_len);
  const std::int64_t longest = std::min<std::int64_t>(config.max_model_len, pool_tokens + 1);
  if (!params.max_tokens()) return static_cast<std::int32_t>(longest);
  const std::int64_t wanted =
      std::min<std::int64_t>(prompt_len + *params.max_tokens(), config.max_model_len);
  if (wanted > longest) {
    const std::string nearest = to_string(longest - prompt_len);
    throw InvalidRequest("max_tokens", to_string(*params.max_tokens()),
                         "at most " + nearest + " after a prompt of " + Tokens(prompt_len), nearest,
                         PoolText(allocator, config));
  }
  return static_cast<std::int32_t>(wanted);
}

std::vector<TokenId> MaskedIds(const SchedulerConfig& config, const RequestParams& params) {
  if (params.min_tokens() == 0) return {};
  std::vector<TokenId> ids = params.stop_token_ids();
  if (!params.ignore_eos()) {
    ids.insert(ids.end(), config.eos_token_ids.begin(), config.eos_token_ids.end());
  }
  std::ranges::sort(ids);
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

// Everything that cannot be sampled at first; sorted.
std::vector<TokenId> WithBanned(std::vector<TokenId> masked, const RequestParams& params) {
  for (const auto& [id, bias] : params.logit_bias()) {
    if (std::isinf(bias)) masked.push_back(id);
  }
  std::ranges::sort(masked);
  masked.erase(std::unique(masked.begin(), masked.end()), masked.end());
  return masked;
}

void RequireSomethingToSample(const SchedulerConfig& config, const std::vector<TokenId>& masked,
                              const RequestParams& params) {
  if (masked.size() > static_cast<std::size_t>(step_plan::kMaxMaskedIds)) {
    throw InvalidRequest(
        "stop_token_ids", to_string(masked.size()) + " entries with the model's eos",
        "at most " + to_string(step_plan::kMaxMaskedIds) + " when min_tokens is set");
  }
  const auto& allowed = params.allowed_token_ids();
  if (!allowed.empty() && std::ranges::includes(masked, allowed)) {
    throw InvalidRequest("allowed_token_ids", "stop tokens only",
                         "more than the stop tokens while min_tokens forbids these");
  }
  const std::vector<TokenId> forbidden = WithBanned(masked, params);
  if (allowed.empty() ? forbidden.size() == static_cast<std::size_t>(config.vocab_size)
                      : std::ranges::includes(forbidden, allowed)) {
    throw InvalidRequest(allowed.empty() ? "bad_words" : "allowed_token_ids",
                         "no token that bad_words and min_tokens leave",
                         "such that a token is left to be sampled");
  }
}

std::int32_t SampleFlags(const Request& request) {
  const RequestParams& params = request.params;
  std::int32_t flags = params.is_greedy() ? step_plan::kSampleGreedy : 0;
  if (params.has_penalties()) flags |= step_plan::kSamplePenalties;
  if (params.has_filter() && !params.is_greedy()) flags |= step_plan::kSampleFilter;
  if (params.num_logprobs() >= 0) flags |= step_plan::kSampleLogprobs;
  if (!params.logit_bias().empty()) flags |= step_plan::kSampleLogitBias;
  if (!params.allowed_token_ids().empty() || request.is_masked) flags |= step_plan::kSampleAllowed;
  if (!request.masked_ids.empty()) flags |= step_plan::kSampleMinTokens;
  if (request.is_scoring()) flags |= step_plan::kSampleScore;
  return flags;
}

// A request that names no seed gets one that only its id and the configured seed decide.
std::int64_t SeedOf(const SchedulerConfig& config, RequestId id, const RequestParams& params) {
  if (params.seed()) return *params.seed();
  const std::int64_t words[2] = {config.seed, id};
  return static_cast<std::int64_t>(SipHash128({}, std::as_bytes(std::span(words))).low);
}

}  // namespace

std::unique_ptr<Request> MakeRequest(const SchedulerConfig& config, BlockAllocator& allocator,
                                     RequestId id, std::vector<TokenId> prompt_ids,
                                     const RequestParams& params, SubmitOptions options) {
  const auto prompt_len = static_cast<std::int64_t>(prompt_ids.size());
  const bool is_scoring = options.score_start >= 0;
  RequirePromptLen(config, prompt_len, is_scoring);
  RequireScoreStart(options.score_start, prompt_len);
  RequireVocabulary(config, prompt_ids, params);
  const std::int32_t max_len = MaxLen(config, allocator, prompt_len, params, is_scoring);
  auto request = std::make_unique<Request>(id, params, std::move(prompt_ids), allocator);
  request->max_len = max_len;
  request->score_start = options.score_start;
  request->seed = SeedOf(config, id, params);
  request->is_masked = options.is_masked;
  request->masked_ids = MaskedIds(config, params);
  RequireSomethingToSample(config, request->masked_ids, params);
  request->sample_flags = SampleFlags(*request);
  request->kv.chain.salt = std::move(options.cache_salt);
  request->priority = options.priority;
  request->tenant_name = std::move(options.tenant);
  request->true_output_len = options.true_output_len;
  return request;
}

}  // namespace runtime
