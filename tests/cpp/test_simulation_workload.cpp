// Requests made up from distributions, and given ones that cannot be.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "simulated.h"

namespace runtime::simulation {
namespace {

using testing::FixedWorkload;
using testing::Refusal;
using testing::RequestAt;

std::vector<SimulatedRequest> Drawn(const Workload& workload, std::int32_t max_len = 1 << 20) {
  const auto source = MakeSource(workload, max_len);
  std::vector<SimulatedRequest> requests;
  while (auto request = source->Next()) requests.push_back(*request);
  return requests;
}

template <typename Figure>
double Mean(const std::vector<SimulatedRequest>& requests, Figure figure) {
  double sum = 0.0;
  for (const SimulatedRequest& request : requests) sum += figure(request);
  return sum / static_cast<double>(requests.size());
}

TEST(WorkloadTest, LengthsHaveTheirDistribution) {
  Workload workload = FixedWorkload(1, 1, 20000);
  workload.prompt = {Lengths::Kind::kLognormal, 6.63, 0.985};
  workload.output = {Lengths::Kind::kUniform, 100, 1024};
  const auto requests = Drawn(workload);
  const auto log_prompt = [](const SimulatedRequest& r) { return std::log(r.prompt_len); };
  const double mu = Mean(requests, log_prompt);
  EXPECT_NEAR(mu, 6.63, 0.03);
  EXPECT_NEAR(std::sqrt(Mean(requests, [&](auto& r) { return std::pow(log_prompt(r) - mu, 2); })),
              0.985, 0.02);
  EXPECT_NEAR(Mean(requests, [](auto& r) { return r.output_len; }), 562.0, 5.0);
  const auto [least, most] = std::ranges::minmax(requests, {}, &SimulatedRequest::output_len);
  EXPECT_EQ(least.output_len, 100);
  EXPECT_EQ(most.output_len, 1024);
  workload.output = {Lengths::Kind::kExponential, 179.0, 0.0};
  EXPECT_NEAR(Mean(Drawn(workload), [](auto& r) { return r.output_len; }), 179.0, 4.0);
}

TEST(WorkloadTest, ArrivalsHaveTheirRateAndVariation) {
  for (const double cv : {0.5, 1.0, 3.0}) {
    Workload workload = FixedWorkload(1, 1, 40000);
    workload.rate = 20.0;
    workload.cv = cv;
    const auto requests = Drawn(workload);
    double square = 0.0;
    for (std::size_t i = 1; i < requests.size(); ++i) {
      const auto gap = requests[i].arrival_ns - requests[i - 1].arrival_ns;
      square += std::pow(static_cast<double>(gap) / kNanoseconds, 2);
    }
    const double count = 40000.0, mean = requests.back().arrival_ns / 1e9 / count;
    EXPECT_NEAR(mean, 0.05, 0.05 * 0.06);
    EXPECT_NEAR(std::sqrt(square / count - mean * mean) / mean, cv, 0.08 * cv);
  }
}

TEST(WorkloadTest, DrawsAreTheSameOnEveryMachine) {
  Workload workload = FixedWorkload(1, 1, 3);
  workload.prompt = {Lengths::Kind::kLognormal, 6.63, 0.985};
  workload.output = {Lengths::Kind::kLognormal, 5.02, 0.86};
  workload.rate = 5.5;
  workload.seed = 42;
  const auto requests = Drawn(workload);
  std::vector<std::int64_t> found;
  for (const auto& r : requests) {
    found.insert(found.end(), {r.arrival_ns / 1000, r.prompt_len, r.output_len});
  }
  EXPECT_EQ(found,
            (std::vector<std::int64_t>{216083, 1160, 614, 269926, 908, 557, 487598, 1705, 657}));
}

TEST(WorkloadTest, LongTailsAreCutWhereTheModelEnds) {
  Workload workload = FixedWorkload(1, 1, 5000);
  workload.prompt = {Lengths::Kind::kLognormal, 6.63, 0.985};
  workload.output = {Lengths::Kind::kLognormal, 5.02, 0.86};
  for (const auto& request : Drawn(workload, 2048)) {
    ASSERT_LE(request.prompt_len + request.output_len, 2048);
    ASSERT_GE(request.prompt_len, 1);
  }
}

TEST(WorkloadTest, PrefixesHaveTheirShare) {
  Workload workload = FixedWorkload(1000, 10, 4000);
  workload.prefixes = {.num_trees = 5, .prompt_share = 0.37, .request_share = 0.5};
  const auto requests = Drawn(workload);
  EXPECT_NEAR(Mean(requests, [](auto& r) { return r.prefix_id >= 0; }), 0.5, 0.03);
  for (const auto& request : requests) {
    EXPECT_EQ(request.prefix_len, request.prefix_id >= 0 ? 370 : 0);
    EXPECT_LT(request.prefix_id, 5);
  }
}

TEST(WorkloadTest, RefusesNumbersThatMakeNoWorkload) {
  const auto refusal = [](auto change) {
    Workload workload = FixedWorkload(10, 10, 10);
    change(workload);
    return Refusal([&] { MakeSource(workload, 4096); });
  };
  EXPECT_EQ(refusal([](Workload& w) { w.rate = -1.0; }),
            "rate=-1: must be above 0 requests a second");
  EXPECT_EQ(refusal([](Workload& w) { w.cv = 0.0; }), "cv=0: must be above 0 and at most 100");
  EXPECT_EQ(refusal([](Workload& w) { w.num_requests = 0; }),
            "num_requests=0: must be between 1 and 100000000");
  EXPECT_EQ(refusal([](Workload& w) { w.prompt.a = 0.0; }),
            "length of prompts=0: must be between 1 and 16777216");
  EXPECT_EQ(refusal([](Workload& w) { w.output = {Lengths::Kind::kUniform, 9, 8}; }),
            "largest length of outputs=8: must be between 9 and 16777216");
  EXPECT_EQ(refusal([](Workload& w) { w.output = {Lengths::Kind::kLognormal, 5, -1}; }),
            "sigma of outputs=-1: must be between 0 and 8");
  EXPECT_EQ(refusal([](Workload& w) { w.prefixes = {.num_trees = 2, .branching = 0}; }),
            "branching=0: must be at least 1");
  EXPECT_EQ(refusal([](Workload& w) { w.prompt.a = 5000; }),
            "the workload's longest request has 5010 tokens: must be at most 4096");
}

TEST(TraceTest, RefusesTheFirstWrongRequest) {
  const auto refusal = [](std::vector<SimulatedRequest> trace) {
    return Refusal([&] { MakeSource(std::move(trace), 100); });
  };
  EXPECT_EQ(refusal({}), "a trace of 0 requests: must have at least 1");
  EXPECT_EQ(refusal({RequestAt(2.0, 1, 1), RequestAt(1.5, 1, 1)}),
            "request 2: arrival_s=1.5: must be at least 2, that of the request before");
  EXPECT_EQ(refusal({RequestAt(0.0, -3, 1)}), "request 1: prompt_len=-3: must be at least 1");
  EXPECT_EQ(refusal({RequestAt(0.0, 1, 0)}), "request 1: output_len=0: must be at least 1");
  EXPECT_EQ(refusal({RequestAt(0.0, 90, 20)}),
            "request 1: prompt_len + output_len=110: must be at most 100 tokens, what the model "
            "and the KV pool hold");
  auto shared = RequestAt(0.0, 10, 1);
  shared.prefix_len = 11;
  EXPECT_EQ(refusal({shared}), "request 1: prefix_len=11: must be between 0 and prompt_len=10");
}

}  // namespace
}  // namespace runtime::simulation
