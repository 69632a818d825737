#include <gtest/gtest.h>

#include "runtime/error.h"
#include "runtime/step_plan.h"
#include "serving.h"
#include "stories.h"

namespace runtime::testing {
namespace {

namespace plan = step_plan;

std::int32_t Word(const Serving& serving, std::int32_t header) {
  return serving.last_plan()[header];
}

// The first token of a request's uninterrupted output that differs from all before it, and its
// place.
std::pair<TokenId, std::size_t> StopOf(const std::vector<TokenId>& tokens, std::size_t at) {
  return {tokens[at], at + 1};
}

TEST(SchedulerTest, LongPromptIsPrefilledInChunksOfTheBudget) {
  Serving serving(Config(), 20);
  serving.Submit(1, Prompt(40), Greedy(2));
  std::vector<std::int32_t> chunks;
  while (serving.Step()) chunks.push_back(Word(serving, plan::kHeaderNumTokens));
  EXPECT_EQ(chunks, (std::vector<std::int32_t>{16, 16, 8, 1}));
  EXPECT_EQ(serving.outcome(1).tokens, serving.Uninterrupted(1));
  EXPECT_EQ(serving.outcome(1).finish, FinishReason::kLength);
}

TEST(SchedulerTest, DecodesComeBeforePrefillChunksInOneStep) {
  Serving serving(Config(), 20);
  serving.Submit(1, Prompt(3), Greedy(4));
  serving.Step();
  serving.Submit(2, Prompt(20, 100), Greedy(1));
  serving.Step();
  EXPECT_EQ(Word(serving, plan::kHeaderNumRows), 2);
  EXPECT_EQ(Word(serving, plan::kHeaderNumDecodeRows), 1);
  EXPECT_EQ(Word(serving, plan::kHeaderNumTokens), 16);
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(1).tokens, serving.Uninterrupted(1));
  EXPECT_EQ(serving.outcome(2).tokens, serving.Uninterrupted(2));
}

TEST(SchedulerTest, RequestsStartInTheOrderOfTheirArrival) {
  SchedulerConfig config = Config();
  config.max_num_seqs = 2;
  Serving serving(config, 20);
  for (const RequestId id : {9, 3, 7, 1}) serving.Submit(id, Prompt(8, 10 * id), Greedy(3));
  serving.RunUntilDrained();
  EXPECT_EQ(serving.started(), (std::vector<RequestId>{9, 3, 7, 1}));
}

TEST(SchedulerTest, LaterRequestReusesACachedPrefix) {
  Serving serving(Config(), 20);
  serving.Submit(1, Prompt(12), Greedy(1));
  serving.RunUntilDrained();
  serving.Submit(2, Prompt(12), Greedy(3));
  serving.Submit(3, Prompt(14), Greedy(3));
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(1).num_cached, 0);
  EXPECT_EQ(serving.outcome(2).num_cached, 8) << "the last token is always computed";
  EXPECT_EQ(serving.outcome(3).num_cached, 12);
  EXPECT_EQ(serving.outcome(2).tokens, serving.Uninterrupted(2));
  EXPECT_EQ(serving.outcome(3).tokens, serving.Uninterrupted(3));
  EXPECT_EQ(serving.scheduler().stats().num_cached_tokens, 20);
}

TEST(SchedulerTest, OtherSaltSharesNothing) {
  Serving serving(Config(), 20);
  serving.Submit(1, Prompt(12), Greedy(1), {.cache_salt = "a"});
  serving.RunUntilDrained();
  serving.Submit(2, Prompt(12), Greedy(1), {.cache_salt = "b"});
  serving.Submit(3, Prompt(12), Greedy(1), {.cache_salt = "a"});
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(2).num_cached, 0);
  EXPECT_EQ(serving.outcome(3).num_cached, 8);
}

