// The CPU tier as a user of the scheduler sees it: what is copied, when, and what is found again.
#include <gtest/gtest.h>

#include "kv_cache/kv_costs.h"
#include "runtime/error.h"
#include "runtime/step_plan.h"
#include "serving.h"
#include "stories.h"

namespace runtime::testing {
namespace {

namespace plan = step_plan;

// Copies cost next to nothing, so they always pay.
SchedulerConfig TierConfig(std::int32_t num_steps_in_flight = 1) {
  SchedulerConfig config = Config(num_steps_in_flight);
  config.num_host_blocks = 64;
  config.transfer_block_s = 1e-9;
  return config;
}

std::vector<std::vector<std::int32_t>> Copies(std::span<const std::int32_t> words) {
  std::vector<std::vector<std::int32_t>> copies;
  const std::int32_t at = words[plan::kHeaderCopies];
  for (std::int32_t i = 0; i < words[plan::kHeaderCopies + 1]; ++i) {
    const auto entry = words.subspan(at + i * plan::kCopyWords, plan::kCopyWords);
    copies.emplace_back(entry.begin(), entry.end());
  }
  return copies;
}

class TierTest : public ::testing::Test {
 protected:
  explicit TierTest(SchedulerConfig config = TierConfig(), std::int32_t num_blocks = 8)
      : serving_(config, num_blocks) {}

  SchedulerStats stats() const { return serving_.scheduler().stats(); }
  // Submits a prompt and serves it to its end; how many of its tokens were cached.
  std::int32_t Serve(RequestId id, std::vector<TokenId> prompt, SubmitOptions options = {}) {
    serving_.Submit(id, std::move(prompt), Greedy(1), std::move(options));
    serving_.RunUntilDrained();
    return serving_.outcome(id).num_cached;
  }
  // A prompt of 16 tokens leaves 4 blocks on the host, and another two take the device's 8.
  void FillHostWithEvicted() {
    Serve(1, Prompt(16));
    Serve(2, Prompt(16, 100));
    Serve(3, Prompt(16, 200));
    EXPECT_GE(stats().num_evictions, 4);
  }

