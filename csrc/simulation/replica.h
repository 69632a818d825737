#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <span>
#include <vector>

#include "runtime/block_allocator.h"
#include "runtime/scheduler.h"
#include "runtime/simulation.h"
#include "simulation/synthesis.h"

namespace runtime::simulation {

inline constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

// Requests on their way to a replica.
class Feed {
 public:
  struct Load {
    std::int64_t now_ns = 0;
    std::int32_t num_alive = 0;
    std::int32_t num_waiting = 0;  // not yet started
  };

  virtual ~Feed() = default;
  // When the next one arrives, given what the replica has; kNever: none is known.
  virtual std::int64_t NextArrival(const Load& load) = 0;
  // REQUIRES: NextArrival was not kNever.
  virtual SimulatedRequest Take(std::int64_t& number) = 0;
};

// Memory for plans. A plan is read as soon as it is written, so replicas that take turns share it.
class PlanMemory {
 public:
  explicit PlanMemory(const SchedulerConfig& config);
  std::span<const PlanBuffer> buffers() const { return buffers_; }

 private:
  std::vector<std::vector<std::int32_t>> words_;
  std::vector<PlanBuffer> buffers_;
};

// One scheduler and its device, which is busy for as long as the step-time model says. Step n + 1
// is planned while n runs if num_steps_in_flight is 2. Copies to the CPU tier and back run beside,
// over one link, and take the scheduler's transfer_block_s for each block.
class Replica {
 public:
  // `records` holds one entry for each request number; all must outlive the replica.
  Replica(const ReplicaConfig& config, const SharedPrefixes& shape, std::int32_t index,
          const PlanMemory& memory, std::span<RequestRecord> records);

  // Lives until the next event would lie after `until_ns`.
  void AdvanceTo(std::int64_t until_ns, Feed& feed);
  // The time of that event; kNever: it is idle, and the feed knows of nothing.
  std::int64_t next_event() const { return next_event_; }

  std::int32_t num_alive() const { return num_alive_; }
  TimelinePoint Sample() const;
  // Prompt and output tokens of requests that ended since the last call, and how many there were.
  struct Ended {
    std::int64_t num_requests = 0, num_prompt_tokens = 0, num_output_tokens = 0;
  };
  Ended TakeEnded();

  // Adds its totals and its integrals over time to `result`, whose shares are sums of seconds here.
  void AddTo(SimulationResult& result, double& queued_s) const;
  std::int64_t num_steps() const { return num_steps_; }
  std::int64_t last_end() const { return last_end_; }

 private:
  struct Live {
    std::int64_t number = 0;
    std::int64_t arrival_ns = 0;
    std::int64_t last_token_ns = 0;
    std::int64_t max_gap_ns = 0;
    std::int32_t num_tokens = 0;
  };
  struct Flight {
    std::int64_t end_ns = 0;
    std::int32_t step = 0;
    std::int32_t num_sampled = 0;
    std::vector<TokenId> tokens;
  };
  struct Copies {
    std::int64_t end_ns = 0;
    std::int32_t step = 0;
  };

  void Deliver(Feed& feed);
  void Submit(const SimulatedRequest& request, std::int64_t number);
  void Plan();
  void StartCopies(std::int32_t step, std::int32_t count);
  void FinishCopies();
  void Retire();
  void TakeToken(std::size_t slot, std::int32_t& num_emitted);
  void Finish(std::size_t slot, const StepResult& result, std::size_t entry);
  void PassTime(std::int64_t now_ns);
  bool CanPlan() const { return num_in_flight_ < config_.scheduler.num_steps_in_flight; }
  Flight& flight(std::int32_t index) { return flights_[static_cast<std::size_t>(index & 1)]; }

  const ReplicaConfig& config_;
  const PromptWriter prompts_;
  const std::int32_t index_;
  const std::span<RequestRecord> records_;
  const PlanMemory& memory_;
  BlockAllocator allocator_;
  Scheduler scheduler_;
  Executor executor_;

  std::vector<Live> live_;  // by slot
  std::vector<std::int32_t> free_slots_;
  std::int64_t num_submitted_ = 0;
  std::int32_t num_alive_ = 0;
  std::int32_t num_waiting_ = 0;

  std::int64_t now_ns_ = 0;
  std::int64_t next_event_ = 0;
  std::int64_t device_free_ns_ = 0;
  std::int64_t last_end_ = 0;
  std::vector<Flight> flights_;
  std::deque<Copies> copies_;  // between device and host, one plan's after the other's
  std::int32_t oldest_ = 0;
  std::int32_t num_in_flight_ = 0;
  bool has_news_ = false;  // something happened since the last plan

  Ended ended_;
  std::int64_t num_steps_ = 0;
  std::int64_t num_scheduled_tokens_ = 0;
  std::int64_t num_wasted_tokens_ = 0;
  double busy_s_ = 0.0, held_s_ = 0.0, cached_s_ = 0.0, queued_s_ = 0.0, held_queued_s_ = 0.0;
  double held_share_ = 0.0, cached_share_ = 0.0;  // now
};

}  // namespace runtime::simulation