TEST(SchedulerTest, ResetForgetsPrefixesWhileRequestsRun) {
  Serving serving(Config(), 20);
  serving.Submit(1, Prompt(12), Greedy(6));
  serving.Step();
  serving.Step();
  serving.scheduler().ResetPrefixCache();
  serving.RunUntilDrained();
  serving.Submit(2, Prompt(12), Greedy(2));
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(2).num_cached, 0);
  EXPECT_EQ(serving.outcome(1).tokens, serving.Uninterrupted(1));
}

class BothDepths : public ::testing::TestWithParam<std::int32_t> {};
INSTANTIATE_TEST_SUITE_P(StepsInFlight, BothDepths, ::testing::Values(1, 2));

TEST_P(BothDepths, StopTokenEndsARequestAndIsReported) {
  Serving serving(Config(GetParam()), 20);
  serving.Submit(1, Prompt(5), Greedy(20));
  const auto [stop, place] = StopOf(serving.Uninterrupted(1), 3);
  RequestNumbers numbers = Greedy(20);
  numbers.stop_token_ids = {stop};
  serving.Submit(2, Prompt(5), numbers);
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(2).tokens.size(), place);
  EXPECT_EQ(serving.outcome(2).finish, FinishReason::kStop);
  EXPECT_EQ(serving.outcome(2).stop_id, stop);
  EXPECT_EQ(serving.outcome(1).finish, FinishReason::kLength);
}

TEST_P(BothDepths, EosEndsARequestUnlessIgnored) {
  const auto tokens = [] {
    Serving probe(Config(), 20);
    probe.Submit(1, Prompt(5), Greedy(20));
    return probe.Uninterrupted(1);
  }();
  SchedulerConfig config = Config(GetParam());
  config.eos_token_ids = {tokens[4]};
  Serving serving(config, 40);
  RequestNumbers ignoring = Greedy(20);
  ignoring.ignore_eos = true;
  RequestNumbers later = Greedy(20);
  later.min_tokens = 5;  // the fake device masks nothing, so the eos comes, and does not end it
  serving.Submit(1, Prompt(5), Greedy(20));
  serving.Submit(2, Prompt(5), ignoring);
  serving.Submit(3, Prompt(5), later);
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(1).tokens.size(), 5u);
  EXPECT_EQ(serving.outcome(1).finish, FinishReason::kStop);
  EXPECT_EQ(serving.outcome(1).stop_id, -1);
  EXPECT_EQ(serving.outcome(2).tokens.size(), 20u);
  EXPECT_EQ(serving.outcome(3).tokens, serving.Uninterrupted(3));
}

TEST_P(BothDepths, OutputEndsAtTheModelsLength) {
  Serving serving(Config(GetParam()), 20);
  serving.Submit(1, Prompt(60), {.temperature = 0, .seed = 1});
  serving.Submit(2, Prompt(61, 200), Greedy(50));
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(1).tokens.size(), 4u);
  EXPECT_EQ(serving.outcome(2).tokens.size(), 3u);
  EXPECT_EQ(serving.outcome(2).finish, FinishReason::kLength);
}

TEST_P(BothDepths, OutputWithoutALimitEndsWhereThePoolEnds) {
  Serving serving(Config(GetParam()), 8);
  serving.Submit(1, Prompt(30), {.temperature = 0, .seed = 1});
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(1).tokens.size(), 3u);  // the last token needs no KV
  EXPECT_EQ(serving.outcome(1).finish, FinishReason::kLength);
}

TEST_P(BothDepths, ShortageOfBlocksPreemptsTheLastAndItsOutputStaysTheSame) {
  Serving serving(Config(GetParam()), 9);
  for (RequestId id = 1; id <= 3; ++id) {
    serving.Submit(id, Prompt(9, 50 * static_cast<TokenId>(id)), Greedy(15));
  }
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(1).num_preemptions, 0);
  EXPECT_GE(serving.outcome(3).num_preemptions, 1);
  for (RequestId id = 1; id <= 3; ++id) {
    EXPECT_EQ(serving.outcome(id).tokens, serving.Uninterrupted(id)) << id;
  }
  EXPECT_GT(serving.scheduler().stats().num_recomputed_tokens, 0);
}

