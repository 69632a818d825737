#pragma once

#include <cstdint>
#include <vector>

#include "runtime/simulation.h"
#include "simulation/replica.h"

namespace runtime::simulation {

// Chooses a replica for each request. The work of a replica is the prompt tokens of what it was
// sent and has not reported as ended, plus for each of these the mean output of what has ended
// anywhere.
class Router {
 public:
  Router(RouterKind kind, std::int32_t num_replicas);

  std::int32_t Route(const SimulatedRequest& request);
  void OnEnded(std::int32_t replica, const Replica::Ended& ended);

 private:
  struct Sent {
    std::int64_t num_requests = 0;
    std::int64_t num_prompt_tokens = 0;
  };

  std::int32_t LeastWork() const;
  std::int32_t ForPrefix(std::int64_t prefix_id) const;
  std::int64_t Work(const Sent& sent) const {
    return sent.num_prompt_tokens + sent.num_requests * mean_output_;
  }

  const RouterKind kind_;
  std::vector<Sent> sent_;  // by replica
  Sent total_;
  Replica::Ended ended_;
  std::int64_t mean_output_ = 1;
  std::int32_t next_ = 0;
};

}  // namespace runtime::simulation
