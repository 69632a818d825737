// One replica.
#include <algorithm>
#include <cmath>
#include <utility>

#include "simulation/replica.h"
#include "simulation/run.h"
#include "simulation/timeline.h"

namespace runtime::simulation {
namespace {

constexpr std::int64_t kSampleEvery = kNanoseconds / 20;

// Yields requests when they are due, or as soon as the replica has too few.
class SourceFeed final : public Feed {
 public:
  SourceFeed(RequestSource& source, const Workload& workload)
      : source_(source), workload_(workload), next_(source.Next()) {}

  std::int64_t NextArrival(const Load& load) override {
    if (!next_) return kNever;
    if (!workload_.is_closed()) return next_->arrival_ns;
    const bool has_room = (workload_.concurrency == 0 || load.num_alive < workload_.concurrency) &&
                          (workload_.queue_depth == 0 || load.num_waiting < workload_.queue_depth);
    if (!has_room) return kNever;
    return next_->arrival_ns = load.now_ns;
  }

  SimulatedRequest Take(std::int64_t& number) override {
    number = num_taken_++;
    const SimulatedRequest request = *next_;
    next_ = source_.Next();
    return request;
  }

 private:
  RequestSource& source_;
  const Workload& workload_;
  std::optional<SimulatedRequest> next_;
  std::int64_t num_taken_ = 0;
};

SimulationResult Run(const ReplicaConfig& config, const Workload& workload, RequestSource& source,
                     const Heartbeat& heartbeat) {
  SimulationResult result;
  result.requests.resize(static_cast<std::size_t>(source.num_requests()));
  const PlanMemory memory(config.scheduler);
  Replica replica(config, workload.prefixes, 0, memory, result.requests);
  SourceFeed feed(source, workload);
  Timeline timeline;
  for (std::int64_t until = 0;;) {
    replica.AdvanceTo(until, feed);
    if (heartbeat) heartbeat();
    if (timeline.WantsNext()) timeline.Add(replica.Sample());
    if (replica.next_event() == kNever) break;
    until = std::max(until + kSampleEvery, replica.next_event());
  }
  result.timeline = timeline.Take();
  double queued_s = 0.0;
  replica.AddTo(result, queued_s);
  MakeShares(result, queued_s, 1);
  return result;
}

}  // namespace

void MakeShares(SimulationResult& result, double queued_s, std::int32_t num_replicas) {
  const double seconds = std::max(result.duration_s * num_replicas, 1e-9);
  result.busy_share /= seconds;
  result.held_share /= seconds;
  result.cached_share /= seconds;
  result.held_share_queued /= std::max(queued_s, 1e-9);
}

SimulationResult Simulate(const ReplicaConfig& config, const Workload& workload,
                          const Heartbeat& heartbeat) {
  config.Validate();
  const auto source = MakeSource(workload, config.max_len());
  return Run(config, workload, *source, heartbeat);
}

SimulationResult Simulate(const ReplicaConfig& config, std::vector<SimulatedRequest> trace,
                          const Heartbeat& heartbeat) {
  config.Validate();
  const auto source = MakeSource(std::move(trace), config.max_len());
  return Run(config, Workload{}, *source, heartbeat);
}

}  // namespace runtime::simulation
