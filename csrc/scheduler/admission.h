// Which waiting request may start beside those that run.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "kv_cache/kv_pool.h"
#include "runtime/scheduler_config.h"
#include "scheduler/request.h"

namespace runtime {

// The first waiting request, and the blocks of the pool, at the moment it could start.
struct AdmissionView {
  const Request& candidate;
  std::span<Request* const> running;
  const KvPool& kv;
  std::int32_t num_needed = 0;     // free blocks that it takes for its known tokens, or sets aside
  std::int32_t num_committed = 0;  // still to be taken by the prompts of running requests
  bool is_protected = false;       // it starts with every block it can ever need
};

class AdmissionPolicy {
 public:
  virtual ~AdmissionPolicy() = default;
  // Called in each step before the first candidate. Until the next call nothing but the admitted
  // candidates changes.
  virtual void BeginStep() {}
  // Whether the candidate starts. REQUIRES: FitsNow(view).
  virtual bool Admits(const AdmissionView& view) = 0;
  // An output came to its end by itself.
  virtual void OnFinished(const Request&) {}

  // Whether it fits above the watermark with its whole prompt, beside the whole prompts of those
  // that run; when nothing runs, whether it fits at all.
  static bool FitsNow(const AdmissionView& view);
};

// Admits what fits now.
class AdmitWhenItFits final : public AdmissionPolicy {
 public:
  bool Admits(const AdmissionView&) override { return true; }
};

// Admits what fits even if every request grows to its max_tokens. Blocks still run out, and
// somebody is preempted, when they go to what nobody asked for at admission: pins made later, or
// twins of cached blocks (see PrefixChain); and a prompt stops at the watermark, which decodes may
// have taken.
class AdmitByMaxTokens final : public AdmissionPolicy {
 public:
  bool Admits(const AdmissionView& view) override;
};

// Of kNone, kMaxTokens, kPastFuture and kOracle.
std::unique_ptr<AdmissionPolicy> MakeAdmission(const SchedulerConfig& config,
                                               const BlockAllocator& allocator);

}  // namespace runtime
