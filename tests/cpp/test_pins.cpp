// Pinned prefixes.
#include <gtest/gtest.h>

#include "runtime/error.h"
#include "serving.h"
#include "stories.h"

namespace runtime::testing {
namespace {

class PinTest : public ::testing::TestWithParam<EvictionPolicy> {
 protected:
  static SchedulerConfig PinConfig() {
    SchedulerConfig config = Config();
    config.eviction = GetParam();
    return config;
  }

  std::int32_t Serve(RequestId id, std::vector<TokenId> prompt, SubmitOptions options = {}) {
    serving_.Submit(id, std::move(prompt), Greedy(1), std::move(options));
    serving_.RunUntilDrained();
    return serving_.outcome(id).num_cached;
  }
  PinnedPrefix Pin(std::vector<TokenId> prompt, const std::string& salt = "") {
    const PinnedPrefix pin = serving_.scheduler().Pin(prompt, salt);
    serving_.scheduler().Check();
    return pin;
  }

  Serving serving_{PinConfig(), 8};
};
INSTANTIATE_TEST_SUITE_P(Evictions, PinTest,
                         ::testing::Values(EvictionPolicy::kLru, EvictionPolicy::kCost));

TEST_P(PinTest, APinnedPrefixOutlivesWhatWouldEvictIt) {
  Serve(1, Prompt(16));
  const PinnedPrefix pin = Pin(Prompt(11));
  EXPECT_EQ(pin.num_tokens, 8);
  EXPECT_EQ(serving_.scheduler().stats().num_pinned_blocks, 2);
  for (RequestId id = 2; id < 6; ++id) Serve(id, Prompt(24, static_cast<TokenId>(100 * id)));
  EXPECT_EQ(Serve(6, Prompt(16)), 8);
  EXPECT_TRUE(serving_.scheduler().Unpin(pin.id));
  EXPECT_FALSE(serving_.scheduler().Unpin(pin.id));
  Serve(7, Prompt(32, 500));
  EXPECT_EQ(Serve(8, Prompt(16)), 0);
}

TEST_P(PinTest, OnlyTheSaltOfTheCachedPrefixFindsIt) {
  Serve(1, Prompt(8), {.cache_salt = "alice"});
  EXPECT_EQ(Pin(Prompt(8)).id, -1);
  EXPECT_EQ(Pin(Prompt(8), "bob").num_tokens, 0);
  EXPECT_EQ(Pin(Prompt(8), "alice").num_tokens, 8);
}

TEST_P(PinTest, PinsAreBounded) {
  Serve(1, Prompt(20));
  try {
    Pin(Prompt(20));
    FAIL();
  } catch (const CapacityError& error) {
    EXPECT_NE(std::string(error.what()).find("5 blocks"), std::string::npos) << error.what();
    EXPECT_NE(error.hint().find("max_pinned_share"), std::string::npos);
  }
  EXPECT_EQ(serving_.allocator().num_free(), 8) << "nothing was taken";
  EXPECT_EQ(Pin(Prompt(16)).num_tokens, 16);
  EXPECT_THROW(Pin(Prompt(4)), CapacityError) << "a block counts for each pin";
}

TEST_P(PinTest, PinsYieldToARequestThatCouldNeverRunBesideThem) {
  Serve(1, Prompt(16));
  const PinnedPrefix pin = Pin(Prompt(16));
  serving_.Submit(2, Prompt(16, 100), Greedy(17));  // in the end it needs every block
  serving_.RunUntilDrained();
  EXPECT_EQ(serving_.outcome(2).tokens, serving_.Uninterrupted(2));
  EXPECT_EQ(serving_.outcome(2).num_preemptions, 0);
  EXPECT_FALSE(serving_.scheduler().Unpin(pin.id));
}

TEST_P(PinTest, PinsYieldToARequestThatCouldNeverStartBesideThem) {
  Serve(1, Prompt(16));
  const PinnedPrefix pin = Pin(Prompt(16));
  EXPECT_EQ(Serve(2, Prompt(32, 100)), 0);
  EXPECT_FALSE(serving_.scheduler().Unpin(pin.id));
}

TEST_P(PinTest, ResetForgetsPins) {
  Serve(1, Prompt(16));
  const PinnedPrefix pin = Pin(Prompt(16));
  serving_.scheduler().ResetPrefixCache();
  serving_.Step();
  EXPECT_EQ(serving_.allocator().num_free(), 8);
  EXPECT_FALSE(serving_.scheduler().Unpin(pin.id));
}

TEST_P(PinTest, CountsQueriesHitsAndEvictions) {
  Serve(1, Prompt(16));
  Serve(2, Prompt(16));
  Serve(3, Prompt(32, 100));
  const SchedulerStats stats = serving_.scheduler().stats();
  EXPECT_EQ(stats.num_prefix_queries, 3);
  EXPECT_EQ(stats.num_prefix_hits, 1);
  EXPECT_EQ(stats.num_cached_tokens, 12);
  EXPECT_EQ(stats.num_evictions, 4);
}

TEST(PinCollisionTest, EqualHashesPinTheSameBlocks) {
  SchedulerConfig config = Config();
  config.constant_block_hash = true;
  Serving serving(config, 8);
  serving.Submit(1, Prompt(16), Greedy(1));
  serving.RunUntilDrained();
  EXPECT_EQ(serving.scheduler().Pin(Prompt(16)).num_tokens, 16);
  EXPECT_EQ(serving.scheduler().Pin(Prompt(16, 1)).num_tokens, 0);
  serving.scheduler().Check();
}

}  // namespace
}  // namespace runtime::testing
