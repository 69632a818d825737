// The parts of past-future admission, against direct computations.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "scheduler/past_future.h"
#include "scheduler/tenants.h"
#include "streams.h"

namespace runtime::testing {
namespace {

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::int32_t Below(std::int32_t n) {
    return static_cast<std::int32_t>(engine_() % static_cast<std::uint64_t>(n));
  }
  std::uint32_t Bits() { return static_cast<std::uint32_t>(engine_()); }

 private:
  std::mt19937_64 engine_;
};

std::int32_t DirectQuantile(std::deque<std::int32_t> window, std::int32_t produced,
                            std::uint32_t u) {
  std::ranges::sort(window);
  std::erase_if(window, [&](std::int32_t length) { return length <= produced; });
  if (window.empty()) return LengthHistory::kUnknown;
  return window[(std::uint64_t{u} * window.size()) >> 32];
}

TEST(LengthHistoryTest, QuantilesAreThoseOfTheLastLengthsAboveWhatIsProduced) {
  ForEachSeed(200, [](std::uint64_t seed) {
    Random random(seed);
    const std::int32_t num_unknown = 1 + random.Below(10);
    const std::int32_t window = num_unknown + random.Below(60);
    LengthHistory history(window, num_unknown);
    std::deque<std::int32_t> direct(static_cast<std::size_t>(num_unknown), LengthHistory::kUnknown);
    std::int32_t num_added = 0, rank = 0;
    for (std::int32_t i = 0; i < 200; ++i) {
      const std::int32_t length = 1 + random.Below(50);
      history.Add(length);
      direct.push_back(length);
      // the first lengths take the places of unknown ones
      if (++num_added <= num_unknown || direct.size() > static_cast<std::size_t>(window))
        direct.pop_front();
      const std::int32_t produced = random.Below(60);
      const std::uint32_t u = random.Bits();
      ASSERT_EQ(history.Quantile(produced, u, rank), DirectQuantile(direct, produced, u));
      ASSERT_EQ(history.is_known(), num_added >= num_unknown);
    }
  });
}

struct Held {
  std::int32_t has, left;
};

// Blocks in use after `time` units.
std::int64_t UseAt(const std::vector<Held>& requests, std::int32_t time) {
  std::int64_t use = 0;
  for (const Held& request : requests) use += request.left >= time ? request.has + time : 0;
  return use;
}

std::int64_t DirectPeak(const std::vector<Held>& requests) {
  std::int64_t peak = 0;
  std::int32_t longest = 0;
  for (const Held& request : requests) longest = std::max(longest, request.left);
  for (std::int32_t time = 0; time <= longest; ++time) peak = std::max(peak, UseAt(requests, time));
  return peak;
}

// The formula as it is written, by sorting.
std::int64_t ClosedForm(std::vector<Held> requests) {
  std::ranges::sort(requests, std::ranges::greater{}, &Held::left);
  std::int64_t peak = 0, has = 0, k = 0;
  for (const Held& request : requests) {
    has += request.has;
    peak = std::max(peak, request.left * ++k + has);
  }
  return peak;
}

TEST(FutureUseTest, ThePeakIsTheLargestOfAllFutureUses) {
  FutureUse use(300);
  ForEachSeed(500, [&use](std::uint64_t seed) {
    Random random(seed);
    std::vector<Held> requests;
    use.Clear();
    for (std::int32_t i = random.Below(40); i >= 0; --i) {
      requests.push_back({random.Below(200), random.Below(301)});
      use.Add(requests.back().has, requests.back().left);
      ASSERT_EQ(use.Peak(), DirectPeak(requests));
      ASSERT_EQ(use.Peak(), ClosedForm(requests));
    }
  });
}

TEST(FutureUseTest, NothingUsesNothing) {
  FutureUse use(10);
  EXPECT_EQ(use.Peak(), 0);
  use.Add(3, 10);
  use.Clear();
  EXPECT_EQ(use.Peak(), 0);
}

TEST(FutureUseTest, WideBinsNeverUnderestimate) {
  constexpr std::int32_t kMaxLeft = 5 * FutureUse::kMaxBins, kWidth = 8;
  FutureUse use(kMaxLeft);
  ForEachSeed(20, [&use](std::uint64_t seed) {
    Random random(seed);
    std::vector<Held> requests;
    use.Clear();
    for (std::int32_t i = 0; i < 30; ++i) {
      requests.push_back({random.Below(1000), random.Below(kMaxLeft + 1)});
      use.Add(requests.back().has, requests.back().left);
    }
    ASSERT_GE(use.Peak(), ClosedForm(requests));
    ASSERT_LT(use.Peak(), ClosedForm(requests) + 30 * kWidth);
  });
}

// Requests over blocks of one token, so that a unit of time is a token of each.
class PeakTest {
 public:
  static constexpr std::int32_t kNumBlocks = 4000;

  PeakTest() : allocator_(kNumBlocks), kv_(allocator_, {.block_size = 1, .watermark = 0.0}) {
    config_.block_size = 1;
    config_.max_model_len = kMaxLen;
  }
  ~PeakTest() {
    for (const auto& request : requests_) kv_.Release(request->kv);
  }

