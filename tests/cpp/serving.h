#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fake_device.h"
#include "runtime/scheduler.h"

namespace runtime::testing {

// Plan buffers of a scheduler, attached to it.
class PlanBuffers {
 public:
  PlanBuffers(Scheduler& scheduler, std::int32_t num_steps_in_flight);

  std::span<const std::int32_t> operator[](std::int32_t index) const { return buffers_[index]; }

 private:
  std::vector<std::vector<std::int32_t>> buffers_;
};

struct Outcome {
  std::vector<TokenId> tokens;
  FinishReason finish = FinishReason::kNone;
  TokenId stop_id = -1;
  std::int32_t num_cached = 0;
  std::int32_t num_preemptions = 0;
  std::int32_t num_ends = 0;
  std::int32_t num_scored_rows = 0;
};

// A scheduler, its pool and a fake device, driven as an engine drives them. Check() runs after
// every call. Plans are executed as late as they may be: just before their results are due.
class Serving {
 public:
  Serving(const SchedulerConfig& config, std::int32_t num_blocks);

  void Submit(RequestId id, std::vector<TokenId> prompt, const RequestNumbers& numbers = {},
              SubmitOptions options = {});
  bool Abort(RequestId id);

  // Plans steps until the pipeline is full or nothing can run, then retires the oldest, or, if no
  // step is in flight, finishes the oldest copies. False: there was nothing to do.
  bool Step();
  // Finishes the copies of the index-th oldest step that has any.
  void FinishTransfer(std::size_t index = 0);
  std::size_t num_transfers() const { return copying_.size(); }
  void RunUntilDrained(std::int32_t max_steps = 100000);

  // The same request alone, with no limits around it.
  std::vector<TokenId> Uninterrupted(RequestId id) const;

  Scheduler& scheduler() { return scheduler_; }
  BlockAllocator& allocator() { return allocator_; }
  FakeDevice& device() { return device_; }
  const Outcome& outcome(RequestId id) const { return outcomes_.at(id); }
  const std::map<RequestId, Outcome>& outcomes() const { return outcomes_; }
  std::span<const std::int32_t> plan(std::int32_t buffer) const { return buffers_[buffer]; }
  std::span<const std::int32_t> last_plan() const { return buffers_[last_buffer_]; }
  const std::vector<RequestId>& started() const { return started_; }
  std::uint64_t decision_hash() const;

 private:
  struct Asked {
    std::vector<TokenId> prompt;
    RequestNumbers numbers;
  };

  bool Plan();
  void Retire();
  void Take(const StepResult& result);

  const SchedulerConfig config_;
  BlockAllocator allocator_;
  Scheduler scheduler_;
  FakeDevice device_;
  PlanBuffers buffers_;
  std::deque<std::int32_t> in_flight_;
  std::vector<std::int32_t> copying_;  // steps
  std::int32_t last_buffer_ = 0;
  std::map<RequestId, Asked> asked_;
  std::map<RequestId, Outcome> outcomes_;
  std::vector<RequestId> started_;
};

}  // namespace runtime::testing
