#include "scheduler/order.h"

#include <cmath>

namespace runtime {

std::int64_t PriorityWithAgeing::Rank(const Request& request) const {
  if (ageing_us_ == 0) return -std::int64_t{request.priority};
  return request.submitted_us - request.priority * ageing_us_;
}

std::unique_ptr<OrderPolicy> MakeOrder(const SchedulerConfig& config) {
  if (config.policy == SchedulingPolicy::kPriority) {
    return std::make_unique<PriorityWithAgeing>(std::llround(config.priority_ageing_s * 1e6));
  }
  return std::make_unique<FirstComeFirstServed>();
}

}  // namespace runtime
