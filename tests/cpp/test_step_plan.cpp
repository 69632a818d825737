// The words of a plan, as docs/architecture.md states them.
#include <gtest/gtest.h>

#include <bit>

#include "runtime/step_plan.h"
#include "serving.h"

namespace runtime::testing {
namespace {

namespace plan = step_plan;

using Words = std::vector<std::int32_t>;

SchedulerConfig Config() {
  SchedulerConfig config;
  config.max_num_seqs = 2;
  config.max_num_batched_tokens = 8;
  config.block_size = 4;
  config.max_model_len = 32;
  config.vocab_size = 100;
  config.eos_token_ids = {99, 98};
  config.watermark = 0.0;
  return config;
}

class StepPlanTest : public ::testing::Test {
 protected:
  Words Section(std::int32_t header, std::int32_t words_each) const {
    return List(header, words_each, serving_.last_plan());
  }
  Words List(std::int32_t at, std::int32_t words_each, std::span<const std::int32_t> pair) const {
    const auto words = serving_.last_plan().subspan(pair[at], pair[at + 1] * words_each);
    return {words.begin(), words.end()};
  }

  Serving serving_{Config(), 10};
};

TEST_F(StepPlanTest, FirstChunkOfAPrompt) {
  serving_.Submit(5, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, {.temperature = 0, .max_tokens = 3});
  serving_.Step();
  const auto words = serving_.last_plan();
  EXPECT_EQ(words[0], 1);  // version
  EXPECT_EQ(words[1], 1);  // step
  EXPECT_EQ(Words(words.begin() + 4, words.begin() + 8), (Words{1, 0, 8, 8}));
  EXPECT_EQ(words[8], plan::kHeaderWords);
  EXPECT_EQ(words[21], plan::kStepGreedyOnly);
  EXPECT_EQ(Section(8, 4), (Words{0, 0, 8, plan::kRowHostTokens}));
  EXPECT_EQ(Section(10, 1), (Words{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(Section(12, 3), (Words{0, 0, 1, 0, 1, 2}));
  EXPECT_EQ(words[15], 1);
  EXPECT_EQ(words[17], 0);
  EXPECT_EQ(words[19], 0);
}

TEST(MaskedRowsTest, AreSampledRowsOfMaskedRequests) {
  SchedulerConfig config = Config();
  config.num_steps_in_flight = 2;
  Serving serving(config, 10);
  serving.Submit(4, {1, 2}, {.temperature = 0, .max_tokens = 2});
  serving.Submit(5, {1, 2, 3, 4, 5, 6, 7, 8}, {.temperature = 0, .max_tokens = 3},
                 {.is_masked = true});
  serving.Step();  // both steps planned, the first one retired
  const auto words = serving.last_plan();
  EXPECT_EQ(words[21], plan::kStepMasked);  // not greedy only
  const auto rows = serving.scheduler().MaskedRows();
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].request_id, 5);
  EXPECT_EQ(rows[0].index, 1);
  const auto& first = serving.plan(0);
  EXPECT_EQ(first[21], plan::kStepGreedyOnly);  // a chunk of the prompt is not sampled
  const auto records = static_cast<std::size_t>(first[14]) + plan::kNewRowWords;
  EXPECT_EQ(first[records + 2], plan::kSampleGreedy | plan::kSampleAllowed);
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(5).finish, FinishReason::kLength);
  EXPECT_TRUE(serving.scheduler().MaskedRows().empty());
}

TEST_F(StepPlanTest, LastChunkDecodeAndFreedRow) {
  serving_.Submit(5, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, {.temperature = 0, .max_tokens = 2});
  serving_.Step();
  serving_.Submit(6, {20}, {.temperature = 0, .max_tokens = 5});
  serving_.Step();
  constexpr std::int32_t kLastChunk = plan::kRowHostTokens | plan::kRowSample;
  EXPECT_EQ(Section(8, 4), (Words{0, 8, 2, kLastChunk, 1, 0, 1, kLastChunk}));
  EXPECT_EQ(Section(10, 1), (Words{9, 10, 20}));
  serving_.Step();
  EXPECT_EQ(serving_.last_plan()[5], 2);
  EXPECT_EQ(Section(8, 4), (Words{0, 10, 1, plan::kRowSample, 1, 1, 1, plan::kRowSample}));
  EXPECT_EQ(Section(10, 1), Words{});
  serving_.Step();  // the first request has ended
  EXPECT_EQ(Section(18, 1), Words{0});
  serving_.Step();
  EXPECT_EQ(Section(18, 1), Words{});
}

TEST_F(StepPlanTest, TokensThatRequestsHoldTogetherAreCountedForAllButOne) {
  Serving serving(Config(), 10);
  const std::vector<TokenId> prompt{1, 2, 3, 4, 5, 6, 7, 8, 9};
  serving.Submit(5, prompt, {.temperature = 0, .max_tokens = 9});
  serving.Step();
  serving.Step();
  EXPECT_EQ(serving.last_plan()[plan::kHeaderRepeatedTokens], 0);
  serving.Submit(6, prompt, {.temperature = 0, .max_tokens = 2});
  serving.Step();
  EXPECT_EQ(serving.last_plan()[plan::kHeaderRepeatedTokens], 8);  // two blocks of four
  for (int i = 0; i < 2; ++i) serving.Step();
  EXPECT_EQ(serving.last_plan()[plan::kHeaderRepeatedTokens], 0);
}

TEST_F(StepPlanTest, NewRowCarriesEveryNumber) {
  RequestNumbers numbers{.temperature = 0.5,
                         .top_p = 0.25,
                         .top_k = 7,
                         .min_p = 0.125,
                         .presence_penalty = 1.5,
                         .frequency_penalty = -0.5,
                         .repetition_penalty = 1.25,
                         .seed = 0x1122334455667788,
                         .stop_token_ids = {3, 98},
                         .max_tokens = 9,
                         .min_tokens = 2,
                         .logprobs = 4};
  numbers.logit_bias = {{8, 2.0}, {6, -1.0}};
  numbers.allowed_token_ids = std::vector<std::int64_t>{40, 30};
  serving_.Submit(5, {1, 2, 3}, numbers);
  serving_.Step();
  const auto record = Section(14, plan::kNewRowWords);
  const auto word = [](float value) { return std::bit_cast<std::int32_t>(value); };
  EXPECT_EQ(record[0], 0);
  EXPECT_EQ(record[1], 1);
  EXPECT_EQ(record[2], 2 | 4 | 8 | 16 | 32 | 64);
  EXPECT_EQ(
      Words(record.begin() + 3, record.begin() + 10),
      (Words{word(0.5f), word(0.25f), 7, word(0.125f), word(1.5f), word(-0.5f), word(1.25f)}));
  EXPECT_EQ(Words(record.begin() + 10, record.begin() + 16),
            (Words{0x55667788, 0x11223344, 3, 2, 4, -1}));
  EXPECT_EQ(List(16, 1, record), (Words{1, 2, 3}));
  EXPECT_EQ(List(18, 2, record), (Words{6, word(-1.0f), 8, word(2.0f)}));
  EXPECT_EQ(List(20, 1, record), (Words{30, 40}));
  EXPECT_EQ(List(22, 1, record), (Words{3, 98, 99}));
  EXPECT_EQ(Words(record.begin() + 24, record.end()), Words(8, 0));
  EXPECT_EQ(serving_.last_plan()[21], 0);
}

TEST_F(StepPlanTest, PlainRowSendsNoLists) {
  serving_.Submit(5, {1, 2, 3}, {.temperature = 0.5, .top_k = -1, .max_tokens = 9});
  serving_.Step();
  const auto record = Section(14, plan::kNewRowWords);
  EXPECT_EQ(record[2], 0);
  for (const int count : {17, 19, 21, 23}) EXPECT_EQ(record[count], 0);
}

TEST_F(StepPlanTest, ScoringRow) {
  serving_.Submit(5, {1, 2, 3}, {.temperature = 0}, {.score_start = 1});
  serving_.Step();
  EXPECT_EQ(Section(8, 4), (Words{0, 0, 3, plan::kRowHostTokens | plan::kRowScore}));
  const auto record = Section(14, plan::kNewRowWords);
  EXPECT_EQ(record[2], plan::kSampleGreedy | plan::kSampleScore);
  EXPECT_EQ(record[15], 1);
  EXPECT_EQ(List(16, 1, record), (Words{1, 2, 3}));
  EXPECT_EQ(serving_.last_plan()[21], 0) << "scores need the whole row of logits";
}

TEST(StepPlanRoomTest, ListsThatDoNotFitWaitForTheNextPlan) {
  SchedulerConfig config = Config();
  config.max_num_seqs = 4;
  config.max_num_batched_tokens = 64;
  config.vocab_size = 100000;
  Serving serving(config, 40);
  std::vector<std::int64_t> allowed;
  for (std::int64_t id = 0; id < 90000; ++id) allowed.push_back(id);
  for (RequestId id = 1; id <= 3; ++id) {
    RequestNumbers numbers{.temperature = 0, .max_tokens = 4};
    numbers.allowed_token_ids = allowed;
    serving.Submit(id, {1, 2, 3}, numbers);
  }
  std::vector<std::int32_t> num_new_rows;
  while (serving.Step()) num_new_rows.push_back(serving.last_plan()[15]);
  EXPECT_EQ((Words(num_new_rows.begin(), num_new_rows.begin() + 3)), (Words{1, 1, 1}));
}

}  // namespace
}  // namespace runtime::testing
