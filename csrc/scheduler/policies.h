// What the scheduler asks others to decide. Each policy is a pure function of what it is shown.
#pragma once

#include <cstdint>
#include <span>

#include "scheduler/request.h"

namespace runtime {

// Who loses its blocks when they run out.
class VictimPolicy {
 public:
  virtual ~VictimPolicy() = default;
  // One of `running` (in order) that may be preempted while `step` is planned, or nullptr.
  virtual Request* Choose(std::span<Request* const> running, std::int64_t step) const = 0;
};

// The last one that is not yet part of the step. A request preempted kMaxPreemptions times is never
// chosen again.
class LastComeVictim final : public VictimPolicy {
 public:
  static constexpr std::int32_t kMaxPreemptions = 3;
  Request* Choose(std::span<Request* const> running, std::int64_t step) const override;
};

// Numbers of blocks, at the moment a waiting request could start.
struct AdmissionView {
  std::int32_t num_needed = 0;     // free blocks that its known tokens take
  std::int32_t num_available = 0;  // free and not set aside
  std::int32_t num_committed = 0;  // still to be taken by the prompts of running requests
  std::int32_t watermark = 0;
  bool is_idle = false;  // nothing runs
};

class AdmissionPolicy {
 public:
  virtual ~AdmissionPolicy() = default;
  virtual bool Admits(const AdmissionView& view) const = 0;
};

// Admits what fits above the watermark with its whole prompt, beside the whole prompts of those
// that run; anything that fits at all when nothing runs.
class AdmitWhenItFits final : public AdmissionPolicy {
 public:
  bool Admits(const AdmissionView& view) const override;
};

}  // namespace runtime