TEST_P(BothDepths, ForcedPreemptionChangesNoToken) {
  SchedulerConfig config = Config(GetParam());
  config.preempt_every = 2;
  Serving serving(config, 20);
  serving.Submit(1, Prompt(9), Greedy(30));
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(1).num_preemptions, 3) << "after three it is never a victim again";
  EXPECT_EQ(serving.outcome(1).tokens, serving.Uninterrupted(1));
}

TEST_P(BothDepths, ProtectedRequestsNeverWaitForEachOther) {
  SchedulerConfig config = Config(GetParam());
  config.preempt_every = 1;
  Serving serving(config, 9);
  for (RequestId id = 1; id <= 4; ++id) {
    serving.Submit(id, Prompt(8, 50 * static_cast<TokenId>(id)), Greedy(16));
  }
  serving.RunUntilDrained();
  for (RequestId id = 1; id <= 4; ++id) {
    EXPECT_EQ(serving.outcome(id).tokens, serving.Uninterrupted(id)) << id;
    EXPECT_LE(serving.outcome(id).num_preemptions, 3);
  }
}

TEST_P(BothDepths, PenaltiesSeeEveryKnownIdAfterAPreemption) {
  SchedulerConfig config = Config(GetParam());
  config.preempt_every = 3;
  Serving serving(config, 20);
  RequestNumbers numbers = Greedy(25);
  numbers.repetition_penalty = 1.5;
  serving.Submit(1, Prompt(9), numbers);
  serving.RunUntilDrained();
  EXPECT_GT(serving.outcome(1).num_preemptions, 0);
  EXPECT_EQ(serving.outcome(1).tokens, serving.Uninterrupted(1));
}

TEST_P(BothDepths, AbortEndsARequestOnceWhereverItIs) {
  SchedulerConfig config = Config(GetParam());
  config.max_num_seqs = 1;
  Serving serving(config, 20);
  for (RequestId id = 1; id <= 3; ++id) serving.Submit(id, Prompt(20), Greedy(30));
  EXPECT_TRUE(serving.Abort(3));  // in the inbox
  serving.Step();
  EXPECT_TRUE(serving.Abort(1));  // prefilling
  EXPECT_FALSE(serving.Abort(1));
  EXPECT_FALSE(serving.Abort(77));
  for (int i = 0; i < 6; ++i) serving.Step();
  EXPECT_TRUE(serving.Abort(2));  // decoding
  serving.RunUntilDrained();
  for (RequestId id = 1; id <= 3; ++id) {
    EXPECT_EQ(serving.outcome(id).finish, FinishReason::kAbort);
    EXPECT_EQ(serving.outcome(id).num_ends, 1);
    EXPECT_FALSE(serving.Abort(id));
  }
  EXPECT_EQ(serving.allocator().num_free(), 20);
}

TEST_P(BothDepths, AbortWhileNothingRunsIsToldByTakeEvents) {
  Serving serving(Config(GetParam()), 20);
  serving.Submit(1, Prompt(4), Greedy(4));
  EXPECT_TRUE(serving.Abort(1));
  EXPECT_TRUE(serving.scheduler().Wait(0.0));
  EXPECT_FALSE(serving.Step());
  EXPECT_EQ(serving.outcome(1).finish, FinishReason::kAbort);
  EXPECT_FALSE(serving.scheduler().Wait(0.0));
}

TEST_P(BothDepths, StopStringEndsARequestAndItsTokensPastItAreNotCounted) {
  Serving serving(Config(GetParam()), 20);
  serving.Submit(1, Prompt(4), Greedy(30));
  for (int i = 0; i < 8; ++i) serving.Step();
  const auto num_emitted = serving.outcome(1).tokens.size();
  serving.scheduler().Stop(1, static_cast<std::int32_t>(num_emitted) - 2);
  EXPECT_FALSE(serving.Abort(1));
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(1).finish, FinishReason::kStop);
  EXPECT_EQ(serving.outcome(1).tokens.size(), num_emitted);
  EXPECT_EQ(serving.scheduler().stats().num_output_tokens,
            static_cast<std::int64_t>(num_emitted) - 2);
  serving.scheduler().Stop(1, 1);  // it has ended: no effect
  serving.RunUntilDrained();
}

