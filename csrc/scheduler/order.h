// Who goes first. Each policy gives a request its rank once, when it arrives: the lowest rank goes
// first, ties go by arrival, so queues stay sorted while time passes.
#pragma once

#include <cstdint>
#include <memory>

#include "runtime/scheduler_config.h"
#include "scheduler/request.h"

namespace runtime {

class OrderPolicy {
 public:
  virtual ~OrderPolicy() = default;
  virtual std::int64_t Rank(const Request& request) const = 0;
};

class FirstComeFirstServed final : public OrderPolicy {
 public:
  std::int64_t Rank(const Request&) const override { return 0; }
};

// Higher priorities first. Waiting for `ageing_us` is worth one level; as everybody ages at the
// same rate, two requests never change places. 0: nobody ages.
class PriorityWithAgeing final : public OrderPolicy {
 public:
  explicit PriorityWithAgeing(std::int64_t ageing_us) : ageing_us_(ageing_us) {}
  std::int64_t Rank(const Request& request) const override;

 private:
  std::int64_t ageing_us_;
};

std::unique_ptr<OrderPolicy> MakeOrder(const SchedulerConfig& config);

}  // namespace runtime
