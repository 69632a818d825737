// Who loses its blocks when they run out. A pure function of what it is shown.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "kv_cache/kv_pool.h"
#include "runtime/scheduler_config.h"
#include "scheduler/request.h"

namespace runtime {

class VictimPolicy {
 public:
  // A request preempted so often is never chosen again.
  static constexpr std::int32_t kMaxPreemptions = 3;

  virtual ~VictimPolicy() = default;
  // One of `running` (in order) that may be preempted while `step` is planned, or nullptr.
  virtual Request* Choose(std::span<Request* const> running, const KvPool& kv,
                          std::int64_t step) const = 0;

 protected:
  // Not part of the step yet, and not preempted too often.
  static bool MayChoose(const Request& request, std::int64_t step);
};

// The last one.
class LastComeVictim final : public VictimPolicy {
 public:
  Request* Choose(std::span<Request* const> running, const KvPool& kv,
                  std::int64_t step) const override;
};

// The one with the fewest blocks to compute again: those that nobody else holds. Of equal ones the
// last.
class LeastRecomputeVictim final : public VictimPolicy {
 public:
  Request* Choose(std::span<Request* const> running, const KvPool& kv,
                  std::int64_t step) const override;
};

// kNone is the baseline that others are compared with: it takes the last one.
std::unique_ptr<VictimPolicy> MakeVictim(const SchedulerConfig& config);

}  // namespace runtime