  mutable Serving serving_;
};

TEST_F(TierTest, WhatTheDeviceEvictedIsFoundOnTheHost) {
  FillHostWithEvicted();
  EXPECT_EQ(stats().num_stored_blocks, 12);
  EXPECT_EQ(stats().num_cached_host_blocks, 12);
  EXPECT_EQ(Serve(4, Prompt(16)), 12) << "of the last block a token must be computed";
  EXPECT_EQ(stats().num_loaded_blocks, 3);
  EXPECT_EQ(serving_.outcome(4).tokens, serving_.Uninterrupted(4));
}

TEST_F(TierTest, OnlyEqualSaltsShareTheHost) {
  Serve(1, Prompt(16), {.cache_salt = "alice"});
  Serve(2, Prompt(16, 100));
  Serve(3, Prompt(16, 200));
  EXPECT_EQ(Serve(4, Prompt(16), {.cache_salt = "bob"}), 0);
  EXPECT_EQ(Serve(5, Prompt(16), {.cache_salt = "alice"}), 12);
  EXPECT_GT(stats().num_loaded_blocks, 0);
}

TEST_F(TierTest, APlanWithoutRowsCarriesTheCopiesAndTheRequestWaitsForThem) {
  FillHostWithEvicted();
  serving_.Submit(4, Prompt(16), Greedy(1));
  serving_.Step();
  EXPECT_EQ(serving_.last_plan()[plan::kHeaderNumRows], 0);
  const auto copies = Copies(serving_.last_plan());
  ASSERT_EQ(copies.size(), 3u);
  for (const auto& copy : copies) EXPECT_EQ(copy[0], plan::kCopyFromHost);
  EXPECT_EQ(serving_.scheduler().Schedule(), -1) << "nothing runs before the copy is done";
  EXPECT_EQ(stats().num_transfers, 1);
  serving_.FinishTransfer();
  EXPECT_EQ(stats().num_transfers, 0);
  serving_.RunUntilDrained();
  EXPECT_EQ(serving_.outcome(4).tokens, serving_.Uninterrupted(4));
}

TEST_F(TierTest, OthersRunWhileARequestIsLoaded) {
  FillHostWithEvicted();
  serving_.Submit(4, Prompt(16), Greedy(1));
  serving_.Submit(5, Prompt(4, 300), Greedy(1));
  const std::int32_t buffer = serving_.scheduler().Schedule();
  ASSERT_GE(buffer, 0);
  EXPECT_EQ(serving_.plan(buffer)[plan::kHeaderNumRows], 1);
  EXPECT_EQ(Copies(serving_.plan(buffer)).size(), 3u);
  EXPECT_EQ(stats().num_running, 2);
}

TEST_F(TierTest, APrefixIsLoadedOnceForAllThatShareIt) {
  FillHostWithEvicted();
  serving_.Submit(4, Prompt(14), Greedy(1));
  serving_.Submit(5, Prompt(15), Greedy(1));
  serving_.RunUntilDrained();
  EXPECT_EQ(stats().num_loaded_blocks, 3);
  EXPECT_EQ(serving_.outcome(4).num_cached, 12);
  EXPECT_EQ(serving_.outcome(5).num_cached, 12);
}

TEST_F(TierTest, BlocksComeBackWhenTheCopyIsDone) {
  serving_.Submit(1, Prompt(16), Greedy(1));
  serving_.Step();  // it ends here
  EXPECT_EQ(serving_.outcome(1).num_ends, 1);
  EXPECT_EQ(serving_.allocator().num_free(), 4);
  serving_.Step();
  EXPECT_EQ(Copies(serving_.last_plan()).size(), 4u);
  EXPECT_EQ(serving_.allocator().num_free(), 4);
  serving_.FinishTransfer();
  EXPECT_EQ(serving_.allocator().num_free(), 8);
  EXPECT_EQ(stats().num_cached_blocks, 4) << "the copy on the device stays until it is evicted";
}

TEST_F(TierTest, AbortDuringACopyOnlyDelaysTheFree) {
  FillHostWithEvicted();
  serving_.Submit(4, Prompt(16), Greedy(1));
  serving_.Step();
  EXPECT_TRUE(serving_.Abort(4));
  serving_.scheduler().TakeEvents();
  EXPECT_EQ(serving_.allocator().num_free(), 5);
  serving_.FinishTransfer();
  EXPECT_EQ(serving_.allocator().num_free(), 8);
  EXPECT_EQ(Serve(5, Prompt(16)), 12) << "what was copied is as good as ever";
  EXPECT_EQ(stats().num_loaded_blocks, 3);
}

TEST_F(TierTest, ResetDuringCopiesLeavesNothingToFind) {
  FillHostWithEvicted();
  serving_.Submit(4, Prompt(16), Greedy(1));
  serving_.Step();
  serving_.scheduler().ResetPrefixCache();
  serving_.RunUntilDrained();
  EXPECT_EQ(serving_.outcome(4).tokens, serving_.Uninterrupted(4));
  EXPECT_EQ(stats().num_cached_host_blocks, 0);
  EXPECT_EQ(Serve(5, Prompt(16)), 0);
}

TEST_F(TierTest, TransferDoneNeedsAStepWhoseCopiesAreUnderWay) {
  EXPECT_THROW(serving_.scheduler().TransferDone(1), InvalidArgument);
  Serve(1, Prompt(16));
  EXPECT_THROW(serving_.scheduler().TransferDone(1), InvalidArgument);
}

// Two requests of 20 tokens in a pool of 8 blocks: the second is preempted.
void ServeTwoInASmallPool(Serving& serving) {
  serving.Submit(1, Prompt(10), Greedy(14));
  serving.Submit(2, Prompt(10, 100), Greedy(14));
  serving.RunUntilDrained();
  for (const RequestId id : {1, 2}) {
    EXPECT_EQ(serving.outcome(id).tokens, serving.Uninterrupted(id));
  }
}

class SwapTest : public ::testing::TestWithParam<std::int32_t> {};
INSTANTIATE_TEST_SUITE_P(StepsInFlight, SwapTest, ::testing::Values(1, 2));

TEST_P(SwapTest, APreemptedRequestComesBackWithoutComputingItsBlocksAgain) {
  Serving serving(TierConfig(GetParam()), 8);
  ServeTwoInASmallPool(serving);
  const SchedulerStats stats = serving.scheduler().stats();
  EXPECT_GE(stats.num_swaps, 1);
  EXPECT_GE(stats.num_loaded_blocks, 1);
  EXPECT_LE(stats.num_recomputed_tokens, 4 * stats.num_preemptions) << "less than a block each";
}

TEST_P(SwapTest, CostsDecideBetweenSwapAndRecompute) {
  SchedulerConfig config = TierConfig(GetParam());
  config.recompute_context_s = 0.0;
  config.transfer_block_s = 0.51 * config.block_size * config.recompute_token_s;
  Serving recomputes(config, 8);
  ServeTwoInASmallPool(recomputes);
  EXPECT_EQ(recomputes.scheduler().stats().num_swaps, 0) << "there and back costs more";
  config.transfer_block_s = 0.49 * config.block_size * config.recompute_token_s;
  Serving swaps(config, 8);
  ServeTwoInASmallPool(swaps);
  EXPECT_GE(swaps.scheduler().stats().num_swaps, 1);
}

TEST(TierCostTest, LaterBlocksCostMore) {
  const KvCosts costs(4, 1e-3, 1e-4, 0.0);
  EXPECT_EQ(costs.Recompute(0), 4'800'000);
  EXPECT_EQ(costs.Recompute(2) - costs.Recompute(1), 1'600'000);
  EXPECT_EQ(costs.Recompute(1, 3), costs.Recompute(1) + costs.Recompute(2) + costs.Recompute(3));
}

TEST(TierSizeTest, AFullHostKeepsTheBeginningsOfPrefixes) {
  SchedulerConfig config = TierConfig();
  config.num_host_blocks = 9;
  Serving serving(config, 8);
  const auto serve = [&](RequestId id, std::vector<TokenId> prompt) {
    serving.Submit(id, std::move(prompt), Greedy(1));
    serving.RunUntilDrained();
    return serving.outcome(id).num_cached;
  };
  serve(1, Prompt(16));
  serve(2, Prompt(16, 100));
  serve(3, Prompt(16, 200));  // one block is left for its four: three leaves of the first go
  EXPECT_EQ(serving.scheduler().stats().num_host_evictions, 3);
  EXPECT_EQ(serve(4, Prompt(16)), 4) << "the device has none of it, the host its first block";
}

// Blocks of one token, so that few requests fill a plan.
struct WidePrompts {
  static constexpr std::int32_t kLen = 5990;

