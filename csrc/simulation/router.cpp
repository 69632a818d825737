#include "simulation/router.h"

#include "simulation/random.h"

namespace runtime::simulation {
namespace {

constexpr std::int64_t kSlack =
    4096;  // tokens of work beyond the bound, so that a small load stays put
constexpr int kMaxAttempts = 8;

}  // namespace

Router::Router(RouterKind kind, std::int32_t num_replicas)
    : kind_(kind), sent_(static_cast<std::size_t>(num_replicas)) {}

std::int32_t Router::Route(const SimulatedRequest& request) {
  std::int32_t replica = 0;
  if (kind_ == RouterKind::kRoundRobin) {
    replica = next_;
    next_ = (next_ + 1) % static_cast<std::int32_t>(sent_.size());
  } else if (kind_ == RouterKind::kPrefixAware && request.prefix_id >= 0) {
    replica = ForPrefix(request.prefix_id);
  } else {
    replica = LeastWork();
  }
  for (Sent* sent : {&sent_[static_cast<std::size_t>(replica)], &total_}) {
    ++sent->num_requests;
    sent->num_prompt_tokens += request.prompt_len;
  }
  return replica;
}

void Router::OnEnded(std::int32_t replica, const Replica::Ended& ended) {
  for (Sent* sent : {&sent_[static_cast<std::size_t>(replica)], &total_}) {
    sent->num_requests -= ended.num_requests;
    sent->num_prompt_tokens -= ended.num_prompt_tokens;
  }
  ended_.num_requests += ended.num_requests;
  ended_.num_output_tokens += ended.num_output_tokens;
  mean_output_ = ended_.num_output_tokens / ended_.num_requests;
}

std::int32_t Router::LeastWork() const {
  std::size_t least = 0;
  std::int64_t least_work = Work(sent_[0]);
  for (std::size_t i = 1; i < sent_.size(); ++i) {
    const std::int64_t work = Work(sent_[i]);
    if (work < least_work) {
      least_work = work;
      least = i;
    }
  }
  return static_cast<std::int32_t>(least);
}

// Consistent hashing with bounded loads (V. Mirrokni, M. Thorup, M. Zadimoghaddam, 2018): the first
// replica in the prefix's own order whose work is at most 5/4 of the mean.
std::int32_t Router::ForPrefix(std::int64_t prefix_id) const {
  const auto count = static_cast<std::int64_t>(sent_.size());
  const std::int64_t bound = Work(total_) * 5 / 4 / count + kSlack;
  Random order(prefix_id, 0, 0);
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    const std::int64_t replica = order.Below(count);
    if (Work(sent_[static_cast<std::size_t>(replica)]) <= bound) {
      return static_cast<std::int32_t>(replica);
    }
  }
  return LeastWork();
}

}  // namespace runtime::simulation
