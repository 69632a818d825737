// Who gives way when blocks run out.
#include <gtest/gtest.h>

#include "serving.h"
#include "stories.h"

namespace runtime::testing {
namespace {

// Three requests that fill the pool; the first one takes the next block, the second has computed
// least.
std::vector<std::int32_t> Preemptions(AdmissionMode admission) {
  SchedulerConfig config = Config();
  config.max_num_batched_tokens = 64;
  config.admission = admission;
  config.admission_reserve = 0.0;
  Serving serving(config, 8);
  // taught to expect short outputs, so that all three start
  for (RequestId id = 100; id < 132; ++id) {
    serving.Submit(id, Prompt(1), Greedy(1));
    serving.RunUntilDrained();
  }
  const std::vector<std::int32_t> prompt_lens{12, 2, 14};
  for (RequestId id = 0; id < 3; ++id) {
    serving.Submit(id, Prompt(prompt_lens[id], static_cast<TokenId>(100 * id)), Greedy(4));
  }
  serving.RunUntilDrained();
  std::vector<std::int32_t> preemptions;
  for (RequestId id = 0; id < 3; ++id) {
    preemptions.push_back(serving.outcome(id).num_preemptions);
    EXPECT_EQ(serving.outcome(id).tokens, serving.Uninterrupted(id));
  }
  return preemptions;
}

TEST(VictimTest, TheLeastRecomputedWorkGivesWay) {
  EXPECT_EQ(Preemptions(AdmissionMode::kPastFuture), (std::vector<std::int32_t>{0, 1, 0}));
}

TEST(VictimTest, TheBaselineTakesTheLast) {
  EXPECT_EQ(Preemptions(AdmissionMode::kNone), (std::vector<std::int32_t>{0, 0, 1}));
}

TEST(VictimTest, WhatOthersHoldTooNeedNotBeComputedAgain) {
  SchedulerConfig config = Config();
  config.max_num_batched_tokens = 64;
  config.admission = AdmissionMode::kPastFuture;
  config.preempt_every = 4;
  Serving serving(config, 40);
  serving.Submit(1, Prompt(33), Greedy(4));
  serving.Step();
  serving.Submit(2, Prompt(33), Greedy(4));  // eight of its nine blocks are those of the first
  serving.Submit(3, Prompt(10, 500), Greedy(4));
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(2).num_preemptions, 1);
  EXPECT_EQ(serving.outcome(3).num_preemptions, 0);
}

TEST(VictimTest, NobodyIsChosenMoreThanThreeTimes) {
  SchedulerConfig config = Config();
  config.admission = AdmissionMode::kPastFuture;
  config.preempt_every = 2;
  Serving serving(config, 40);
  serving.Submit(1, Prompt(20), Greedy(30));
  serving.Submit(2, Prompt(1, 700), Greedy(30));
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(1).num_preemptions, 3);
  EXPECT_EQ(serving.outcome(2).num_preemptions, 3);
}

}  // namespace
}  // namespace runtime::testing
