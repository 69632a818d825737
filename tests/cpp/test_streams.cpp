// Seeded random servings. After each call Check() runs, the fake device refuses impossible plans,
// and every output must equal the one of its request alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <optional>
#include <random>

#include "recorded.h"
#include "runtime/error.h"
#include "serving.h"
#include "streams.h"

namespace runtime::testing {
namespace {

class Stream {
 public:
  explicit Stream(std::uint64_t seed)
      : random_(seed),
        config_(MakeConfig()),
        num_blocks_(static_cast<std::int32_t>(1 + Below(80 / config_.block_size))),
        serving_(config_, num_blocks_) {}

  void Record(const std::string& path) { serving_.scheduler().Record(path); }

  // Returns the number of steps.
  std::int64_t Run(std::int32_t num_ops) {
    for (std::int32_t op = 0; op < num_ops; ++op) {
      const std::int64_t kind = Below(10);
      if (kind < 3) {
        Submit();
      } else if (kind == 3 && next_id_ > 0) {
        End(Below(next_id_));
      } else if (kind == 4 && Below(8) == 0) {
        serving_.scheduler().ResetPrefixCache();
      } else if (kind == 4 && Below(4) == 0) {
        Pin();
      } else if (kind >= 8 && serving_.num_transfers() > 0) {
        serving_.FinishTransfer(
            static_cast<std::size_t>(Below(static_cast<std::int64_t>(serving_.num_transfers()))));
      } else {
        serving_.scheduler().SetTime(now_us_ += Below(20));
        serving_.Step();
      }
    }
    serving_.RunUntilDrained();
    for (const std::int64_t pin : pins_) serving_.scheduler().Unpin(pin);
    Verify();
    return serving_.scheduler().stats().num_steps;
  }

 private:
  std::int64_t Below(std::int64_t n) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(n));
  }

  SchedulerConfig MakeConfig() {
    SchedulerConfig config;
    config.max_num_seqs = static_cast<std::int32_t>(1 + Below(6));
    config.max_num_batched_tokens = static_cast<std::int32_t>(1 + Below(24));
    config.block_size = 1 << Below(4);
    config.max_model_len = 40;
    config.vocab_size = 60;
    config.eos_token_ids = {59};
    config.enable_prefix_caching = Below(5) != 0;
    config.num_steps_in_flight = static_cast<std::int32_t>(1 + Below(2));
    config.watermark = Below(2) == 0 ? 0.0 : 0.1;
    config.preempt_every = Below(2) == 0 ? 0 : static_cast<std::int32_t>(1 + Below(6));
    config.constant_block_hash = Below(8) == 0;
    config.policy = static_cast<SchedulingPolicy>(Below(3));
    config.priority_ageing_s = Below(2) == 0 ? 0.0 : 1e-5;
    config.tenant_weights = {{"1", 2.5}};
    config.admission = static_cast<AdmissionMode>(Below(4));
    config.admission_reserve = Below(2) == 0 ? 0.0 : 0.2;
    config.target_itl_ms = Below(2) == 0 ? 0.0 : 2.0;
    config.step_time.buckets = {{.num_tokens = 1, .launch_s = 0.001},
                                {.num_tokens = 11, .launch_s = 0.003}};
    config.length_window = static_cast<std::int32_t>(1 + Below(40));
    config.eviction = static_cast<EvictionPolicy>(Below(2));
    if (config.enable_prefix_caching && Below(2) == 0) {
      config.num_host_blocks = static_cast<std::int32_t>(1 + Below(100 / config.block_size));
    }
    // copies always pay; mostly; on the way back alone
    const double recompute_s = config.recompute_token_s * config.block_size;
    config.transfer_block_s = std::array{0.0, 0.05 * recompute_s, 0.9 * recompute_s}[Below(3)];
    return config;
  }

  std::vector<TokenId> MakePrompt() {
    // few different prefixes, so that requests share blocks and compute twins
    const auto pool_tokens =
        std::min<std::int64_t>(config_.max_model_len - 1, num_blocks_ * config_.block_size);
    std::vector<TokenId> prompt(static_cast<std::size_t>(1 + Below(pool_tokens)));
    const std::int64_t family = Below(3);
    const std::int64_t shared = Below(static_cast<std::int64_t>(prompt.size()) + 1);
    for (std::size_t i = 0; i < prompt.size(); ++i) {
      const bool is_shared = static_cast<std::int64_t>(i) < shared;
      prompt[i] = static_cast<TokenId>(is_shared ? (family + static_cast<std::int64_t>(i)) % 58
                                                 : Below(58));
    }
    return prompt;
  }

  void Pin() {
    if (!pins_.empty() && Below(2) == 0) {
      serving_.scheduler().Unpin(pins_.back());
      pins_.pop_back();
      return;
    }
    try {
      const PinnedPrefix pin = serving_.scheduler().Pin(MakePrompt(), Below(3) == 0 ? "salt" : "");
      if (pin.id >= 0) pins_.push_back(pin.id);
    } catch (const CapacityError&) {
    }
    serving_.scheduler().Check();
  }

