// Prompt chunks under a target for the time between tokens.
#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/step_plan.h"
#include "runtime/step_time.h"
#include "serving.h"
#include "simulated.h"
#include "stories.h"

namespace runtime::testing {
namespace {

// A millisecond, a tenth for each token, and one for each tile of a prompt's attention.
StepTimeModel Model() {
  StepTimeModel model;
  model.buckets = {{.num_tokens = 1, .launch_s = 0.0011}, {.num_tokens = 101, .launch_s = 0.0111}};
  model.prefill_tile_s = 0.001;
  return model;
}

SchedulerConfig WithTarget(double target_itl_ms) {
  SchedulerConfig config = Config();
  config.max_num_batched_tokens = 200;
  config.max_model_len = 400;
  config.target_itl_ms = target_itl_ms;
  config.step_time = Model();
  return config;
}

std::int32_t NumTokens(const Serving& serving) {
  return serving.last_plan()[step_plan::kHeaderNumTokens];
}

TEST(ChunkSizeTest, StepsThatDecodeKeepTheTarget) {
  Serving serving(WithTarget(6.0), 200);
  serving.Submit(1, Prompt(8, 300), Greedy(60));
  serving.Step();
  serving.Submit(2, Prompt(190), Greedy(20));
  serving.Submit(3, Prompt(50, 500), Greedy(20));
  double longest = 0.0;
  while (serving.Step()) {
    longest = std::max(longest, Model().Of(FeaturesOf(serving.last_plan())).total());
  }
  EXPECT_LE(longest, 0.006);
  EXPECT_GT(longest, 0.005) << "the chunks are no smaller than they must be";
  for (RequestId id = 1; id <= 3; ++id) {
    EXPECT_EQ(serving.outcome(id).tokens, serving.Uninterrupted(id));
  }
}

TEST(ChunkSizeTest, ChunksShrinkAsTheContextGrows) {
  SchedulerConfig config = WithTarget(11.0);
  Serving serving(config, 200);
  serving.Submit(1, Prompt(8, 600), Greedy(60));
  serving.Step();
  serving.Submit(2, Prompt(300), Greedy(2));
  std::vector<std::int32_t> sizes;
  for (std::int32_t left = 300; left > 0; left -= sizes.back()) {
    serving.Step();
    sizes.push_back(NumTokens(serving) - 1);
  }
  // 1 ms, 0.1 ms for the decode and each token, 1 ms for each 128 x 128 pairs of query and context
  EXPECT_EQ(sizes, (std::vector<std::int32_t>{96, 88, 84, 32}));
}

TEST(ChunkSizeTest, ABlockIsComputedHoweverLongTheDecodesTake) {
  Serving serving(WithTarget(0.5), 200);
  serving.Submit(1, Prompt(8, 600), Greedy(60));
  serving.Step();
  serving.Submit(2, Prompt(30), Greedy(2));
  serving.Submit(3, Prompt(30, 300), Greedy(2));
  serving.Step();
  EXPECT_EQ(NumTokens(serving), 1 + 4);
  serving.RunUntilDrained();
  EXPECT_EQ(serving.outcome(3).tokens, serving.Uninterrupted(3));
}

TEST(ChunkSizeTest, WithoutDecodesOrATargetNothingIsCut) {
  Serving alone(WithTarget(0.5), 200);
  alone.Submit(1, Prompt(150), Greedy(2));
  alone.Step();
  EXPECT_EQ(NumTokens(alone), 150);
  Serving off(WithTarget(0.0), 200);
  off.Submit(1, Prompt(8, 600), Greedy(60));
  off.Step();
  off.Submit(2, Prompt(150), Greedy(2));
  off.Step();
  EXPECT_EQ(NumTokens(off), 151);
}

TEST(ChunkSizeTest, ATargetNeedsAModel) {
  SchedulerConfig config = Config();
  config.target_itl_ms = 20.0;
  EXPECT_EQ(Refusal([&] { config.Validate(); }),
            "target_itl_ms=20: must come with step_time, a model");
  config.step_time = Model();
  config.step_time.host_s = -1.0;
  EXPECT_EQ(Refusal([&] { config.Validate(); }), "host_s=-1: must be at least 0 seconds");
  config.target_itl_ms = -1.0;
  EXPECT_EQ(Refusal([&] { config.Validate(); }),
            "target_itl_ms=-1: must be between 0 and 1e+06; nearest: 0");
}

}  // namespace
}  // namespace runtime::testing
