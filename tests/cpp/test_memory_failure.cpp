// Memory runs out at every allocation in turn: a call either completes, or throws and has done
// nothing, or leaves a scheduler that refuses everything and can be destroyed.
#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <new>
#include <optional>

#include "counted_new.h"
#include "recorded.h"
#include "runtime/error.h"
#include "runtime/step_plan.h"
#include "serving.h"
#include "stories.h"

namespace runtime::testing {
namespace {

// Lets the k-th allocation inside its calls fail.
class Sweep {
 public:
  explicit Sweep(std::int64_t k) : left_(k) {}

  // Whether memory ran out in some call so far.
  bool has_failed() const { return left_ == 0; }

  // False: it did in this one.
  bool Completes(const std::function<void()>& call) {
    fails_at = left_;
    try {
      call();
      left_ = fails_at.exchange(0);
      return true;
    } catch (const std::bad_alloc&) {
      left_ = 0;
      return false;
    }
  }

 private:
  std::int64_t left_;
};

SchedulerConfig ShortOfBlocks() {
  SchedulerConfig config = Config(2);
  config.policy = SchedulingPolicy::kFair;
  config.eos_token_ids = {7};
  return config;
}

constexpr std::int32_t kNumBlocks = 9;  // so few that requests are preempted

// Preempted requests go to host memory and come back: copies always pay.
SchedulerConfig WithTier() {
  SchedulerConfig config = ShortOfBlocks();
  config.num_host_blocks = 12;
  config.transfer_block_s = 1e-9;
  return config;
}

// Serves a few requests; every call of the scheduler is part of the sweep.
class Story {
 public:
  Story(Sweep& sweep, const SchedulerConfig& config, const std::string& log)
      : sweep_(sweep),
        allocator_(kNumBlocks),
        scheduler_(std::in_place, config, allocator_),
        buffers_(*scheduler_, 2),
        has_tier_(config.num_host_blocks > 0) {
    if (!log.empty()) scheduler_->Record(log);
  }

  void Run() {
    for (RequestId id = 0; id < next_id_; ++id) Submit(id);
    Call([&] { scheduler_->Abort(1); });
    for (int i = 0; i < 12 && !is_lost_; ++i) Step();
    Call([&] { scheduler_->ResetPrefixCache(); });
    Call([&] { scheduler_->Stop(2, 1); });
    for (int i = 0; i < 60 && !is_lost_; ++i) Step();
    // with a tier the last prompt, evicted by those between, is found on the host
    for (const TokenId first : {100, 200, 300, 100}) ServeAlone(first);
    is_lost_ ? ExpectLost() : ExpectServed();
    scheduler_.reset();
    EXPECT_EQ(allocator_.num_free(), kNumBlocks);
  }

 private:
  // From any thread: memory runs out before anything has happened, and the call can be repeated.
  void Call(const std::function<void()>& call) {
    if (!sweep_.Completes(call)) call();
  }

  void Submit(RequestId id) {
    Call([&] {
      scheduler_->Submit(id, Prompt(5 + id % 3, id % 2), RequestParams(Greedy(9)),
                         {.cache_salt = id % 2 == 0 ? "" : "salt", .tenant = id < 3 ? "a" : "b"});
    });
  }

  void ServeAlone(TokenId first) {
    if (is_lost_) return;
    const RequestId id = next_id_++;
    Call([&] { scheduler_->Submit(id, Prompt(16, first), RequestParams(Greedy(1))); });
    for (int i = 0; i < 12 && !is_lost_; ++i) Step();
  }

  void Step() {
    std::int32_t buffer = -1;
    is_lost_ = !sweep_.Completes([&] { buffer = scheduler_->Schedule(); });
    if (buffer >= 0) Launch(buffer);
    if (!is_lost_ && buffer < 0) FinishCopies();
    if (is_lost_ || in_flight_.empty() || (buffer >= 0 && in_flight_.size() < 2)) return;
    const auto plan = buffers_[in_flight_.front()];
    in_flight_.pop_front();
    const std::vector<TokenId> tokens(plan[step_plan::kHeaderNumRows], 5);
    is_lost_ =
        !sweep_.Completes([&] { Take(scheduler_->Update(plan[step_plan::kHeaderStep], tokens)); });
  }

  void Launch(std::int32_t buffer) {
    in_flight_.push_back(buffer);
    const auto plan = buffers_[buffer];
    if (plan[step_plan::kHeaderCopies + 1] > 0) copying_.push_back(plan[step_plan::kHeaderStep]);
  }

  void FinishCopies() {
    for (; !copying_.empty() && !is_lost_; copying_.pop_front()) {
      is_lost_ = !sweep_.Completes([&] { scheduler_->TransferDone(copying_.front()); });
    }
  }

  void Take(const StepResult& result) {
    for (const FinishReason finish : result.finish) num_ended_ += finish != FinishReason::kNone;
  }

  void ExpectLost() {
    EXPECT_THROW(scheduler_->Check(), InvariantError);
    EXPECT_THROW(scheduler_->Schedule(), InvalidArgument);
    EXPECT_THROW(scheduler_->Update(1, {}), InvalidArgument);
    EXPECT_THROW(scheduler_->TakeEvents(), InvalidArgument);
  }

  void ExpectServed() {
    EXPECT_NO_THROW(scheduler_->Check());
    Take(scheduler_->TakeEvents());
    EXPECT_EQ(num_ended_, next_id_);
    EXPECT_EQ(scheduler_->stats().num_free_blocks, kNumBlocks);
    EXPECT_GT(scheduler_->stats().num_preemptions, 0);
    EXPECT_EQ(scheduler_->stats().num_loaded_blocks > 0, has_tier_);
  }

  Sweep& sweep_;
  BlockAllocator allocator_;
  std::optional<Scheduler> scheduler_;
  PlanBuffers buffers_;
  const bool has_tier_;
  RequestId next_id_ = 6;
  std::deque<std::int32_t> in_flight_;
  std::deque<std::int32_t> copying_;  // steps
  std::int32_t num_ended_ = 0;
  bool is_lost_ = false;
};

void SweepAll(const SchedulerConfig& config, const std::string& log) {
  for (std::int64_t k = 1;; ++k) {
    Sweep sweep(k);
    Story(sweep, config, log).Run();
    ASSERT_FALSE(::testing::Test::HasFailure()) << "allocation " << k;
    if (sweep.has_failed()) continue;
    EXPECT_GT(k, 50);
    break;
  }
}

TEST(MemoryFailureTest, AtEveryAllocation) { SweepAll(ShortOfBlocks(), ""); }

TEST(MemoryFailureTest, AtEveryAllocationWithACpuTier) { SweepAll(WithTier(), ""); }

TEST(MemoryFailureTest, AtEveryAllocationWhileRecording) {
  const TemporaryFile log;
  SweepAll(WithTier(), log.path());
}

TEST(MemoryFailureTest, ASnapshotThatFailsChangesNothing) {
  Serving serving(Config(), 20);
  serving.Submit(1, Prompt(8, 10), Greedy(4));
  serving.Step();
  std::int64_t k = 1;
  while (!Sweep(k).Completes([&] { (void)serving.scheduler().Snapshot(); })) ++k;
  EXPECT_GT(k, 5);
  while (serving.Step()) continue;
  EXPECT_EQ(serving.scheduler().stats().num_free_blocks, 20);
}

}  // namespace
}  // namespace runtime::testing
