// Many replicas behind a router.
#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "common/text.h"
#include "simulation/crew.h"
#include "simulation/replica.h"
#include "simulation/router.h"
#include "simulation/run.h"
#include "simulation/timeline.h"

namespace runtime::simulation {
namespace {

// What the router has sent to one replica and it has not taken yet.
class Mailbox final : public Feed {
 public:
  bool empty() const { return next_ == sent_.size(); }

  void Put(const SimulatedRequest& request, std::int64_t number) {
    if (empty()) {
      sent_.clear();
      next_ = 0;
    }
    sent_.emplace_back(request, number);
  }

  std::int64_t NextArrival(const Load&) override {
    return empty() ? kNever : sent_[next_].first.arrival_ns;
  }

  SimulatedRequest Take(std::int64_t& number) override {
    number = sent_[next_].second;
    return sent_[next_++].first;
  }

 private:
  std::vector<std::pair<SimulatedRequest, std::int64_t>> sent_;
  std::size_t next_ = 0;
};

class FleetRun {
 public:
  FleetRun(const FleetConfig& config, const SharedPrefixes& shape, RequestSource& source)
      : config_(config),
        source_(source),
        router_(config.router, config.num_replicas),
        mailboxes_(static_cast<std::size_t>(config.num_replicas)),
        crew_(config.num_threads, [this](std::int32_t thread) { Advance(thread); }) {
    result_.requests.resize(static_cast<std::size_t>(source.num_requests()));
    for (std::int32_t i = 0; i < config.num_threads; ++i) {
      memories_.push_back(std::make_unique<PlanMemory>(config.replica.scheduler));
    }
    for (std::int32_t i = 0; i < config.num_replicas; ++i) {
      const PlanMemory& memory = *memories_[static_cast<std::size_t>(i % config.num_threads)];
      replicas_.push_back(
          std::make_unique<Replica>(config.replica, shape, i, memory, result_.requests));
    }
    next_ = source_.Next();
  }

  SimulationResult Run(const Heartbeat& heartbeat) {
    const auto interval_ns =
        static_cast<std::int64_t>(std::llround(config_.report_interval_s * kNanoseconds));
    for (std::int64_t next = 0; next != kNever; next = NextEvent()) {
      until_ns_ = (next / interval_ns + 1) * interval_ns;
      Send();
      crew_.Run();
      Report();
      if (heartbeat) heartbeat();
    }
    return Finish();
  }

 private:
  void Send() {
    for (; next_ && next_->arrival_ns < until_ns_; next_ = source_.Next()) {
      const std::int32_t replica = router_.Route(*next_);
      mailboxes_[static_cast<std::size_t>(replica)].Put(*next_, num_sent_++);
    }
  }

  void Advance(std::int32_t thread) {
    for (auto i = static_cast<std::size_t>(thread); i < replicas_.size();
         i += static_cast<std::size_t>(config_.num_threads)) {
      if (replicas_[i]->next_event() > until_ns_ && mailboxes_[i].empty()) continue;
      replicas_[i]->AdvanceTo(until_ns_, mailboxes_[i]);
    }
  }

  void Report() {
    for (std::size_t i = 0; i < replicas_.size(); ++i) {
      const Replica::Ended ended = replicas_[i]->TakeEnded();
      if (ended.num_requests > 0) router_.OnEnded(static_cast<std::int32_t>(i), ended);
    }
    if (timeline_.WantsNext()) timeline_.Add(Sample());
  }

  TimelinePoint Sample() const {
    TimelinePoint sum;
    for (const auto& replica : replicas_) {
      const TimelinePoint point = replica->Sample();
      sum.num_running += point.num_running;
      sum.num_waiting += point.num_waiting;
      sum.num_held_blocks += point.num_held_blocks;
      sum.num_cached_blocks += point.num_cached_blocks;
    }
    sum.time_s = static_cast<double>(until_ns_) / kNanoseconds;
    return sum;
  }

  std::int64_t NextEvent() const {
    std::int64_t next = next_ ? next_->arrival_ns : kNever;
    for (const auto& replica : replicas_) next = std::min(next, replica->next_event());
    return next == kNever ? kNever : std::max(next, until_ns_);
  }

  SimulationResult Finish() {
    double queued_s = 0.0;
    for (const auto& replica : replicas_) replica->AddTo(result_, queued_s);
    MakeShares(result_, queued_s, config_.num_replicas);
    result_.timeline = timeline_.Take();
    return std::move(result_);
  }

  const FleetConfig& config_;
  RequestSource& source_;
  Router router_;
  SimulationResult result_;
  Timeline timeline_;
  std::vector<std::unique_ptr<PlanMemory>> memories_;
  std::vector<Mailbox> mailboxes_;
  std::vector<std::unique_ptr<Replica>> replicas_;
  std::optional<SimulatedRequest> next_;
  std::int64_t num_sent_ = 0;
  std::int64_t until_ns_ = 0;
  Crew crew_;  // last: its threads use the rest
};

}  // namespace

void FleetConfig::Validate() const {
  replica.Validate();
  RequireSetting(num_replicas >= 1 && num_replicas <= (1 << 20), "num_replicas", num_replicas,
                 "between 1 and " + Text(1 << 20));
  RequireSetting(num_threads >= 1 && num_threads <= 256, "num_threads", num_threads,
                 "between 1 and 256");
  RequireSetting(replica.event_log.empty(), "event_log", replica.event_log,
                 "empty for a fleet: a log is of one replica");
  RequireSetting(report_interval_s >= 1e-6 && report_interval_s <= 3600.0, "report_interval_s",
                 report_interval_s, "between 1e-06 and 3600 seconds");
}

SimulationResult SimulateFleet(const FleetConfig& config, const Workload& workload,
                               const Heartbeat& heartbeat) {
  config.Validate();
  if (workload.is_closed()) {
    throw ConfigError("concurrency and queue_depth are of one replica: num_replicas=" +
                      Text(config.num_replicas) + " needs an arrival rate");
  }
  const auto source = MakeSource(workload, config.replica.max_len());
  return FleetRun(config, workload.prefixes, *source).Run(heartbeat);
}

SimulationResult SimulateFleet(const FleetConfig& config, std::vector<SimulatedRequest> trace,
                               const Heartbeat& heartbeat) {
  config.Validate();
  const auto source = MakeSource(std::move(trace), config.replica.max_len());
  return FleetRun(config, {}, *source).Run(heartbeat);
}

}  // namespace runtime::simulation
