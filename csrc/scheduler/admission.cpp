#include "scheduler/admission.h"

#include <algorithm>

#include "scheduler/past_future.h"

namespace runtime {

bool AdmissionPolicy::FitsNow(const AdmissionView& view) {
  const bool is_idle = view.running.empty();
  const std::int32_t kept_free = is_idle ? 0 : view.num_committed + view.kv.watermark();
  return view.num_needed + kept_free <= view.kv.num_available();
}

bool AdmitByMaxTokens::Admits(const AdmissionView& view) {
  if (view.running.empty()) return true;
  const auto left = [&](const Request& request, std::int32_t num_held) {
    return std::max(view.kv.BlocksFor(request.max_computed()) - num_held, 0);
  };
  std::int64_t num_growing = 0;
  for (const Request* request : view.running) {
    num_growing += left(*request, request->kv.table.size() + request->kv.num_reserved);
  }
  const auto num_known = static_cast<std::int32_t>(view.candidate.tokens.size());
  const std::int32_t own =
      view.is_protected ? 0 : left(view.candidate, view.kv.BlocksFor(num_known));
  return num_growing + view.num_needed + own <= view.kv.num_available();
}

std::unique_ptr<AdmissionPolicy> MakeAdmission(const SchedulerConfig& config,
                                               const BlockAllocator& allocator) {
  switch (config.admission) {
    case AdmissionMode::kNone:
      return std::make_unique<AdmitWhenItFits>();
    case AdmissionMode::kMaxTokens:
      return std::make_unique<AdmitByMaxTokens>();
    case AdmissionMode::kPastFuture:
      return std::make_unique<PastFutureAdmission>(config, allocator.num_blocks(),
                                                   std::make_unique<HistoryForecast>(config));
    case AdmissionMode::kOracle:
      break;
  }
  return std::make_unique<PastFutureAdmission>(config, allocator.num_blocks(),
                                               std::make_unique<OracleForecast>());
}

}  // namespace runtime
