// Who goes first, who gives way, and who may start.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "runtime/error.h"
#include "runtime/step_plan.h"
#include "serving.h"
#include "stories.h"

namespace runtime::testing {
namespace {

SchedulerConfig Config(SchedulingPolicy policy) {
  SchedulerConfig config = runtime::testing::Config();
  config.policy = policy;
  return config;
}

// Prompts of different requests share no block.
std::vector<TokenId> Prompt(std::int32_t len, RequestId id = 0) {
  std::vector<TokenId> prompt;
  for (std::int32_t i = 0; i < len; ++i) prompt.push_back(static_cast<TokenId>(7 * id + i) % 1000);
  return prompt;
}

// One request in a row of the device, so that starts come one by one.
std::vector<RequestId> OrderOfStarts(Serving& serving) {
  serving.RunUntilDrained();
  return serving.started();
}

TEST(PriorityTest, HigherPrioritiesStartFirstAndEqualOnesByArrival) {
  SchedulerConfig config = Config(SchedulingPolicy::kPriority);
  config.max_num_seqs = 1;
  Serving serving(config, 20);
  const std::vector<std::int32_t> priorities{0, 5, -3, 5, 1};
  for (RequestId id = 0; id < 5; ++id) {
    serving.Submit(id, Prompt(4, id), Greedy(2), {.priority = priorities[id]});
  }
  EXPECT_EQ(OrderOfStarts(serving), (std::vector<RequestId>{1, 3, 4, 0, 2}));
}

TEST(PriorityTest, WaitingIsWorthLevels) {
  const auto order = [](double ageing_s, std::int64_t waited_us) {
    SchedulerConfig config = Config(SchedulingPolicy::kPriority);
    config.max_num_seqs = 1;
    config.priority_ageing_s = ageing_s;
    Serving serving(config, 20);
    serving.Submit(9, Prompt(4, 9), Greedy(9), {.priority = 99});
    serving.Step();
    serving.scheduler().SetTime(1'000'000);
    serving.Submit(1, Prompt(4, 1), Greedy(2), {.priority = 0});
    serving.Step();
    serving.scheduler().SetTime(1'000'000 + waited_us);
    serving.Submit(2, Prompt(4, 2), Greedy(2), {.priority = 2});
    serving.RunUntilDrained();
    return serving.started()[1];
  };
  EXPECT_EQ(order(3.0, 5'999'999), 2);
  EXPECT_EQ(order(3.0, 6'000'000), 1) << "two levels are worth six seconds";
  EXPECT_EQ(order(0.0, 6'000'000'000), 2) << "nobody ages";
}

TEST(PriorityTest, TimeNeverGoesBack) {
  BlockAllocator allocator(4);
  Scheduler scheduler(Config(SchedulingPolicy::kPriority), allocator);
  scheduler.SetTime(10);
  scheduler.SetTime(10);
  EXPECT_THROW(scheduler.SetTime(9), InvalidArgument);
}

TEST(PriorityTest, TheLowestPriorityIsPreemptedFirst) {
  SchedulerConfig config = Config(SchedulingPolicy::kPriority);
  Serving serving(config, 9);
  for (RequestId id = 1; id <= 3; ++id) {
    const auto priority = static_cast<std::int32_t>(id == 1 ? -1 : id);
    serving.Submit(id, Prompt(9, 50 * id), Greedy(15), {.priority = priority});
  }
  serving.RunUntilDrained();
  EXPECT_GE(serving.outcome(1).num_preemptions, 1);
  EXPECT_EQ(serving.outcome(3).num_preemptions, 0);
  for (RequestId id = 1; id <= 3; ++id) {
    EXPECT_EQ(serving.outcome(id).tokens, serving.Uninterrupted(id));
  }
}

// Tenants "a" and "b", both with requests waiting all the time; b sends ten times as many.
class Backlog {
 public:
  explicit Backlog(SchedulerConfig config) : serving_(config, 60) {
    for (RequestId id = 0; id < 660; ++id) {
      const bool is_b = id % 11 != 0;
      serving_.Submit(id, Prompt(6 + static_cast<std::int32_t>(id % 5), id),
                      Greedy(4 + static_cast<std::int64_t>(id % 7)), {.tenant = is_b ? "b" : "a"});
    }
  }

  // Tokens, prompt and output, that each tenant was served in so many steps.
  std::array<double, 2> Serve(std::int32_t num_steps) {
    for (std::int32_t i = 0; i < num_steps; ++i) serving_.Step();
    std::array<double, 2> served{};
    for (const RequestId id : serving_.started()) {
      const auto prompt_len = static_cast<double>(6 + id % 5);
      served[id % 11 != 0] += prompt_len + static_cast<double>(serving_.outcome(id).tokens.size());
    }
    return served;
  }

 private:
  Serving serving_;
};

double Jain(std::array<double, 2> x) {
  return (x[0] + x[1]) * (x[0] + x[1]) / (2 * (x[0] * x[0] + x[1] * x[1]));
}

TEST(FairShareTest, ATenantThatSendsTenTimesAsMuchIsServedNoMore) {
  constexpr std::int32_t kSteps = 130;
  const auto fair = Backlog(Config(SchedulingPolicy::kFair)).Serve(kSteps);
  const auto fcfs = Backlog(Config(SchedulingPolicy::kFcfs)).Serve(kSteps);
  EXPECT_GE(Jain(fair), 0.95);
  EXPECT_LT(Jain(fcfs), 0.75) << "the test itself is unfair without the policy";
  EXPECT_GE(fair[0] + fair[1], 0.95 * (fcfs[0] + fcfs[1])) << "throughput";
}

TEST(FairShareTest, WeightsDivideTheService) {
  SchedulerConfig config = Config(SchedulingPolicy::kFair);
  config.tenant_weights = {{"b", 3.0}};
  const auto served = Backlog(config).Serve(130);
  EXPECT_NEAR(served[1] / served[0], 3.0, 0.3);
}

TEST(FairShareTest, AnIdleTenantSavesUpNoTurns) {
  SchedulerConfig config = Config(SchedulingPolicy::kFair);
  config.max_num_seqs = 1;
  Serving serving(config, 20);
  for (RequestId id = 0; id < 20; ++id) {
    serving.Submit(id, Prompt(4, id), Greedy(4), {.tenant = "busy"});
  }
  for (std::int32_t i = 0; i < 40; ++i) serving.Step();
  for (RequestId id = 20; id < 30; ++id) {
    serving.Submit(id, Prompt(4, id), Greedy(4), {.tenant = "late"});
  }
  const std::size_t first = serving.started().size();
  serving.RunUntilDrained();
  const auto order = std::span(serving.started()).subspan(first, 8);
  EXPECT_EQ(std::ranges::count_if(order, [](RequestId id) { return id >= 20; }), 4)
      << "from its return on they take turns";
}

TEST(FairShareTest, WhatThePrefixCacheBringsIsNotCharged) {
  SchedulerConfig config = Config(SchedulingPolicy::kFair);
  config.max_num_seqs = 1;
  config.output_token_weight = 0.0;
  Serving serving(config, 20);
  serving.Submit(99, Prompt(13, 7), Greedy(1), {.tenant = "c"});
  serving.RunUntilDrained();
  for (RequestId id = 0; id < 4; ++id) {
    serving.Submit(id, Prompt(13, 7), Greedy(1), {.tenant = "cached"});
  }
  for (RequestId id = 10; id < 14; ++id) {
    serving.Submit(id, Prompt(13, 3 * id), Greedy(1), {.tenant = "new"});
  }
  serving.RunUntilDrained();
  EXPECT_EQ(serving.started(), (std::vector<RequestId>{99, 0, 10, 1, 2, 3, 11, 12, 13}));
}

TEST(FairShareTest, TenantsThatCameOnceAreForgotten) {
  SchedulerConfig config = Config(SchedulingPolicy::kFair);
  Serving serving(config, 20);
  for (RequestId id = 0; id < 3000; ++id) {
    serving.Submit(id, Prompt(2, id), Greedy(1), {.tenant = std::to_string(id)});
    if (id % 50 == 0) serving.RunUntilDrained();
  }
  serving.RunUntilDrained();
  EXPECT_EQ(serving.scheduler().stats().num_finished, 3000);
  EXPECT_LT(serving.scheduler().stats().num_tenants, 2048);
}

}  // namespace
}  // namespace runtime::testing