  explicit WidePrompts(std::int32_t max_num_batched_tokens)
      : serving(WideConfig(max_num_batched_tokens), 4 * kLen + 10) {}

  static SchedulerConfig WideConfig(std::int32_t max_num_batched_tokens) {
    SchedulerConfig config = TierConfig();
    config.block_size = 1;
    config.max_model_len = 6000;
    config.max_num_batched_tokens = max_num_batched_tokens;
    config.vocab_size = 100000;
    config.num_host_blocks = 8 * kLen;
    return config;
  }
  void SubmitFour(RequestId first) {
    for (RequestId id = first; id < first + 4; ++id) {
      serving.Submit(id, Prompt(kLen, static_cast<TokenId>(10000 * (id % 8))), Greedy(1));
    }
  }

  Serving serving;
};

TEST(TierPlanTest, CopiesThatDoNotFitAPlanWaitForTheNext) {
  WidePrompts wide(4 * WidePrompts::kLen);
  wide.SubmitFour(0);
  wide.serving.Step();  // they end
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(wide.serving.num_transfers(), static_cast<std::size_t>(i));
    wide.serving.Step();
    EXPECT_EQ(Copies(wide.serving.last_plan()).size(), 5990u);
  }
}

TEST(TierPlanTest, LoadedRowsThatDoNotFitAPlanWaitForTheNext) {
  WidePrompts wide(1024);
  wide.SubmitFour(0);
  wide.serving.RunUntilDrained();
  wide.SubmitFour(4);
  wide.serving.RunUntilDrained();
  wide.SubmitFour(8);
  for (int i = 0; i < 4; ++i) wide.serving.Step();
  ASSERT_EQ(wide.serving.num_transfers(), 4u);
  for (int i = 0; i < 4; ++i) wide.serving.FinishTransfer();
  const std::int32_t buffer = wide.serving.scheduler().Schedule();
  ASSERT_GE(buffer, 0);
  EXPECT_LT(wide.serving.plan(buffer)[plan::kHeaderNumRows], 4);
  EXPECT_GT(wide.serving.plan(buffer)[plan::kHeaderNumRows], 0);
}

TEST(TierCollisionTest, EqualHashesChangeNothing) {
  SchedulerConfig config = TierConfig();
  config.constant_block_hash = true;
  Serving equal(config, 8), different(TierConfig(), 8);
  ServeTwoInASmallPool(equal);
  ServeTwoInASmallPool(different);
  EXPECT_GE(equal.scheduler().stats().num_loaded_blocks, 1);
  EXPECT_EQ(equal.scheduler().stats().num_loaded_blocks,
            different.scheduler().stats().num_loaded_blocks);
}

TEST(TierConfigTest, NeedsAPrefixCache) {
  SchedulerConfig config = TierConfig();
  config.enable_prefix_caching = false;
  EXPECT_THROW(config.Validate(), ConfigError);
}

}  // namespace
}  // namespace runtime::testing
