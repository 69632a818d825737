// What Submit refuses, and with which words.
#include <gtest/gtest.h>

#include "runtime/error.h"
#include "serving.h"

namespace runtime::testing {
namespace {

SchedulerConfig Config() {
  SchedulerConfig config;
  config.max_num_seqs = 4;
  config.max_num_batched_tokens = 16;
  config.block_size = 4;
  config.max_model_len = 64;
  config.vocab_size = 100;
  config.eos_token_ids = {99, 98};
  return config;
}

std::vector<TokenId> Prompt(std::size_t len, TokenId id = 5) {
  return std::vector<TokenId>(len, id);
}

class SubmitTest : public ::testing::Test {
 protected:
  void ExpectRefused(const std::string& param, const std::string& text, std::vector<TokenId> prompt,
                     const RequestNumbers& numbers = {}, const SubmitOptions& options = {}) {
    try {
      serving_.scheduler().Submit(1, std::move(prompt), RequestParams(numbers), options);
      ADD_FAILURE() << param << " was accepted";
    } catch (const InvalidRequest& error) {
      EXPECT_EQ(error.param(), param);
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
    EXPECT_FALSE(serving_.Abort(1)) << "a refused request must not be alive";
  }

  Serving serving_{Config(), 10};
};

TEST_F(SubmitTest, EmptyPrompt) { ExpectRefused("prompt_ids", "at least one token", {}); }

TEST_F(SubmitTest, PromptLongerThanTheModel) {
  ExpectRefused("prompt_ids", "a prompt of 64 tokens: must be at most 63 tokens", Prompt(64));
}

TEST_F(SubmitTest, PromptThatThePoolCanNeverHold) {
  ExpectRefused("prompt_ids", "a prompt of 41 tokens: must be at most 40 tokens", Prompt(41));
}

TEST_F(SubmitTest, OutputThatThePoolCanNeverHold) {
  ExpectRefused("max_tokens",
                "max_tokens=12: must be at most 11 after a prompt of 30 tokens; nearest: 11",
                Prompt(30), {.max_tokens = 12});
  serving_.Submit(2, Prompt(30), {.temperature = 0, .ignore_eos = true, .max_tokens = 11});
  serving_.RunUntilDrained();
  EXPECT_EQ(serving_.outcome(2).tokens.size(), 11u);
}

TEST_F(SubmitTest, TokensOutsideTheVocabulary) {
  const char* range = "token ids between 0 and 99";
  ExpectRefused("prompt_ids", range, {1, 100});
  ExpectRefused("prompt_ids", range, {-1});
  ExpectRefused("stop_token_ids", range, {1}, {.stop_token_ids = {100}});
  ExpectRefused("logit_bias", range, {1}, {.logit_bias = {{100, 1.0}}});
  ExpectRefused("allowed_token_ids", range, {1},
                {.allowed_token_ids = std::vector<std::int64_t>{3, 100}});
}

TEST_F(SubmitTest, ScoreStartOutsideThePrompt) {
  ExpectRefused("score_start", "score_start=3", Prompt(3), {}, {.score_start = 3});
  ExpectRefused("score_start", "score_start=-2", Prompt(3), {}, {.score_start = -2});
}

TEST_F(SubmitTest, NothingLeftToSampleBeforeMinTokens) {
  ExpectRefused("allowed_token_ids", "stop tokens only", {1},
                {.min_tokens = 1, .allowed_token_ids = std::vector<std::int64_t>{98, 99}});
  serving_.Submit(2, {1},
                  {.max_tokens = 1, .allowed_token_ids = std::vector<std::int64_t>{98, 99}});
}

TEST_F(SubmitTest, NothingLeftToSampleBesideBannedTokens) {
  const std::vector<std::int64_t> allowed = {7, 98};
  const char* text = "no token that bad_words and min_tokens leave";
  ExpectRefused("allowed_token_ids", text, {1},
                {.allowed_token_ids = allowed, .banned_token_ids = {98, 7}});
  RequestNumbers numbers{.min_tokens = 1, .allowed_token_ids = allowed, .banned_token_ids = {7}};
  ExpectRefused("allowed_token_ids", text, {1}, numbers);
  ExpectRefused("logit_bias", "token ids between 0 and 99", {1}, {.banned_token_ids = {100}});
  numbers.min_tokens = 0;
  serving_.Submit(2, {1}, numbers);
  RequestNumbers all;
  for (std::int64_t id = 0; id < 100; ++id) all.banned_token_ids.push_back(id);
  ExpectRefused("bad_words", text, {1}, all);
}

TEST_F(SubmitTest, ValidateRefusesTheSameAndQueuesNothing) {
  EXPECT_THROW(serving_.scheduler().Validate(Prompt(64), RequestParams{}), InvalidRequest);
  EXPECT_THROW(serving_.scheduler().Validate(Prompt(30), RequestParams({.max_tokens = 12})),
               InvalidRequest);
  serving_.scheduler().Validate(Prompt(30), RequestParams({.max_tokens = 11}));
  EXPECT_EQ(serving_.scheduler().Schedule(), -1);
}

TEST(SubmitLimitsTest, StopIdsAndEosTogetherFitTheMask) {
  SchedulerConfig config = Config();
  config.eos_token_ids = {90, 91, 92};
  Serving serving(config, 10);
  RequestNumbers numbers{.max_tokens = 8, .min_tokens = 2};
  for (std::int64_t id = 0; id < 62; ++id) numbers.stop_token_ids.push_back(id);
  EXPECT_THROW(serving.Submit(1, {70}, numbers), InvalidRequest);
  numbers.stop_token_ids.pop_back();
  EXPECT_NO_THROW(serving.Submit(1, {70}, numbers));
  numbers.stop_token_ids.push_back(61);
  numbers.min_tokens = 0;
  EXPECT_NO_THROW(serving.Submit(2, {70}, numbers));
}

TEST_F(SubmitTest, AnIdIsAliveOnce) {
  serving_.Submit(7, Prompt(3), {.max_tokens = 1});
  EXPECT_THROW(serving_.scheduler().Submit(7, Prompt(3), RequestParams{}), InvalidRequest);
  serving_.RunUntilDrained();
  EXPECT_NO_THROW(serving_.Submit(7, Prompt(3), {.max_tokens = 1}));
}

TEST(QueueTest, FullQueueIsACapacityErrorUntilARequestStarts) {
  SchedulerConfig config = Config();
  config.max_queued_requests = 2;
  Serving serving(config, 10);
  serving.Submit(1, Prompt(3), {.max_tokens = 2});
  serving.Submit(2, Prompt(3), {.max_tokens = 2});
  try {
    serving.Submit(3, Prompt(3));
    FAIL();
  } catch (const CapacityError& error) {
    EXPECT_STREQ(error.what(), "2 requests wait already, max_queued_requests=2");
    EXPECT_EQ(error.code(), "capacity_exceeded");
  }
  serving.Step();
  EXPECT_NO_THROW(serving.Submit(3, Prompt(3), {.max_tokens = 2}));
  EXPECT_TRUE(serving.Abort(3));
  serving.Step();
  EXPECT_NO_THROW(serving.Submit(4, Prompt(3), {.max_tokens = 2}));
  EXPECT_NO_THROW(serving.Submit(5, Prompt(3), {.max_tokens = 2}));
  EXPECT_THROW(serving.Submit(6, Prompt(3)), CapacityError);
}

TEST(ConfigTest, EveryLimitIsChecked) {
  const auto refused = [](auto change) {
    SchedulerConfig config = Config();
    change(config);
    BlockAllocator allocator(4);
    EXPECT_THROW(Scheduler(config, allocator), ConfigError);
  };
  refused([](auto& c) { c.max_num_seqs = 0; });
  refused([](auto& c) { c.max_num_batched_tokens = 0; });
  refused([](auto& c) { c.block_size = 0; });
  refused([](auto& c) { c.block_size = 12; });
  refused([](auto& c) { c.max_model_len = 1; });
  refused([](auto& c) { c.vocab_size = 0; });
  refused([](auto& c) { c.num_steps_in_flight = 3; });
  refused([](auto& c) { c.watermark = 0.6; });
  refused([](auto& c) { c.preempt_every = -1; });
  refused([](auto& c) { c.max_queued_requests = -2; });
  refused([](auto& c) { c.eos_token_ids = {100}; });
}

TEST(ConfigTest, MessageNamesTheNearest) {
  SchedulerConfig config = Config();
  config.block_size = 12;
  try {
    config.Validate();
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "block_size=12: must be a power of two; nearest: 8");
  }
}

}  // namespace
}  // namespace runtime::testing
