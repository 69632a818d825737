#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "runtime/error.h"
#include "runtime/request_params.h"

namespace runtime {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();

struct Case {
  const char* param;
  std::function<void(RequestNumbers&)> set;
  const char* suggestion;
};

template <typename T>
Case Set(const char* param, T RequestNumbers::* member, std::type_identity_t<T> value,
         const char* suggestion) {
  return {param, [=](RequestNumbers& numbers) { numbers.*member = value; }, suggestion};
}

using N = RequestNumbers;

const std::vector<Case>& Refused() {
  static const std::vector<Case> cases = {
      Set("n", &N::n, 0, "1"),
      Set("n", &N::n, 129, "128"),
      Set("n", &N::n, -kHuge, "1"),
      Set("temperature", &N::temperature, -0.1, "0"),
      Set("temperature", &N::temperature, 0.001, "0"),
      Set("temperature", &N::temperature, 0.009, "0.01"),
      Set("temperature", &N::temperature, 2.1, "2"),
      Set("temperature", &N::temperature, kInf, "2"),
      Set("temperature", &N::temperature, kNan, ""),
      Set("top_p", &N::top_p, 0.0, ""),
      Set("top_p", &N::top_p, 1.01, "1"),
      Set("top_p", &N::top_p, kNan, ""),
      Set("top_k", &N::top_k, -2, "0"),
      Set("top_k", &N::top_k, kHuge, "2147483647"),
      Set("min_p", &N::min_p, -0.1, "0"),
      Set("min_p", &N::min_p, 1.1, "1"),
      Set("min_p", &N::min_p, kNan, ""),
      Set("presence_penalty", &N::presence_penalty, -2.1, "-2"),
      Set("presence_penalty", &N::presence_penalty, kNan, ""),
      Set("frequency_penalty", &N::frequency_penalty, 2.1, "2"),
      Set("frequency_penalty", &N::frequency_penalty, -kInf, "-2"),
      Set("repetition_penalty", &N::repetition_penalty, 0.0, "0.01"),
      Set("repetition_penalty", &N::repetition_penalty, 2.5, "2"),
      Set("repetition_penalty", &N::repetition_penalty, kNan, ""),
      Set("max_tokens", &N::max_tokens, 0, "1"),
      Set("max_tokens", &N::max_tokens, kHuge, "2147483647"),
      Set("min_tokens", &N::min_tokens, -1, "0"),
      Set("logprobs", &N::logprobs, -1, "0"),
      Set("logprobs", &N::logprobs, 21, "20"),
      Set("prompt_logprobs", &N::prompt_logprobs, -1, "0"),
      Set("prompt_logprobs", &N::prompt_logprobs, 21, "20"),
      Set("banned_token_ids", &N::banned_token_ids, {-1}, "0"),
      Set("stop_token_ids", &N::stop_token_ids, {-1}, "0"),
      Set("stop_token_ids", &N::stop_token_ids, {kHuge}, "2147483647"),
      Set("logit_bias", &N::logit_bias, {{-1, 0.0}}, "0"),
      Set("logit_bias", &N::logit_bias, {{1, 101.0}}, "100"),
      Set("logit_bias", &N::logit_bias, {{1, kNan}}, ""),
      Set("logit_bias", &N::logit_bias, {{1, 0.0}, {2, 0.0}, {1, 1.0}}, ""),
      Set("allowed_token_ids", &N::allowed_token_ids, std::vector<std::int64_t>{}, ""),
      Set("allowed_token_ids", &N::allowed_token_ids, std::vector<std::int64_t>{-5}, "0"),
  };
  return cases;
}

TEST(RequestParamsTest, EveryNumberOutOfRangeIsRefusedWithTheNearest) {
  for (const Case& refused : Refused()) {
    RequestNumbers numbers;
    refused.set(numbers);
    try {
      const RequestParams params(numbers);
      ADD_FAILURE() << refused.param << " was accepted";
    } catch (const InvalidRequest& error) {
      EXPECT_EQ(error.param(), refused.param);
      EXPECT_EQ(error.suggestion(), refused.suggestion) << error.what();
      EXPECT_NE(error.value(), "");
      EXPECT_NE(error.limit(), "");
      EXPECT_EQ(error.code(), "invalid_request");
    }
  }
}

TEST(RequestParamsTest, MessageIsOneSentence) {
  RequestNumbers numbers;
  numbers.temperature = 3.5;
  try {
    const RequestParams params(numbers);
    FAIL();
  } catch (const InvalidRequest& error) {
    EXPECT_STREQ(error.what(),
                 "temperature=3.5: must be 0 (greedy) or between 0.01 and 2; nearest: 2");
  }
}

TEST(RequestParamsTest, LimitsThemselvesAreAccepted) {
  RequestNumbers low{.n = 1,
                     .temperature = 0.01,
                     .top_p = 1e-300,
                     .top_k = -1,
                     .min_p = 0,
                     .presence_penalty = -2,
                     .frequency_penalty = -2,
                     .repetition_penalty = 0.01,
                     .max_tokens = 1,
                     .min_tokens = 0,
                     .logprobs = 0};
  low.seed = -kHuge - 1;
  const RequestParams lowest(low);
  EXPECT_EQ(lowest.top_k(), 0);
  EXPECT_GT(lowest.top_p(), 0.0f);
  EXPECT_EQ(lowest.num_logprobs(), 0);
  EXPECT_EQ(lowest.seed(), -kHuge - 1);
  RequestNumbers high{.n = 128,
                      .temperature = 2,
                      .top_p = 1,
                      .top_k = 2147483647,
                      .min_p = 1,
                      .presence_penalty = 2,
                      .frequency_penalty = 2,
                      .repetition_penalty = 2,
                      .max_tokens = 2147483647,
                      .min_tokens = 2147483647,
                      .logprobs = 20};
  for (std::int64_t id = 0; id < 320; ++id) high.logit_bias.emplace_back(id, -100);
  for (std::int64_t id = 0; id < 62; ++id) high.stop_token_ids.push_back(id);
  const RequestParams highest(high);
  EXPECT_EQ(highest.max_tokens(), 2147483647);
  EXPECT_TRUE(highest.has_filter());
  EXPECT_TRUE(highest.has_penalties());
}

TEST(RequestParamsTest, ListsAreBounded) {
  RequestNumbers numbers;
  for (std::int64_t id = 0; id < 321; ++id) numbers.logit_bias.emplace_back(id, 1);
  EXPECT_THROW(RequestParams{numbers}, InvalidRequest);
  numbers.logit_bias.clear();
  for (std::int64_t id = 0; id < 63; ++id) numbers.stop_token_ids.push_back(id);
  EXPECT_THROW(RequestParams{numbers}, InvalidRequest);
  numbers.stop_token_ids.assign(100, 7);  // one id, a hundred times
  EXPECT_EQ(RequestParams(numbers).stop_token_ids(), (std::vector<TokenId>{7}));
}

TEST(RequestParamsTest, BannedTokensHaveNoOtherBias) {
  RequestNumbers numbers{.logit_bias = {{3, 1.0}, {9, 2.0}}, .banned_token_ids = {9, 1, 9}};
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const std::vector<std::pair<TokenId, float>> expected = {{1, kNever}, {3, 1.0f}, {9, kNever}};
  EXPECT_EQ(RequestParams(numbers).logit_bias(), expected);
  for (std::int64_t id = 0; id < 319; ++id) numbers.banned_token_ids.push_back(id);
  EXPECT_EQ(RequestParams(numbers).logit_bias().size(), 319);
  for (std::int64_t id = 0; id < 321; ++id) numbers.banned_token_ids.push_back(id);
  EXPECT_THROW(RequestParams{numbers}, InvalidRequest);
}

TEST(RequestParamsTest, MinTokensMayNotPassMaxTokens) {
  const RequestNumbers numbers{.max_tokens = 5, .min_tokens = 6};
  try {
    const RequestParams params(numbers);
    FAIL();
  } catch (const InvalidRequest& error) {
    EXPECT_EQ(error.suggestion(), "5");
  }
}

TEST(RequestParamsTest, DefaultsChangeNothing) {
  const RequestParams params;
  EXPECT_FALSE(params.is_greedy());
  EXPECT_FALSE(params.has_filter());
  EXPECT_FALSE(params.has_penalties());
  EXPECT_EQ(params.num_logprobs(), -1);
  EXPECT_EQ(params.n(), 1);
}

}  // namespace
}  // namespace runtime
