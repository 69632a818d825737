// Who may start, seen from outside.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "runtime/simulation.h"
#include "serving.h"
#include "simulated.h"
#include "stories.h"
#include "streams.h"

namespace runtime::testing {
namespace {

using namespace simulation;  // NOLINT: half of the file is about it

SchedulerConfig With(AdmissionMode admission) {
  SchedulerConfig config = Config();
  config.admission = admission;
  config.admission_reserve = 0.0;
  config.max_num_batched_tokens = 64;
  config.vocab_size = 1000;
  return config;
}

// Prompts of different requests share no block.
std::vector<TokenId> PromptOf(RequestId id, std::int32_t len) {
  return Prompt(len, static_cast<TokenId>(20 * id % 900));
}

TEST(AdmissionTest, MaxTokensStartsWhatFitsAtItsLongest) {
  Serving serving(With(AdmissionMode::kMaxTokens), 12);  // 48 tokens
  serving.Submit(1, PromptOf(1, 8), Greedy(17));         // 24 tokens of KV
  serving.Submit(2, PromptOf(2, 8), Greedy(17));
  serving.Submit(3, PromptOf(3, 4), Greedy(1));
  serving.Step();
  EXPECT_EQ(serving.scheduler().stats().num_running, 2) << "the third waits although it fits now";
  serving.RunUntilDrained();
  for (const auto& [id, outcome] : serving.outcomes()) EXPECT_EQ(outcome.num_preemptions, 0);
}

TEST(AdmissionTest, PinsMadeLaterTakeWhatMaxTokensCountedOn) {
  Serving serving(With(AdmissionMode::kMaxTokens), 12);
  serving.Submit(9, PromptOf(9, 16), Greedy(1));
  serving.RunUntilDrained();
  for (const RequestId id : {1, 2}) serving.Submit(id, PromptOf(id, 8), Greedy(17));
  serving.Step();
  EXPECT_EQ(serving.scheduler().stats().num_running, 2);
  EXPECT_EQ(serving.scheduler().Pin(PromptOf(9, 16)).num_tokens, 16);
  serving.RunUntilDrained();
  EXPECT_GE(serving.outcome(2).num_preemptions, 1);
}

TEST(AdmissionTest, WithoutHistoryThePredictionIsMaxTokens) {
  const auto num_running = [](AdmissionMode mode) {
    Serving serving(With(mode), 12);
    for (RequestId id = 1; id <= 4; ++id) serving.Submit(id, PromptOf(id, 8), Greedy(17));
    serving.Step();
    return serving.scheduler().stats().num_running;
  };
  EXPECT_EQ(num_running(AdmissionMode::kNone), 4);
  EXPECT_EQ(num_running(AdmissionMode::kPastFuture), 2);
}

// Finishes so many requests, one after the other, after `length` tokens each.
void TeachLengths(Serving& serving, std::int64_t length, const std::string& tenant = "") {
  static constexpr RequestId kFirst = 1000;
  const auto first = kFirst + static_cast<RequestId>(serving.outcomes().size());
  for (RequestId id = first; id < first + 32; ++id) {
    serving.Submit(id, Prompt(1), Greedy(length), {.tenant = tenant});
    serving.RunUntilDrained();
  }
}

TEST(AdmissionTest, OutputsThatFinishedTellHowLongOthersWillBe) {
  Serving serving(With(AdmissionMode::kPastFuture), 12);
  TeachLengths(serving, 2);
  for (RequestId id = 1; id <= 4; ++id) serving.Submit(id, PromptOf(id, 8), Greedy(17));
  serving.Step();
  EXPECT_EQ(serving.scheduler().stats().num_running, 4);
  serving.RunUntilDrained();
  for (RequestId id = 1; id <= 4; ++id) {
    EXPECT_EQ(serving.outcome(id).tokens, serving.Uninterrupted(id)) << "wrong as it was";
  }
}

TEST(AdmissionTest, EachTenantHasItsOwnLengths) {
  const auto num_running = [](const std::string& tenant) {
    Serving serving(With(AdmissionMode::kPastFuture), 12);
    TeachLengths(serving, 2, "terse");
    TeachLengths(serving, 17, "talkative");
    for (RequestId id = 1; id <= 4; ++id) {
      serving.Submit(id, PromptOf(id, 8), Greedy(17), {.tenant = tenant});
    }
    serving.Step();
    return serving.scheduler().stats().num_running;
  };
  EXPECT_EQ(num_running("terse"), 4);
  EXPECT_EQ(num_running("talkative"), 2);
}

TEST(AdmissionTest, TheReserveStaysFreeAtThePeak) {
  SchedulerConfig config = With(AdmissionMode::kOracle);
  const auto num_running = [&config] {
    Serving serving(config, 12);
    for (RequestId id = 1; id <= 2; ++id) {
      serving.Submit(id, PromptOf(id, 8), Greedy(17), {.true_output_len = 17});
    }
    serving.Step();
    return serving.scheduler().stats().num_running;
  };
  EXPECT_EQ(num_running(), 2);
  config.admission_reserve = 0.05;
  EXPECT_EQ(num_running(), 1);
}

TEST(AdmissionTest, ASharedPrefixCountsOnce) {
  Serving serving(With(AdmissionMode::kOracle), 12);
  const auto submit = [&](RequestId id) {
    serving.Submit(id, Prompt(33), Greedy(4), {.true_output_len = 4});
  };
  submit(1);
  serving.Step();  // eight blocks that others can share, and one of its own
  for (RequestId id = 2; id <= 4; ++id) submit(id);
  serving.Step();
  EXPECT_EQ(serving.scheduler().stats().num_running, 4);
  serving.RunUntilDrained();
  for (RequestId id = 1; id <= 4; ++id) EXPECT_EQ(serving.outcome(id).num_preemptions, 0);
}

TEST(AdmissionTest, WhateverRunsAloneMayStart) {
  for (const auto mode : {AdmissionMode::kMaxTokens, AdmissionMode::kPastFuture}) {
    SchedulerConfig config = With(mode);
    config.admission_reserve = 0.5;
    Serving serving(config, 1);
    serving.Submit(1, Prompt(4), Greedy(1));
    serving.Submit(2, Prompt(1), Greedy(4));
    serving.RunUntilDrained();
    EXPECT_EQ(serving.outcome(2).finish, FinishReason::kLength);
  }
}

// Blocks of one token and prompts that fit one step: then the closed form is exact.
TEST(AdmissionTest, WithTrueLengthsNothingIsEverPreempted) {
  ForEachSeed(8, [](std::uint64_t seed) {
    ReplicaConfig config = MillisecondReplica(400);
    config.scheduler.block_size = 1;
    config.scheduler.watermark = 0.0;
    config.scheduler.max_num_batched_tokens = 1 << 14;
    config.scheduler.admission_reserve = 0.0;
    config.scheduler.admission = AdmissionMode::kOracle;
    Workload workload = FixedWorkload(1, 1, 100);
    workload.seed = static_cast<std::int64_t>(seed);
    workload.prompt = {Lengths::Kind::kUniform, 1, 60};
    workload.output = {Lengths::Kind::kExponential, 50, 0};
    workload.queue_depth = 5;
    const SimulationResult oracle = Simulate(config, workload);
    ASSERT_EQ(oracle.totals.num_preemptions, 0);
    ASSERT_GT(oracle.held_share_queued, 0.7);
    config.scheduler.admission = AdmissionMode::kMaxTokens;
    workload.max_tokens = 200;
    const SimulationResult cautious = Simulate(config, workload);
    ASSERT_EQ(cautious.totals.num_preemptions, 0);
    ASSERT_LT(cautious.held_share_queued, oracle.held_share_queued);
    config.scheduler.admission = AdmissionMode::kNone;
    ASSERT_GT(Simulate(config, workload).totals.num_preemptions, 0);
  });
}

TEST(AdmissionTest, PastFutureHoldsMoreThanMaxTokensAndRecomputesLessThanNone) {
  ReplicaConfig config = MillisecondReplica(250);
  config.scheduler.max_num_seqs = 32;
  config.scheduler.admission_reserve = 0.1;  // of a small pool, where one request counts for much
  Workload workload = FixedWorkload(1, 1, 300);
  workload.prompt = {Lengths::Kind::kUniform, 20, 60};
  workload.output = {Lengths::Kind::kUniform, 50, 300};
  workload.max_tokens = 450;
  workload.queue_depth = 8;
  const auto run = [&](AdmissionMode mode) {
    config.scheduler.admission = mode;
    return Simulate(config, workload);
  };
  const auto none = run(AdmissionMode::kNone), cautious = run(AdmissionMode::kMaxTokens);
  const auto past_future = run(AdmissionMode::kPastFuture);
  EXPECT_EQ(cautious.totals.num_preemptions, 0);
  EXPECT_GT(past_future.held_share_queued, 2.0 * cautious.held_share_queued);
  EXPECT_LT(2 * past_future.totals.num_recomputed_tokens, none.totals.num_recomputed_tokens);
  EXPECT_LT(5 * past_future.totals.num_preemptions, none.totals.num_preemptions);
}

TEST(AdmissionTest, SettingsOutOfRangeAreRefused) {
  SchedulerConfig config = With(AdmissionMode::kPastFuture);
  config.admission_reserve = 0.6;
  EXPECT_EQ(Refusal([&] { config.Validate(); }),
            "admission_reserve=0.6: must be between 0 and 0.5; nearest: 0.5");
  config.admission_reserve = 0.0;
  config.length_window = 0;
  EXPECT_EQ(Refusal([&] { config.Validate(); }),
            "length_window=0: must be between 1 and 65536; nearest: 1");
}

}  // namespace
}  // namespace runtime::testing
