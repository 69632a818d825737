// Once every request decodes, a step takes no memory; nor does it when a request must wait.
#include <gtest/gtest.h>

#include <tuple>

#include "counted_new.h"
#include "runtime/scheduler.h"
#include "runtime/step_plan.h"

namespace runtime {
namespace {

class SteadyStateTest : public ::testing::TestWithParam<std::tuple<std::int32_t, EvictionPolicy>> {
};
INSTANTIATE_TEST_SUITE_P(StepsInFlight, SteadyStateTest,
                         ::testing::Combine(::testing::Values(1, 2),
                                            ::testing::Values(EvictionPolicy::kLru,
                                                              EvictionPolicy::kCost)));

TEST_P(SteadyStateTest, DecodingTakesNoMemory) {
#ifdef RUNTIME_CHECK_INVARIANTS
  GTEST_SKIP() << "Check() after each step takes memory";
#endif
  constexpr std::int32_t kNumSeqs = 64;
  SchedulerConfig config;
  config.max_num_seqs = kNumSeqs + 1;
  const auto [num_steps_in_flight, eviction] = GetParam();
  config.num_steps_in_flight = num_steps_in_flight;
  config.eviction = eviction;
  config.num_host_blocks = 64;
  BlockAllocator allocator(kNumSeqs * 20);
  Scheduler scheduler(config, allocator);
  std::vector<std::vector<std::int32_t>> buffers(static_cast<std::size_t>(num_steps_in_flight) + 1);
  std::vector<PlanBuffer> spans;
  for (auto& buffer : buffers) {
    buffer.resize(static_cast<std::size_t>(scheduler.plan_capacity()));
    spans.emplace_back(buffer);
  }
  scheduler.AttachPlanBuffers(spans);
  for (RequestId id = 0; id < kNumSeqs; ++id) {
    const std::vector<TokenId> prompt(20, static_cast<TokenId>(id));
    scheduler.Submit(id, prompt, RequestParams({.max_tokens = 250}));
  }
  // fits now but not when the others are at their longest, and is asked in every step
  scheduler.Submit(kNumSeqs, std::vector<TokenId>(2600, 999), RequestParams({.max_tokens = 300}));
  const std::vector<TokenId> tokens(kNumSeqs, 7);
  std::int32_t step = 0;
  const auto advance = [&] {
    while (scheduler.Schedule() >= 0) {
    }
    scheduler.Update(++step, tokens);
  };
  for (int i = 0; i < 10; ++i) advance();
  const std::int64_t before = testing::num_allocations;
  for (int i = 0; i < 100; ++i) advance();  // over six blocks of each request
  EXPECT_EQ(testing::num_allocations, before);
  EXPECT_EQ(scheduler.stats().num_running, kNumSeqs);
  EXPECT_EQ(scheduler.stats().num_waiting, 1);
}

}  // namespace
}  // namespace runtime