  // A request that runs, `num_computed` tokens of it in the pool.
  Request& Run(std::int32_t prompt_len, std::int32_t output_len, std::int32_t num_computed) {
    Request& request = Make(prompt_len, output_len);
    request.num_computed = num_computed;
    request.num_unknown = std::max(num_computed + 1 - prompt_len, 0);
    kv_.Extend(request.kv, num_computed);
    running_.push_back(&request);
    return request;
  }

  Request& Make(std::int32_t prompt_len, std::int32_t output_len) {
    auto request = std::make_unique<Request>(
        static_cast<RequestId>(requests_.size()), RequestParams(),
        std::vector<TokenId>(static_cast<std::size_t>(prompt_len)), allocator_);
    request->max_len = kMaxLen;
    request->prefill_len = prompt_len;
    request->true_output_len = output_len;
    requests_.push_back(std::move(request));
    return *requests_.back();
  }

  std::int64_t Peak(const Request& candidate) {
    PastFutureAdmission admission(config_, kNumBlocks, std::make_unique<OracleForecast>());
    return admission.PeakWith({candidate, running_, kv_, candidate.prompt_len, 0, false});
  }

  // One token after the other: all but the last need a block, and all go when the last is sampled.
  std::int64_t DirectPeak(const Request& candidate) const {
    std::int64_t peak = 0;
    for (std::int32_t time = 0; time < kMaxLen; ++time) {
      std::int64_t use = UseAt(candidate, candidate.prompt_len, time);
      for (const Request* request : running_)
        use += UseAt(*request, std::max(request->num_computed, request->prompt_len), time);
      peak = std::max(peak, use);
    }
    return peak;
  }

 private:
  static constexpr std::int32_t kMaxLen = 400;

  static std::int64_t UseAt(const Request& request, std::int32_t now, std::int32_t time) {
    const std::int32_t last = request.prompt_len + request.true_output_len - 1;
    return now + time <= last ? now + time : 0;
  }

  SchedulerConfig config_;
  BlockAllocator allocator_;
  KvPool kv_;
  std::vector<std::unique_ptr<Request>> requests_;
  std::vector<Request*> running_;
};

TEST(PastFutureAdmissionTest, ThePeakIsThatOfEveryTokenToCome) {
  ForEachSeed(200, [](std::uint64_t seed) {
    Random random(seed);
    PeakTest test;
    for (std::int32_t i = random.Below(12); i > 0; --i) {
      const std::int32_t prompt_len = 1 + random.Below(100), output_len = 1 + random.Below(200);
      test.Run(prompt_len, output_len, 1 + random.Below(prompt_len + output_len - 1));
    }
    const Request& candidate = test.Make(1 + random.Below(100), 1 + random.Below(200));
    ASSERT_EQ(test.Peak(candidate), test.DirectPeak(candidate));
  });
}

TEST(HistoryForecastTest, GoesFromMaxTokensToTheOutputsSeenAndBeyondThem) {
  SchedulerConfig config;
  config.max_num_seqs = 1;
  config.length_window = 32;
  HistoryForecast forecast(config);
  BlockAllocator allocator(1);
  Tenant tenant;
  Request request(1, RequestParams(), std::vector<TokenId>(10), allocator);
  request.max_len = 300;
  request.tenant = &tenant;
  EXPECT_EQ(forecast.EndOf(request), 300) << "no history";
  Request done(2, RequestParams(), std::vector<TokenId>(5 + 40), allocator);
  done.prompt_len = 5;
  done.tenant = &tenant;
  for (std::int32_t i = 0; i < 32; ++i) forecast.OnFinished(done);
  EXPECT_EQ(forecast.EndOf(request), 50);
  request.num_unknown = 60;
  EXPECT_EQ(forecast.EndOf(request), 130) << "longer than any";
  request.num_unknown = 280;
  EXPECT_EQ(forecast.EndOf(request), 300);
  request.score_start = 0;
  EXPECT_EQ(forecast.EndOf(request), 300);
}

TEST(HistoryForecastTest, ATenantIsForecastFromItsOwnOutputsOnceThereAreEnough) {
  SchedulerConfig config;
  config.max_num_seqs = 1;
  HistoryForecast forecast(config);
  BlockAllocator allocator(1);
  Tenant terse, talkative;
  const auto finish = [&](Tenant& tenant, std::int32_t length, std::int32_t times) {
    Request done(2, RequestParams(), std::vector<TokenId>(static_cast<std::size_t>(1 + length)),
                 allocator);
    done.prompt_len = 1;
    done.tenant = &tenant;
    for (std::int32_t i = 0; i < times; ++i) forecast.OnFinished(done);
  };
  Request request(1, RequestParams(), std::vector<TokenId>(1), allocator);
  request.max_len = 1000;
  request.tenant = &talkative;
  finish(terse, 7, 32);
  EXPECT_EQ(forecast.EndOf(request), 8) << "everybody's, while it has none of its own";
  finish(talkative, 300, 32);
  EXPECT_EQ(forecast.EndOf(request), 301);
  request.tenant = &terse;
  EXPECT_EQ(forecast.EndOf(request), 8);
}

}  // namespace
}  // namespace runtime::testing