  void Submit() {
    RequestNumbers numbers{.temperature = Below(2) == 0 ? 0.0 : 0.7, .seed = Below(1000)};
    const std::vector<TokenId> prompt = MakePrompt();
    const std::int64_t room =
        num_blocks_ * config_.block_size + 1 - static_cast<std::int64_t>(prompt.size());
    if (Below(4) != 0) numbers.max_tokens = 1 + Below(room);
    if (Below(5) == 0) numbers.stop_token_ids = {Below(60), Below(60)};
    if (Below(5) == 0) numbers.ignore_eos = true;
    if (Below(5) == 0) numbers.presence_penalty = 1.0;
    SubmitOptions options;
    if (Below(3) == 0) options.cache_salt = "salt";
    options.priority = static_cast<std::int32_t>(Below(5));
    options.true_output_len = static_cast<std::int32_t>(Below(30));
    if (Below(4) != 0) options.tenant = std::to_string(Below(3));
    if (Below(8) == 0)
      options.score_start =
          static_cast<std::int32_t>(Below(static_cast<std::int64_t>(prompt.size())));
    serving_.Submit(next_id_, prompt, numbers, options);
    is_scoring_.push_back(options.score_start >= 0);
    is_unlimited_.push_back(!numbers.max_tokens);
    is_ended_.push_back(false);
    ++next_id_;
  }

  void End(RequestId id) {
    if (Below(2) == 0) {
      if (serving_.Abort(id)) is_ended_[static_cast<std::size_t>(id)] = true;
    } else if (serving_.outcome(id).num_ends == 0) {
      serving_.scheduler().Stop(id, 0);
      is_ended_[static_cast<std::size_t>(id)] = true;
    }
  }

  void Verify() {
    for (RequestId id = 0; id < next_id_; ++id) {
      const Outcome& outcome = serving_.outcome(id);
      const auto at = static_cast<std::size_t>(id);
      ASSERT_EQ(outcome.num_ends, 1) << "request " << id;
      ASSERT_LE(outcome.num_preemptions, 3);
      if (is_scoring_[at]) continue;
      auto expected = serving_.Uninterrupted(id);
      ASSERT_LE(outcome.tokens.size(), expected.size());
      // what was ended from outside, or by the size of the pool, is a prefix
      if (is_ended_[at] || is_unlimited_[at]) expected.resize(outcome.tokens.size());
      ASSERT_EQ(outcome.tokens, expected) << "request " << id;
    }
    ASSERT_EQ(serving_.allocator().num_free(), num_blocks_);
    const SchedulerStats stats = serving_.scheduler().stats();
    ASSERT_EQ(stats.num_waiting + stats.num_running + stats.num_steps_in_flight, 0);
    ASSERT_EQ(stats.num_finished, next_id_);
  }

  std::mt19937_64 random_;
  SchedulerConfig config_;
  std::int32_t num_blocks_;
  Serving serving_;
  RequestId next_id_ = 0;
  std::int64_t now_us_ = 0;
  std::vector<bool> is_scoring_, is_unlimited_, is_ended_;
  std::vector<std::int64_t> pins_;
};

TEST(ServingStreamTest, ShortStreamsOfAnyConfiguration) {
  ForEachSeed(5000, [](std::uint64_t seed) { Stream(seed).Run(20); });
}

TEST(ServingStreamTest, LongStreams) {
  ForEachSeed(100, [](std::uint64_t seed) { Stream(1000000 + seed).Run(500); });
}

// Requests come and are aborted at any moment of their lives; nothing stays behind.
void Storm(std::uint64_t seed) {
  constexpr RequestId kNumRequests = 1000;
  std::mt19937_64 random(seed);
  const auto below = [&](std::uint64_t n) { return static_cast<std::int32_t>(random() % n); };
  SchedulerConfig config;
  config.max_num_seqs = 16;
  config.max_num_batched_tokens = 64;
  config.block_size = 4;
  config.max_model_len = 64;
  config.vocab_size = 60;
  config.num_steps_in_flight = 1 + below(2);
  Serving serving(config, 80);
  for (RequestId next = 0; next < kNumRequests;) {
    for (std::int32_t i = below(9); i > 0 && next < kNumRequests; --i) {
      serving.Submit(next++, std::vector<TokenId>(1 + below(30), below(3)),
                     {.temperature = 0.0, .max_tokens = 1 + below(30)});
    }
    for (std::int32_t i = below(9); i > 0; --i)
      serving.Abort(next - 1 - below(std::min<std::uint64_t>(next, 40) + 1));
    serving.Step();
  }
  for (RequestId id = 0; id < kNumRequests; ++id) serving.Abort(id);
  serving.RunUntilDrained();
  std::int64_t num_aborted = 0;
  for (const auto& [id, outcome] : serving.outcomes()) {
    ASSERT_EQ(outcome.num_ends, 1) << "request " << id;
    num_aborted += outcome.finish == FinishReason::kAbort;
  }
  EXPECT_GT(num_aborted, kNumRequests / 10);
  EXPECT_EQ(serving.allocator().num_free(), serving.allocator().num_blocks());
}

TEST(ServingStreamTest, AbortStorms) { ForEachSeed(5, Storm); }

TEST(ServingStreamTest, RecordedStreamsReplay) {
  ForEachSeed(200, [](std::uint64_t seed) {
    const TemporaryFile log;
    std::optional<Stream> stream(std::in_place, 2000000 + seed);
    stream->Record(log.path());
    const std::int64_t num_steps = stream->Run(100);
    stream.reset();
    ExpectReplays(log.path(), num_steps);
  });
}

}  // namespace
}  // namespace runtime::testing
