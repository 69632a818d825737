// One replica and fleets under a virtual clock.
#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/step_plan.h"
#include "simulated.h"

namespace runtime::simulation {
namespace {

using testing::FixedWorkload;
using testing::MillisecondReplica;
using testing::Refusal;
using testing::RequestAt;

bool Same(const SimulationResult& a, const SimulationResult& b) {
  const auto equal = [](const RequestRecord& x, const RequestRecord& y) {
    return x.ttft_s == y.ttft_s && x.e2e_s == y.e2e_s && x.max_gap_s == y.max_gap_s &&
           x.replica == y.replica && x.num_cached == y.num_cached;
  };
  return a.duration_s == b.duration_s && a.totals.num_steps == b.totals.num_steps &&
         std::ranges::equal(a.requests, b.requests, equal);
}

TEST(StepTimeTest, AGraphTakesTheTimeOfTheNextBucket) {
  StepTimeModel model;
  model.buckets = {{1, 0.0, 1.0, 0.0}, {8, 0.0, 2.0, 0.0}, {16, 0.0, 4.0, 0.0}};
  model.max_graph_rows = 16;
  const auto decodes = [&](std::int32_t n) { return model.Of({n, n, n, 0, 0}).gemm; };
  EXPECT_DOUBLE_EQ(decodes(1), 1.0);
  EXPECT_DOUBLE_EQ(decodes(5), 2.0);
  EXPECT_DOUBLE_EQ(decodes(9), 4.0);
}

TEST(StepTimeTest, OtherStepsLieBetweenBucketsAndBeyondTheLast) {
  StepTimeModel model;
  model.buckets = {{8, 0.0, 2.0, 0.0}, {16, 0.0, 4.0, 0.0}};
  const auto prefill = [&](std::int32_t n) { return model.Of({1, 0, n, 0, 0}).gemm; };
  EXPECT_DOUBLE_EQ(prefill(4), 2.0);
  EXPECT_DOUBLE_EQ(prefill(12), 3.0);
  EXPECT_DOUBLE_EQ(prefill(32), 8.0);
}

TEST(StepTimeTest, AttentionIsTheSumOfTiles) {
  std::vector<std::int32_t> plan(step_plan::kHeaderWords);
  plan[step_plan::kHeaderNumRows] = 3;
  plan[step_plan::kHeaderNumDecodeRows] = 2;
  plan[step_plan::kHeaderNumTokens] = 202;
  plan[step_plan::kHeaderRepeatedTokens] = 96;  // a third of it the prefill row's
  plan[step_plan::kHeaderRows] = step_plan::kHeaderWords;
  plan.insert(plan.end(), {0, 127, 1, 1, 1, 128, 1, 1, 2, 128, 200, 3});
  const StepFeatures features = FeaturesOf(plan);
  EXPECT_DOUBLE_EQ(features.num_decode_tiles, (128 + 129) / 128.0);
  EXPECT_DOUBLE_EQ(features.num_prefill_tiles, 200 * (129 + 328) / 2.0 / (128 * 128));
  EXPECT_DOUBLE_EQ(features.num_repeated_tiles, 64 / 128.0);
  StepTimeModel model;
  model.buckets = {{1, 0.0, 0.0, 0.0}};
  model.decode_tile_s = 0.5;
  model.prefill_tile_s = 2.0;
  EXPECT_DOUBLE_EQ(model.Of(features).total(),
                   features.num_decode_tiles * 0.5 + features.num_prefill_tiles * 2.0);
  model.repeated_tile_share = 0.25;
  EXPECT_DOUBLE_EQ(model.Of(features).total(), (features.num_decode_tiles - 0.75 * 0.5) * 0.5 +
                                                   features.num_prefill_tiles * 2.0);
}

TEST(SimulateTest, OneRequestTakesItsSteps) {
  const auto result = Simulate(MillisecondReplica(), {RequestAt(1.0, 600, 5)});
  const RequestRecord& record = result.requests.at(0);
  EXPECT_FLOAT_EQ(record.ttft_s, 0.003f);  // 600 tokens, 256 a step
  EXPECT_FLOAT_EQ(record.e2e_s, 0.007f);
  EXPECT_FLOAT_EQ(record.max_gap_s, 0.001f);
  EXPECT_EQ(record.output_len, 5);
  EXPECT_DOUBLE_EQ(result.duration_s, 1.007);
  EXPECT_EQ(result.num_scheduled_tokens, 604);
}

TEST(SimulateTest, OneStepAheadWastesATokenForEachEos) {
  ReplicaConfig config = MillisecondReplica();
  config.scheduler.num_steps_in_flight = 2;
  const auto result = Simulate(config, {RequestAt(0.0, 10, 5), RequestAt(0.0, 10, 9)});
  EXPECT_FLOAT_EQ(result.requests.at(0).e2e_s, 0.005f);
  EXPECT_EQ(result.num_wasted_tokens, 2);
  EXPECT_EQ(result.totals.num_output_tokens, 14);
}

TEST(SimulateTest, ALaterRequestStretchesNoTokenGapBeyondItsSteps) {
  const auto result =
      Simulate(MillisecondReplica(), {RequestAt(0.0, 10, 100), RequestAt(0.0505, 10, 2)});
  EXPECT_FLOAT_EQ(result.requests.at(0).max_gap_s, 0.001f);
  EXPECT_FLOAT_EQ(result.requests.at(1).ttft_s, 0.0015f);  // half a step waits for the one before
}

TEST(SimulateTest, EqualPrefixIdsShareBlocks) {
  std::vector<SimulatedRequest> trace;
  for (const std::int64_t prefix : {7, 8, 7}) {
    trace.push_back(RequestAt(0.1 * static_cast<double>(trace.size()), 100, 2));
    trace.back().prefix_id = prefix;
    trace.back().prefix_len = 64;
  }
  const auto result = Simulate(MillisecondReplica(), trace);
  EXPECT_EQ(result.requests.at(0).num_cached, 0);
  EXPECT_EQ(result.requests.at(1).num_cached, 0);
  EXPECT_EQ(result.requests.at(2).num_cached, 64);
}

TEST(SimulateTest, LeavesOfOneTreeShareTheirRoot) {
  Workload workload = FixedWorkload(8, 2, 200);
  workload.concurrency = 1;
  workload.prefixes = {.num_trees = 1, .branching = 64, .depth = 2, .segment_len = 32};
  const auto result = Simulate(MillisecondReplica(512), workload);
  const auto cached = [&](std::int32_t count) {
    return std::ranges::count(result.requests, count, &RequestRecord::num_cached);
  };
  EXPECT_EQ(cached(0), 1);
  EXPECT_GT(cached(32), 40);  // a new leaf
  EXPECT_EQ(cached(32) + cached(64), 199);
}

TEST(SimulateTest, AShortPoolPreemptsAndEveryRequestStillEndsWhole) {
  Workload workload = FixedWorkload(100, 200, 40);
  const auto result = Simulate(MillisecondReplica(60), workload);
  EXPECT_GT(result.totals.num_recomputed_tokens, 0);
  for (const RequestRecord& record : result.requests) {
    EXPECT_EQ(record.is_done, 1);
    EXPECT_EQ(record.output_len, 200);
  }
  EXPECT_GT(result.held_share_queued, 0.5);
  EXPECT_LE(result.held_share_queued, 1.0);
}

TEST(SimulateTest, AClosedLoopKeepsItsConcurrency) {
  Workload workload = FixedWorkload(20, 50, 100);
  workload.concurrency = 4;
  const auto result = Simulate(MillisecondReplica(), workload);
  for (const TimelinePoint& point : result.timeline) {
    EXPECT_LE(point.num_running + point.num_waiting, 4);
  }
  EXPECT_NEAR(result.duration_s, 25 * 0.050, 0.005);
}

TEST(SimulateTest, AQueueIsKeptAtItsDepth) {
  Workload workload = FixedWorkload(20, 50, 200);
  workload.queue_depth = 3;
  const auto result = Simulate(MillisecondReplica(), workload);
  EXPECT_EQ(result.totals.num_finished, 200);
  EXPECT_NEAR(result.duration_s, 200.0 / 16 * 0.050, 0.1);
}

TEST(SimulateTest, IsAFunctionOfItsSeed) {
  Workload workload = FixedWorkload(1, 1, 100);
  workload.prompt = {Lengths::Kind::kLognormal, 4.0, 1.0};
  workload.output = {Lengths::Kind::kExponential, 30.0, 0.0};
  workload.rate = 100.0;
  const auto first = Simulate(MillisecondReplica(), workload);
  EXPECT_TRUE(Same(first, Simulate(MillisecondReplica(), workload)));
  workload.seed = 1;
  EXPECT_FALSE(Same(first, Simulate(MillisecondReplica(), workload)));
}

TEST(SimulateTest, TheTimelineStaysShort) {
  const auto result = Simulate(MillisecondReplica(), {RequestAt(0, 1, 1), RequestAt(3000.0, 1, 1)});
  EXPECT_LE(result.timeline.size(), SimulationResult::kMaxTimeline);
  ReplicaConfig slow = MillisecondReplica(64);
  slow.step_time.buckets[0].launch_s = 0.05;  // as long as it takes to the next sample
  Workload workload = FixedWorkload(1, 1000, 7);
  workload.concurrency = 1;
  const auto busy = Simulate(slow, workload);
  EXPECT_LE(busy.timeline.size(), SimulationResult::kMaxTimeline);
  EXPECT_GT(busy.timeline.size(), SimulationResult::kMaxTimeline / 2 - 1);
  EXPECT_TRUE(std::ranges::is_sorted(busy.timeline, {}, &TimelinePoint::time_s));
}

TEST(SimulateTest, AHeartbeatMayEndIt) {
  struct Enough {};
  EXPECT_THROW(Simulate(MillisecondReplica(), FixedWorkload(1, 1, 10), [] { throw Enough{}; }),
               Enough);
}

TEST(SimulateTest, PoolsThatHoldNothingAreRefused) {
  EXPECT_EQ(Refusal([] { Simulate(MillisecondReplica(0), FixedWorkload(1, 1, 1)); }),
            "num_blocks=0: must be between 1 and 268435456");
  EXPECT_EQ(Refusal([] { Simulate(MillisecondReplica(1), FixedWorkload(16, 2, 1)); }),
            "the workload's longest request has 18 tokens: must be at most 17");
  EXPECT_EQ(Simulate(MillisecondReplica(1), FixedWorkload(16, 1, 3)).totals.num_finished, 3);
}

FleetConfig MillisecondFleet(RouterKind router, std::int32_t num_replicas) {
  FleetConfig config;
  config.replica = MillisecondReplica(256);
  config.router = router;
  config.num_replicas = num_replicas;
  return config;
}

Workload MixedWorkload() {
  Workload workload = FixedWorkload(1, 1, 500);
  workload.prompt = {Lengths::Kind::kLognormal, 4.0, 1.0};
  workload.output = {Lengths::Kind::kExponential, 30.0, 0.0};
  workload.rate = 1000.0;
  workload.prefixes = {.num_trees = 20, .prompt_share = 0.5};
  return workload;
}

TEST(FleetTest, ThreadsDoNotChangeTheResult) {
  FleetConfig config = MillisecondFleet(RouterKind::kLeastWork, 7);
  const auto alone = SimulateFleet(config, MixedWorkload());
  config.num_threads = 3;
  EXPECT_TRUE(Same(alone, SimulateFleet(config, MixedWorkload())));
  EXPECT_EQ(alone.totals.num_finished, 500);
}

TEST(FleetTest, AFleetOfOneIsASimulation) {
  const auto fleet = SimulateFleet(MillisecondFleet(RouterKind::kRoundRobin, 1), MixedWorkload());
  EXPECT_TRUE(Same(fleet, Simulate(MillisecondReplica(), MixedWorkload())));
}

TEST(FleetTest, RoundRobinTakesTurns) {
  const auto result =
      SimulateFleet(MillisecondFleet(RouterKind::kRoundRobin, 3), FixedWorkload(5, 5, 7));
  for (std::size_t i = 0; i < result.requests.size(); ++i) {
    EXPECT_EQ(result.requests[i].replica, static_cast<std::int32_t>(i % 3));
  }
}

TEST(FleetTest, LeastWorkGoesAroundALongRequest) {
  std::vector<SimulatedRequest> trace{RequestAt(0.0, 1500, 500)};
  for (int i = 1; i < 20; ++i) trace.push_back(RequestAt(0.01 * i, 20, 20));
  const auto result = SimulateFleet(MillisecondFleet(RouterKind::kLeastWork, 2), trace);
  EXPECT_EQ(std::ranges::count(result.requests, 0, &RequestRecord::replica), 1);
}

TEST(FleetTest, PrefixAwareHitsMoreThanRoundRobin) {
  const auto cached = [](RouterKind router) {
    const auto result = SimulateFleet(MillisecondFleet(router, 8), MixedWorkload());
    return Summarize(result, {}).cached_share;
  };
  EXPECT_GT(cached(RouterKind::kPrefixAware), 1.1 * cached(RouterKind::kRoundRobin));
}

TEST(FleetTest, ThrowsWhatAThreadThrew) {
  FleetConfig config = MillisecondFleet(RouterKind::kRoundRobin, 2);
  config.num_threads = 2;
  EXPECT_NE(Refusal([&] { SimulateFleet(config, {RequestAt(0.0, 2048, 1)}); }), "");
  Workload closed = FixedWorkload(1, 1, 1);
  closed.concurrency = 1;
  EXPECT_EQ(Refusal([&] { SimulateFleet(config, closed); }),
            "concurrency and queue_depth are of one replica: num_replicas=2 needs an arrival rate");
  config.num_replicas = 0;
  EXPECT_EQ(Refusal([&] { SimulateFleet(config, FixedWorkload(1, 1, 1)); }),
            "num_replicas=0: must be between 1 and 1048576");
}

TEST(SummaryTest, PercentilesAreNearestRanksAndGoodputMeetsEveryLimit) {
  SimulationResult result;
  result.duration_s = 10.0;
  for (int i = 1; i <= 100; ++i) {
    RequestRecord record;
    record.ttft_s = static_cast<float>(i);
    record.e2e_s = static_cast<float>(i + 9);
    record.output_len = 10;
    record.prompt_len = 20;
    record.max_gap_s = i > 90 ? 2.0f : 0.5f;
    record.is_done = 1;
    result.requests.push_back(record);
  }
  const Summary summary = Summarize(result, {.ttft_s = 95.0, .gap_s = 1.0});
  EXPECT_DOUBLE_EQ(summary.ttft_s.p50, 50.0);
  EXPECT_DOUBLE_EQ(summary.ttft_s.p99, 99.0);
  EXPECT_DOUBLE_EQ(summary.tpot_s.p90, 1.0);
  EXPECT_DOUBLE_EQ(summary.slo_share, 0.9);
  EXPECT_DOUBLE_EQ(summary.goodput_per_s, 9.0);
  EXPECT_DOUBLE_EQ(summary.output_tokens_per_s, 100.0);
}

TEST(SummaryTest, AnOutputOfOneTokenHasNoTimePerToken) {
  const auto result = Simulate(MillisecondReplica(), {RequestAt(0.0, 4, 1)});
  const Summary summary = Summarize(result, {.tpot_s = 0.0001});
  EXPECT_EQ(summary.tpot_s.p99, 0.0);
  EXPECT_EQ(summary.slo_share, 1.0);
}

}  // namespace
}  // namespace runtime::simulation
