// The calls an engine makes, without the fake device between.
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <thread>

#include "runtime/error.h"
#include "runtime/step_plan.h"
#include "serving.h"
#include "stories.h"

namespace runtime::testing {
namespace {

namespace plan = step_plan;

TEST(SchedulerCallsTest, TwoStepsAreInFlightAndNoMore) {
  BlockAllocator allocator(20);
  Scheduler scheduler(Config(2), allocator);
  const PlanBuffers buffers(scheduler, 2);
  scheduler.Submit(1, Prompt(4), RequestParams(Greedy(2)));
  EXPECT_EQ(scheduler.Schedule(), 0);
  EXPECT_EQ(scheduler.Schedule(), 1) << "planned before the first token is known";
  EXPECT_EQ(scheduler.Schedule(), -1);
  EXPECT_THROW(PlanBuffers(scheduler, 2), InvalidArgument);
  EXPECT_THROW(scheduler.Update(2, std::vector<TokenId>{5}), InvalidArgument);
  EXPECT_THROW(scheduler.Update(1, std::vector<TokenId>{5, 6}), InvalidArgument);
  EXPECT_EQ(scheduler.Update(1, std::vector<TokenId>{5}).finish[0], FinishReason::kNone);
  EXPECT_EQ(scheduler.Schedule(), -1) << "the token in flight is certainly its last";
  EXPECT_EQ(scheduler.Update(2, std::vector<TokenId>{6}).finish[0], FinishReason::kLength);
  EXPECT_THROW(scheduler.Update(3, std::vector<TokenId>{5}), InvalidArgument);
}

TEST(SchedulerCallsTest, BuffersAreCheckedBeforeTheFirstStep) {
  BlockAllocator allocator(4);
  Scheduler scheduler(Config(), allocator);
  EXPECT_THROW(scheduler.Schedule(), InvalidArgument);
  std::vector<std::int32_t> buffer(scheduler.plan_capacity());
  const PlanBuffer whole(buffer);
  EXPECT_THROW(scheduler.AttachPlanBuffers(std::vector{whole}), InvalidArgument);
  EXPECT_THROW(scheduler.AttachPlanBuffers(std::vector{whole, whole.first(10)}), InvalidArgument);
  EXPECT_NO_THROW(scheduler.AttachPlanBuffers(std::vector{whole, whole}));
  EXPECT_EQ(scheduler.Schedule(), -1);
}

TEST(SchedulerCallsTest, DestructionGivesEveryBlockBack) {
  BlockAllocator allocator(20);
  {
    Scheduler scheduler(Config(), allocator);
    const PlanBuffers buffers(scheduler, 1);
    scheduler.Submit(1, Prompt(20), RequestParams(Greedy(2)));
    scheduler.Submit(2, Prompt(20), RequestParams(Greedy(2)));
    scheduler.Schedule();
    scheduler.Abort(1);
    scheduler.TakeEvents();
    EXPECT_LT(allocator.num_free(), 20);
  }
  EXPECT_EQ(allocator.num_free(), 20);
}

TEST(SchedulerCallsTest, WaitEndsWhenARequestArrivesOrWhenWoken) {
  BlockAllocator allocator(4);
  Scheduler scheduler(Config(), allocator);
  EXPECT_FALSE(scheduler.Wait(0.0));
  std::thread waker([&] { scheduler.Wake(); });
  EXPECT_FALSE(scheduler.Wait(30.0));
  waker.join();
  std::thread submitter([&] { scheduler.Submit(1, {1}, RequestParams{}); });
  EXPECT_TRUE(scheduler.Wait(30.0));
  submitter.join();
}

TEST(SchedulerCallsTest, RequestsArriveAndEndFromManyThreadsWhileStepsRun) {
  constexpr int kNumThreads = 4, kNumEach = 100;
  BlockAllocator allocator(20);
  Scheduler scheduler(Config(2), allocator);
  const PlanBuffers buffers(scheduler, 2);
  std::vector<std::thread> threads;
  for (int t = 0; t < kNumThreads; ++t) {
    threads.emplace_back([&, t] {
      for (RequestId id = t * kNumEach; id < (t + 1) * kNumEach; ++id) {
        scheduler.Submit(id, Prompt(6), RequestParams(Greedy(3)));
        if (id % 3 == 0) scheduler.Abort(id);
        if (id % 3 == 1) scheduler.Stop(id, 0);
      }
    });
  }
  std::deque<std::int32_t> in_flight;
  std::map<RequestId, int> num_ends;
  while (num_ends.size() < kNumThreads * kNumEach) {
    scheduler.Wait(0.1);
    for (std::int32_t b = scheduler.Schedule(); b >= 0; b = scheduler.Schedule())
      in_flight.push_back(b);
    const StepResult* result = &scheduler.TakeEvents();
    for (std::size_t i = 0; i < result->finish.size(); ++i) ++num_ends[result->request_ids[i]];
    if (in_flight.empty()) continue;
    const auto plan = buffers[in_flight.front()];
    in_flight.pop_front();
    const std::vector<TokenId> tokens(plan[plan::kHeaderNumRows], 7);
    result = &scheduler.Update(plan[plan::kHeaderStep], tokens);
    for (std::size_t i = 0; i < result->finish.size(); ++i) {
      if (result->finish[i] != FinishReason::kNone) ++num_ends[result->request_ids[i]];
    }
    scheduler.Check();
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& [id, ends] : num_ends) EXPECT_EQ(ends, 1) << id;
}

}  // namespace
}  // namespace runtime::testing