TEST_P(BothDepths, ScoringComputesEveryScoredPositionAndSamplesNothing) {
  Serving serving(Config(GetParam()), 20);
  serving.Submit(1, Prompt(30), Greedy(1));
  serving.RunUntilDrained();
  serving.Submit(2, Prompt(30), Greedy(1), {.score_start = 13});
  serving.RunUntilDrained();
  const Outcome& outcome = serving.outcome(2);
  EXPECT_EQ(outcome.num_cached, 12) << "position 12 gives the logprob of token 13";
  EXPECT_TRUE(outcome.tokens.empty());
  EXPECT_EQ(outcome.finish, FinishReason::kLength);
  EXPECT_EQ(outcome.num_scored_rows, 2) << "one entry for each chunk";
  EXPECT_EQ(serving.device().scored().at(0).size(), 18u);
}

TEST_P(BothDepths, AWholeModelLengthCanBeScored) {
  Serving serving(Config(GetParam()), 20);
  serving.Submit(1, Prompt(64), {}, {.score_start = 0});
  EXPECT_THROW(serving.Submit(2, Prompt(65), {}, {.score_start = 0}), InvalidRequest);
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(1).finish, FinishReason::kLength);
}

TEST_P(BothDepths, TokenOutsideTheVocabularyEndsItsRequestOnly) {
  SchedulerConfig config = Config(GetParam());
  BlockAllocator allocator(20);
  Scheduler scheduler(config, allocator);
  const PlanBuffers buffers(scheduler, GetParam());
  scheduler.Submit(1, Prompt(4), RequestParams(Greedy(9)));
  scheduler.Submit(2, Prompt(4, 90), RequestParams(Greedy(9)));
  ASSERT_EQ(scheduler.Schedule(), 0);
  const StepResult& result = scheduler.Update(1, std::vector<TokenId>{-1, 7});
  EXPECT_EQ(result.finish, (std::vector<FinishReason>{FinishReason::kError, FinishReason::kNone}));
  EXPECT_EQ(result.token_ids, (std::vector<TokenId>{-1, 7}));
  scheduler.Check();
}

TEST(SchedulerTest, EqualSeedsAndIdsGiveEqualPlansAndOtherSeedsDoNot) {
  const auto run = [](std::int64_t seed) {
    SchedulerConfig config = Config();
    config.seed = seed;
    Serving serving(config, 12);
    for (RequestId id = 0; id < 5; ++id) serving.Submit(id, Prompt(9), {.max_tokens = 12});
    serving.RunUntilDrained();
    return serving.decision_hash();
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
}

TEST(WatermarkTest, NewRequestsLeaveItToRunningDecodes) {
  SchedulerConfig config = Config();
  config.watermark = 0.3;
  Serving serving(config, 10);
  serving.Submit(1, Prompt(12), Greedy(16));  // 3 blocks, 7 in the end
  serving.Submit(2, Prompt(17, 100),
                 Greedy(2));                     // 5 blocks: with them 2 were left, of 3 to be kept
  serving.Submit(3, Prompt(4, 200), Greedy(2));  // would fit, but is behind
  serving.Step();
  EXPECT_EQ(serving.started(), std::vector<RequestId>{1});
  for (int i = 0; i < 14; ++i) serving.Step();
  EXPECT_EQ(serving.allocator().num_free(), 3) << "a decode goes on into the watermark";
  serving.RunUntilDrained();
  EXPECT_EQ(serving.started(), (std::vector<RequestId>{1, 2, 3}));
  EXPECT_EQ(serving.scheduler().stats().num_preemptions, 0);
}

TEST(WatermarkTest, ARequestAloneMayTakeIt) {
  SchedulerConfig config = Config();
  config.watermark = 0.5;
  Serving serving(config, 4);
  serving.Submit(1, Prompt(15), Greedy(2));
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(1).tokens, serving.Uninterrupted(1));
}

}  // namespace
}  // namespace runtime::testing
