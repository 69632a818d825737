// The CPU tier under a virtual clock.
#include <gtest/gtest.h>

#include <cmath>

#include "simulated.h"

namespace runtime::simulation {
namespace {

using testing::FixedWorkload;
using testing::MillisecondReplica;
using testing::RequestAt;

// The same prompt of four blocks of 16 at the beginning and at the end; what comes between takes
// the whole pool of six blocks.
std::vector<SimulatedRequest> SamePromptTwice() {
  std::vector<SimulatedRequest> requests{RequestAt(0.0, 64, 1), RequestAt(1.0, 90, 1),
                                         RequestAt(2.0, 64, 1)};
  for (const std::size_t i : {0u, 2u}) {
    requests[i].prefix_id = 7;
    requests[i].prefix_len = 64;
  }
  return requests;
}

TEST(SimulatedTierTest, CopiesTakeTheTimeOfTheirBlocks) {
  ReplicaConfig config = MillisecondReplica(6);
  config.scheduler.num_host_blocks = 32;
  config.scheduler.transfer_block_s = 0.01;
  config.scheduler.recompute_token_s = 0.1;
  const SimulationResult result = Simulate(config, SamePromptTwice());
  EXPECT_EQ(result.requests[2].num_cached, 48);
  EXPECT_EQ(result.totals.num_loaded_blocks, 3);
  EXPECT_NEAR(result.requests[2].ttft_s, 3 * 0.01 + 0.001, 1e-6);
}

TEST(SimulatedTierTest, WithoutATierThePromptIsComputedAgain) {
  const SimulationResult result = Simulate(MillisecondReplica(6), SamePromptTwice());
  EXPECT_EQ(result.requests[2].num_cached, 0);
  EXPECT_NEAR(result.requests[2].ttft_s, 0.001, 1e-6);
}

TEST(SimulatedTierTest, SwapsReplaceRecomputationInAFullPool) {
  ReplicaConfig config = MillisecondReplica(64);
  config.scheduler.num_steps_in_flight = 2;
  Workload workload = FixedWorkload(100, 200, 60);
  const SimulationResult recomputed = Simulate(config, workload);
  config.scheduler.num_host_blocks = 256;
  const SimulationResult swapped = Simulate(config, workload);
  EXPECT_GT(recomputed.totals.num_recomputed_tokens, 0);
  EXPECT_GT(swapped.totals.num_swaps, 0);
  EXPECT_LT(swapped.totals.num_recomputed_tokens, recomputed.totals.num_recomputed_tokens / 2);
  EXPECT_EQ(swapped.totals.num_output_tokens, recomputed.totals.num_output_tokens);
}

}  // namespace
}  // namespace runtime::simulation
